"""The aggregations and terms of policy_loss are those of jaxrl_llm."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.methods import base, dapo, dr_grpo, grpo
from jaxrl_llm.objectives import penalties, surrogates
from jaxrl_llm.testing import contract, rollouts
from pallas_kernels import policy_loss

_CLIP = {"clip_low": 0.2, "clip_high": 0.28}


@functools.partial(jax.jit, static_argnames=("options",))
def values_and_slope(logprob, old, ref, advantages, mask, options):
  def loss(logprob):
    sums = policy_loss.policy_loss_sums(
      logprob, old, ref, advantages, mask, **dict(options)
    )
    return sums.loss.sum(), sums

  slope, sums = jax.grad(loss, has_aux=True)(logprob)
  return sums, slope


def run(*arrays, **options):
  return values_and_slope(*arrays, options=tuple((_CLIP | options).items()))


class HouseTest(chex.TestCase):
  """The aggregations of the docstring are the methods of jaxrl_llm."""

  def check(self, config, build, kl="k3", beta=0.0):
    rollout = rollouts.make_rollout(3, groups=3, length=9)
    rollout = rollout.replace(
      weights=rollout.weights.at[2].set(0.0).at[4].set(0.5)
    )
    scores = rollouts.make_scores(rollout, scale=0.4)
    method = config.build()
    loss, metrics, grads = contract.evaluate(method, scores, rollout)
    _, advantages, weights = self.credit(method, rollout)

    def ours(logprobs):
      sums = policy_loss.policy_loss_sums(
        *(logprobs, rollout.old_logprobs, rollout.ref_logprobs),
        *(advantages, rollout.mask),
        **{"clip_low": config.clip_low, "clip_high": config.clip_high},
        **{"kl": kl, "beta": beta},
      )
      return build(sums, weights), sums

    (value, _), slope = jax.jit(jax.value_and_grad(ours, has_aux=True))(
      scores.logprobs
    )
    chex.assert_trees_all_close(value, loss, rtol=1e-5)
    chex.assert_trees_all_close(slope, grads.logprobs, rtol=1e-5, atol=1e-7)
    self.assertGreater(float(metrics["clip_fraction"]), 0.0)

  def credit(self, method, rollout):
    rollout, _ = method.transform.update(rollout, method.transform.init())
    return rollout, method.advantage(rollout), rollout.weights

  @parameterized.parameters("k3", "exact", "low_var_kl+", "ratio_k1")
  def test_grpo_is_the_sequence_mean(self, kl):
    self.check(
      grpo.Grpo(kl=kl, beta=0.3),
      lambda s, v: (v * s.loss / jnp.maximum(s.tokens, 1)).sum() / v.sum(),
      **{"kl": kl, "beta": 0.3},
    )

  def test_dapo_is_the_token_mean(self):
    self.check(
      dapo.Dapo(), lambda s, v: (v * s.loss).sum() / (v * s.tokens).sum()
    )

  def test_dr_grpo_is_the_fixed_length(self):
    self.check(
      dr_grpo.DrGrpo(max_length=12),
      lambda s, v: (v * s.loss).sum() / (12 * v.sum()),
    )

  @parameterized.parameters(*policy_loss.KL_NAMES)
  def test_every_kl_is_the_penalty_of_that_name(self, kl):
    rollout = rollouts.make_rollout(1)
    far = 4.0 * jnp.sin(jnp.arange(rollout.mask.size, dtype=jnp.float32))
    rollout = rollout.replace(
      ref_logprobs=rollout.old_logprobs + far.reshape(rollout.mask.shape)
    )
    logprobs = rollouts.make_scores(rollout).logprobs

    def theirs(logprobs):
      scores = types.Scores(logprobs=logprobs)
      return penalties.REFERENCE_KL[kl](scores, rollout).sum()

    value, expected = jax.jit(jax.value_and_grad(theirs))(logprobs)
    sums, slope = run(
      *(logprobs, rollout.old_logprobs, rollout.ref_logprobs),
      *(jnp.zeros(8), rollout.mask),
      **{"kl": kl, "beta": 1.0},
    )
    chex.assert_trees_all_close(sums.kl.sum(), value, rtol=1e-5)
    chex.assert_trees_all_close(slope, expected, rtol=1e-5, atol=1e-6)

  def test_every_kl_of_the_house_is_here(self):
    self.assertEqual(set(policy_loss.KL_NAMES), set(penalties.REFERENCE_KL))

  def test_the_dual_clip_is_that_of_the_house(self):
    rollout = rollouts.make_rollout(2)
    logprob = rollouts.make_scores(rollout, scale=1.0).logprobs
    old, mask = rollout.old_logprobs, rollout.mask
    credit = base.per_token(rollout.rewards - 0.5, mask)

    def theirs(logprob):
      loss, cut = surrogates.dual_clip_surrogate(
        logprob - old, credit, **_CLIP, dual_clip=1.5
      )
      return jnp.where(mask, loss, 0).sum(), cut

    expected, cut = jax.jit(jax.grad(theirs, has_aux=True))(logprob)
    sums, slope = run(logprob, old, None, credit, mask, dual_clip=1.5)
    chex.assert_trees_all_close(slope, expected, rtol=1e-6)
    for ours, name in (
      (sums.clipped_low, "clip_fraction_low"),
      (sums.clipped_high, "clip_fraction_high"),
      (sums.dual_clipped, "dual_clip_fraction"),
    ):
      np.testing.assert_array_equal(ours, (mask * cut[name]).sum(1))
      self.assertGreater(float(ours.sum()), 0)
