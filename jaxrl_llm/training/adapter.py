"""What a run trains: all parameters, or an adapter beside frozen ones.

With `lora.rank` the state of a run, its optimizer's and its checkpoints are of
the adapter alone. The base is the frozen reference, which a step is given
anyway: one copy serves as both. Without, `start` and `attach` pass on what
they are given.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.distributed import fingerprint
from jaxrl_llm.methods import base as methods_base
from jaxrl_llm.models import api, lora
from jaxrl_llm.training import experiment

# The stream of randomness that A is drawn from, of the run's seed.
_STREAM = 2
# float32 parameter, gradient and Adam's two moments.
_TRAINED_BYTES = 16


def base_dtype(config: experiment.Experiment) -> np.dtype:
  """Of the matrices of the loaded weights; vectors are float32.

  Trained ones are float32, or what a method without gradients keeps them in.
  Frozen ones have that of the products: there they would be rounded to it all
  the same, so this halves their memory and changes no number of sampling and
  training.
  """
  method = config.method.build()
  if config.lora.rank:
    kind = config.model.dtype
  elif isinstance(method, methods_base.Evolution):
    kind = method.weights
  else:
    kind = "float32"
  return np.dtype(jnp.dtype(kind))


def start(config: experiment.Experiment, base: api.Params) -> Any:
  """What is trained, before the first step: the base or a new adapter."""
  if not config.lora.rank:
    return base
  key = jax.random.fold_in(jax.random.key(config.seed), _STREAM)
  return lora.init(
    key, base, rank=config.lora.rank, targets=config.lora.targets
  )


def attach(
  config: experiment.Experiment,
) -> Callable[[api.Params | None, Any], api.Params]:
  """(frozen, trained) -> parameters of the policy, for a model."""
  if not config.lora.rank:
    return lambda frozen, params: params
  scale = config.lora.alpha / config.lora.rank
  return lambda frozen, adapter: lora.attach(frozen, adapter, scale=scale)


def state_bytes(config: experiment.Experiment, base: Any) -> int:
  """Parameters, gradients, optimizer state, anchor and slow average of a run.

  Args:
    config: the experiment.
    base: shapes and dtypes of the model's parameters.
  """
  learnt = jax.eval_shape(lambda base: start(config, base), base)
  kept = jnp.dtype(config.optimizer.anchor_dtype).itemsize
  each = _TRAINED_BYTES + (kept if config.optimizer.anchor else 0)
  if getattr(config.method.build(), "shadow", None):
    each += 4
  size = sum(each * leaf.size for leaf in jax.tree.leaves(learnt))
  if config.lora.rank:
    size += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base))
  return size


def origin(config: experiment.Experiment, base: api.Params) -> dict[str, float]:
  """What an adapter belongs to, for its checkpoints; empty without one.

  The checksum is of the weights in bfloat16, so that it does not depend on the
  dtype that they are kept in.
  """
  if not config.lora.rank:
    return {}

  def low(base):
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    return fingerprint.checksum(rounded)

  return {"alpha": config.lora.alpha, "base": int(jax.jit(low)(base))}


def check_origin(saved: Mapping[str, float], now: Mapping[str, float]) -> None:
  """Raises ValueError, one line, unless an adapter belongs to a run's base."""
  for name, what in (("alpha", "lora.alpha"), ("base", "base weights")):
    if saved.get(name) != now.get(name):
      raise ValueError(
        f"the checkpoint's adapter was trained with {what}"
        f" {_say(saved, name)}, this run has {_say(now, name)}; use the run's"
        " own config, seed and model."
      )


def _say(found, name):
  return f"{found[name]:x}" if name == "base" else f"{found[name]:g}"
