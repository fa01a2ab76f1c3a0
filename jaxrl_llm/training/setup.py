"""From an Experiment to functions and arrays; every mistake is found here.

Nothing is compiled yet and no step has run, so whatever is wrong with a
config, a file or a name costs seconds, not hours.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.data import answers, batching, sources
from jaxrl_llm.data import prompts as encoding
from jaxrl_llm.distributed import fingerprint
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.methods import base
from jaxrl_llm.models import api, families, linear
from jaxrl_llm.models.weights import resolve
from jaxrl_llm.optimizers import anchored
from jaxrl_llm.rewards import divided
from jaxrl_llm.rewards import pool as pools
from jaxrl_llm.rollout import collect
from jaxrl_llm.training import (
  adapter,
  collectors,
  evolution,
  experiment,
  heads,
  optimizer,
  score,
  step,
)
from jaxrl_llm.training import layout as layouts
from jaxrl_llm.training import state as states

# Prompts that are tokenised before the run to see that they fit.
_CHECKED = 20_000
# The stream of randomness of a head's first parameters, of the run's seed.
_STREAM = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The parts of a run, ready to be called.

  Attributes:
    config: what they were made from.
    loaded: weights, their config and tokenizer; `params` before training,
      frozen where an adapter is trained beside them.
    model: the decoder.
    method: what is optimised.
    optimizer: how; None without gradients.
    head: what the method learns beside the policy, or None.
    attach: (frozen, trained) -> parameters of the policy.
    fresh: the first state of given trained parameters.
    schedule: learning rate by optimizer step.
    train_step: jitted; donates its state.
    collect: training samples.
    greedy: one greedy completion of training problems, for plans that ask.
    evaluate: held-out samples, with the evaluation's own rule.
    batches: iterator over lists of training problems, with get_state(); of a
      supervised method over lists of answers.Example.
    held_out: problems of the evaluation.
    layout: the mesh and where parameters and state lie on it.
  """

  config: experiment.Experiment
  loaded: resolve.Loaded
  model: api.LanguageModel
  method: base.Method | base.Evolution
  optimizer: optax.GradientTransformation | None
  head: heads.AuxiliaryHead | None
  attach: Callable[[api.Params | None, Any], api.Params]
  fresh: Callable[[Any], states.TrainState]
  schedule: optax.Schedule
  train_step: Any
  collect: collect.Collector
  greedy: collect.Collector
  evaluate: collect.Collector
  batches: Any
  held_out: Sequence[sources.Problem]
  layout: layouts.Layout

  @property
  def mesh(self) -> jax.sharding.Mesh | None:
    """Devices that share the work, or None for one."""
    return self.layout.mesh

  def init_state(self) -> states.TrainState:
    """A fresh state on the run's devices.

    Where no reference needs the weights again, the state takes them over from
    `loaded` instead of copying them; a train step then uses them up.
    """
    base = self.loaded.params
    params = adapter.start(self.config, base)
    if params is not base:
      params = jax.device_get(params)  # for the devices of all processes
    elif self.method.compares:
      params = jax.tree.map(jnp.copy, params)
    return self.layout.init_state(self.fresh, params)

  def policy(self, params: Any) -> api.Params:
    """What a sampler or an evaluation takes, of a state's parameters."""
    return self.attach(self.reference(), params)

  def origin(self) -> dict[str, float]:
    """What an adapter in a checkpoint must belong to; see adapter.origin."""
    return adapter.origin(self.config, self.loaded.params)

  def reference(self) -> api.Params | None:
    """The frozen start: of a method that needs it, and of an adapter."""
    if not self.config.lora.rank and not self.method.compares:
      return None
    if self.mesh is None:
      return meshes.replicate(self.loaded.params, None)
    return self.loaded.params


