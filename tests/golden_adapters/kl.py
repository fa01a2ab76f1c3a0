"""Cases of kind kl, kl_penalty, kl_controller, agg_loss and value_loss."""

ADAPTERS = {}
