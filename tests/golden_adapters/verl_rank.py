"""Cases of VERL: effective ranks of one completion, and the bonus of a batch.

The official velocities come from Gram matrices in float32 whose eigenvalues
that should be 0 are not; its slow version and ours leave them out.
"""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import hidden_rank
from jaxrl_llm.transforms import rank_guidance

_FAST = {"rtol": 1e-2, "atol": 1e-2}
# What the file says of each list; its float32 has seven digits.
PRECISION = {
  "ER": {"rtol": 1e-4},
  "ERV": _FAST,
  "ERA": _FAST,
  "velocity_list": _FAST,
  "acceleration_list": _FAST,
  "velocity_list_slow_version": {"rtol": 1e-4, "atol": 1e-6},
  # bfloat16 has eight bits.
  "aux_at_last_token_bf16_from_official": {"rtol": 2**-8},
}


def adapt(case, dtype):
  """Returns the outputs of a case by name."""
  if "hidden" in case.inputs:
    ours = _ranks(case, dtype)
  else:
    ours = _bonus(case, dtype)
  return {name: ours[name] for name in case.outputs}


def _ranks(case, dtype):
  hidden = case.array("hidden", dtype)
  mask = jnp.asarray(case.inputs.get("mask", np.ones(len(hidden)))) > 0
  knobs = {
    "stride": int(case.params.get("stride", 40)),
    "max_length": int(case.params.get("max_len", 512)),
  }
  found = hidden_rank.prefix_ranks(hidden, mask, **knobs)
  dynamics = hidden_rank.rank_dynamics(hidden[None], mask[None], **knobs)[0]
  velocities = found.velocities[1 : max(int(found.count), 1)]
  return {
    "ERA": dynamics[0],
    "ERV": dynamics[1],
    "ER": dynamics[2],
    "velocity_list": velocities,
    "velocity_list_slow_version": velocities,
    "acceleration_list": found.accelerations[2 : max(int(found.count), 2)],
  }


def _bonus(case, dtype):
  baseline = case.array("baseline_ema", dtype)
  mask, params = jnp.asarray(case.inputs["mask"]) > 0, case.params
  signal = params.get("lambda", 1.0) * rank_guidance.rank_signal(
    case.array("ERA_ERV_ER", dtype),
    baseline,
    gain=params.get("gain", 2.0),
    explore=params.get("w_explore", (0, 0, 1)),
    exploit=params.get("w_exploit", (0, 1, 0)),
  )
  credit = case.array("base_adv", dtype)
  credit = credit[:, None] if credit.ndim == 1 else credit
  bonus = rank_guidance.rank_bonus(
    credit, signal, kappa=params.get("kappa", 2.0)
  )
  after = rank_guidance.next_mean(
    baseline,
    case.array("prev_batch_mean", dtype),
    rho=params.get("ema_alpha", 0.3),
  )
  return {
    "aux_exact": signal,
    "aux_at_last_token_bf16_from_official": signal,
    "bonus": bonus[:, 0] if bonus.shape[1] == 1 else bonus,
    "shaped_adv_broadcast": jnp.where(mask, credit + bonus, 0.0),
    "baseline_ema_after": after,
  }
