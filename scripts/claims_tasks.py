"""Small tasks for the claims of papers, and a tiny model trained on them.

The parts are those of `jaxrl train`: the method's plan, the engine, the score
and the train step; all seeds go through one compiled step. A model is first
taught by example, so that some answers are its habit and others rare.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import claims_frame as frame
import compare_runs as runs
import compare_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods, types
from jaxrl_llm.rewards import scored
from jaxrl_llm.rollout import collect, plans
from jaxrl_llm.training import ahead, score, state, step

V, S, T, KINDS, STOP = tasks.V, tasks.S, tasks.T, tasks.KINDS, tasks.STOP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What is asked and what is right.

  Attributes:
    hidden: (rng, kinds [B]) -> [B] numbers, what makes a problem of a kind
      differ from others of it; the model does not see them.
    rewards: (kinds [N], hidden [N], completions [N, T], mask [N, T]) -> [N].
    examples: (rng, kinds [n]) -> completions [n, T], STOP and what follows it
      included, that the model is taught first; None: random weights.
  """

  rewards: Callable[..., np.ndarray]
  hidden: Callable[..., np.ndarray] = lambda rng, kinds: np.zeros(
    len(kinds), int
  )
  examples: Callable[..., np.ndarray] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Of one method, all seeds.

  Attributes:
    params: after the last step, over seeds.
    rewards: [seeds, steps] mean reward of what was sampled.
    rollouts: of every step, stacked over seeds, if they were to be kept.
  """

  params: Any
  rewards: np.ndarray
  rollouts: Sequence[types.Rollout]


class Trial:
  """One task, one taught model a seed."""

  def __init__(self, task: Task, setting: runs.Setting, *, lessons: int = 150):
    """Teaches the model.

    Args:
      task: what is asked.
      setting: sizes; its seeds are trained side by side.
      lessons: steps of 32 examples of each kind.
    """
    self.task, self.setting = task, setting
    self.model = setting.model()
    keys = jax.vmap(jax.random.key)(jnp.arange(setting.seeds))
    params = jax.jit(jax.vmap(self.model.init))(keys)
    self._sample = tasks.make_engine(
      self.model, keys, group_size=setting.group_size
    )
    self.start = (
      params if task.examples is None else self._taught(params, lessons)
    )

  def train(self, config: methods.MethodConfig, *, keep: bool = False) -> Run:
    """Trains all seeds with a method from the taught model on.

    Args:
      config: of the method.
      keep: whether rollouts are returned.
    """
    setting, method = self.setting, config.build()
    optimizer = setting.optimizer()
    train_step = step.make_train_step(
      score.make_score(self.model, needs=method.needs),
      method,
      optimizer,
      mini_batches=setting.mini_batches,
      epochs=setting.epochs,
    )
    now = jax.vmap(lambda p: state.init_state(p, method, optimizer))(self.start)
    compiled = jax.jit(jax.vmap(train_step), compiler_options=tasks.COMPILER)
    memory = [method.plan.init() for _ in range(setting.seeds)]
    seen, kept = [], []
    for index in range(setting.steps):
      found = self._gather(method.plan, memory, now.params, index)
      memory = [remembered for _, remembered in found]
      rollouts = [one.rollout() for one, _ in found]
      seen.append([one.rewards.mean() for one, _ in found])
      stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rollouts)
      now, _ = compiled(now, stacked, self.start)
      kept += [stacked] if keep else []
    return Run(params=now.params, rewards=np.array(seen).T, rollouts=kept)

  def first_tokens(self, params) -> np.ndarray:
    """[seeds, KINDS, V] exact chances of a completion's first token."""
    rows = KINDS * V
    rollout = ahead.example_rollout(KINDS, V, S, T, rewards=0, extras={})
    kinds = np.repeat(np.arange(KINDS), V)
    rollout = rollout.replace(
      prompts=np.stack([kinds + 1] * S, axis=1).astype(np.int32),
      prompt_mask=np.ones((rows, S), bool),
      completions=np.tile(np.arange(V)[:, None], (KINDS, T)).astype(np.int32),
      mask=np.arange(T)[None] < np.ones((rows, 1)),
    )
    scores = jax.vmap(score.make_score(self.model), in_axes=(0, None))
    found = jax.jit(scores)(params, rollout).logprobs[:, :, 0]
    return np.exp(np.asarray(found)).reshape(-1, KINDS, V)

  def samples(self, params, rng_step: int = 1 << 20) -> list[collect.Samples]:
    """Of every seed: one group a prompt, the kinds in turn."""
    kinds = np.arange(self.setting.prompts) % KINDS
    kinds = np.tile(kinds, (self.setting.seeds, 1))
    return self._sample(params, kinds, rng_step)

  def _taught(self, params, lessons: int):
    """Cross-entropy on examples, by the score itself."""
    kinds = np.repeat(np.arange(KINDS), 32)
    scores = score.make_score(self.model)
    optimizer = optax.adam(1e-2)
    blank = ahead.example_rollout(KINDS, 32, S, T, rewards=0, extras={})
    prompts = np.stack([kinds + 1] * S, axis=1).astype(np.int32)
    blank = blank.replace(prompts=prompts, prompt_mask=prompts > 0)

    def loss(params, completions, mask):
      rollout = blank.replace(completions=completions, mask=mask)
      return -scores(params, rollout).logprobs.sum() / mask.sum()

    @jax.jit
    @jax.vmap
    def teach(carry, batch):
      params, opt_state = carry
      grads = jax.grad(loss)(params, *batch)
      changes, opt_state = optimizer.update(grads, opt_state)
      return optax.apply_updates(params, changes), opt_state

    carry = params, jax.vmap(optimizer.init)(params)
    for lesson in range(lessons):
      batches = []
      for seed in range(self.setting.seeds):
        rng = np.random.default_rng((7, seed, lesson))
        rows = self.task.examples(rng, kinds).astype(np.int32)
        ended = np.cumsum(rows == STOP, axis=1) - (rows == STOP)
        batches.append((rows, ended == 0))
      carry = teach(carry, tuple(map(np.stack, zip(*batches, strict=True))))
    return carry[0]

  def _gather(self, plan, memory, params, index):
    """Groups and memory of every seed."""
    size, drawn = self.setting.prompts, []
    for seed in range(self.setting.seeds):
      rng = np.random.default_rng((seed, index))
      kinds = rng.integers(KINDS, size=size)
      drawn.append((kinds, self.task.hidden(rng, kinds)))
    found = self._sample(params, np.stack([kinds for kinds, _ in drawn]), index)
    gathered = []
    for own, (kinds, hidden), remembered in zip(
      found, drawn, memory, strict=True
    ):
      sampler = plans.Sampler(
        step=index,
        batch_size=size,
        problems=lambda own=own: own.problems,
        collect=lambda problems, first, own=own: _with_texts(own),
        greedy=lambda problems: None,
        score=lambda samples, kinds=kinds, hidden=hidden: self._score(
          samples, kinds, hidden
        ),
      )
      gathered.append(plan.gather(sampler, remembered)[:2])
    return gathered

  def _score(self, samples, kinds, hidden) -> scored.Scored:
    size, out = self.setting.group_size, samples.generation
    rewards = np.float32(
      self.task.rewards(
        kinds.repeat(size), hidden.repeat(size), out.completions, out.mask
      )
    )
    failures = dict.fromkeys(scored.KINDS, 0)
    return scored.Scored(rewards, {"reward": rewards}, failures, messages=[])


