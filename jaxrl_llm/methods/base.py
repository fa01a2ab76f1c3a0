"""A method is a choice for each plug point; nothing more."""

import abc
from collections.abc import Callable
import dataclasses
import functools
from typing import Any, Literal

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import types
from jaxrl_llm.models import api
from jaxrl_llm.objectives import penalties
from jaxrl_llm.rollout import plans
from jaxrl_llm.transforms import chain

# What a method may need the step to compute for it.
#   ref_logprobs  rollout.ref_logprobs, by the frozen reference
#   entropy, hidden, values, mtp_logprobs, prompt_logprobs, token_hidden,
#   prompt_hidden, layer_jsd, attention_jsd  these fields of Scores; the last
#               two of the layer that a types.InnerLayer among the needs names
#   reference_kl  the same: a forward of the frozen reference for each of ours
#   collision  the same, beside reference_kl
#   old_scores  one forward before the transform: the trainer's old_logprobs,
#               extras trainer_logprobs, sampler_logprobs, what the method
#               measures and, for the fields of Scores that are needed,
#               old_entropy, old_values, prompt_logprobs
#   now_scores  one forward before each update, for `prepare`
NEEDS = frozenset(
  {
    "ref_logprobs",
    "entropy",
    "hidden",
    "values",
    "mtp_logprobs",
    "prompt_logprobs",
    "reference_kl",
    "collision",
    "token_hidden",
    "prompt_hidden",
    "layer_jsd",
    "attention_jsd",
    "old_scores",
    "now_scores",
  }
)
_OF_A_HEAD = frozenset({"values", "mtp_logprobs"})


def nothing(scores: types.Scores, rollout: types.Rollout) -> dict[str, Array]:
  """The measure of most methods."""
  del scores, rollout
  return {}


def as_it_is(
  rollout: types.Rollout, advantages: Array, scores: types.Scores | None
) -> types.Rollout:
  """The preparation of most methods."""
  del advantages, scores
  return rollout


def no_credit(rollout: types.Rollout) -> Float[Array, "N"]:
  """The advantage of supervised methods: no reward is read."""
  return jnp.zeros(rollout.rewards.shape)


