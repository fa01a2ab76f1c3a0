"""OISD: good rollouts pull an inner layer towards the final one, bad ones push.

Around another method, with its signed credit A, a constant,

    p_l   = softmax(head(final_norm(h_l))),  h_l the stream after l blocks
    a_l   = mean over heads of the attention in block l
    think = sum_it m_it A_it JSD(p_l, p_L)_it / sum(m)
    attn  = sum_it m_it A_it JSD(a_l, a_L)_it / sum(m)
    loss  = method + lam_think think + lam_attn attn

where p_L and a_L, of the final layer, are constants, and JSD, the divergence to
the mean of both, is at most log 2. So the push away is bounded.

Against GRPO it changes:
  prepare    1 / sum(m) over the whole optimizer batch
  objective  the two terms

Their gradient is into the layers up to l alone: final norm and head, through
which h_l is read, are constants (flow lets them learn). Of the attention the
rows of the positions that predict completion tokens count. Layer l = L is the
method itself. The paper's 6 and 35 of 36 layers and 27 of 28 count blocks below
the stream, so layer does too.

Our readings, the official code not being public: heads are averaged before the
divergence; where the gradient goes; both distributions are at the sampling
temperature; both terms are means over tokens whatever the method's
weighting. lam_attn = 0 leaves the attention maps unmade.

OISD: On-Policy Internal Self-Distillation, arXiv:2605.29089.
"""

import dataclasses

import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.methods import base, grpo
from jaxrl_llm.objectives import alignment, weighting

_SHARE = "oisd_share"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oisd(base.MethodConfig):
  """OISD around GRPO, as published."""

  method: base.MethodConfig = dataclasses.field(default_factory=grpo.Grpo)
  """whose loss and credit: any with a group advantage"""
  lam_think: float = 1.0
  """of the divergence of predictions, in credit per nat; 0: not computed"""
  lam_attn: float = 0.1
  """of the divergence of attention, in credit per nat; 0: not computed"""
  layer: int = 0
  """blocks below the stream that is read (l); 0: a sixth of the model's, the 6
  of Qwen3-4B's 36 (OctoThinker-3B: 27)"""
  flow: bool = False
  """lets final norm and head learn from the inner predictions"""

  def build(self) -> base.Method:
    """Composes the method."""
    terms = self._terms()
    if self.layer < 0:
      raise ValueError(f"layer must be 0 or more, got {self.layer}.")
    inner = self.method.build()

    def prepare(rollout, advantages, scores):
      rollout = inner.prepare(rollout, advantages, scores)
      share = weighting.token_mean(rollout.mask, rollout.weights)
      return rollout.replace(extras=rollout.extras | {_SHARE: share})

    def objective(scores, rollout, advantages, weights):
      loss, metrics = inner.objective(scores, rollout, advantages, weights)
      counted = rollout.mask & (weights != 0)
      for name, coef in terms.items():
        apart = jnp.where(counted, getattr(scores, name), 0.0)
        share = jnp.where(counted, rollout.extras[_SHARE], 0.0)
        loss += coef * alignment.signed_divergence(apart, advantages, share)
        metrics |= {name: jnp.where(counted, weights * apart, 0.0).sum()}
      return loss, metrics | {"loss": loss}

    return dataclasses.replace(
      inner,
      prepare=prepare,
      objective=objective,
      needs=inner.needs
      | terms.keys()
      | ({types.InnerLayer(self.layer, self.flow)} if terms else set()),
    )

  def _terms(self):
    """Coefficients of the terms that there are, by fields of Scores."""
    for name in ("lam_think", "lam_attn"):
      if not 0 <= getattr(self, name) < float("inf"):
        raise ValueError(
          f"{name} must be 0 or more and finite, got {getattr(self, name)}."
        )
    coefs = {"layer_jsd": self.lam_think, "attention_jsd": self.lam_attn}
    return {name: coef for name, coef in coefs.items() if coef}
