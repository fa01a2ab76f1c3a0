"""What --pack saves: operations of a train step, padded and packed.

Lengths of completions are log-normal (deviation 0.6 of the log) and cut at
completion_length, those of prompts uniform between a quarter of prompt_length
and all of it. Operations are those of the matrix products of the traced step,
for one device; nothing is compiled or timed.

    python scripts/bench_packing.py pod_qwen3_0_6b --prompts 8
"""

import argparse
import dataclasses

import jax
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.distributed import costs
from jaxrl_llm.models.weights import assemble, resolve
from jaxrl_llm.rollout import packing
from jaxrl_llm.training import ahead, config_file, experiment, setup

# Median length of completions, of completion_length.
MEDIANS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


def sampled(
  config: experiment.Experiment, rng: np.random.Generator, median: float
) -> types.Rollout:
  """A rollout of the experiment with such lengths; all tokens are 0."""
  rollout = ahead.example_rollout(
    config.prompts_per_step,
    config.group_size,
    config.prompt_length,
    config.completion_length,
    rewards=len(config.reward),
    extras=config.method.build().plan.extras,
  )
  rows, length = rollout.mask.shape
  lengths = rng.lognormal(np.log(median * length), 0.6, rows)
  size = config.prompt_length
  prompts = rng.integers(size // 4, size + 1, config.prompts_per_step)
  prompts = np.repeat(prompts, config.group_size)
  return rollout.replace(
    mask=np.arange(length)[None] < np.ceil(lengths)[:, None],
    prompt_mask=np.arange(size)[None] >= size - prompts[:, None],
  )


def step_flops(
  config: experiment.Experiment, rollouts: list[types.Rollout]
) -> list[float]:
  """Operations of the train step on each rollout."""
  shape = resolve.shape(config.model.name)
  parts = setup.functions(config, shape, None)
  params = assemble.abstract(shape)
  state = jax.eval_shape(parts.fresh, params)
  needs_reference = parts.method.compares
  step = jax.jit(parts.train_step)
  reference = params if needs_reference else None
  return [
    costs.flops(step.trace(state, rollout, reference).jaxpr)
    for rollout in rollouts
  ]


def main():
  """Prints a row for each median."""
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("config", help="as of jaxrl train")
  p.add_argument("--prompts", type=int, default=8, help="prompts per step")
  args = p.parse_args()
  config = dataclasses.replace(
    config_file.load(args.config),
    prompts_per_step=args.prompts,
    micro_batches=1,
    mini_batches=1,
  )
  rng = np.random.default_rng(0)
  padded = [sampled(config, rng, median) for median in MEDIANS]
  packed = [packing.Packer()(rollout) for rollout in padded]
  whole, *each = step_flops(config, [padded[0], *(r for r, _ in packed)])
  print("| mean length | at the limit | efficiency | tokens | operations |")
  print("|---|---|---|---|---|")
  for rollout, (_, metrics), flops in zip(padded, packed, each, strict=True):
    print(
      f"| {rollout.mask.sum(axis=1).mean():.0f} of {rollout.mask.shape[1]}"
      f" | {rollout.mask[:, -1].mean():.0%}"
      f" | {metrics['packing/efficiency']:.2f}"
      f" | {metrics['packing/tokens']:.2f} | {flops / whole:.2f} |"
    )


if __name__ == "__main__":
  main()
