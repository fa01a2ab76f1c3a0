"""GMPO: what it reduces to, how it clips, rollout weights."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import geometric, surrogates
from jaxrl_llm.testing import rollouts


def _setting(scale=0.3):
  """Token log-ratios, credit per row, and a mask with an empty row."""
  mask = rollouts.make_rollout().mask.at[0, 1].set(False).at[3].set(False)
  log_ratio = scale * jax.random.normal(jax.random.key(0), mask.shape)
  credit = jax.random.normal(jax.random.key(1), (mask.shape[0], 1))
  return (
    jnp.where(mask, log_ratio, 0.0),
    jnp.where(mask, credit, 0.0),
    mask,
  )


def _mean(values, mask):
  return values.sum(1, keepdims=True) / jnp.maximum(mask.sum(1), 1)[:, None]


class GeometricMeanTest(chex.TestCase):
  def test_a_worked_example(self):
    # A > 0: 1.0 is cut to 0.4, -1.0 is not; A < 0: the other way round.
    log_ratio = jnp.array([[1.0, -1.0, 9.0], [1.0, -1.0, 9.0]])
    mask = jnp.array([[True, True, False]] * 2)
    credit = jnp.array([[2.0] * 3, [-2.0] * 3])
    loss, cut = geometric.geometric_mean_surrogate(log_ratio, credit, mask)
    high, low = -2.0 * np.exp(-0.3), 2.0 * np.exp(0.3)
    expected = [[high, high, 0.0], [low, low, 0.0]]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(cut["clip_fraction_high"][0, :2], [1, 0])
    np.testing.assert_array_equal(cut["clip_fraction_low"][1, :2], [0, 1])

  def test_without_a_clip_it_is_unclipped_gspo(self):
    log_ratio, credit, mask = _setting()
    ours, _ = geometric.geometric_mean_surrogate(
      log_ratio, credit, mask, clip_low=1e9, clip_high=1e9
    )
    sequence = jnp.where(mask, _mean(log_ratio, mask), 0.0)
    gspo, _ = surrogates.unclipped_surrogate(sequence, credit)
    chex.assert_trees_all_close(ours, gspo, rtol=1e-5)

  def test_one_token_a_row_is_ppo_in_log_space(self):
    log_ratio = jax.random.normal(jax.random.key(2), (32, 1))
    credit = jax.random.normal(jax.random.key(3), (32, 1))
    mask = jnp.ones((32, 1), bool)
    gmpo = lambda d: geometric.geometric_mean_surrogate(  # noqa: E731
      d, credit, mask, clip_low=0.4, clip_high=0.3
    )[0].sum()
    ppo = lambda d: surrogates.clipped_surrogate(  # noqa: E731
      d, credit, clip_low=1 - np.exp(-0.4), clip_high=np.exp(0.3) - 1
    )[0].sum()
    chex.assert_trees_all_close(
      jax.value_and_grad(gmpo)(log_ratio),
      jax.value_and_grad(ppo)(log_ratio),
      rtol=1e-5,
    )

  def test_padding_and_empty_rows_are_not_read(self):
    log_ratio, credit, mask = _setting()
    ones = jnp.ones(mask.shape)

    def run(junk):
      dirty = [jnp.where(mask, x, junk) for x in (log_ratio, credit, ones)]
      loss = lambda d: geometric.geometric_mean_surrogate(  # noqa: E731
        d, dirty[1], mask, dirty[2]
      )[0].sum()
      return jax.value_and_grad(loss)(dirty[0])

    for junk in (jnp.inf, -jnp.inf, jnp.nan):
      chex.assert_trees_all_equal(run(0.0), run(junk))
    np.testing.assert_array_equal(run(0.0)[1][3], 0.0)

  def test_rollout_weights_enter_as_their_geometric_mean(self):
    log_ratio, credit, mask = _setting()
    weights = jnp.exp(jax.random.normal(jax.random.key(4), mask.shape))
    plain, _ = geometric.geometric_mean_surrogate(log_ratio, credit, mask)
    ours, _ = geometric.geometric_mean_surrogate(
      log_ratio, credit, mask, weights
    )
    logs = jnp.where(mask, jnp.log(weights), 0.0)
    factor = jnp.exp(_mean(logs, mask))
    chex.assert_trees_all_close(ours, plain * factor, rtol=1e-5)

  def test_a_weight_of_zero_is_finite_and_constant(self):
    log_ratio, credit, mask = _setting()
    loss = lambda w: geometric.geometric_mean_surrogate(  # noqa: E731
      log_ratio, credit, mask, w
    )[0].sum()
    value, grad = jax.value_and_grad(loss)(jnp.zeros(mask.shape))
    chex.assert_tree_all_finite(value)
    np.testing.assert_array_equal(grad, 0.0)

  def test_jit_changes_nothing(self):
    args = _setting()
    plain = geometric.geometric_mean_surrogate(*args)
    jitted = jax.jit(geometric.geometric_mean_surrogate)(*args)
    chex.assert_trees_all_close(plain, jitted, rtol=1e-6)

  @parameterized.parameters((0.0, 0.4, "clip_low"), (0.4, -1.0, "clip_high"))
  def test_a_region_without_width_is_refused(self, low, high, name):
    with self.assertRaisesRegex(ValueError, name):
      geometric.check_log_clip(low, high)
