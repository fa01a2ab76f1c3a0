"""Log-ratios: padding, bounds, gradients, and what equals what."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import ratios
from jaxrl_llm.testing import rollouts

MASK = jnp.array([[True, True, False]])
EVERY = parameterized.named_parameters(
  ("token", ratios.token_log_ratio),
  ("sequence", ratios.sequence_log_ratio),
  ("sequence_sum", ratios.sequence_sum_log_ratio),
  ("sequence_token", ratios.sequence_token_log_ratio),
)


def _near():
  """Log-probs now and before, and a mask with a hole and an empty row."""
  rollout = rollouts.make_rollout()
  mask = rollout.mask.at[0, 1].set(False).at[3].set(False)
  now = rollouts.make_scores(rollout, scale=0.3).logprobs
  return now, rollout.old_logprobs, mask


class EveryRatioTest(chex.TestCase):
  @EVERY
  def test_is_zero_on_policy(self, ratio):
    now, _, mask = _near()
    np.testing.assert_array_equal(ratio(now, now, mask), 0.0)

  @EVERY
  def test_padding_is_not_read(self, ratio):
    now, old, mask = _near()
    run = jax.value_and_grad(lambda x, y: (ratio(x, y, mask) ** 2).sum())
    clean = run(now, old)
    for junk in (jnp.inf, -jnp.inf, jnp.nan):
      spoilt = (jnp.where(mask, x, junk) for x in (now, old))
      chex.assert_trees_all_equal(clean, run(*spoilt))
    np.testing.assert_array_equal(clean[1][~mask], 0.0)
    np.testing.assert_array_equal(ratio(now, old, mask)[~mask], 0.0)

  @EVERY
  def test_one_token_a_row_makes_them_all_equal(self, ratio):
    now, old, mask = (x[:, :1] for x in _near())
    run = jax.value_and_grad(lambda f, x: jnp.exp(f(x, old, mask)).sum(), 1)
    chex.assert_trees_all_close(
      run(ratio, now), run(ratios.token_log_ratio, now), rtol=1e-6
    )

  @EVERY
  def test_jit_changes_nothing(self, ratio):
    args = _near()
    chex.assert_trees_all_close(ratio(*args), jax.jit(ratio)(*args), rtol=1e-6)

  @EVERY
  def test_exp_of_a_hopeless_row_is_finite(self, ratio):
    near, far = jnp.zeros((1, 3)), jnp.full((1, 3), -500.0)
    for now, old in ((near, far), (far, near)):
      run = lambda x: jnp.exp(ratio(x, old, MASK)).sum()  # noqa: B023, E731
      chex.assert_tree_all_finite(jax.value_and_grad(run)(now))


class TokenLogRatioTest(chex.TestCase):
  def test_is_the_difference_inside_the_mask_only(self):
    now = jnp.array([[-1.0, -2.0, jnp.inf]])
    old = jnp.array([[-1.5, -1.0, jnp.nan]])
    actual = ratios.token_log_ratio(now, old, MASK)
    np.testing.assert_array_equal(actual, [[0.5, -1.0, 0.0]])

  def test_a_limit_cuts_both_sides(self):
    now, old = jnp.array([[0.0, -500.0, 0.0]]), jnp.array([[-500.0, 0.0, 0.0]])
    actual = ratios.token_log_ratio(now, old, MASK)
    np.testing.assert_array_equal(actual, [[20.0, -20.0, 0.0]])


class SequenceLogRatioTest(chex.TestCase):
  NOW = jnp.array([[-1.0, -2.0, -9.0]])
  OLD = jnp.array([[-1.5, -3.5, -1.0]])

  def test_a_worked_example(self):
    mean = ratios.sequence_log_ratio(self.NOW, self.OLD, MASK)
    total = ratios.sequence_sum_log_ratio(self.NOW, self.OLD, MASK)
    straight = ratios.sequence_token_log_ratio(self.NOW, self.OLD, MASK)
    np.testing.assert_array_equal(mean, [[1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(total, [[2.0, 2.0, 0.0]])
    np.testing.assert_array_equal(straight, mean)

  @parameterized.parameters(
    # d log_ratio at the first token / d logprobs
    (ratios.sequence_log_ratio, (0.5, 0.5, 0.0)),
    (ratios.sequence_sum_log_ratio, (1.0, 1.0, 0.0)),
    (ratios.sequence_token_log_ratio, (1.0, 0.0, 0.0)),
  )
  def test_where_the_gradient_of_one_token_goes(self, ratio, slopes):
    grad = jax.grad(lambda x: ratio(x, self.OLD, MASK)[0, 0])(self.NOW)
    np.testing.assert_array_equal(grad, [slopes])

  def test_the_token_form_has_value_and_gradient_of_the_sequence(self):
    now, old, mask = _near()
    credit = jax.random.normal(jax.random.key(1), (mask.shape[0], 1))

    def loss(ratio, logprobs):
      each = jnp.where(mask, jnp.exp(ratio(logprobs, old, mask)) * credit, 0.0)
      return (each / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)).sum()

    run = jax.value_and_grad(loss, argnums=1)
    chex.assert_trees_all_close(
      run(ratios.sequence_log_ratio, now),
      run(ratios.sequence_token_log_ratio, now),
      rtol=1e-5,
      atol=1e-7,
    )

  def test_the_sum_is_the_mean_times_the_length(self):
    now, old, mask = _near()
    length = mask.sum(axis=1, keepdims=True)
    chex.assert_trees_all_close(
      ratios.sequence_sum_log_ratio(now, old, mask),
      length * ratios.sequence_log_ratio(now, old, mask),
      rtol=1e-5,
      atol=1e-7,
    )

  def test_limits_stop_value_and_gradient(self):
    ratio = functools.partial(ratios.sequence_sum_log_ratio, token_limit=1.0)
    run = jax.value_and_grad(lambda x: ratio(x, self.OLD, MASK)[0, 0])
    value, grad = run(self.NOW)
    self.assertEqual(float(value), 1.5)
    np.testing.assert_array_equal(grad, [[1.0, 0.0, 0.0]])
    cut = ratios.sequence_token_log_ratio(self.NOW, self.OLD, MASK, limit=0.5)
    np.testing.assert_array_equal(cut, [[0.5, 0.5, 0.0]])


class SequenceLogWeightTest(chex.TestCase):
  def test_token_weights_add_up_and_sequence_weights_do_not(self):
    weights = jnp.array([[2.0, 0.5, 9.0], [2.0, 2.0, 9.0]])
    mask = jnp.array([[True, True, False]] * 2)
    total = ratios.sequence_log_weight(weights, mask)
    np.testing.assert_allclose(total[:, 0], [0.0, jnp.log(4.0)], rtol=1e-6)
    once = ratios.sequence_log_weight(weights[1:], mask[1:], level="sequence")
    np.testing.assert_allclose(once, jnp.log(mask[1:] + 1.0), rtol=1e-6)

  def test_zero_and_padding_are_finite_and_constant(self):
    weights = jnp.array([[0.0, 1.0, jnp.nan]])
    run = lambda w: ratios.sequence_log_weight(w, MASK).sum()  # noqa: E731
    value, grad = jax.value_and_grad(run)(weights)
    np.testing.assert_allclose(value, 2 * jnp.log(1e-8), rtol=1e-6)
    np.testing.assert_array_equal(grad, 0.0)

  def test_an_unknown_level_is_refused(self):
    with self.assertRaisesRegex(ValueError, "level must be"):
      ratios.sequence_log_weight(jnp.ones((1, 3)), MASK, level="row")
