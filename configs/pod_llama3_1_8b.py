"""Llama-3.1-8B-Instruct with GRPO; see pod_qwen3_0_6b.

  jaxrl plan pod_llama3_1_8b --topology v5e:8x8    # also v6e:4x8, v5p:2x2x4
  jaxrl train pod_llama3_1_8b --runs FOLDER    # on each host of the slice

Eight devices share heads, MLPs and the vocabulary. The weights are behind a
licence: accept it on the hub and log in first.
"""

import dataclasses

import pod_qwen3_0_6b as base  # beside this file

from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """pod_qwen3_0_6b with another model and its chat template."""
  config = base.get_config()
  return dataclasses.replace(
    config,
    name="pod_llama3_1_8b",
    completion_length=2048,
    mesh=experiment.Mesh(data=1, tensor=8),
    model=dataclasses.replace(
      config.model, name="meta-llama/Llama-3.1-8B-Instruct"
    ),
    data=base.CHAT,
  )
