"""The data that flows between the rooms, and the shapes of their doors.

Letters: N = B * G rows, groups contiguous; B prompts; G completions a prompt;
S prompt length; T completion length; D width; V vocabulary; K reward parts.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import struct
from jaxtyping import Array, Bool, Float, Int
import numpy as np

Metrics = dict[str, Float[Array, ""]]
State = Any

# Why a row ended. An explicit array in every Rollout: never read from a token.
FINISH_LENGTH = 0  # the completion filled all T positions
FINISH_STOP = 1  # the policy chose a stop token (which is in the completion)


@struct.dataclass
class Packing:
  """Where a rollout's tokens lie when no padding is between them.

  The rows of the rollout are cut into P equal blocks, one for each device and
  micro-batch. Behind what is real stand zeros.

  Attributes:
    tokens: [P, n] ids that are fed: prompts once a group, then completions.
    positions: [P, n] rotary positions, restarted with every prompt.
    rows: [P, r, L] rows of attention, in which each completion follows a prompt
      of its own: the index in `tokens` of each place.
    segments: [P, r, L] which sequence a place is of, from 1; 0 on padding.
    places: [P, n] of each token one place, in rows [r * L].
    before: [P, m] of each chosen token the index of the one that predicts it.
    chosen: [P, m] ids of the chosen tokens, those of the rollout's mask.
    real: [P, m] true on them.
    index: [N, T] the index in [m] of each chosen token; 0 outside the mask.
  """

  tokens: Int[Array, "P n"]
  positions: Int[Array, "P n"]
  rows: Int[Array, "P r L"]
  segments: Int[Array, "P r L"]
  places: Int[Array, "P n"]
  before: Int[Array, "P m"]
  chosen: Int[Array, "P m"]
  real: Bool[Array, "P m"]
  index: Int[Array, "N T"]


@struct.dataclass
class Rollout:
  """N sampled completions, the G members of a group side by side.

  Attributes:
    prompts: [N, S] token ids, left-padded.
    prompt_mask: [N, S] true on the prompt's own tokens.
    completions: [N, T] token ids, right-padded; the stop token is included.
    mask: [N, T] true on tokens the policy chose itself (its stop token too).
    old_logprobs: [N, T] log-probabilities (nats) of the policy before the step,
      at the sampling temperature over the whole vocabulary. Those of the
      distribution that was drawn from, truncation included, are
      extras["behaviour_logprobs"]; the two are equal without truncation.
    rewards: [N] scalar outcome of each completion.
    weights: [N] 1 to learn from a completion, 0 to drop it at fixed shape.
    finish_reason: [N] FINISH_LENGTH or FINISH_STOP.
    ref_logprobs: [N, T] under the frozen reference, or None if unused.
    extras: further arrays by name; every leaf is [N, ...] or a scalar []. Known
      names: behaviour_logprobs [N, T]; reward_components [N, K],
      NaN where one does not apply, and reward_weights [N, K]; with the need
      "old_scores" trainer_logprobs, sampler_logprobs, old_entropy, old_values
      [N, T], prompt_logprobs [N, S] and what the method measures; what its
      passes find [N, T]; shadow_logprobs [N, T], of its slow average; what its
      plan adds; rollout_is, keep [N, T], factors
      of the policy loss; metric/NAME [], which the step logs as NAME; returns
      [N, T], a critic's targets; stale [N], 1 on rows that an older policy
      sampled; greedy_rewards [N].
    packing: how the rows are scored without their padding, or None: with it.
    group_size: G, a Python int known at trace time.
  """

  prompts: Int[Array, "N S"]
  prompt_mask: Bool[Array, "N S"]
  completions: Int[Array, "N T"]
  mask: Bool[Array, "N T"]
  old_logprobs: Float[Array, "N T"]
  rewards: Float[Array, "N"]
  weights: Float[Array, "N"]
  finish_reason: Int[Array, "N"]
  ref_logprobs: Float[Array, "N T"] | None = None
  extras: dict[str, Array] = struct.field(default_factory=dict)
  packing: Packing | None = None
  group_size: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class Scores:
  """What the policy being trained says about a rollout; gradients flow here.

  Attributes:
    logprobs: [N, T] log-probability (nats) of each completion token.
    entropy: [N, T] entropy (nats) of each token's distribution, or None.
    hidden: [N, T, D] final hidden states, or None.
    values: [N, T] expected return from each position on, or None.
    mtp_logprobs: [N, T] log-probability (nats) of each completion token as a
      multi-token-prediction module says it one token earlier, or None.
    prompt_logprobs: [N, S] log-probability (nats) of each prompt token after
      those before it, 0 on the first one and on padding, or None.
    reference_kl: [N, T] KL (nats) of each token's distribution to the frozen
      reference's, a sum over the vocabulary, or None.
    collision: [N, T] probability that two draws agree, sum_v p_v^2, or None.
    token_hidden: [N, T, D] final hidden states at the completion's own tokens,
      the last one too (`hidden` is at the token before each), or None.
    prompt_hidden: [N, S, D] the same at the prompt's tokens, or None.
    layer_jsd: [N, T] Jensen-Shannon divergence (nats) of what an inner layer
      predicts to what the final one does, or None; see InnerLayer.
    attention_jsd: [N, T] the same of their attention, heads averaged, or None.
    vocab_size: V, a Python int known at trace time.
  """

  logprobs: Float[Array, "N T"]
  entropy: Float[Array, "N T"] | None = None
  hidden: Float[Array, "N T D"] | None = None
  values: Float[Array, "N T"] | None = None
  mtp_logprobs: Float[Array, "N T"] | None = None
  prompt_logprobs: Float[Array, "N S"] | None = None
  reference_kl: Float[Array, "N T"] | None = None
  collision: Float[Array, "N T"] | None = None
  token_hidden: Float[Array, "N T D"] | None = None
  prompt_hidden: Float[Array, "N S D"] | None = None
  layer_jsd: Float[Array, "N T"] | None = None
  attention_jsd: Float[Array, "N T"] | None = None
  vocab_size: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class Tokens:
  """What a surrogate may look at; everything is 0 outside the mask.

  Attributes:
    logprobs: [N, T] of the policy being trained (nats); gradients flow here.
    old_logprobs: [N, T] of the policy before the step (nats).
    log_ratio: [N, T] what the method's ratio made of the two (nats).
    advantages: [N, T] credit.
    mask: [N, T] true on tokens that count.
    rollout: the rest, extras among it.
  """

  logprobs: Float[Array, "N T"]
  old_logprobs: Float[Array, "N T"]
  log_ratio: Float[Array, "N T"]
  advantages: Float[Array, "N T"]
  mask: Bool[Array, "N T"]
  rollout: Rollout


@runtime_checkable
class Reward(Protocol):
  """Text to numbers, on the host.

  NaN says "this row cannot be scored" and drops the row, None in its place
  "this reward does not apply here" and leaves the row to the other rewards.
  """

  def __call__(
    self,
    prompts: Sequence[str],
    completions: Sequence[str],
    answers: Sequence[Any],
  ) -> np.ndarray | dict[str, np.ndarray]:
    """Returns float [N], or {name: [N]} for component rewards."""


@runtime_checkable
class AdvantageFn(Protocol):
  """Reward to credit."""

  def __call__(
    self, rollout: Rollout
  ) -> Float[Array, "N"] | Float[Array, "N T"]:
    """Returns credit per completion or per token."""


@runtime_checkable
class SelectionFn(Protocol):
  """Marks tokens by comparing them across the whole batch."""

  def __call__(
    self, rollout: Rollout, advantages: Float[Array, "N T"]
  ) -> Rollout:
    """Returns the rollout with its marks in extras."""


@runtime_checkable
class MeasureFn(Protocol):
  """Condenses what only a forward knows to what a method keeps of it."""

  def __call__(self, scores: Scores, rollout: Rollout) -> dict[str, Array]:
    """Returns {name: [N, ...]}; a row knows nothing of other rows."""


@runtime_checkable
class PrepareFn(Protocol):
  """Finds what an objective needs to know of its whole batch."""

  def __call__(
    self,
    rollout: Rollout,
    advantages: Float[Array, "N T"],
    scores: Scores | None,
  ) -> Rollout:
    """Returns the rollout with constants in extras, [N, ...] or [].

    `scores` is of the policy as it is now, without gradient; None unless the
    method needs "now_scores".
    """


@runtime_checkable
class Weighting(Protocol):
  """How much each token counts; made once per step from the whole batch."""

  def __call__(
    self, mask: Bool[Array, "N T"], weights: Float[Array, "N"]
  ) -> Float[Array, "N T"]:
    """Returns token weights; the loss is sum(weights * token_loss)."""


@runtime_checkable
class ObjectiveFn(Protocol):
  """Credit to scalar."""

  def __call__(
    self,
    scores: Scores,
    rollout: Rollout,
    advantages: Float[Array, "N T"],
    weights: Float[Array, "N T"],
  ) -> tuple[Float[Array, ""], Metrics]:
    """Returns the sum to minimise and sums to log (they add over batches)."""


class InnerLayer(NamedTuple):
  """Among a method's needs: of which layer "layer_jsd", "attention_jsd" are.

  Attributes:
    layer: l, blocks below the stream that is read; 0: a sixth of the model's.
    flow: whether the final norm and the head, through which it is read, learn
      from it too.
  """

  layer: int = 0
  flow: bool = False


class Pass(NamedTuple):
  """One more scoring of the same completions, under another prompt.

  Attributes:
    name: of the array [N, T] in extras that holds the log-probabilities of
      the policy before the first update.
    prompts: name of the prompts [N, S'] in extras, equal within a group.
    prompt_mask: name of their mask.
  """

  name: str
  prompts: str
  prompt_mask: str


class RolloutTransform(NamedTuple):
  """A pair of pure functions over rollouts, in the manner of optax.

  Attributes:
    init: () -> state.
    update: (rollout, state) -> (rollout, state), before the gradient step.
    observe: (state, metrics) -> state, after it.
  """

  init: Callable[[], State]
  update: Callable[[Rollout, State], tuple[Rollout, State]]
  observe: Callable[[State, Metrics], State] = lambda state, metrics: state


class Extra(NamedTuple):
  """An array that a plan adds to Rollout.extras.

  Attributes:
    shape: "N" first, then "T", "S", these and some more ("S+32") or numbers.
    dtype: of its elements.
  """

  shape: tuple[str | int, ...] = ("N",)
  dtype: Any = np.float32

  def zeros(self, **sizes: int) -> np.ndarray:
    """An array of that shape; N, S and T as named."""

    def number(size):
      name, _, more = str(size).partition("+")
      return int(sizes.get(name, name)) + int(more or 0)

    return np.zeros([number(size) for size in self.shape], self.dtype)


class Plan(NamedTuple):
  """Which samples a step is made of: host code before the step.

  `gather` asks the sampler for rounds of samples (rollout.plans.Sampler: the
  next problems, their completions, their rewards) and returns exactly B groups
  (rollout.groups.Groups), whatever it found: shapes are static, what must not
  be learnt from has weight 0.

  Attributes:
    init: () -> state, a dict of JSON values and numpy arrays, nested; it is
      saved with every checkpoint, so that a resumed run is bitwise the same.
    gather: (sampler, state) -> (groups, state, metrics as plain floats).
    extras: {name: Extra}, the arrays that it adds to Rollout.extras.
    check: () -> anything, called before a run begins; raises ValueError or
      FileNotFoundError, one line, where something is missing that it needs.
  """

  init: Callable[[], dict[str, Any]]
  gather: Callable[..., tuple[Any, dict[str, Any], dict[str, float]]]
  extras: Mapping[str, Extra] = MappingProxyType({})
  check: Callable[[], Any] = lambda: None
