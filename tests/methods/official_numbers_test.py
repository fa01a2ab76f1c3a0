"""GRPO, Dr. GRPO and DAPO against TRL's own values and gradients."""

import pathlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from jaxrl_llm import methods, types
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates
from jaxrl_llm.testing import golden, rollouts

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
# The tolerances that the files state.
TOLERANCES = {
  "float32": {"rtol": 1e-4, "atol": 1e-6},
  "float64": {"rtol": 1e-6, "atol": 1e-7},
}


def _cases(name):
  cases = golden.load(GOLDEN / f"{name}_trl.json", name=name)
  return parameterized.named_parameters(
    (f"{dtype}_{index}", case, dtype)
    for index, case in enumerate(cases)
    for dtype in TOLERANCES
  )


def _kl(case):
  return "exact" if case.params.get("use_bias_correction_kl") else "k3"


class TrlTest(chex.TestCase):
  @_cases("grpo")
  def test_grpo(self, case, dtype):
    clip = self._clip(case)
    beta = case.params.get("beta", 0.0)
    method = methods.Grpo(**clip, beta=beta, kl=_kl(case)).build()
    self._check(case, dtype, method.weighting, method.objective)

  @_cases("dr_grpo")
  def test_dr_grpo(self, case, dtype):
    method = methods.DrGrpo(
      **self._clip(case), max_length=case.params["max_completion_length"]
    ).build()
    self._check(case, dtype, method.weighting, method.objective)

  @_cases("dapo")
  def test_dapo(self, case, dtype):
    clip = self._clip(case)
    method = methods.Dapo(**clip).build()
    objective = method.objective
    if {"beta", "entropy_coef"} & set(case.params):  # not in the paper
      penalties, _ = base.regularizers(
        beta=case.params.get("beta", 0.0),
        kl=_kl(case),
        entropy_coef=case.params.get("entropy_coef", 0.0),
      )
      objective = policy.policy_objective(
        surrogate=lambda t: surrogates.clipped_surrogate(
          t.log_ratio, t.advantages, **clip
        ),
        penalties=penalties,
      )
    metrics = self._check(case, dtype, method.weighting, objective)
    for side in ("low", "high"):
      golden.assert_close(
        metrics[f"clip_fraction_{side}"],
        case.outputs["metrics"][f"clip_ratio/{side}_mean"],
        **TOLERANCES[dtype],
      )

  def _clip(self, case):
    low, high = case.params["epsilon_low"], case.params["epsilon_high"]
    return {"clip_low": low, "clip_high": high}

  def _check(self, case, dtype, weigh, objective):
    """Compares loss and gradients; returns the metrics."""
    with jax.enable_x64(dtype == "float64"):
      scores, rollout, advantages = _arrays(case, dtype)
      weights = weigh(rollout.mask, rollout.weights)
      run = jax.value_and_grad(objective, has_aux=True)
      (loss, metrics), grads = run(scores, rollout, advantages, weights)
      self.assertEqual(loss.dtype, dtype)
      close = TOLERANCES[dtype]
      golden.assert_close(loss, case.outputs["loss"], **close)
      expected = case.outputs["grad_logprobs"]
      golden.assert_close(grads.logprobs, expected, **close)
      if "grad_entropy" in case.outputs:
        expected = case.outputs["grad_entropy"]
        golden.assert_close(grads.entropy, expected, **close)
      return metrics


def _arrays(case, dtype):
  """The case as scores, rollout and advantages per token."""
  get = lambda name: case.array(name, dtype)  # noqa: E731
  optional = lambda name: get(name) if name in case.inputs else None  # noqa: E731
  mask = get("mask") > 0
  rollout = rollouts.make_rollout(length=mask.shape[1]).replace(
    mask=mask,
    old_logprobs=get("old_logprobs"),
    ref_logprobs=optional("ref_logprobs"),
    weights=jnp.ones(mask.shape[0], dtype),
  )
  scores = types.Scores(logprobs=get("logprobs"), entropy=optional("entropy"))
  return scores, rollout, base.per_token(get("advantages"), mask)
