"""Decoupled PPO: clips against the trainer before the update, not the sampler.

The trust region is about a proximal policy, the weights that the update
starts from, while stale samples are corrected for by a weight. With x the
log-probability being trained, o that of the proximal policy and u that of the
sampler, of whatever age,

    w    = exp(o - u) if it is at most cap, else 0
    loss = sum_it v_it w_it l(exp(x - o), A)

with v and l the weights and the policy loss of the method. PPO against u would
clip away what is merely old. Off-policy correction with these defaults.

Against GRPO it changes:
  transform  after the method's own: writes w

Fu et al. 2025, AReaL, arXiv:2505.24298, eq. 5.
"""

import dataclasses

from jaxrl_llm.methods import base, grpo, offpolicy_correction


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoupledPpo(base.MethodConfig):
  """Decoupled PPO around any method that clips a ratio."""

  method: base.MethodConfig = dataclasses.field(default_factory=grpo.Grpo)
  """what is decoupled: any method with a ratio"""
  cap: float = 5.0
  """largest weight, above it a token counts 0 (AReaL behave_imp_weight_cap);
  inf: none"""

  def build(self) -> base.Method:
    """Composes the method."""
    if not self.cap >= 1:
      raise ValueError(f"cap must be 1 or more, got {self.cap}.")
    return offpolicy_correction.OffPolicyCorrection(
      method=self.method,
      mode="mask",
      high=self.cap,
      denominator="original",
    ).build()
