"""A model without training: held-out accuracy and completions of prompts."""

from collections.abc import Callable
import pathlib

import jax
import numpy as np

from jaxrl_llm.data import prompts as encoding
from jaxrl_llm.data import sources
from jaxrl_llm.models import families
from jaxrl_llm.models.weights import resolve
from jaxrl_llm.training import adapter, collectors, experiment, setup
from jaxrl_llm.training import checkpoint as checkpoints
from jaxrl_llm.training import evaluate as evaluation


def held_out(
  run: setup.Run, pool, params, *, say: Callable[..., None] | None = None
) -> evaluation.EvaluationResult:
  """Evaluates the trainer's parameters on the run's held-out problems."""
  config, calls = run.config.evaluation, 0

  def generate(problems):
    nonlocal calls
    samples = run.evaluate(synced.params, problems, calls)
    calls += 1
    if say:
      say(min(calls * len(problems), len(run.held_out)), len(run.held_out))
    group = samples.group_size
    return [
      samples.texts[i : i + group] for i in range(0, len(samples.texts), group)
    ]

  with run.evaluate.sync(run.policy(params)) as synced:
    return evaluation.run(
      generate,
      pool,
      run.held_out,
      batch=config.batch,
      samples=config.samples,
      seed=run.config.seed,
    )


def evaluate(
  config: experiment.Experiment,
  *,
  checkpoint: str | None = None,
  weights: str | None = None,
) -> evaluation.EvaluationResult:
  """Evaluates a model as an experiment would.

  Args:
    config: the experiment.
    checkpoint: a run's folder, whose newest checkpoint is taken.
    weights: a model name or folder instead of config.model.name.
  """
  if checkpoint and weights:
    raise ValueError("--checkpoint and --weights exclude each other.")
  with setup.make_pool(config) as pool:
    run = setup.build(config, weights=weights)
    state = run.init_state()
    if checkpoint:
      folder = pathlib.Path(checkpoint).expanduser() / "checkpoints"
      with checkpoints.Checkpointer(folder, keep=1) as saver:
        state, extra, _ = saver.restore(state)
      adapter.check_origin(extra.get("adapter", {}), run.origin())
    return held_out(run, pool, state.params)


def sample(
  model: str,
  prompts: list[str],
  *,
  sampling: experiment.Sampling,
  max_new_tokens: int,
  samples: int,
  seed: int,
  chat: bool,
  dtype: str = "float32",
) -> list[list[str]]:
  """Completes prompts with a model by name; texts by prompt.

  Args:
    model: as in experiment.Model.name.
    prompts: texts.
    sampling: rule.
    max_new_tokens: most tokens of a completion.
    samples: completions a prompt.
    seed: of the noise.
    chat: wrap each prompt as a user turn.
    dtype: of matrix products.
  """
  loaded = resolve.load(model, seed=seed)
  problems = [
    sources.Problem(id=i, prompt=text, answer="")
    for i, text in enumerate(prompts)
  ]
  texts = encoding.write_prompts(problems, loaded.tokenizer, chat=chat)
  length = max(len(loaded.tokenizer.encode(text)) for text in texts)
  collector = collectors.make_collector(
    families.build(loaded.config, dtype=np.dtype(dtype)),
    loaded.tokenizer,
    sampling,
    prompt_length=length,
    completion_length=max_new_tokens,
    group_size=samples,
    key=jax.random.key(seed),
    chat=chat,
  )
  texts = collector(loaded.params, problems, 0).texts
  return [texts[i : i + samples] for i in range(0, len(texts), samples)]
