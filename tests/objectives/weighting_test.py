"""Weightings: what they sum to, and whom they leave out."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import weighting

MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]) > 0
ONES = jnp.ones(4)
EACH = parameterized.named_parameters(
  ("token_mean", weighting.token_mean),
  ("sequence_mean", weighting.sequence_mean),
  ("sequence_sum", weighting.sequence_sum),
  ("fixed_length", functools.partial(weighting.fixed_length, length=9)),
)


class WeightingTest(chex.TestCase):
  @EACH
  def test_padding_and_dropped_rows_weigh_nothing(self, weigh):
    weights = weigh(MASK, jnp.array([1.0, 0.0, 1.0, 1.0]))
    kept = np.asarray(MASK) & np.array([1, 0, 1, 1], bool)[:, None]
    np.testing.assert_array_equal(np.asarray(weights) > 0, kept)

  @EACH
  def test_a_dropped_row_is_as_good_as_absent(self, weigh):
    dropped = weigh(MASK, jnp.array([1.0, 0.0, 1.0, 1.0]))
    absent = weigh(MASK[jnp.array([0, 2, 3])], jnp.ones(3))
    chex.assert_trees_all_close(dropped[jnp.array([0, 2, 3])], absent)

  @EACH
  def test_the_scale_of_row_weights_does_not_matter(self, weigh):
    chex.assert_trees_all_close(
      weigh(MASK, ONES), weigh(MASK, 0.125 * ONES), rtol=1e-6
    )

  @EACH
  def test_nothing_to_weigh_is_zero(self, weigh):
    for mask, rows in ((jnp.zeros_like(MASK), ONES), (MASK, 0.0 * ONES)):
      np.testing.assert_array_equal(weigh(mask, rows), 0.0)

  def test_full_rows_make_them_all_equal(self):
    mask = jnp.ones((3, 5), bool)
    expected = jnp.full((3, 5), 1 / 15)
    for weigh in (
      weighting.token_mean,
      weighting.sequence_mean,
      weighting.fixed_length,
    ):
      chex.assert_trees_all_close(weigh(mask, jnp.ones(3)), expected)

  def test_token_mean_gives_each_token_one_share(self):
    expected = jnp.where(MASK, 1 / 7, 0.0)
    chex.assert_trees_all_close(weighting.token_mean(MASK, ONES), expected)

  @parameterized.parameters((True, 4), (False, 3))
  def test_empty_rows_are_in_the_denominator_or_not(self, count, rows):
    by_row = weighting.sequence_mean(MASK, ONES, count_empty_rows=count)
    chex.assert_trees_all_close(
      by_row.sum(axis=1), jnp.array([1, 1, 1, 0]) / rows
    )
    fixed = weighting.fixed_length(
      MASK, ONES, length=10, count_empty_rows=count
    )
    chex.assert_trees_all_close(fixed, jnp.where(MASK, 1 / (10 * rows), 0.0))

  def test_the_length_defaults_to_the_widest_completion(self):
    chex.assert_trees_all_close(
      weighting.fixed_length(MASK, ONES),
      weighting.fixed_length(MASK, ONES, length=4),
    )

  def test_a_sum_over_tokens_is_a_mean_over_tokens_times_the_length(self):
    lengths = MASK.sum(axis=1, keepdims=True)
    chex.assert_trees_all_close(
      weighting.sequence_sum(MASK, ONES),
      lengths * weighting.sequence_mean(MASK, ONES),
    )
    chex.assert_trees_all_close(
      weighting.sequence_sum(MASK, ONES),
      weighting.fixed_length(MASK, ONES, length=1),
    )

  def test_a_token_sum_has_no_denominator(self):
    rows = jnp.array([1.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(
      weighting.token_sum(MASK, rows), MASK * rows[:, None]
    )

  @parameterized.parameters(
    (weighting.token_mean, {"tokens": 7}),
    (weighting.sequence_mean, {"rows": 4}),
    (weighting.sequence_sum, {"rows": jnp.array(4.0)}),
    (weighting.fixed_length, {"rows": 4}),
  )
  def test_parts_weighed_with_the_whole_s_count_are_the_whole(self, f, count):
    parts = [
      f(MASK[part], ONES[part], **count) for part in (slice(2), slice(2, 4))
    ]
    chex.assert_trees_all_close(jnp.concatenate(parts), f(MASK, ONES))

  @EACH
  def test_jit_changes_nothing(self, weigh):
    chex.assert_trees_all_close(weigh(MASK, ONES), jax.jit(weigh)(MASK, ONES))
