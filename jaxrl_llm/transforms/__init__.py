"""Rollout to rollout, with state: chain, filters, statistics."""
