"""Qwen3-8B with GRPO; see pod_qwen3_0_6b.

  jaxrl plan pod_qwen3_8b --topology v5e:8x8    # also v6e:4x8, v5p:2x2x4
  jaxrl train pod_qwen3_8b --runs FOLDER    # on each host of the slice

Eight devices share heads, MLPs and the vocabulary. With more chips let the
batch grow: v5e:16x16 with --prompts-per-step 256.
"""

import dataclasses

import pod_qwen3_0_6b as base  # beside this file

from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """pod_qwen3_0_6b with another model, longer completions."""
  config = base.get_config()
  return dataclasses.replace(
    config,
    name="pod_qwen3_8b",
    completion_length=2048,
    mesh=experiment.Mesh(data=1, tensor=8),
    model=dataclasses.replace(config.model, name="Qwen/Qwen3-8B"),
  )
