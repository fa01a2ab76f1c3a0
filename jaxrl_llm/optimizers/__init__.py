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
from jaxrl_llm.optimizers.evolution import (
  ascent,
  member_seeds,
  noise,
  perturbed,
  recombined,
  standardized,
)

__all__ = [
  "AnchorState",
  "anchored_weight_decay",
  "ascent",
  "check_anchor",
  "drift_norm",
  "member_seeds",
  "noise",
  "perturbed",
  "pulled",
  "recombined",
  "standardized",
]
