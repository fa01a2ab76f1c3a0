"""Top-entropy mask around any method: TRL's numbers, bonus, controller."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts
from jaxrl_llm.training import state, step

PLAIN = methods.Grpo(beta=0.0)


def _evaluate(config, rollout=None, **knobs):
  rollout = rollouts.make_rollout() if rollout is None else rollout
  scores = rollouts.make_scores(rollout)
  return contract.evaluate(config.build(), scores, rollout, **knobs)


class MaskTest(chex.TestCase):
  def test_only_the_top_tokens_have_a_gradient(self):
    rollout = rollouts.make_rollout()
    entropy = np.asarray(rollouts.make_scores(rollout).entropy)
    masked = _evaluate(methods.TopEntropyMask(method=PLAIN, rho=0.3))[
      2
    ].logprobs
    plain = _evaluate(PLAIN)[2].logprobs
    mask = np.asarray(rollout.mask)
    top = mask & (entropy >= np.quantile(entropy[mask], 0.7))
    np.testing.assert_array_equal(masked, np.where(top, plain, 0.0))

  def test_the_kl_is_of_every_token(self):
    rollout = rollouts.make_rollout()
    config = methods.TopEntropyMask(method=methods.Grpo(beta=0.5), rho=0.3)
    kl = _evaluate(config)[1]["reference_kl"]
    own = _evaluate(methods.Grpo(beta=0.5))[1]["reference_kl"]
    np.testing.assert_allclose(kl, own, rtol=1e-6)
    grads = _evaluate(config)[2].logprobs
    self.assertTrue(bool((grads != 0)[rollout.mask].all()))

  def test_all_tokens_and_no_bonus_are_the_method_itself(self):
    config = methods.TopEntropyMask(method=methods.Dapo(), rho=1.0)
    chex.assert_trees_all_equal(_evaluate(config), _evaluate(methods.Dapo()))

  @parameterized.parameters(*methods.BY_GRADIENT)
  def test_goes_around_every_method(self, name):
    inner = methods.METHODS[name]()
    if getattr(inner, "entropy_coef", 0.0):  # the bonus is given by one alone
      inner = dataclasses.replace(inner, entropy_coef=0.0)
    config = methods.TopEntropyMask(method=inner, rho=0.5, entropy_coef=0.1)
    loss, metrics, grads = _evaluate(config)
    chex.assert_tree_all_finite((loss, metrics, grads.logprobs, grads.entropy))


class BonusTest(chex.TestCase):
  @parameterized.parameters(
    "token_mean", "sequence_mean", "sequence_sum", "fixed_length", "token_sum"
  )
  def test_is_the_mean_entropy_of_the_top_tokens(self, aggregation):
    inner = methods.KlAndAggregation(beta=0.0, aggregation=aggregation)
    config = methods.TopEntropyMask(method=inner, rho=0.5, entropy_coef=0.7)
    plain = methods.TopEntropyMask(method=inner, rho=0.5)
    loss, metrics, grads = _evaluate(config)
    rollout = rollouts.make_rollout()
    entropy = rollouts.make_scores(rollout).entropy
    top = entropy >= np.quantile(np.asarray(entropy[rollout.mask]), 0.5)
    top = top & rollout.mask
    mean = entropy[top].mean()
    np.testing.assert_allclose(metrics["negative_entropy"], -mean, rtol=1e-5)
    np.testing.assert_allclose(
      loss, _evaluate(plain)[0] - 0.7 * mean, rtol=1e-5, atol=1e-6
    )
    chex.assert_trees_all_close(
      grads.entropy, jnp.where(top, -0.7 / top.sum(), 0.0), rtol=1e-5
    )

  @parameterized.parameters(2, 4)
  def test_adds_up_over_pieces(self, pieces):
    config = methods.TopEntropyMask(
      method=methods.Grpo(), rho=0.5, entropy_coef=0.7
    )
    chex.assert_trees_all_close(
      _evaluate(config), _evaluate(config, pieces=pieces), rtol=1e-5, atol=1e-7
    )

  def test_means_the_same_in_two_updates_as_in_one(self):
    # Each update on half of the rows; equal lengths: then it is exact.
    rollout = rollouts.make_rollout(group_size=4)
    rollout = rollout.replace(mask=jnp.ones_like(rollout.mask))
    inner = methods.DrGrpo(max_length=50)
    config = methods.TopEntropyMask(method=inner, rho=1.0, entropy_coef=0.7)
    for mini_batches in (1, 2):
      change = self._update(config, rollout, mini_batches)
      plain = self._update(inner, rollout, mini_batches)
      # d(mean entropy) / d(shift) is 1 / T at each position
      np.testing.assert_allclose(
        change - plain, 0.7 / 6 * mini_batches * jnp.ones(6), rtol=1e-4
      )

  def _update(self, config, rollout, mini_batches):
    method = config.build()
    train = step.make_train_step(
      rollouts.scripted_score(method.needs),
      method,
      optax.sgd(1e-3),
      mini_batches=mini_batches,
      old_logprobs="sampler",
    )
    start = state.init_state({"shift": jnp.zeros(6)}, method, optax.sgd(1e-3))
    return 1e3 * jax.jit(train)(start, rollout, None)[0].params["shift"]


class ControllerTest(chex.TestCase):
  """In the train step, where a scripted policy has an entropy of shift + 1."""

  @parameterized.parameters("method", "fixed_length", "token_sum")
  def test_acts_a_step_after_the_entropy_has_fallen(self, aggregation):
    config = methods.TopEntropyMask(
      method=methods.KlAndAggregation(beta=0.0, aggregation=aggregation),
      rho=1.0,
      entropy_coef=0.25,
      adaptive=True,
      entropy_target=0.5,
      entropy_delta=0.125,
    )
    method = config.build()
    score = rollouts.scripted_score(method.needs)
    train = jax.jit(step.make_train_step(score, method, optax.sgd(0.0)))
    rollout, applied = rollouts.make_rollout(), []
    now = state.init_state({"shift": jnp.zeros(6)}, method, optax.sgd(0.0))
    for entropy in (0.9, 0.4, 0.6, 0.4, 0.4):
      now = now.replace(params={"shift": jnp.full(6, entropy - 1.0)})
      now, metrics = train(now, rollout, None)
      applied.append(float(metrics["entropy_coef"]))
    # coefficients before the steps: .25, .125, .25, .125, .25
    np.testing.assert_allclose(applied, [0.0, 0.0, 0.25, 0.0, 0.25])
