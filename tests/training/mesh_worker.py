"""Trains the tiny model on meshes of eight fake devices; prints JSON.

    python mesh_worker.py "data=8" "fsdp=2 tensor=2" ...

For each mesh: the tokens that were sampled and how far parameters are from
those of a single device, over the largest change. "rank=4" trains an adapter.
"""

import dataclasses
import functools
import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from jaxrl_llm import methods  # noqa: E402
from jaxrl_llm.distributed import mesh as meshes  # noqa: E402
from jaxrl_llm.training import experiment, setup  # noqa: E402

BASE = experiment.Experiment(
  steps=4,
  prompts_per_step=8,
  group_size=2,
  prompt_length=16,
  completion_length=6,
  micro_batches=1,
  model=experiment.Model(name="tiny"),
  data=experiment.Data(source="addition", digits=1, few_shot=0, size=64),
  method=methods.Grpo(),
  # A large eps makes Adam's change proportional to the gradient, so that
  # rounding of tiny gradients is not blown up to whole steps.
  optimizer=experiment.Optimizer(
    learning_rate=1.0, eps=1.0, schedule="constant"
  ),
  evaluation=experiment.Evaluation(examples=4),
  reward_workers=0,
)


def train(mesh: experiment.Mesh, rank: int = 0):
  """Tokens of two steps and the parameters before and after."""
  lora = experiment.Lora(rank=rank)
  run = setup.build(dataclasses.replace(BASE, mesh=mesh, lora=lora))
  state, reference = run.init_state(), run.reference()
  start = jax.device_get(state.params)
  tokens, rng = [], np.random.default_rng(0)
  for step in range(2):
    with run.collect.sync(run.policy(state.params)) as synced:
      samples = run.collect(synced.params, next(run.batches), step)
    rewards = rng.random(len(samples.texts)).astype(np.float32)
    rollout = meshes.place_rows(samples.rollout(rewards), run.mesh)
    state, metrics = run.train_step(state, rollout, reference)
    tokens.append(samples.generation.completions.tolist())
    seen = samples.generation.checksum
    assert (seen is None) == (run.mesh is None and not rank)
    assert seen is None or metrics["sync/checksum_trainer"] == seen[0]
  gap = float(metrics["sampler_gap_max"])
  return tokens, start, jax.device_get(state.params), gap, state


def main():
  """Compares every mesh of the command line with one device."""
  alone_with = functools.cache(
    lambda rank: train(experiment.Mesh(data=1, fsdp=1), rank)
  )
  for text in sys.argv[1:]:
    sizes = {k: int(v) for k, v in (word.split("=") for word in text.split())}
    rank = sizes.pop("rank", 0)
    full = {"data": 1, "fsdp": 1} | sizes
    tokens, start, alone, _, _ = alone_with(rank)
    change = largest(start, alone)
    seen, _, params, gap, state = train(experiment.Mesh(**full), rank)
    matrix = jax.tree.leaves(state.params["layers"]["mlp"]["down"])[0]
    print(
      json.dumps(
        {
          "mesh": text,
          "devices": len(matrix.sharding.device_set),
          "share": matrix.addressable_shards[0].data.size / matrix.size,
          "tokens": seen == tokens,
          "error": largest(alone, params) / change,
          "gap": gap,
        }
      ),
      flush=True,
    )


def largest(a, b) -> float:
  """The largest difference of two trees."""
  gaps = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
  return max(jax.tree.leaves(gaps))


if __name__ == "__main__":
  main()
