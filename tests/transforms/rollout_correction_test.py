"""Importance weights of trainer against sampler: levels, bounds, padding."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import rollout_correction

LEVELS = rollout_correction.LEVELS
MODES = rollout_correction.MODES
every = parameterized.product(level=LEVELS, mode=MODES)

# Two rows: ratios 2, 1/2, 4 and 1, 1/4; the last place is padding.
RATIOS = jnp.array([[2.0, 0.5, 4.0], [1.0, 0.25, 7.0]])
MASK = jnp.array([[True, True, True], [True, True, False]])
OLD = jnp.full((2, 3), -1.0)
SAMPLED = OLD - jnp.log(RATIOS)


def _pair(scale=0.5):
  rollout = rollouts.make_rollout(length=8)
  noise = jax.random.normal(jax.random.key(3), rollout.mask.shape)
  return (
    rollout.old_logprobs,
    rollout.old_logprobs + scale * noise,
    (rollout.mask),
  )


class RolloutWeightsTest(chex.TestCase):
  @every
  def test_equal_policies_give_exactly_one(self, level, mode):
    old, _, mask = _pair()
    for normalize in (False, True):
      weights = rollout_correction.rollout_weights(
        old, old, mask, level=level, mode=mode, low=0.5, normalize=normalize
      )
      np.testing.assert_array_equal(weights, mask)

  @every
  def test_padding_may_hold_anything(self, level, mode):
    old, sampled, mask = _pair()
    weigh = lambda old, sampled: rollout_correction.rollout_weights(
      old, sampled, mask, level=level, mode=mode, low=0.5, normalize=True
    )
    clean = weigh(old, sampled)
    for one, two in ((jnp.inf, jnp.inf), (jnp.nan, 0.0), (0.0, -jnp.inf)):
      dirty = weigh(jnp.where(mask, old, one), jnp.where(mask, sampled, two))
      np.testing.assert_array_equal(clean, dirty)

  @every
  def test_no_gradient_goes_through(self, level, mode):
    old, sampled, mask = _pair()
    total = lambda old, sampled: rollout_correction.rollout_weights(
      old, sampled, mask, level=level, mode=mode
    ).sum()
    for grad in jax.grad(total, argnums=(0, 1))(old, sampled):
      np.testing.assert_array_equal(grad, 0.0)

  @every
  def test_jit_changes_nothing(self, level, mode):
    knobs = {"level": level, "mode": mode, "low": 0.5, "normalize": True}
    weigh = lambda *x: rollout_correction.rollout_weights(*x, **knobs)
    np.testing.assert_allclose(
      weigh(*_pair()), jax.jit(weigh)(*_pair()), rtol=1e-6
    )

  @parameterized.parameters(
    ("token", "truncate", [[2, 0.5, 2], [1, 0.5, 0]]),
    ("token", "mask", [[2, 0.5, 0], [1, 0, 0]]),
    ("token", "seq_mask", [[2, 0.5, 4], [1, 0.25, 0]]),
    ("sequence", "truncate", [[2, 2, 2], [0.5, 0.5, 0]]),
    ("sequence", "mask", [[0, 0, 0], [0, 0, 0]]),
    ("geometric", "mask", [[4 ** (1 / 3)] * 3, [0.5, 0.5, 0]]),
  )
  def test_an_example_for_the_eye(self, level, mode, expected):
    weights = rollout_correction.rollout_weights(
      OLD, SAMPLED, MASK, level=level, mode=mode, low=0.4999, high=2.0001
    )
    np.testing.assert_allclose(weights, expected, rtol=3e-4)

  def test_a_bound_is_within_the_band(self):
    log_ratio = jnp.log(jnp.array([[1.0, 2.0, 4.0]]))
    kept = rollout_correction.masked_outside(log_ratio, low=1.0, high=1.0)
    np.testing.assert_array_equal(kept, [[1.0, 0.0, 0.0]])

  def test_seq_mask_drops_whole_rows_and_changes_nothing_else(self):
    old, sampled, mask = _pair()
    weigh = lambda **knobs: rollout_correction.rollout_weights(
      old, sampled, mask, **knobs
    )
    kept = np.asarray(weigh(mode="seq_mask", low=0.9, high=1.1))
    raw = np.asarray(weigh(high=float("inf")))
    rows = kept.any(axis=1)
    self.assertTrue(0 < rows.sum() < len(rows))
    np.testing.assert_array_equal(kept, raw * rows[:, None])

  @parameterized.parameters("token", "sequence", "geometric")
  def test_normalized_weights_are_one_on_average(self, level):
    old, sampled, mask = _pair()
    weights = np.asarray(
      rollout_correction.rollout_weights(
        old, sampled, mask, level=level, normalize=True
      )
    )
    mask = np.asarray(mask)
    mean = weights[mask].mean() if level == "token" else weights[:, 0].mean()
    np.testing.assert_allclose(mean, 1.0, rtol=1e-6)

  def test_weights_that_are_all_zero_stay_so(self):
    weights = rollout_correction.rollout_weights(
      OLD, OLD - 3.0, MASK, mode="mask", high=2.0, normalize=True
    )
    np.testing.assert_array_equal(weights, 0.0)

  @every
  def test_a_missing_or_infinite_number_leaves_the_rest_finite(
    self, level, mode
  ):
    for junk in (jnp.nan, jnp.inf, -jnp.inf):
      weights = rollout_correction.rollout_weights(
        OLD, OLD.at[0, 1].set(junk), MASK, level=level, mode=mode
      )
      chex.assert_tree_all_finite(weights)
      np.testing.assert_array_equal(weights[1], [1.0, 1.0, 0.0])

  def test_not_a_number_counts_as_agreement(self):
    weights = rollout_correction.rollout_weights(
      OLD, SAMPLED.at[0, 2].set(jnp.nan), MASK, level="sequence"
    )
    np.testing.assert_allclose(weights[0], 1.0, rtol=1e-6)

  @every
  def test_a_batch_without_tokens_is_all_zero(self, level, mode):
    weights = rollout_correction.rollout_weights(
      OLD, SAMPLED, jnp.zeros_like(MASK), level=level, mode=mode, normalize=True
    )
    np.testing.assert_array_equal(weights, 0.0)

  @parameterized.parameters(
    ({"level": "row"}, "level must be one of token, sequence, geometric"),
    ({"mode": "clip"}, "mode must be one of truncate, mask, seq_mask"),
    ({"low": 2.0}, "0 <= low < high, got low 2.0"),
    ({"low": -0.1}, "got low -0.1"),
    ({"high": float("nan")}, "high nan"),
  )
  def test_what_has_no_meaning_is_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      rollout_correction.rollout_weights(OLD, SAMPLED, MASK, **knobs)


class ExpectationTest(chex.TestCase):
  """Why one weighs at all: a mean under the sampler becomes the trainer's."""

  def test_token_weights_are_unbiased_for_one_token(self):
    keys = jax.random.split(jax.random.key(0), 3)
    trainer = jax.nn.log_softmax(jax.random.normal(keys[0], (5,)))
    sampler = jax.nn.log_softmax(jax.random.normal(keys[1], (5,)))
    values = jax.random.normal(keys[2], (5,))
    weights = rollout_correction.rollout_weights(
      trainer[:, None],
      sampler[:, None],
      jnp.ones((5, 1), bool),
      high=float("inf"),
    )[:, 0]
    np.testing.assert_allclose(
      (jnp.exp(sampler) * weights * values).sum(),
      (jnp.exp(trainer) * values).sum(),
      rtol=1e-5,
    )
