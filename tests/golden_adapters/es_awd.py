"""The file of es_awd: one step of evolution, with and without the decay."""

import jax.numpy as jnp

from jaxrl_llm.optimizers import anchored, evolution

# Output -> norm of the decay and the option that has its strength.
_DECAYS = {
  "theta_awd_l2": ("l2", "lambda_l2", 10.0),
  "theta_awd_l1": ("l1", "lambda_l1", 0.01),
  "theta_awd_l1_prox": ("l1", "lambda_l1", 0.01),
  "theta_awd_l1_sign": ("l1_sign", "lambda_l1", 0.01),
}


def adapt(case, dtype):
  """Each output that the case asks for."""
  params = case.params
  alpha = params.get("alpha", 5e-4)
  theta = case.array("theta", dtype)
  start = case.array("theta0", dtype) if "theta0" in case.inputs else theta
  z = evolution.standardized(
    case.array("fitness", dtype), eps=params.get("z_eps", 1e-8)
  )
  moved = theta
  if "eps" in case.inputs:
    eps = case.array("eps", dtype)
    moved = theta + alpha * evolution.recombined(z, lambda j: eps[j])
  found = {"z": z, "theta_es": moved}
  found |= {
    name: anchored.pulled(
      moved, start, alpha * params.get(option, default), norm=norm
    )
    for name, (norm, option, default) in _DECAYS.items()
  }
  for name in ("drift_norm", "update_norm"):
    origin = start if name == "drift_norm" else theta
    found[name] = jnp.sqrt(((moved - origin) ** 2).sum())
  return {name: found[name] for name in case.outputs}
