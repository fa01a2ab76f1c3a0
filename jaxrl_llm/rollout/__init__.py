"""Policy to rollout: sampling rules, decode engine, collect."""
