"""The samplers of a run: for training, for greedy baselines, for evaluation."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import jax
import jax.numpy as jnp

from jaxrl_llm.data import tokenizers
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.distributed import weight_sync
from jaxrl_llm.models import api, families
from jaxrl_llm.rollout import collect, engine, sampling
from jaxrl_llm.training import experiment
from jaxrl_llm.training import layout as layouts

# Streams of randomness that a run's seed is split into.
_ROLLOUT, _EVALUATION = 0, 1


def make_collector(
  model: api.LanguageModel,
  tokenizer: tokenizers.Tokenizer,
  rule: experiment.Sampling,
  *,
  prompt_length: int,
  completion_length: int,
  group_size: int,
  key: jax.Array,
  template: str = "{prompt}",
  chat: bool = False,
  sync: weight_sync.WeightSync | None = None,
) -> collect.Collector:
  """A collector from names: model, rule and lengths; see its attributes."""
  sync = sync or weight_sync.WeightSync(model)
  stops = [*tokenizer.stop_ids, *stop_texts(rule.stop, tokenizer)]
  generate = generator(
    model,
    rule,
    completion_length=completion_length,
    group_size=group_size,
    stop_ids=stops,
    pad_id=tokenizer.pad_id,
    mesh=sync.rollout_mesh,
  )
  return collect.Collector(
    generate=generate,
    tokenizer=tokenizer,
    prompt_length=prompt_length,
    group_size=group_size,
    template=template,
    chat=chat,
    key=key,
    sync=sync,
    place=lambda tree: meshes.place_rows(tree, sync.rollout_mesh),
  )


def generator(
  model: api.LanguageModel,
  rule: experiment.Sampling,
  *,
  completion_length: int,
  group_size: int,
  stop_ids: Sequence[int],
  pad_id: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., engine.Generation]:
  """Collector.generate, jitted: prefill and all of decoding, one program."""
  draw = sampling.make_rule(
    temperature=rule.temperature,
    top_k=rule.top_k,
    top_p=rule.top_p,
    min_p=rule.min_p,
    greedy=rule.greedy,
  )
  generate = engine.make_generate(
    model,
    draw,
    length=completion_length,
    group_size=group_size,
    stop_ids=stop_ids,
    pad_id=pad_id,
  )

  def generate_step(*args):
    *inputs, key, step = args
    return generate(*inputs, jax.random.fold_in(key, step))

  return jax.jit(meshes.traced_for(mesh, generate_step))


def training(
  config: experiment.Experiment,
  model: api.LanguageModel,
  tokenizer: tokenizers.Tokenizer,
  layout: layouts.Layout,
) -> collect.Collector:
  """G completions a prompt, by the rule of training."""
  return make_collector(
    model,
    tokenizer,
    config.sampling,
    prompt_length=config.prompt_length,
    completion_length=config.completion_length,
    group_size=config.group_size,
    key=jax.random.fold_in(jax.random.key(config.seed), _ROLLOUT),
    template=config.data.template,
    chat=config.data.chat,
    sync=layout.sync(model),
  )


def greedy(
  config: experiment.Experiment,
  model: api.LanguageModel,
  tokenizer: tokenizers.Tokenizer,
  layout: layouts.Layout,
) -> collect.Collector:
  """One greedy completion a prompt, for plans that ask for a baseline."""
  rule = experiment.Sampling(greedy=True, stop=config.sampling.stop)
  single = dataclasses.replace(config, sampling=rule, group_size=1)
  return training(single, model, tokenizer, layout)


def evaluation(
  config: experiment.Experiment,
  model: api.LanguageModel,
  tokenizer: tokenizers.Tokenizer,
  layout: layouts.Layout,
) -> collect.Collector:
  """Completions of held-out problems, with the evaluation's own rule."""
  if config.evaluation.dtype != "as trained":
    dtype = jnp.dtype(config.evaluation.dtype)
    model = families.build(model.config, dtype=dtype)
  return make_collector(
    model,
    tokenizer,
    config.evaluation.sampling,
    prompt_length=config.prompt_length,
    completion_length=config.completion_length,
    group_size=config.evaluation.samples,
    key=jax.random.fold_in(jax.random.key(config.seed), _EVALUATION),
    template=config.data.template,
    chat=config.data.chat,
    sync=layout.sync(model),
  )


def stop_texts(
  stops: Sequence[str], tokenizer: tokenizers.Tokenizer
) -> Iterator[int]:
  """Ids of stop texts, in order.

  Raises:
    ValueError: one of them is not exactly one token of the tokenizer.
  """
  for text in stops:
    ids = tokenizer.encode(text)
    if len(ids) != 1:
      raise ValueError(
        f"sampling.stop {text!r} is {len(ids)} tokens of this tokenizer, it"
        " must be exactly one; name the token that ends it."
      )
    yield ids[0]
