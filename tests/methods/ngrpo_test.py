"""NGRPO: the imagined completion, what it adds, which groups are dropped."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import baselines, group
from jaxrl_llm.testing import contract, rollouts
from jaxrl_llm.transforms import filters

RANDOM = jax.random.uniform(jax.random.key(0), (24,))


def _credit(rewards, size=4, **knobs):
  return baselines.virtual_normalized(rewards, group_size=size, **knobs)


class VirtualTest(chex.TestCase):
  def test_of_no_imagined_completion_it_is_grpo(self):
    np.testing.assert_allclose(
      _credit(RANDOM, n_virtual=0),
      group.group_normalized(RANDOM, group_size=4, eps=1e-6),
      rtol=1e-6,
    )

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(2, 4, 8)
  def test_all_wrong_pushes_by_one_over_the_root_of_g_plus_1(self, size):
    fn = self.variant(lambda r: _credit(r, size))
    actual = fn(jnp.zeros(2 * size))
    np.testing.assert_allclose(actual, -1 / np.sqrt(size + 1), atol=1e-5)

  @parameterized.parameters(1, 3)
  def test_a_group_sums_to_what_the_imagined_ones_have(self, count):
    actual = _credit(RANDOM, n_virtual=count).reshape(-1, 4)
    padded = np.concatenate(
      [np.asarray(RANDOM).reshape(-1, 4), np.ones((6, count))], axis=1
    )
    mean, std = padded.mean(axis=1), padded.std(axis=1, ddof=1)
    expected = -count * (1 - mean) / (std + 1e-6)
    np.testing.assert_allclose(actual.sum(axis=1), expected, rtol=1e-4)
    self.assertTrue(bool((actual.sum(axis=1) <= 0).all()))

  def test_a_shift_and_scale_of_rewards_and_r_max_changes_nothing(self):
    knobs = {"eps": 1e-9}
    np.testing.assert_allclose(
      _credit(4.0 * RANDOM - 1.0, r_max=3.0, **knobs),
      _credit(RANDOM, **knobs),
      rtol=1e-4,
      atol=1e-6,
    )

  def test_more_reward_is_more_credit(self):
    rewards, credit = np.asarray(RANDOM).reshape(-1, 4), _credit(RANDOM)
    order = np.argsort(rewards, axis=1)
    sorted_credit = np.take_along_axis(
      np.asarray(credit).reshape(-1, 4), order, axis=1
    )
    self.assertTrue((np.diff(sorted_credit, axis=1) > 0).all())

  def test_what_is_subtracted_is_more_than_the_mean(self):
    padded = jnp.concatenate([RANDOM.reshape(-1, 4), jnp.ones((6, 1))], axis=1)
    scale = padded.std(axis=1, ddof=1, keepdims=True) + 1e-6
    imagined = _credit(RANDOM).reshape(-1, 4) * scale
    centred = group.group_centred(RANDOM, group_size=4).reshape(-1, 4)
    self.assertTrue(bool((imagined <= centred + 1e-6).all()))

  def test_all_right_gets_exactly_zero(self):
    np.testing.assert_array_equal(_credit(jnp.ones(8)), 0.0)
    np.testing.assert_array_equal(_credit(jnp.full(8, 0.9), r_max=0.9), 0.0)

  def test_one_alone_has_its_reward(self):
    np.testing.assert_allclose(
      _credit(RANDOM, 1), RANDOM / (1 + 1e-6), rtol=1e-6
    )
    weights = jnp.ones(24).at[1:4].set(0.0)
    actual = baselines.virtual_normalized(RANDOM, weights, group_size=4)
    np.testing.assert_allclose(actual[0], RANDOM[0], rtol=1e-5)
    np.testing.assert_array_equal(actual[1:4], 0.0)

  def test_a_group_without_rows_gets_zero(self):
    weights = jnp.ones(24).at[4:8].set(0.0)
    spoilt = RANDOM.at[4:8].set(jnp.nan)
    actual = baselines.virtual_normalized(spoilt, weights, group_size=4)
    np.testing.assert_array_equal(actual[4:8], 0.0)
    chex.assert_tree_all_finite(actual)


class FilterTest(chex.TestCase):
  def test_groups_that_are_right_throughout_leave(self):
    rollout = rollouts.make_rollout(groups=4)
    rewards = jnp.array([1.0] * 4 + [0.0] * 4 + [1, 0, 1, 1] + [0, 1, 1, 1])
    weights = jnp.ones(16).at[12].set(0.0)  # of the last only ones count
    rollout = rollout.replace(rewards=rewards, weights=weights)
    changed, _ = filters.drop_solved_groups(1.0).update(rollout, ())
    np.testing.assert_array_equal(
      changed.weights, [0.0] * 4 + [1.0] * 8 + [0.0] * 4
    )

  def test_all_wrong_groups_have_a_gradient_where_grpo_has_none(self):
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(rewards=jnp.zeros(8))
    scores = rollouts.make_scores(rollout, scale=0.0)
    mine, theirs = (
      contract.evaluate(config.build(), scores, rollout)[2].logprobs
      for config in (methods.Ngrpo(), methods.Grpo(beta=0.0))
    )
    tokens = float(rollout.mask.sum())
    expected = jnp.where(rollout.mask, 1 / np.sqrt(5) / tokens, 0.0)
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_array_equal(theirs, 0.0)
