"""Weights of groups: every case of the three forms."""

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import length_advantage

# Of a group: correct, lengths, truncated; then w of amplify, vlm and llm.
CASES = {
  "longer_pays_and_it_is_hard": ("1001", "9463", "0000", 2.0, 1.0, 1.0),
  "longer_pays_and_it_is_easy": ("1101", "9463", "0000", 1.0, 1.0, 1.0),
  "shorter_pays": ("1000", "3975", "0000", 1.0, 0.1, 0.1),
  "equality_is_no_advantage": ("1000", "7777", "0000", 1.0, 0.1, 0.1),
  "nothing_correct": ("0000", "4567", "0000", 1.0, 1.0, 0.1),
  "nothing_correct_all_truncated": ("0000", "9999", "1111", 1.0, 1.0, 0.1),
  "all_correct": ("1111", "4567", "0000", 1.0, 0.1, 1.0),
  "wrong_ones_truncated": ("1000", "5999", "0111", 2.0, 0.1, 1.0),
  "a_truncated_one_is_left_out": ("1000", "5939", "0101", 2.0, 1.0, 1.0),
}


def _digits(text):
  return jnp.array([int(digit) for digit in text])


def _weights(right, tokens, cut, **knobs):
  return length_advantage.group_weights(
    _digits(right) > 0,
    _digits(tokens),
    _digits(cut) > 0,
    group_size=4,
    **knobs,
  )


class GroupWeightsTest(chex.TestCase):
  @parameterized.named_parameters((name, *case) for name, case in CASES.items())
  def test(self, right, tokens, cut, *expected):
    for name, value in zip(length_advantage.WEIGHTINGS, expected, strict=True):
      found = _weights(right, tokens, cut, weighting=name)
      np.testing.assert_allclose(found, value, rtol=1e-6, err_msg=name)

  @parameterized.parameters(*length_advantage.WEIGHTINGS)
  def test_the_order_of_rows_does_not_matter(self, weighting):
    shuffle = [2, 0, 3, 1]
    for right, tokens, cut, *_ in CASES.values():
      args = ["".join(x[i] for i in shuffle) for x in (right, tokens, cut)]
      np.testing.assert_array_equal(
        _weights(*args, weighting=weighting),
        _weights(right, tokens, cut, weighting=weighting),
      )

  @parameterized.parameters(*length_advantage.WEIGHTINGS)
  def test_a_dropped_row_is_not_seen(self, weighting):
    keep = jnp.array([1.0, 1.0, 0.0, 1.0])
    one, other = (
      _weights(right, tokens, "0000", weights=keep, weighting=weighting)
      for right, tokens in (("1000", "5496"), ("1010", "5496"))
    )
    np.testing.assert_array_equal(one, other)

  def test_a_share_at_tau_is_hard(self):
    args = "1001", "9463", "0000"
    np.testing.assert_array_equal(_weights(*args, tau=0.49), 1.0)
    np.testing.assert_array_equal(_weights(*args, tau=0.5, amplified=3.0), 3.0)

  def test_an_unknown_form_is_refused(self):
    with self.assertRaisesRegex(ValueError, "one of amplify, attenuate_vlm"):
      _weights("1000", "1111", "0000", weighting="both")
