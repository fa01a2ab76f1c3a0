"""Qwen3-4B with GRPO; see pod_qwen3_0_6b.

  jaxrl plan pod_qwen3_4b --topology v5e:4x8    # also v6e:4x4, v5p:2x2x2
  jaxrl train pod_qwen3_4b --runs FOLDER    # on each host of the slice

Four devices share heads, MLPs and the vocabulary: the sampler's weights, whole
but for that, then leave room for its keys and values.
"""

import dataclasses

import pod_qwen3_0_6b as base  # beside this file

from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """pod_qwen3_0_6b with another model, longer completions."""
  config = base.get_config()
  return dataclasses.replace(
    config,
    name="pod_qwen3_4b",
    completion_length=2048,
    mesh=experiment.Mesh(data=1, tensor=4),
    model=dataclasses.replace(config.model, name="Qwen/Qwen3-4B"),
  )
