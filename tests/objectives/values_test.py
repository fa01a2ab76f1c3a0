"""The critic's loss: its clip, its gradient, and as a term of an objective."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import policy, surrogates, values, weighting
from jaxrl_llm.testing import rollouts


def _arrays(seed=0, shape=(5, 8)):
  keys = jax.random.split(jax.random.key(seed), 3)
  now, returns, moved = (jax.random.normal(key, shape) for key in keys)
  return now, returns, now + 0.5 * moved


class ClippedValueLossTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_without_a_clip_it_is_half_the_squared_error(self):
    now, returns, old = _arrays()
    fn = self.variant(values.clipped_value_loss, static_argnames="clip")
    loss, metrics = fn(now, returns, old, clip=float("inf"))
    np.testing.assert_allclose(loss, 0.5 * (now - returns) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(metrics["value_clip_fraction"], 0.0)

  def test_it_is_never_below_the_squared_error(self):
    now, returns, old = _arrays()
    loss, _ = values.clipped_value_loss(now, returns, old, clip=0.2)
    free = 0.5 * (now - returns) ** 2
    self.assertTrue((loss >= free - 1e-6).all())

  def test_no_gradient_once_it_has_moved_far_towards_the_return(self):
    now, returns, old = _arrays()
    clip = 0.2

    def total(now):
      return values.clipped_value_loss(now, returns, old, clip=clip)[0].sum()

    grads = jax.grad(total)(now)
    near = jnp.clip(now, old - clip, old + clip)
    stopped = jnp.abs(near - returns) > jnp.abs(now - returns)
    self.assertGreater(stopped.sum(), 3)
    np.testing.assert_array_equal(grads[stopped], 0.0)
    np.testing.assert_allclose(
      grads[~stopped], (now - returns)[~stopped], rtol=1e-5
    )
    shares = values.clipped_value_loss(now, returns, old, clip=clip)[1]
    np.testing.assert_array_equal(shares["value_clip_fraction"], stopped)

  def test_the_gradient_is_that_of_finite_differences(self):
    with jax.enable_x64(True):
      arrays = (jnp.asarray(x, jnp.float64) for x in _arrays(3, (2, 3)))
      now, returns, old = arrays
      loss = lambda x: values.clipped_value_loss(  # noqa: E731
        x, returns, old, clip=0.3
      )[0].sum()
      chex.assert_numerical_grads(loss, (now,), order=1, atol=1e-6)

  def test_returns_and_old_values_are_constants(self):
    now, returns, old = _arrays()
    loss = lambda *x: values.clipped_value_loss(now, *x)[0].sum()  # noqa: E731
    for grads in jax.grad(loss, argnums=(0, 1))(returns, old):
      np.testing.assert_array_equal(grads, 0.0)

  def test_worked_example(self):
    """Old value 0, clip 1/2: at 2 the return 3 is near, 0.4 moves freely."""
    loss, _ = values.clipped_value_loss(
      jnp.asarray([[2.0, 0.4, 2.0]]),
      jnp.asarray([[3.0, 1.0, -1.0]]),
      jnp.zeros((1, 3)),
      clip=0.5,
    )
    wanted = [[2.5**2 / 2, 0.6**2 / 2, 3.0**2 / 2]]
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)

  @parameterized.parameters(0.0, -1.0, float("nan"))
  def test_a_bad_clip_is_refused(self, clip):
    with self.assertRaisesRegex(ValueError, "value_clip must be positive"):
      values.clipped_value_loss(*_arrays(), clip=clip)


def _scored():
  rollout = rollouts.make_rollout()
  scores = rollouts.make_scores(rollout)
  now, returns, old = _arrays(1, rollout.mask.shape)
  extras = {"returns": returns, "old_values": old}
  return scores.replace(values=now), rollout.replace(extras=extras)


def _objective(**knobs):
  return policy.policy_objective(
    surrogate=lambda t: surrogates.clipped_surrogate(t.log_ratio, t.advantages),
    penalties=values.value_penalties(**knobs),
  )


class ValuePenaltiesTest(chex.TestCase):
  def _run(self, scores, rollout, **knobs):
    weights = weighting.token_mean(rollout.mask, rollout.weights)
    credit = jnp.zeros(rollout.mask.shape)
    run = lambda scores: _objective(**knobs)(scores, rollout, credit, weights)  # noqa: E731
    return jax.value_and_grad(run, has_aux=True)(scores)

  def test_it_is_weighed_as_the_loss_is(self):
    scores, rollout = _scored()
    (loss, metrics), grads = self._run(scores, rollout, coef=0.3, clip=0.2)
    each, shares = values.clipped_value_loss(
      scores.values,
      rollout.extras["returns"],
      rollout.extras["old_values"],
      clip=0.2,
    )
    mean = each[rollout.mask].mean()
    np.testing.assert_allclose(metrics["value_loss"], mean, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.3 * mean, rtol=1e-5)
    share = shares["value_clip_fraction"][rollout.mask].mean()
    np.testing.assert_allclose(metrics["value_clip_fraction"], share, rtol=1e-5)
    np.testing.assert_array_equal(grads.values[~rollout.mask], 0.0)
    self.assertGreater(jnp.abs(grads.values).max(), 1e-3)

  def test_padding_may_hold_anything(self):
    scores, rollout = _scored()
    spoil = lambda x: jnp.where(rollout.mask, x, jnp.nan)  # noqa: E731
    dirty = rollout.replace(extras=jax.tree.map(spoil, rollout.extras))
    chex.assert_trees_all_equal(
      self._run(scores, rollout),
      self._run(scores.replace(values=spoil(scores.values)), dirty),
    )

  def test_what_is_missing_is_named(self):
    scores, rollout = _scored()
    with self.assertRaisesRegex(ValueError, "scores.values is missing"):
      self._run(scores.replace(values=None), rollout)
    with self.assertRaisesRegex(ValueError, r"extras\['returns'\] is missing"):
      self._run(scores, rollout.replace(extras={}))

  @parameterized.parameters(-1.0, float("inf"), float("nan"))
  def test_a_bad_coefficient_is_refused(self, coef):
    with self.assertRaisesRegex(ValueError, "value_coef must be 0 or more"):
      values.value_penalties(coef=coef)
