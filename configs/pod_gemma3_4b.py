"""Gemma-3-4B-it with GRPO; see pod_qwen3_0_6b.

  jaxrl plan pod_gemma3_4b --topology v5e:4x8    # also v6e:4x4, v5p:2x2x2
  jaxrl train pod_gemma3_4b --runs FOLDER    # on each host of the slice

Four devices share heads, MLPs and the vocabulary; its four key heads allow no
more. The weights are behind a licence: accept it on the hub and log in first.
"""

import dataclasses

import pod_qwen3_0_6b as base  # beside this file

from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """pod_qwen3_0_6b with another model and its chat template."""
  config = base.get_config()
  return dataclasses.replace(
    config,
    name="pod_gemma3_4b",
    completion_length=2048,
    mesh=experiment.Mesh(data=1, tensor=4),
    model=dataclasses.replace(config.model, name="google/gemma-3-4b-it"),
    data=base.CHAT,
  )
