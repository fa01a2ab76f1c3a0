"""Cases of OISD: both divergences and the two terms."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import alignment, divergence, weighting


def adapt(case, dtype):
  """Returns the outputs of a case by name."""
  ours = _terms(case, dtype)
  return {name: ours[name] for name in case.outputs}


def _terms(case, dtype):
  inner, final = (
    jax.nn.softmax(case.array(f"{name}_logits", dtype))
    for name in ("inter", "final")
  )
  thinks = divergence.jensen_shannon(inner, final)
  mask = jnp.asarray(case.inputs.get("mask", np.ones(thinks.shape))) > 0
  attends = jnp.zeros_like(thinks)
  if "inter_attn" in case.inputs:
    # A file's probabilities may have an axis of heads.
    maps = [case.array(f"{name}_attn", dtype) for name in ("inter", "final")]
    maps = [x.mean(axis=1) if x.ndim == 4 else x for x in maps]
    attends = divergence.jensen_shannon(*maps)
  credit = case.array("advantages", dtype)
  credit = credit[:, None] if credit.ndim == 1 else credit
  credit = jnp.broadcast_to(credit, mask.shape)
  share = weighting.token_mean(mask, jnp.ones(len(mask), dtype))
  think = alignment.signed_divergence(thinks, credit, share)
  attn = alignment.signed_divergence(attends, credit, share)
  lam_think = case.params.get("lambda_think", 1.0)
  lam_attn = case.params.get("lambda_attn", 0.1)
  return {
    "jsd_logit": thinks,
    "jsd_attn": attends,
    "loss_think": think,
    "loss_attn": attn,
    "aux_loss": lam_think * think + lam_attn * attn,
  }
