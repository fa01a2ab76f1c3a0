"""Cases of kind advantage and kl_in_reward."""

ADAPTERS = {}