def _with_texts(samples: collect.Samples) -> collect.Samples:
  """The first token is the answer; it stands there as a number."""
  first = samples.generation.completions[:, 0]
  return dataclasses.replace(samples, texts=[str(token) for token in first])


# Several answers to a kind are right, some of them for some of its problems:
# the first for most, and it is the habit of the model that was taught.
ANSWERS = 4
ACCEPTED = (0.75, 0.5, 0.5, 0.5)
HABIT = (0.5, 0.05, 0.05, 0.05)


def answers_of(kinds: np.ndarray) -> np.ndarray:
  """[n, ANSWERS] tokens that can be right, the usual one first."""
  return 8 + (np.asarray(kinds)[:, None] + np.arange(ANSWERS)[None]) % ANSWERS


def several_answers() -> Task:
  """A completion is right if its first token is accepted by its problem.

  A problem accepts each answer of its kind with the chances ACCEPTED; which
  ones, the model cannot know. To say the usual one always is right most often,
  to say several is right more often in several tries.
  """

  def hidden(rng, kinds):
    accepted = rng.random((len(kinds), ANSWERS)) < ACCEPTED
    return accepted @ (1 << np.arange(ANSWERS))

  def rewards(kinds, hidden, completions, mask):
    said = completions[:, :1] == answers_of(kinds)
    accepted = (hidden[:, None] >> np.arange(ANSWERS)) % 2 > 0
    return (said & accepted & mask[:, :1]).any(axis=1)

  def examples(rng, kinds):
    rows = rng.integers(1, V, (len(kinds), T))
    place = rng.random(len(kinds))[:, None] < np.cumsum(HABIT)[None]
    first = np.where(place.any(axis=1), place.argmax(axis=1), -1)
    chosen = answers_of(kinds)[np.arange(len(kinds)), first]
    rows[:, 0] = np.where(first < 0, rows[:, 0], chosen)
    # The usual answer ends at once, the others go on, nobody knows how long.
    stop = rng.random(rows.shape) < np.where(first == 0, 0.8, 0.3)[:, None]
    rows[:, 1:][stop[:, 1:]] = STOP
    return rows

  return Task(rewards=rewards, hidden=hidden, examples=examples)


