"""Qwen3-1.7B with GRPO; see pod_qwen3_0_6b.

  jaxrl plan pod_qwen3_1_7b --topology v5e:4x4    # also v6e:2x4, v5p:2x2x1
  jaxrl train pod_qwen3_1_7b --runs FOLDER    # on each host of the slice

Parameters and rows are cut over all devices.
"""

import dataclasses

import pod_qwen3_0_6b as base  # beside this file

from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """pod_qwen3_0_6b with another model."""
  config = base.get_config()
  return dataclasses.replace(
    config,
    name="pod_qwen3_1_7b",
    micro_batches=4,
    model=dataclasses.replace(config.model, name="Qwen/Qwen3-1.7B"),
  )
