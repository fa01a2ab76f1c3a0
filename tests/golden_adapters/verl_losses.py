"""Cases of kind policy_loss of verl."""

ADAPTERS = {}
