"""SmolLM2-135M on grade-school word problems (GSM8K) with DAPO.

  jaxrl train gsm8k_dapo --data.path FOLDER   # train.jsonl and test.jsonl

For one accelerator with 16 GiB or more. Against gsm8k_grpo: a higher upper
clip, every token counts the same, groups of equal reward are dropped and
completions that run into their last 64 tokens lose reward.
"""

import dataclasses

import gsm8k_grpo  # beside this file

from jaxrl_llm import methods
from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """gsm8k_grpo with another method."""
  return dataclasses.replace(
    gsm8k_grpo.get_config(),
    name="gsm8k_dapo",
    method=methods.Dapo(buffer=64),
  )
