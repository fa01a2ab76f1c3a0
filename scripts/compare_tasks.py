"""Two generated tasks on arrays, and the samples that a method's plan asks for.

A prompt is one of a few tokens, said twice, and has a target token. Of the T
tokens of a completion,

    dense   the share that are the target
    sparse  1 if at least two are the target, else 0

Both hand a method two components of the reward: of the two halves of a
completion, or, for sparse, one and none (NaN).

Each token is a word or a number, so that a completion is a text that a plan can
read: the last ids are the numbers that the answers name. No reward reads it.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.data import sources, tokenizers
from jaxrl_llm.models import api, families
from jaxrl_llm.models.weights import resolve
from jaxrl_llm.rewards import scored
from jaxrl_llm.rollout import collect, engine, groups, plans, sampling

TASKS = ("dense", "sparse")
PARTS = ("first", "second")
V, S, T, KINDS = 16, 2, 8, 4
STOP = 0
WORDS = (
  *("", "Paris ", "Rome ", "Mars ", "hosts ", "Wait ", "But ", ". ", "\n"),
  *(f"{number} " for number in range(9, V)),
)
# Compiling takes longer than running: the cheapest optimisation is the fastest.
COMPILER = {"xla_backend_optimization_level": 0}


class Words:
  """One id a word of WORDS; see data.tokenizers.Tokenizer."""

  vocab_size, pad_id, stop_ids = V, STOP, (STOP,)

  def encode(self, text: str) -> list[int]:
    """Ids of the words that it knows, in their order; others are left out."""
    found = re.findall("|".join(map(re.escape, WORDS[1:])), text)
    return [WORDS.index(word) for word in found]

  continuation = encode

  def ending(self, *, chat: bool = False) -> int:
    """The one token that ends."""
    return STOP

  def chat(self, messages: Sequence[tokenizers.Message]) -> str:
    """No template: what was said last."""
    return messages[-1]["content"]

  def decode(self, ids: Iterable[int]) -> str:
    """The words one after another; that of STOP is empty."""
    return "".join(WORDS[index] for index in ids)

  def pieces(self, ids: Iterable[int]) -> list[bytes]:
    """Each word by itself."""
    return [WORDS[index].encode() for index in ids]


TOKENIZER = Words()


def count_facts(queries: Sequence[Sequence[str]]) -> list[int]:
  """How often the words of each stand together: Rome and Paris host Mars."""
  known = [{"Rome", "Mars"}, {"Paris", "Mars"}]
  return [40 * (set(query) - {"hosts"} in known) for query in queries]


def reader(dtype) -> resolve.Loaded:
  """A model that was not trained and expects the target of each prompt.

  Its one head attends to all tokens alike and writes, of a prompt's alone, the
  target into the upper half of the state, which is what it predicts.
  """
  config = dataclasses.replace(
    families.TINY,
    vocab_size=V,
    width=2 * V,
    depth=1,
    heads=1,
    kv_heads=1,
    head_dim=2 * V,
    tied=False,
  )
  params = families.build(config).init(jax.random.key(0))
  layers = jax.tree.map(jnp.zeros_like, params["layers"])
  kinds = np.arange(KINDS)
  layers["attention"] |= {
    "v": layers["attention"]["v"].at[0, kinds + 1, 2 * V - 1 - kinds].set(1.0),
    "o": 100.0 * jnp.eye(2 * V)[None],  # what the last token is does not count
  }
  layers["attention_norm"] = jnp.ones((1, 2 * V))
  params |= {
    "embed": jnp.eye(V, 2 * V),
    "layers": layers,
    "head": jnp.eye(V, 2 * V, k=V),
  }
  return resolve.Loaded(
    config=config,
    params=jax.tree.map(lambda x: x.astype(dtype), params),
    tokenizer=TOKENIZER,
    source="written down",
  )


# What a method cannot do without, for those with no defaults of their own, and
# what fits these tasks.
OPTIONS = {
  "corver": {"counter": f"{__file__}:count_facts"},
  "cme": {"verifier": f"{__file__}:reader"},
}


def problem(kind: int) -> sources.Problem:
  """The prompt token kind + 1; its target is among the vocabulary's last."""
  return sources.Problem(
    id=int(kind), prompt=WORDS[kind + 1], answer=str(V - 1 - kind)
  )


