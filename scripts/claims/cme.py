"""CME: what a frozen verifier thinks of the answers, no label read."""

import claims_frame as frame
import claims_runs as runs
import compare_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods, types
from jaxrl_llm.models import likelihood
from jaxrl_llm.models.weights import resolve

CLAIM = (
  "Trained on the likelihood under a frozen verifier alone, the answers become"
  " likelier to it, and righter by labels that were never read."
)
SECONDS = 90.0
# Of the verifier's first weights; the policies' are 0, 1, 2 and so on.
_STRANGER = 100


def _share(samples):
  """Of tokens that are the target: the verifier learnt it, the policy not."""
  return {"share": runs.hits(samples).mean(axis=1)}


def _no_label(samples):
  return {"nothing": np.zeros(len(samples.texts))}


def trained(dtype) -> resolve.Loaded:
  """The verifier: a model of another seed, after 30 steps with labels."""
  arena = runs.Runs(1, steps=30)
  start = jax.vmap(arena.model.init)(jax.random.key(_STRANGER)[None])
  found = arena.train(methods.Grpo(beta=0.0), _share, params=start)
  return resolve.Loaded(
    config=arena.model.config,
    params=jax.tree.map(lambda x: jnp.asarray(x[0], dtype), found.params),
    tokenizer=tasks.TOKENIZER,
    source="another seed",
  )


def check(seeds: int) -> frame.Finding:
  """The policies see no reward but the verifier's."""
  judge = likelihood.Verifier(trained(jnp.float32), rows=64)

  def measure(samples):
    prompts = [problem.prompt for problem in samples.problems]
    ended = samples.generation.finish_reason == types.FINISH_STOP
    found, tokens = judge(
      np.repeat(prompts, samples.group_size), samples.texts, ended
    )
    return {
      "likelihood": np.where(tokens > 0, found, found.min()),
      **_share(samples),
      "tokens": runs.lengths(samples),
    }

  arena = runs.Runs(seeds, steps=40)
  config = methods.Cme(verifier=f"{__file__}:trained", rows=64)
  before = arena.evaluate(arena.params, _no_label, measure)
  run = arena.train(config, _no_label, measure)
  after = run.after
  gains = [
    frame.differs(after[name], before[name]) for name in ("likelihood", "share")
  ]
  return frame.Finding(
    shows=False if False in gains else None if None in gains else True,
    text=(
      "The mean log-likelihood under the verifier goes from"
      f" {frame.band(before['likelihood'], 2)} to"
      f" {frame.band(after['likelihood'], 2)} nats a token, the share of right"
      f" tokens, never rewarded, from {frame.band(before['share'])} to"
      f" {frame.band(after['share'])}; tokens a completion:"
      f" {frame.band(before['tokens'], 1)} to {frame.band(after['tokens'], 1)}."
    ),
    rows=[
      {
        "policy": name,
        "nats a token": frame.band(x["likelihood"], 2),
        "share of right tokens": frame.band(x["share"]),
      }
      for name, x in (("untrained", before), ("CME", after))
    ],
    curves={"CME": run.curves["likelihood"]},
    axes=("step", "mean log-likelihood, nats a token"),
  )
