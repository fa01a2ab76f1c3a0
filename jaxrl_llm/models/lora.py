"""LoRA: a frozen base and small matrices beside its own, as pure functions.

  y = x W + scale * (x A) B,    A [in, rank] random, B [rank, out] zero

Nothing is merged while a run trains. The sum W + scale A B would be a second
copy of the weights with a gradient as large, and in bfloat16 it would round
away what a few steps have learnt: sampler and trainer would be two policies.
So both compute the line above, from the same arrays; an export merges.

References:
  Hu et al. 2021, arXiv:2106.09685. Its code and this one draw A uniform in
  +- in^-1/2, the paper's text says normal.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_llm.models import api
from jaxrl_llm.models.linear import LowRank

# Matrices of a block that may be adapted, by name.
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")

Adapter = dict[str, Any]


def init(
  key: jax.Array, base: Any, *, rank: int, targets: Sequence[str] = TARGETS
) -> Adapter:
  """An adapter that changes nothing yet.

  Args:
    key: typed. A of one target does not depend on which others there are.
    base: the parameter tree, arrays or shapes.
    rank: r, at least 1.
    targets: names out of TARGETS, at least one.

  Returns:
    The tree of the base with {"a": [depth, in, r], "b": [depth, r, out]},
    float32, in the place of each target, and nothing else.

  Raises:
    ValueError: if the rank or a target cannot be.
  """
  check(rank=rank, targets=targets)

  def pair(name, matrix):
    *stack, inside, out = matrix.shape
    own = jax.random.fold_in(key, TARGETS.index(name))
    bound = inside**-0.5
    a = jax.random.uniform(own, (*stack, inside, rank), minval=-1.0)
    return {"a": bound * a, "b": jnp.zeros((*stack, rank, out))}

  def below(node):
    found = {
      name: below(child) if isinstance(child, dict) else pair(name, child)
      for name, child in node.items()
      if isinstance(child, dict) or name in targets
    }
    return {name: child for name, child in found.items() if child}

  return below({"layers": base["layers"]})


def check(*, rank: int, targets: Sequence[str]) -> None:
  """Raises ValueError, one line, for what `init` cannot do."""
  if rank < 1:
    raise ValueError(f"rank must be at least 1, got {rank}.")
  for name in targets or ("none",):
    if name not in TARGETS:
      raise ValueError(
        f"targets must name one or more of {', '.join(TARGETS)}, got {name!r}."
      )


def attach(base: api.Params, adapter: Adapter, *, scale: float) -> api.Params:
  """Parameters that any model takes, with a LowRank for each target.

  Computes and copies nothing. A gradient through it reaches the adapter alone.

  Args:
    base: frozen parameters.
    adapter: from `init`.
    scale: alpha / rank; multiplies A B.
  """

  def below(base, adapter):
    if not isinstance(base, dict):
      return LowRank(base, adapter["a"], adapter["b"], scale)
    return {
      name: below(child, adapter[name]) if name in adapter else child
      for name, child in base.items()
    }

  return below(base, adapter)


def trained(params: api.Params) -> Any:
  """The adapter of attached parameters; parameters without one as they are."""

  def below(node):
    if isinstance(node, LowRank):
      return {"a": node.a, "b": node.b}
    if not isinstance(node, dict):
      return {}
    found = {name: below(child) for name, child in node.items()}
    return {name: child for name, child in found.items() if child}

  return below(params) or params


def merge(params: api.Params) -> api.Params:
  """W + scale A B in the place of each LowRank, in float32.

  Numpy arrays stay on the host.
  """

  def one(node):
    if not isinstance(node, LowRank):
      return node
    return node.w.astype(jnp.float32) + node.scale * (node.a @ node.b)

  is_pair = lambda node: isinstance(node, LowRank)  # noqa: E731
  return jax.tree.map(one, params, is_leaf=is_pair)
