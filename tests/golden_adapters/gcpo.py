"""Cases of GCPO: divergence, its weights, and credit of tokens."""

import numpy as np

from jaxrl_llm.advantages import contrast


def adapt(case, dtype):
  """Of the outputs those that the case has."""
  params = case.params
  mask = case.array("mask", dtype) > 0
  kappa = contrast.concentration(
    top=params.get("top_fraction", 0.4), mass=params.get("mass", 0.8)
  )
  divergence = contrast.contrast(
    case.array("pos_logprobs", dtype),
    case.array("neg_logprobs", dtype),
    limit=params.get("logratio_clip", 20.0),
    bound=params.get("div_clip", 10.0),
  )
  if "linear" in params.values():
    weights = contrast.linear_weights(divergence, mask)
  else:
    weights = contrast.rank_weights(
      divergence, mask, kappa=kappa, ties=params.get("ties", "order")
    )
  found = {"divergence": divergence, "kappa": np.asarray(kappa)}
  found["weights"] = weights
  if "advantages" in case.inputs:
    credit = case.array("advantages", dtype)
    found["token_advantages"] = credit[:, None] * weights
  return {name: found[name] for name in case.outputs}
