"""Cases of kind soft_overlong, stop_properly, reward and eval."""

import re

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.rewards import registry
from jaxrl_llm.training import evaluate
from jaxrl_llm.transforms import shaping


def _overlong(case, dtype, *, max_length, buffer, factor=None, bounded=True):
  del dtype  # lengths are whole numbers
  penalty = shaping.soft_overlong(
    jnp.asarray(case.inputs["lengths"].astype(int)),
    max_length=case.params[max_length],
    buffer=case.params[buffer],
    factor=case.params.get(factor, 1.0),
    bounded=bounded,
  )
  return {"penalty": penalty}


def _trl_overlong(case, dtype):
  return _overlong(
    case, dtype, max_length="max_completion_len", buffer="soft_punish_cache"
  )


def _verl_overlong(case, dtype):
  return _overlong(
    case,
    dtype,
    max_length="max_resp_len",
    buffer="overlong_buffer_len",
    factor="penalty_factor",
    bounded=False,
  )


def _openrlhf_overlong(case, dtype):
  return _overlong(
    case,
    dtype,
    max_length="max_new_tokens",
    buffer="buffer",
    factor="factor",
  )


def _stop_properly(case, dtype):
  rewards = shaping.stop_properly(
    case.array("rewards", dtype),
    case.array("truncated", bool),
    coef=case.params["coef"],
  )
  return {"rewards": rewards}


def _think_format(case, dtype):
  del dtype
  texts = case.inputs["completions"]
  blank = [""] * len(texts)
  return {"reward": registry.load("think_format")(blank, texts, blank)}


def _pass_at_k(case, dtype):
  del dtype
  correct = np.asarray(case.inputs["correct"]) > 0
  tries = correct.shape[1]

  def mean(k):
    return np.mean(
      [evaluate.pass_at_k(tries, int(row.sum()), k) for row in correct]
    )

  # The names say which k; those without "unbiased" are k = 1 and k = tries,
  # where the two estimators are one.
  return {
    name: mean(int(re.search(r"pass_at_(\d+)", name)[1]))
    for name in case.outputs
  }


ADAPTERS = {
  (
    "huggingface/trl",
    "soft_overlong",
    "get_soft_overlong_punishment",
  ): _trl_overlong,
  ("verl-project/verl", "soft_overlong", "dapo_reward_manager"): _verl_overlong,
  ("OpenRLHF/OpenRLHF", "soft_overlong", "openrlhf"): _openrlhf_overlong,
  ("OpenRLHF/OpenRLHF", "stop_properly", "openrlhf"): _stop_properly,
  ("huggingface/trl", "reward", "think_format_reward"): _think_format,
  ("allenai/open-instruct", "eval", "pass_at_k"): _pass_at_k,
}
