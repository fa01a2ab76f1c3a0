"""Checks of the model: weights, tokenizer, and sampler against trainer."""

from collections.abc import Iterator
import importlib.util
import math
import os

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.data import prompts
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models import cache, reference
from jaxrl_llm.training import collectors
from jaxrl_llm.training.doctor.finding import FAIL, OK, WARN, Finding
from jaxrl_llm.training.doctor.subject import Subject

# Largest difference of logits from the reference, over their deviation.
LOGITS_LIMIT = 1e-3
# Largest and mean |sampler - trainer| of a log-probability, in nats.
GAP_LIMITS = {"float32": (1e-3, 1e-4), "bfloat16": (1.0, 0.05)}

_TOKENS = 32  # of a prompt that the reference reads
_DRAWN = 16  # tokens of a completion for the gap
_TORCH_MOST = 2_000_000_000  # parameters that transformers may hold as well
_KNOWN = 0.7  # of ln V nats a token: above it a model knows no language


def weights(subject: Subject) -> Iterator[Finding]:
  """Finite parameters, and logits that a second implementation agrees with."""
  loaded = subject.loaded
  leaves = jax.tree.leaves(loaded.params)
  count = sum(leaf.size for leaf in leaves)
  head = "tied head" if loaded.config.tied else "own head"
  figure = f"{loaded.source}: {count / 1e6:.1f} million parameters, {head}"
  broken = sum(int((~jnp.isfinite(leaf)).sum()) for leaf in leaves)
  if broken:
    yield Finding(
      name="weights",
      status=FAIL,
      figure=f"{figure}; {broken} of them are NaN or infinite",
      advice="fetch the model anew",
    )
    return
  subject.say("comparing logits with a reference")
  tokens = _some_tokens(subject)
  expected, by = _reference_logits(loaded, tokens, count)
  error = np.abs(_our_logits(subject, tokens) - expected).max()
  error /= max(expected.std(), 1e-30)
  nats, uniform = _nats(expected, tokens), math.log(loaded.config.vocab_size)
  figure += (
    f"; logits of {len(tokens)} tokens within {error:.1e} of their deviation"
    f" from {by}; {nats:.1f} nats a prompt token, {uniform:.1f} if all tokens"
    " were alike"
  )
  if not error <= LOGITS_LIMIT:
    status = FAIL
    advice = f"at most {LOGITS_LIMIT:g}: weights or computation are not right"
  elif nats > _KNOWN * uniform and loaded.source != "random":
    status = WARN
    advice = "the model hardly knows this text: tokenizer of another model?"
  else:
    status, advice = OK, ""
  yield Finding(name="weights", status=status, figure=figure, advice=advice)


def _some_tokens(subject) -> np.ndarray:
  """The beginning of the first prompt, [L]."""
  config = subject.config.data
  text = prompts.write_prompts(
    subject.training[:1], subject.loaded.tokenizer, template=config.template
  )[0]
  return np.asarray(subject.loaded.tokenizer.encode(text)[:_TOKENS])


def _our_logits(subject, tokens) -> np.ndarray:
  """[L, V] of the run's own forward, with float32 products."""
  model, mesh = subject.exact_model(), subject.layout.mesh

  def forward(params, row):
    past = cache.Causal(jnp.ones(row.shape, bool))
    hidden, _ = model.apply(params, row, past.positions(), past)
    logits = hidden[0] @ model.head(params).T
    cap = model.config.final_softcap
    return cap * jnp.tanh(logits / cap) if cap else logits

  with jax.default_matmul_precision("highest"):
    run = jax.jit(meshes.traced_for(mesh, forward))
    row = meshes.replicate(tokens[None].astype(np.int32), mesh)
    return np.asarray(run(subject.loaded.params, row), np.float64)


def _reference_logits(loaded, tokens, count) -> tuple[np.ndarray, str]:
  """[L, V] of another implementation, and its name.

  transformers reads the files itself; the float64 forward has only the
  parameters that were read here.
  """
  folder = os.path.isdir(loaded.source)
  torch = importlib.util.find_spec("torch") is not None
  if folder and torch and count <= _TORCH_MOST:
    return _transformers_logits(loaded.source, tokens), "transformers"
  plain = reference.logits(loaded.config, loaded.params, tokens)
  return plain, "a float64 forward"


def _transformers_logits(folder, tokens) -> np.ndarray:
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, local_files_only=True
  ).eval()
  with torch.no_grad():
    out = model(input_ids=torch.tensor(tokens)[None].long())
  return out.logits[0].numpy().astype(np.float64)


def _nats(logits, tokens) -> float:
  """Mean surprise at each token of the text but the first."""
  if len(tokens) < 2:
    return 0.0
  largest = logits.max(axis=1, keepdims=True)
  total = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
  chosen = logits[np.arange(len(tokens) - 1), tokens[1:]]
  return float((total[:-1] - chosen).mean())


def tokenizer(subject: Subject) -> Iterator[Finding]:
  """Ids that the model has, ends that it can reach, a template for chat."""
  mine, vocab = subject.loaded.tokenizer, subject.loaded.config.vocab_size
  figure = (
    f"{mine.vocab_size} ids of the model's {vocab}, stops at"
    f" {', '.join(map(str, mine.stop_ids))}"
  )
  ids = (mine.vocab_size - 1, mine.pad_id, *mine.stop_ids)
  beyond = sorted({i for i in ids if not 0 <= i < vocab})
  if beyond:
    yield Finding(
      name="tokenizer",
      status=FAIL,
      figure=f"{figure}; the model has no id {beyond[-1]}",
      advice="use the tokenizer that the weights were trained with",
    )
    return
  if subject.config.data.chat:
    mine.chat([{"role": "user", "content": "?"}])  # raises, in one line
    figure += ", with a chat template"
  yield Finding(name="tokenizer", status=OK, figure=figure)


def gap(subject: Subject) -> Iterator[Finding]:
  """How far sampler and trainer disagree on tokens that were just drawn."""
  config, loaded = subject.config, subject.loaded
  subject.say("sampling a few tokens and scoring them")
  model = subject.functions.model
  collect = collectors.make_collector(
    model,
    loaded.tokenizer,
    config.sampling,
    prompt_length=config.prompt_length,
    completion_length=min(config.completion_length, _DRAWN),
    group_size=config.group_size,
    key=jax.random.key(config.seed),
    template=config.data.template,
    chat=config.data.chat,
    sync=subject.layout.sync(model),
  )
  problems = [
    subject.training[i % len(subject.training)]
    for i in range(subject.row_shares)
  ]
  with collect.sync(loaded.params) as synced:
    samples = collect(synced.params, problems, 0)
  rollout = samples.rollout(np.zeros(len(samples.texts), np.float32))
  score = jax.jit(
    meshes.traced_for(
      subject.layout.mesh, lambda *args: subject.functions.score(*args).logprobs
    )
  )
  scored = score(loaded.params, meshes.place_rows(rollout, subject.layout.mesh))
  mask = samples.generation.mask
  found = np.abs(np.asarray(scored) - samples.generation.logprobs)[mask]
  most, mean = GAP_LIMITS[config.model.dtype]
  figure = (
    f"sampler and trainer differ by {found.mean():.1e} nats on average and"
    f" {found.max():.1e} at most, on {found.size} tokens in"
    f" {config.model.dtype}"
  )
  fits = found.max() <= most and found.mean() <= mean
  advice = f"at most {mean:g} and {most:g}: they compute different models"
  yield Finding(
    name="gap",
    status=OK if fits else FAIL,
    figure=figure,
    advice="" if fits else advice,
  )
