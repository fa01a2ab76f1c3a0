"""Public tiny fakes: rollouts, models, tokenizers, contracts."""
