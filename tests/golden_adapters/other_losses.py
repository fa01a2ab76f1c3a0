"""Cases of kind policy_loss of the libraries besides TRL and verl."""

ADAPTERS = {}