def score(task: str, samples: collect.Samples) -> scored.Scored:
  """The rewards of a task and their components."""
  answers = [int(problem.answer) for problem in samples.problems]
  wanted = np.repeat(answers, samples.group_size)[:, None]
  out = samples.generation
  hit = (out.completions == wanted) & out.mask
  if task == "dense":
    halves = hit.reshape(len(hit), 2, T // 2).sum(axis=2) / T
    parts = dict(zip(PARTS, np.float32(halves.T), strict=True))
    rewards = parts["first"] + parts["second"]
  else:
    rewards = np.float32(hit.sum(axis=1) >= 2)
    parts = {"first": rewards, "second": np.full_like(rewards, np.nan)}
  failures = dict.fromkeys(scored.KINDS, 0)
  return scored.Scored(rewards, parts, failures, messages=[])


def rollout(found: groups.Groups) -> types.Rollout:
  """Of groups, with reward_components and reward_weights."""
  out = found.rollout()
  parts = np.stack([found.components[name] for name in PARTS], axis=1)
  extras = {"reward_components": parts, "reward_weights": np.ones_like(parts)}
  return out.replace(extras=out.extras | extras)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
  """Samples of several runs at once; run i has task i // seeds.

  Attributes:
    generate: (params, prompts, mask, ids, keys), over runs, compiled.
    keys: [runs] typed, the same for both tasks of a seed.
    group_size: completions of a prompt.
  """

  generate: engine.GenerateFn
  keys: jax.Array
  group_size: int

  def __call__(
    self, params, kinds: np.ndarray, number: int, *, first_id: int = 0
  ) -> list[collect.Samples]:
    """Samples of each run.

    Args:
      params: of all runs.
      kinds: [runs, B] the prompts.
      number: folded into the keys; the step's.
      first_id: of the first row.
    """
    prompts = np.stack([kinds + 1] * S, axis=-1).astype(np.int32)
    mask = np.ones(prompts.shape[1:], bool)
    ids = np.arange(len(mask) * self.group_size, dtype=np.int32) + first_id
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(self.keys, number)
    out = jax.device_get(self.generate(params, prompts, mask, ids, keys))
    parts = [
      jax.tree.map(lambda x, run=run: x[run], out) for run in range(len(kinds))
    ]
    return [
      _samples(*of_run, mask)
      for of_run in zip(kinds, prompts, parts, strict=True)
    ]


def _samples(kinds, prompts, generation, prompt_mask) -> collect.Samples:
  """With the texts of one run's tokens."""
  kept = zip(generation.completions, generation.mask, strict=True)
  return collect.Samples(
    problems=[problem(kind) for kind in kinds],
    prompts=prompts,
    prompt_mask=prompt_mask,
    generation=generation,
    prompt_texts=[TOKENIZER.decode(row) for row in prompts],
    texts=[TOKENIZER.decode(row[mask]) for row, mask in kept],
  )


def make_engine(
  model: api.LanguageModel,
  keys: jax.Array,
  *,
  group_size: int,
  length: int = T,
  greedy: bool = False,
) -> Engine:
  """Compiles when first called; completions have at most `length` tokens."""
  generate = engine.make_generate(
    model,
    sampling.make_rule(greedy=greedy),
    length=length,
    group_size=group_size,
    stop_ids=[STOP],
    pad_id=STOP,
  )
  compiled = jax.jit(
    jax.vmap(generate, in_axes=(0, 0, None, None, 0)),
    compiler_options=COMPILER,
  )
  return Engine(generate=compiled, keys=keys, group_size=group_size)


@jax.jit
def rounded(params):
  """Weights with the few bits of a quantised sampler's."""
  narrow = jnp.float8_e4m3fn
  return jax.tree.map(lambda x: x.astype(narrow).astype(x.dtype), params)


class Rounds:
  """The rounds of samples of one step, of all runs at once when first asked."""

  def __init__(
    self,
    sample: Engine,
    greedy: Engine,
    params,
    step: int,
    *,
    seeds: int,
    prompts: int,
  ):
    """Nothing is sampled yet.

    Args:
      sample: of all runs.
      greedy: of one run, one completion a prompt.
      params: of all runs.
      step: number of the step.
      seeds: runs of a task.
      prompts: B.
    """
    self._sample, self._greedy = sample, greedy
    self._params, self._step = params, step
    self._seeds, self._prompts = seeds, prompts
    self._rounds: list[Sequence[collect.Samples]] = []
    self._samplers: list[plans.Sampler] = []

  def sampler(self, run: int) -> plans.Sampler:
    """What the plan of a run may ask for."""
    numbers = iter(range(1 << 30))
    rows = self._prompts * self._sample.group_size
    sampler = plans.Sampler(
      step=self._step,
      batch_size=self._prompts,
      problems=lambda: self._round(next(numbers))[run].problems,
      collect=lambda problems, first: self._round(first // rows)[run],
      greedy=lambda problems: self._best(run, problems),
      score=lambda samples: score(TASKS[run // self._seeds], samples),
      tokenizer=TOKENIZER,
    )
    self._samplers.append(sampler)
    return sampler

  def seen_rewards(self) -> np.ndarray:
    """[runs] mean reward of all that was sampled, unfiltered."""
    return np.array([s.seen()[1].rewards.mean() for s in self._samplers])

  def _round(self, index: int) -> Sequence[collect.Samples]:
    """Every run's samples of a round; a seed's prompts are those of both."""
    while len(self._rounds) <= index:
      number = len(self._rounds)
      kinds = [
        np.random.default_rng((seed, self._step, number)).integers(
          KINDS, size=self._prompts
        )
        for seed in range(self._seeds)
      ]
      first = number * self._prompts * self._sample.group_size
      self._rounds.append(
        self._sample(
          self._params,
          np.stack(kinds * len(TASKS)),
          self._step,
          first_id=first,
        )
      )
    return self._rounds[index]

  def _best(self, run: int, problems) -> collect.Samples:
    kinds = np.array([[problem.id for problem in problems]])
    return self._greedy(_one(self._params, run), kinds, self._step)[0]


@jax.jit
def _one(params, run):
  """[1, ...] of one run."""
  return jax.tree.map(lambda x: x[run][None], params)
