"""The bonus of VERL: its bounds, its memory, its switches."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.methods import base
from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import rank_guidance

_DYNAMICS = jnp.array(
  [[0.02, 0.5, 9.0], [-0.5, 0.3, 8.0], [0.05, -0.9, 4.0], [0.0, 0.4, 13.0]]
)


def _rollout(rewards=(0.0, 1.0, 1.0, 0.0), weights=(1.0, 1.0, 1.0, 1.0)):
  rollout = rollouts.make_rollout(groups=1)
  return rollout.replace(
    rewards=jnp.array(rewards),
    weights=jnp.array(weights),
    extras={rank_guidance.DYNAMICS: _DYNAMICS},
  )


def _run(steps, transform, rollout=None):
  state, out = transform.init(), None
  for _ in range(steps):
    out, state = jax.jit(transform.update)(rollout or _rollout(), state)
  return np.asarray(out.extras[rank_guidance.SIGNAL]), state


class SignalTest(chex.TestCase):
  def test_is_within_one_and_follows_height_or_speed(self):
    baseline = jnp.array([0.1, 0.4, 9.0])
    signal = rank_guidance.rank_signal(_DYNAMICS, baseline)
    self.assertLessEqual(float(jnp.abs(signal).max()), 1.0)
    # A gain of 0 is indifferent; a huge one decides by the acceleration.
    d = jnp.tanh((_DYNAMICS - baseline[None]) / baseline[None])
    even = rank_guidance.rank_signal(_DYNAMICS, baseline, gain=0.0)
    np.testing.assert_allclose(even, d[:, 1:].mean(axis=1), rtol=1e-5)
    hard = rank_guidance.rank_signal(_DYNAMICS, baseline, gain=1e4)
    gains = np.asarray(_DYNAMICS[:, 0] > 0.1)
    np.testing.assert_allclose(
      hard, np.where(gains, d[:, 2], d[:, 1]), rtol=1e-5
    )

  @parameterized.parameters(1.0, 1.5, 4.0)
  def test_bonus_is_bounded_and_keeps_the_sign(self, kappa):
    credit = jax.random.normal(jax.random.key(0), (4, 6)).at[0].set(0.0)
    signal = jnp.array([1.0, 0.9, 0.05, -1.0])
    bonus = rank_guidance.rank_bonus(credit, signal, kappa=kappa)
    self.assertTrue((bonus >= 0).all())
    self.assertTrue((bonus <= jnp.abs(credit) / kappa).all())
    np.testing.assert_array_equal(bonus[0], 0.0)  # no credit, no bonus
    np.testing.assert_array_equal(bonus[3], 0.0)  # Phi below 0
    if kappa > 1:
      np.testing.assert_array_equal(jnp.sign(credit + bonus), jnp.sign(credit))

  def test_a_kappa_below_one_is_refused(self):
    with self.assertRaisesRegex(ValueError, "kappa must be at least 1"):
      methods.VerlRank(kappa=0.9).build()


class GuidanceTest(chex.TestCase):
  def test_first_step_has_none_the_second_is_against_zero(self):
    transform = rank_guidance.rank_guidance()
    first, state = _run(1, transform)
    np.testing.assert_array_equal(first, 0.0)
    np.testing.assert_array_equal(state.baseline, 0.0)
    second, state = _run(2, transform)
    zero = rank_guidance.rank_signal(_DYNAMICS, jnp.zeros(3))
    np.testing.assert_allclose(second, zero, rtol=1e-6)
    self.assertTrue((np.abs(second[:2]) > 0.99).all())  # at the bound
    np.testing.assert_allclose(state.baseline, 0.3 * _DYNAMICS.mean(0), 1e-6)
    third, _ = _run(3, transform)
    known = rank_guidance.rank_signal(_DYNAMICS, 0.3 * _DYNAMICS.mean(0))
    np.testing.assert_allclose(third, known, rtol=1e-5)

  def test_it_may_start_at_the_first_means(self):
    transform = rank_guidance.rank_guidance(start="first")
    second, state = _run(2, transform)
    means = _DYNAMICS.mean(axis=0)
    known = rank_guidance.rank_signal(_DYNAMICS, means)
    np.testing.assert_allclose(second, known, rtol=1e-5)
    np.testing.assert_allclose(state.baseline, means, rtol=1e-6)

  def test_a_good_policy_gets_less_if_dynamic(self):
    full, _ = _run(3, rank_guidance.rank_guidance())
    transform = rank_guidance.rank_guidance(dynamic=True)
    half, state = _run(2, transform)  # P = 0: half of lam
    np.testing.assert_allclose(
      half, 0.5 * _run(2, rank_guidance.rank_guidance())[0], rtol=1e-6
    )
    np.testing.assert_allclose(state.score, 0.3 * 0.5)
    less, _ = _run(3, transform)
    np.testing.assert_allclose(less, (1 - 1.15 / 2) * full, rtol=1e-5)

  def test_dropped_rows_and_batches_are_not_remembered(self):
    transform = rank_guidance.rank_guidance()
    weights = (1.0, 0.0, 1.0, 0.0)
    _, state = _run(1, transform, _rollout(weights=weights))
    np.testing.assert_allclose(state.last, _DYNAMICS[::2].mean(0), rtol=1e-6)
    nothing = _rollout(weights=(0.0,) * 4)
    _, after = jax.jit(transform.update)(nothing, state)
    chex.assert_trees_all_equal(after, state)

  @parameterized.parameters(
    ({"rho": 0.0}, r"rho must be in \(0, 1\]"),
    ({"gain": -1.0}, "gain must be 0 or more"),
    ({"explore": (1.0,)}, "explore must have 3 finite weights"),
    ({"start": "last"}, "start must be zero or first, got 'last'"),
  )
  def test_what_cannot_be_is_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      rank_guidance.rank_guidance(**knobs)


class VerlRankTest(chex.TestCase):
  def _credit(self, **knobs):
    method = methods.VerlRank(**knobs).build()
    rollout, state = _rollout(), method.transform.init()
    for _ in range(2):
      out, state = method.transform.update(rollout, state)
    return np.asarray(base.per_token(method.advantage(out), out.mask)), rollout

  def test_without_lam_it_is_the_base_method(self):
    shaped, rollout = self._credit(lam=0.0)
    plain = methods.Grpo(eps=1e-6).build().advantage(rollout)
    np.testing.assert_array_equal(shaped, base.per_token(plain, rollout.mask))

  def test_the_bonus_is_on_all_tokens_or_on_the_last(self):
    plain, rollout = self._credit(lam=0.0)
    everywhere, _ = self._credit()
    last, _ = self._credit(spread="last")
    mask = np.asarray(rollout.mask)
    at_end = np.arange(mask.shape[1])[None] == mask.sum(1, keepdims=True) - 1
    self.assertTrue(((everywhere > plain) == mask)[:2].all())
    np.testing.assert_array_equal(last, np.where(at_end, everywhere, plain))
    self.assertTrue((np.abs(everywhere - plain) <= np.abs(plain) / 2).all())
