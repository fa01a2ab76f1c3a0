"""Cases of kind soft_overlong, stop_properly, reward and eval."""

ADAPTERS = {}