@contextlib.contextmanager
def make_pool(config: experiment.Experiment) -> Iterator[divided.DividedPool]:
  """Starts the workers that score; a context manager."""
  with pools.RewardPool(
    config.reward,
    weights=config.reward_weights,
    timeout=config.reward_timeout,
    workers=config.reward_workers,
  ) as pool:
    yield divided.DividedPool(pool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Functions:
  """The pure functions of a run; they need a model's shape, not its weights.

  Attributes:
    model, method, optimizer, head, schedule, attach, fresh: as in Run.
    score: what the policy says of a rollout.
    train_step: not jitted.
  """

  model: api.LanguageModel
  method: base.Method | base.Evolution
  optimizer: optax.GradientTransformation | None
  head: heads.AuxiliaryHead | None
  schedule: optax.Schedule
  score: score.ScoreFn
  train_step: step.StepFn
  attach: Callable[[api.Params | None, Any], api.Params]
  fresh: Callable[[Any], states.TrainState]


def functions(
  config: experiment.Experiment,
  shape: api.ModelConfig,
  mesh: jax.sharding.Mesh | None,
) -> Functions:
  """Makes what a run computes.

  Args:
    config: the experiment.
    shape: of the model.
    mesh: devices that share the work, or None for one.
  """
  method = config.method.build()
  model = families.build(
    shape, dtype=jnp.dtype(config.model.dtype), remat=config.model.remat
  )
  updates = config.steps * config.mini_batches * config.epochs
  parts = {
    "model": model,
    "method": method,
    "attach": adapter.attach(config),
    "schedule": optimizer.make_schedule(config.optimizer, steps=updates),
  }
  if isinstance(method, base.Evolution):
    _check_side_by_side(method, mesh)
    return Functions(
      **parts,
      optimizer=None,
      head=None,
      score=_score(config, model, frozenset()),
      train_step=evolution.make_step(method, seed=config.seed),
      fresh=evolution.init_state,
    )
  chain = optimizer.make_optimizer(config.optimizer, steps=updates)
  head = _head(config, method, model, updates)
  scorer = _score(config, model, method.needs | {"entropy"}, method.head)
  train_step = step.make_train_step(
    scorer,
    method,
    chain,
    micro_batches=config.micro_batches,
    mini_batches=config.mini_batches,
    epochs=config.epochs,
    old_logprobs=config.old_logprobs,
    head=head,
    attach=adapter.attach(config),
  )
  if config.optimizer.anchor:
    train_step = _with_drift(train_step)
  if config.lora.rank or mesh is not None:  # as the sampler has it
    train_step = _with_checksum(train_step, model.dtype)
  return Functions(
    **parts,
    optimizer=chain,
    head=head,
    score=scorer,
    train_step=train_step,
    fresh=functools.partial(
      states.init_state, method=method, optimizer=chain, head=head
    ),
  )


def _score(config, model, needs, head=None) -> score.ScoreFn:
  return score.make_score(
    model, temperature=config.sampling.temperature, needs=needs, head=head
  )


def _check_side_by_side(method: base.Evolution, mesh) -> None:
  """A mesh cuts the rows of one member; it knows no axis of members."""
  if method.members_at_once > 1 and mesh is not None:
    raise ValueError(
      "method.members_at_once must be 1 on a mesh of"
      f" {mesh.size} devices, got {method.members_at_once}: they share one"
      " member's prompts; --mesh.data 1 --mesh.fsdp 1 takes one device."
    )


def build(config: experiment.Experiment, *, weights: str | None = None) -> Run:
  """Makes every part of a run.

  Args:
    config: the experiment.
    weights: model to load instead of config.model.name.

  Raises:
    ValueError, TypeError, FileNotFoundError: one line, before anything runs.
  """
  experiment.validate(config)
  config.method.build().plan.check()
  training = problems(config, config.data.split)
  held_out = problems(config, config.data.eval_split)
  layout = layouts.Layout(config)
  loaded = resolve.load(
    weights or config.model.name,
    seed=config.seed,
    sharding=layout.parameters,
    dtype=adapter.base_dtype(config),
  )
  parts = functions(config, loaded.config, layout.mesh)
  trained = jax.eval_shape(lambda x: adapter.start(config, x), loaded.params)
  held_out = held_out[: config.evaluation.examples]
  _check_prompts(config, loaded.tokenizer, held_out)
  if parts.method.supervised:
    training = examples(config, loaded.tokenizer, training)
    training.check()
  else:
    _check_prompts(config, loaded.tokenizer, training[:_CHECKED])
  sampled = config, parts.model, loaded.tokenizer, layout
  return Run(
    config=config,
    loaded=loaded,
    model=parts.model,
    method=parts.method,
    optimizer=parts.optimizer,
    head=parts.head,
    attach=parts.attach,
    fresh=parts.fresh,
    schedule=parts.schedule,
    train_step=layout.jit_step(parts.train_step, parts.fresh, trained),
    collect=collectors.training(*sampled),
    greedy=collectors.greedy(*sampled),
    evaluate=collectors.evaluation(*sampled),
    batches=batching.batches(
      training, batch_size=config.prompts_per_step, seed=config.seed
    ),
    held_out=held_out,
    layout=layout,
  )


def _with_checksum(train_step, dtype):
  """Adds that of the parameters as the sampler must have had them."""

  def checked(state, rollout, reference):
    seen = fingerprint.checksum(linear.freeze(state.params, dtype))
    state, metrics = train_step(state, rollout, reference)
    return state, metrics | {"sync/checksum_trainer": seen}

  return checked


def _with_drift(train_step):
  """Adds how far the parameters are from where they are anchored."""

  def measured(state, rollout, reference):
    state, metrics = train_step(state, rollout, reference)
    start = optax.tree.get(state.opt_state, "start")
    drift = anchored.drift_norm(state.params, start)
    return state, metrics | {"drift_norm": drift}

  return measured


def _head(config, method, model, updates) -> heads.AuxiliaryHead | None:
  """The method's head with the run's optimizer at a rate of its own."""

  def own(rate):
    rate *= config.optimizer.learning_rate
    one = dataclasses.replace(config.optimizer, learning_rate=rate, anchor=0.0)
    return optimizer.make_optimizer(one, steps=updates)

  key = jax.random.fold_in(jax.random.key(config.seed), _STREAM)
  return heads.of_method(method, model, own, key=key)


def problems(
  config: experiment.Experiment, split: str
) -> Sequence[sources.Problem]:
  """Problems of a split of the experiment's source; errors as build()."""
  data = config.data
  return sources.load(
    data.source,
    path=data.path,
    split=split,
    digits=data.digits,
    few_shot=data.few_shot,
    size=data.size,
    seed=config.seed,
  )


def examples(
  config: experiment.Experiment, tokenizer, problems: Sequence[sources.Problem]
) -> answers.Examples:
  """Problems as a supervised run learns them; errors as build()."""
  stops = [*collectors.stop_texts(config.sampling.stop, tokenizer)]
  return answers.Examples(
    problems,
    tokenizer,
    prompt_length=config.prompt_length,
    answer_length=config.completion_length,
    end_id=stops[0] if stops else tokenizer.ending(chat=config.data.chat),
    template=config.data.template,
    answer_template=config.data.answer_template,
    chat=config.data.chat,
  )


def _check_prompts(config, tokenizer, problems):
  """Raises ValueError for the first prompt that cannot be encoded."""
  for first in range(0, len(problems), 256):
    encoding.encode_prompts(
      problems[first : first + 256],
      tokenizer,
      length=config.prompt_length,
      template=config.data.template,
      chat=config.data.chat,
    )
