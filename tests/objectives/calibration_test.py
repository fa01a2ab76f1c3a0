"""The coefficient of a module's loss: what it is of two changes."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import calibration

SHAPE = (3, 5)
both = parameterized.named_parameters(*calibration.CALIBRATIONS.items())


def _changes(seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  dr, dm, old = (jax.random.normal(key, SHAPE) for key in keys[:3])
  mask = jax.random.bernoulli(keys[3], 0.7, SHAPE)
  return 0.2 * dr, 0.3 * dm - 0.1, -jnp.abs(old), mask.at[0, 0].set(True)


def _found(form, dr, dm, old, mask, **knobs):
  return form(old + dr, old + dm, old, mask, **knobs)


class BothTest(chex.TestCase):
  @both
  def test_full_agreement_is_lam0_and_no_change_is_0(self, form):
    dr, _, old, mask = _changes()
    lam = _found(form, dr, dr, old, mask, lam0=0.7)
    np.testing.assert_allclose(lam, 0.7, rtol=1e-4)
    zero = jnp.zeros(SHAPE)
    self.assertEqual(form(old, old + dr, old, mask), 0.0)
    self.assertEqual(form(old + dr, old, old, mask), 0.0)
    self.assertEqual(_found(form, zero, zero, old, mask & False), 0.0)

  @both
  def test_it_grows_with_the_main_change_and_falls_with_the_other(self, form):
    dr, dm, old, mask = _changes()
    lam = _found(form, dr, dm, old, mask)
    self.assertGreater(abs(lam), 1e-3)
    for s in (-1.0, 0.5, 3.0):
      np.testing.assert_allclose(
        _found(form, s * dr, dm, old, mask), s * lam, rtol=1e-3
      )
      np.testing.assert_allclose(
        _found(form, dr, s * dm, old, mask), lam / s, rtol=1e-3
      )
    np.testing.assert_allclose(
      _found(form, dr, dm, old, mask, lam0=0.1), 0.1 * lam, rtol=1e-6
    )

  @both
  def test_padding_is_never_read_and_no_gradient_passes(self, form):
    dr, dm, old, mask = _changes()
    junk = lambda x: jnp.where(mask, x, jnp.nan)  # noqa: E731
    args = old + dr, old + dm, old
    self.assertEqual(form(*map(junk, args), mask), form(*args, mask))
    longer = [jnp.pad(x, ((0, 2), (0, 3))) for x in (*args, mask)]
    np.testing.assert_allclose(form(*longer), form(*args, mask), rtol=1e-6)
    for grad in jax.grad(form, argnums=(0, 1, 2))(*args, mask):
      np.testing.assert_array_equal(grad, 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  @both
  def test_a_worked_example(self, form):
    old, mask = -jnp.ones((1, 3)), jnp.array([[True, True, False]])
    dr, dm = jnp.array([[0.5, -0.5, 9.0]]), jnp.array([[1.0, 0.25, 9.0]])
    lam = self.variant(form)(old + dr, old + dm, old, mask)
    # (0.5 - 0.125) / 1.0625, and the mean of 0.5 and -2
    wanted = {"inner_coefficient": 0.375 / 1.0625}
    np.testing.assert_allclose(lam, wanted.get(form.__name__, -0.75), rtol=1e-6)


class InnerTest(chex.TestCase):
  def test_it_is_at_most_the_ratio_of_the_norms(self):
    for seed in range(5):
      dr, dm, old, mask = _changes(seed)
      lam = _found(calibration.inner_coefficient, dr, dm, old, mask, lam0=0.5)
      norms = [jnp.linalg.norm(jnp.where(mask, x, 0.0)) for x in (dr, dm)]
      self.assertLessEqual(abs(lam), 0.5 * norms[0] / norms[1] + 1e-6)

  def test_orthogonal_changes_give_0(self):
    old, mask = -jnp.ones((1, 2)), jnp.ones((1, 2), bool)
    dr, dm = jnp.array([[0.5, 0.25]]), jnp.array([[-0.25, 0.5]])
    lam = _found(calibration.inner_coefficient, dr, dm, old, mask)
    np.testing.assert_allclose(lam, 0.0, atol=1e-7)

  def test_it_is_the_best_step_along_the_modules_change(self):
    dr, dm, old, mask = _changes()
    lam = _found(calibration.inner_coefficient, dr, dm, old, mask)
    miss = lambda x: (
      jnp.where(mask, dr - x * dm, 0.0).var()
      + (  # noqa: E731
        jnp.where(mask, dr - x * dm, 0.0).mean() ** 2
      )
    )
    np.testing.assert_allclose(jax.grad(miss)(lam), 0.0, atol=1e-6)
