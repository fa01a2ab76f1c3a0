"""Qwen3-32B with GRPO; see pod_qwen3_0_6b.

  jaxrl plan pod_qwen3_32b --topology v6e:8x8    # also v5p:4x4x4
  jaxrl plan pod_qwen3_32b --topology v5e:16x16 --micro-batches 2
  jaxrl train pod_qwen3_32b --runs FOLDER    # on each host of the slice

Eight devices share heads, MLPs and the vocabulary.
"""

import dataclasses

import pod_qwen3_0_6b as base  # beside this file

from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """pod_qwen3_0_6b with another model, long completions."""
  config = base.get_config()
  return dataclasses.replace(
    config,
    name="pod_qwen3_32b",
    completion_length=2048,
    mesh=experiment.Mesh(data=1, tensor=8),
    model=dataclasses.replace(config.model, name="Qwen/Qwen3-32B"),
  )
