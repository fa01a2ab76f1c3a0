"""Cases of kind rollout_is, rollout_rs, mask and bypass-mode policy_loss."""

ADAPTERS = {}
