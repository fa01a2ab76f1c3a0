"""Cases of kind policy_loss of TRL."""

ADAPTERS = {}
