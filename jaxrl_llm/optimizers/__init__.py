"""Rules in weight space: what an update does to the parameters themselves.

What is named here takes and returns pytrees of parameters; nothing of a
trainer is needed.
"""

from jaxrl_llm.optimizers.anchored import (
  AnchorState,
  anchored_weight_decay,
  check_anchor,
  drift_norm,
  pulled,
)

__all__ = [
  "AnchorState",
  "anchored_weight_decay",
  "check_anchor",
  "drift_norm",
  "pulled",
]
