"""DRPO: which way each answer is pushed, how hard, and what the KL costs."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import step_contract_test

from jaxrl_llm import methods
from jaxrl_llm.advantages import decoupled
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import discriminative
from jaxrl_llm.testing import contract, rollouts
from jaxrl_llm.training import step

RIGHT = jnp.array([1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1], bool)
LENGTHS = jnp.array(
  [0.2, 0.5, 0.1, 1.0, 0.3, 0.0, 0.9, 0.4, 0.1, 0.2, 0.3, 1.0]
)


def _credit(right=RIGHT, lengths=LENGTHS, temperature=0.1):
  return np.asarray(
    decoupled.decoupled_credit(
      right, ~right, lengths, group_size=4, temperature=temperature
    )
  ).reshape(-1, 4)


def _formula(logprobs, rollout, config):
  """The loss as its docstring has it, by group, differentiable."""
  mask = rollout.mask
  score = jnp.where(mask, logprobs, 0).sum(axis=1) / mask.sum(axis=1)
  lengths, total = mask.sum(axis=1) / mask.shape[1], 0.0
  size = rollout.group_size
  prompts = len(mask) // size
  for q in range(prompts):
    rows = slice(q * size, (q + 1) * size)
    right = np.asarray(rollout.rewards[rows]) > 0.5
    if right.all() or not right.any():
      continue
    w = jax.nn.softmax(-lengths[rows][right] / config.lam)
    wrong = score[rows][~right] / config.tau
    soft = config.tau * jnp.log(jnp.exp(wrong).mean())
    total += (w * score[rows][right]).sum() - soft
  d = jnp.where(mask, rollout.old_logprobs - logprobs, 0.0)
  each = d if config.kl_type == "kl" else jnp.exp(-d) + d - 1.0
  kl = jnp.where(mask, each, 0.0).sum() / mask.sum()
  coef = jnp.maximum(config.beta * (kl - config.delta), 0.0)
  return -total / prompts + jax.lax.stop_gradient(coef) * kl


def _ran(config, rollout, scores, pieces=1):
  loss, metrics, grads = contract.evaluate(
    config.build(), scores, rollout, pieces=pieces
  )
  return loss, metrics, np.asarray(grads.logprobs)


class CreditTest(chex.TestCase):
  def test_a_prompt_gives_1_and_takes_1(self):
    credit = _credit()[:2]
    np.testing.assert_allclose(
      np.maximum(credit, 0).sum(axis=1), 1.0, rtol=1e-6
    )
    np.testing.assert_allclose(
      np.minimum(credit, 0).sum(axis=1), -1.0, rtol=1e-6
    )

  def test_a_prompt_without_both_kinds_has_none(self):
    np.testing.assert_array_equal(_credit()[2], 0.0)
    np.testing.assert_array_equal(_credit(right=jnp.zeros(12, bool)), 0.0)

  @parameterized.parameters(0.05, 0.1, 3.0)
  def test_shares_of_right_answers_differ_by_their_lengths(self, lam):
    credit = _credit(temperature=lam)
    expected = np.exp((0.5 - 0.2) / lam)
    np.testing.assert_allclose(credit[0, 0] / credit[0, 1], expected, rtol=1e-5)

  def test_without_a_price_of_length_shares_are_equal(self):
    credit = _credit(temperature=float("inf"))
    np.testing.assert_array_equal(credit[0], [0.5, 0.5, -0.5, -0.5])

  def test_wrong_answers_have_no_say_in_the_shares(self):
    fewer = RIGHT.at[3].set(True)
    lengths = LENGTHS.at[3].set(jnp.inf)  # no weight: as if it were not there
    np.testing.assert_allclose(
      _credit(right=fewer, lengths=lengths)[0, :2], _credit()[0, :2], rtol=1e-6
    )

  def test_only_0_and_1_count_without_a_threshold(self):
    rewards = jnp.array([1.0, 0.0, 0.1, 1.1, 1.0])
    weights = jnp.array([1.0, 1, 1, 1, 0])
    right, wrong = decoupled.right_and_wrong(rewards, weights, threshold=None)
    np.testing.assert_array_equal(right, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(wrong, [0, 1, 0, 0, 0])
    right, wrong = decoupled.right_and_wrong(rewards, weights, threshold=0.5)
    np.testing.assert_array_equal(right, [1, 0, 0, 1, 0])
    np.testing.assert_array_equal(wrong, [0, 1, 1, 0, 0])


class AgainstTheLikeliestTest(chex.TestCase):
  def test_the_gradient_is_that_of_the_value(self):
    credit = jnp.asarray(_credit().reshape(-1))
    scores = jax.random.normal(jax.random.key(0), (12,))
    found = lambda s: discriminative.against_the_likeliest(  # noqa: E731
      credit, s, group_size=4, tau=0.7
    )
    chex.assert_trees_all_close(
      jax.grad(lambda s: found(s)[1])(scores), found(scores)[0], atol=1e-6
    )

  def test_far_scores_stay_finite(self):
    credit = jnp.asarray(_credit().reshape(-1))
    scores = -1e4 * jnp.arange(12.0)
    out = discriminative.against_the_likeliest(
      credit, scores, group_size=4, tau=0.1
    )
    chex.assert_tree_all_finite(out)
    np.testing.assert_allclose(out[0][:4], [*credit[:2], -1, 0], atol=1e-6)

  def test_a_large_tau_blames_all_alike(self):
    credit = jnp.asarray(_credit().reshape(-1))
    scores = jax.random.normal(jax.random.key(0), (12,))
    gradient, value = discriminative.against_the_likeliest(
      credit, scores, group_size=4, tau=1e5
    )
    np.testing.assert_allclose(gradient, credit, rtol=1e-4)
    np.testing.assert_allclose(value, credit @ scores, atol=1e-2)

  def test_the_code_reports_tau_a_prompt(self):
    credit = jnp.asarray(_credit().reshape(-1))
    knobs = {"group_size": 4, "tau": 3.0}
    ours, value = discriminative.against_the_likeliest(
      credit, jnp.zeros(12), **knobs
    )
    theirs, reported = discriminative.against_the_likeliest(
      credit, jnp.zeros(12), **knobs, report="code"
    )
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose([value, reported], [0.0, -6.0], atol=1e-6)


class DrpoTest(chex.TestCase):
  @parameterized.product(
    config=(
      methods.Drpo(),
      methods.Drpo(tau=0.5, kl_type="low_var_kl", delta=0.0),
      methods.Drpo(lam=1.0, beta=0.0),
    ),
    pieces=(1, 2, 8),
  )
  def test_value_and_gradient_are_those_of_the_formula(self, config, pieces):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    loss, _, grads = _ran(config, rollout, scores, pieces)
    expected, slope = jax.value_and_grad(_formula)(
      scores.logprobs, rollout, config
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grads, slope, rtol=1e-4, atol=1e-6)

  def test_a_long_right_answer_is_never_pushed_down(self):
    rollout = rollouts.make_rollout(groups=1, length=20)
    lengths = jnp.array([2, 3, 5, 20])
    rollout = rollout.replace(
      mask=jnp.arange(20)[None] < lengths[:, None],
      rewards=jnp.array([1.0, 1, 0, 1]),
    )
    scores = rollouts.make_scores(rollout, scale=0.0)
    ours = _ran(methods.Drpo(), rollout, scores)[2][3]
    # GRPO, the length a part of a right answer's reward.
    shaped = rollout.rewards * (1.0 - 0.9 * lengths / 20)
    theirs = _ran(
      methods.Grpo(beta=0.0), rollout.replace(rewards=shaped), scores
    )[2][3]
    self.assertTrue((ours < 0).all())  # descent makes it likelier
    self.assertTrue((theirs > 0).all())

  def test_a_prompt_without_both_kinds_stays_in_the_mean(self):
    rollout = rollouts.make_rollout()
    uniform = rollout.replace(rewards=rollout.rewards.at[4:].set(1.0))
    scores = rollouts.make_scores(rollout, scale=0.0)
    both = _ran(methods.Drpo(), rollout, scores)[2]
    one = _ran(methods.Drpo(), uniform, scores)[2]
    np.testing.assert_allclose(one[:4], both[:4], rtol=1e-5)
    np.testing.assert_array_equal(one[4:], 0.0)

  @parameterized.parameters("kl", "low_var_kl")
  def test_the_kl_is_free_up_to_delta(self, kl):
    rollout = rollouts.make_rollout()
    # So that k1, which may be of either sign, is positive.
    scores = rollouts.make_scores(rollout, scale=0.05)
    scores = scores.replace(logprobs=scores.logprobs - 0.02)
    charged = methods.Drpo(kl_type=kl, delta=0.0)
    distance = float(_ran(charged, rollout, scores)[1]["old_kl"])
    self.assertGreater(distance, 0.0)
    free = methods.Drpo(kl_type=kl, delta=distance * 1.01)
    without = methods.Drpo(kl_type=kl, beta=0.0)
    np.testing.assert_array_equal(
      _ran(free, rollout, scores)[2], _ran(without, rollout, scores)[2]
    )

  def test_beyond_it_the_gradient_is_that_of_a_squared_hinge(self):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    scores = scores.replace(logprobs=scores.logprobs - 0.1)
    mask = rollout.mask

    def hinge(logprobs):
      gap = jnp.where(mask, rollout.old_logprobs - logprobs, 0.0)
      beyond = jnp.maximum(gap.sum() / mask.sum() - 1e-4, 0.0)
      return 0.5e3 * beyond**2

    charged = _ran(methods.Drpo(), rollout, scores)[2]
    without = _ran(methods.Drpo(beta=0.0), rollout, scores)[2]
    np.testing.assert_allclose(
      charged - without, jax.grad(hinge)(scores.logprobs), rtol=1e-4, atol=1e-6
    )

  def test_lengths_are_shares_of_a_constant(self):
    rollout = rollouts.make_rollout(length=6)
    wider = rollouts.make_rollout(length=9)
    wider = jax.tree.map(
      lambda wide, x: wide.at[:, :6].set(x) if x.shape[1:] == (6,) else x,
      wider,
      rollout,
    ).replace(mask=jnp.pad(rollout.mask, ((0, 0), (0, 3))))
    config = methods.Drpo(max_length=12)
    short, long = (
      _ran(config, x, rollouts.make_scores(x, scale=0.0))[2]
      for x in (rollout, wider)
    )
    np.testing.assert_array_equal(short, long[:, :6])

  def test_a_mini_batch_of_half_a_group_keeps_the_credit_of_the_whole(self):
    """With a large tau; else a wrong answer is compared with those left."""
    rollout = rollouts.make_rollout(groups=2, group_size=4)
    scores = rollouts.make_scores(rollout, scale=0.0)
    method = methods.Drpo(tau=1e6).build()
    whole = contract.evaluate(method, scores, rollout)[2].logprobs
    changed, _ = method.transform.update(rollout, ())
    halves = step.split((changed, scores), 4)
    for index in range(4):
      part, own = jax.tree.map(lambda x, i=index: x[i], halves)
      self.assertEqual(part.group_size, 2)
      credit = base.per_token(method.advantage(part), part.mask)
      prepared = method.prepare(part, credit, own)
      weights = method.weighting(part.mask, part.weights)
      grads = jax.grad(lambda s, *rest: method.objective(s, *rest)[0])(
        own, prepared, credit, weights
      )
      rows = slice(2 * index, 2 * index + 2)
      # B of a half is 1/2, of the whole 2.
      np.testing.assert_allclose(
        grads.logprobs, 4.0 * whole[rows], rtol=1e-4, atol=1e-6
      )


class InTheStepTest(chex.TestCase):
  def _run(self, config, **knobs):
    """The sampler thought its tokens half a nat likelier than the trainer."""
    method = config.build()
    run = step_contract_test.Run(method, **knobs)
    rollout = step_contract_test._rollout(method)
    return run(rollout.replace(old_logprobs=rollout.old_logprobs + 0.5))

  def test_a_single_update_has_no_kl_though_the_sampler_is_off(self):
    charged, metrics = self._run(methods.Drpo())
    free, _ = self._run(methods.Drpo(beta=0.0))
    self.assertEqual(float(metrics["old_kl"]), 0.0)
    chex.assert_trees_all_equal(charged.params, free.params)

  def test_later_updates_are_held_back(self):
    config = methods.Drpo(beta=10.0, tau=0.5)
    charged, metrics = self._run(config, epochs=3)
    free, _ = self._run(dataclasses.replace(config, beta=0.0), epochs=3)
    self.assertGreater(float(metrics["old_kl"]), 1e-4)
    gap = jax.tree.map(jnp.subtract, charged.params, free.params)
    self.assertGreater(float(jnp.abs(gap["table"]).max()), 1e-4)