def several_answers_measured(first: np.ndarray) -> dict[str, np.ndarray]:
  """What a policy does on several_answers, exactly, from first_tokens.

  Args:
    first: [seeds, KINDS, V].

  Returns:
    {name: [seeds]}: pass@1, pass@8 and distinct, the different accepted or not
    but possible answers among 8 samples, and entropy of the first token, nats.
  """
  tokens = answers_of(np.arange(KINDS))
  said = np.stack([first[:, k, tokens[k]] for k in range(KINDS)], axis=1)
  once = np.zeros(len(first))
  eight = np.zeros(len(first))
  for accepted in itertools.product((0, 1), repeat=ANSWERS):
    chances = np.where(accepted, ACCEPTED, 1 - np.array(ACCEPTED)).prod()
    right = (said * np.array(accepted)).sum(axis=2)
    once += chances * right.mean(axis=1)
    eight += chances * (1 - (1 - right) ** 8).mean(axis=1)
  entropy = -(first * np.log(np.maximum(first, 1e-30))).sum(axis=2)
  return {
    "pass@1": once,
    "pass@8": eight,
    "distinct of 8": (1 - (1 - said) ** 8).sum(axis=2).mean(axis=1),
    "entropy": entropy.mean(axis=1),
  }


def diversity(
  compared: Mapping[str, methods.MethodConfig],
  *,
  seeds: int,
  steps: int = 40,
  claimed: str,
  against: str,
) -> frame.Finding:
  """Whether one method is right more often in 8 tries than another.

  It shows if pass@8 and the entropy are both higher; it does not if either is
  lower.

  Args:
    compared: methods by label.
    seeds: of each.
    steps: of each.
    claimed: label of the method whose paper says so.
    against: label of the other.
  """
  trial = Trial(
    several_answers(), runs.Setting(seeds=seeds, steps=steps, epochs=1)
  )
  found = {"before": trial.start}
  curves = {}
  for label, config in compared.items():
    run = trial.train(config)
    found[label], curves[label] = run.params, run.rewards
  found = {
    label: several_answers_measured(trial.first_tokens(params))
    for label, params in found.items()
  }
  ours, theirs = found[claimed], found[against]
  verdicts = [
    frame.differs(ours[name], theirs[name]) for name in ("pass@8", "entropy")
  ]
  shows = None if None in verdicts else all(verdicts)
  if False in verdicts:
    shows = False
  said = "; ".join(
    f"{name} {frame.band(ours[name])} against {frame.band(theirs[name])}"
    for name in ("pass@8", "pass@1", "distinct of 8", "entropy")
  )
  return frame.Finding(
    shows=shows,
    text=f"{claimed} against {against} after {steps} steps: {said}.",
    rows=[
      {"": label} | {name: frame.band(x) for name, x in numbers.items()}
      for label, numbers in found.items()
    ],
    curves=curves,
  )