def everything(rollout: types.Rollout, advantages: Array) -> types.Rollout:
  """The selection of most methods: no token is singled out."""
  del advantages
  return rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """What the loop and its train step call, in this order.

  Attributes:
    plan: which samples make a step, on the host; one round of B by default.
    measure: (scores, rollout) -> {name: [N, ...]} for extras, row by row on any
      piece of the batch, from the forward of "old_scores": what is too large to
      keep ([N, T, D]) is condensed there.
    passes: further scorings of the same completions, see types.Pass.
    transform: rollout -> rollout with state, on the whole batch.
    advantage: rollout -> credit [N] or [N, T], on the whole batch.
    selection: (rollout, advantages [N, T]) -> rollout, on the whole batch: what
      compares tokens of different rows, credit in hand, and writes what it
      finds into extras (Clip-Cov); a piece of the batch could not.
    prepare: (rollout, advantages, scores) -> rollout, on the whole optimizer
      batch before each update: sums over it that the objective needs.
    weighting: (mask, weights) -> [N, T], on the whole optimizer batch.
    objective: (scores, rollout, advantages, weights) -> (sum, metrics), on
      any piece of it.
    needs: what the step must compute besides log-probs, out of NEEDS: what
      nothing needs is never computed.
    min_group_size: smallest G: 2 where siblings are compared, else 1.
    head: what is learnt beside the policy: a value_head.ValueHead for "values",
      an mtp.MtpModule for "mtp_logprobs".
    supervised: whether it learns from the data's own answers, with G = 1, and
      not from samples: rewards and old_logprobs are then not read.
    shadow: decay, by the number of the step, of a slow average of the trained
      parameters, or None for none. It starts as a copy, follows after each
      step, and scores each rollout before it: extras["shadow_logprobs"].
  """

  advantage: types.AdvantageFn
  weighting: types.Weighting
  objective: types.ObjectiveFn
  transform: types.RolloutTransform = chain.identity()
  selection: types.SelectionFn = everything
  measure: types.MeasureFn = nothing
  passes: tuple[types.Pass, ...] = ()
  prepare: types.PrepareFn = as_it_is
  needs: frozenset[str] = frozenset()
  plan: types.Plan = plans.one_round()
  min_group_size: int = 2
  head: api.Head | None = None
  supervised: bool = False
  shadow: Callable[[Int[Array, ""]], Float[Array, ""]] | None = None

  @property
  def compares(self) -> bool:
    """Whether the step must be given the frozen reference."""
    return bool(self.needs & {"ref_logprobs", "reference_kl"})

  def __post_init__(self):
    """Raises ValueError for a need that nothing serves."""
    named = {x for x in self.needs if not isinstance(x, types.InnerLayer)}
    unknown = sorted(named - NEEDS)
    if unknown:
      raise ValueError(
        f"needs may hold {', '.join(sorted(NEEDS))}; got {unknown[0]!r}."
      )
    if self.measure is not nothing and "old_scores" not in self.needs:
      raise ValueError("a method that measures needs 'old_scores'.")
    if "collision" in self.needs and "reference_kl" not in self.needs:
      raise ValueError("'collision' is found beside 'reference_kl' alone.")
    if (self.head is None) != self.needs.isdisjoint(_OF_A_HEAD):
      raise ValueError(
        f"a head goes with one of the needs {', '.join(sorted(_OF_A_HEAD))}."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evolution:
  """What a step without gradients calls (training.population), in this order.

  Attributes:
    population: members a step, each a perturbed copy of the parameters.
    members_at_once: that are evaluated side by side; divides the population.
    weights: dtype that the parameters are kept in.
    perturb: (params, seed) -> params of a member.
    update: (params, start, seeds [P], fitness [P]) -> (params, metrics).
    plan, needs, compares, min_group_size, head, supervised: as of a Method.
  """

  population: int
  members_at_once: int
  weights: str
  perturb: Callable[[Any, Array], Any]
  update: Callable[..., tuple[Any, types.Metrics]]
  plan: types.Plan = plans.one_round()
  needs: frozenset[str] = frozenset()
  compares: bool = False
  min_group_size: int = 1
  head: None = None
  supervised: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig(abc.ABC):
  """Hyper-parameters of one method, by the names of its paper."""

  def __post_init__(self):
    """Raises ValueError for a method inside that has nothing to be changed."""
    for field in dataclasses.fields(self):
      if isinstance(getattr(self, field.name), EvolutionConfig):
        raise ValueError(
          f"{type(self).__name__} changes a step by gradients, of which"
          f" {type(getattr(self, field.name)).__name__} has none."
        )

  @abc.abstractmethod
  def build(self) -> Method:
    """Turns hyper-parameters into functions; raises ValueError, one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvolutionConfig(MethodConfig):
  """Hyper-parameters of a method that takes no gradient."""

  @abc.abstractmethod
  def build(self) -> Evolution:
    """Turns hyper-parameters into functions; raises ValueError, one line."""


def from_rewards(estimator: Callable, **knobs) -> types.AdvantageFn:
  """Lifts an estimator over arrays to one over rollouts.

  Args:
    estimator: (rewards, weights, *, group_size, **knobs) -> [N].
    **knobs: fixed now.
  """
  estimate = functools.partial(estimator, **knobs)
  return lambda rollout: estimate(
    rollout.rewards, rollout.weights, group_size=rollout.group_size
  )


def per_token(
  advantages: Float[Array, "N"] | Float[Array, "N T"],
  mask: Bool[Array, "N T"],
) -> Float[Array, "N T"]:
  """Spreads credit [N] over tokens, leaves [N, T] alone; 0 on padding."""
  chex.assert_rank(advantages, {1, 2})
  if advantages.ndim == 1:
    advantages = advantages[:, None]
  return jnp.where(mask, advantages, 0.0)


# Estimators of the KL to the reference that a method offers as `kl`: the keys
# of penalties.REFERENCE_KL, where a checker and a command line can see them.
KlName = Literal[
  "exact",
  "k3",
  "k1",
  "k2",
  "abs",
  "low_var_kl",
  "k1+",
  "k3+",
  "abs+",
  "low_var_kl+",
  "ratio_k1",
  "ratio_k2",
  "ratio_k3",
  "ratio_abs",
  "ratio_low_var_kl",
]


def regularizers(
  *, beta: float = 0.0, kl: str = "exact", entropy_coef: float = 0.0
) -> tuple[tuple[penalties.Penalty, ...], frozenset[str]]:
  """The two terms that nearly every method can add, and what they need.

  Args:
    beta: coefficient of the KL to the reference, 0 leaves the term out.
    kl: a key of penalties.REFERENCE_KL.
    entropy_coef: coefficient of the entropy bonus, 0 leaves it out.

  Returns:
    Penalties for policy_objective, and their share of `needs`.

  Raises:
    ValueError: if a coefficient is negative or `kl` is unknown.
  """
  for name, value in (("beta", beta), ("entropy_coef", entropy_coef)):
    if not 0 <= value < float("inf"):
      raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
  check_kl(kl)
  parts = []
  if beta:
    parts.append(
      penalties.Penalty("reference_kl", beta, penalties.REFERENCE_KL[kl])
    )
  if entropy_coef:
    parts.append(
      penalties.Penalty(
        "negative_entropy", entropy_coef, penalties.negative_entropy
      )
    )
  needs = {"ref_logprobs"} if beta else set()
  return tuple(parts), frozenset(
    needs | ({"entropy"} if entropy_coef else set())
  )


def check_packed(needs: frozenset[str]) -> None:
  """Raises ValueError for needs that a rollout with a packing cannot meet."""
  for name in ("token_hidden", "prompt_hidden"):
    if name in needs:
      raise ValueError(
        f"pack must be False for a method that needs {name!r}: packed tokens"
        " leave out the last one of each completion."
      )


def check_kl(kl: str) -> None:
  """Raises ValueError unless `kl` is a key of penalties.REFERENCE_KL."""
  if kl not in penalties.REFERENCE_KL:
    raise ValueError(
      f"kl must be one of {', '.join(penalties.REFERENCE_KL)}; got {kl!r}."
    )
