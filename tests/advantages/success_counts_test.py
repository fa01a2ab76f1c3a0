"""Weights of success counts: unbiased by enumeration, equal to what they join.

The table "unbiasedness" of tests/golden/rl2ml.json was printed by an
enumeration that is not ours.
"""

import itertools
import json
import pathlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import baselines, group, success_counts

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "rl2ml.json"
TABLE = json.loads(GOLDEN.read_text())["unbiasedness"]["table_G8"]
UNBIASED = ("none", "score", "loo")


def _enumerated(rates, *, group_size, q, baseline):
  """Mean and second moment of the estimate over all 2^G groups, in numpy."""
  outcomes = np.array(list(itertools.product([0, 1], repeat=group_size)))
  credit = success_counts.success_counted(
    jnp.asarray(outcomes.reshape(-1) == 1),
    group_size=group_size,
    q=q,
    baseline=baseline,
  )
  credit = np.asarray(credit).reshape(outcomes.shape)
  p = np.asarray(rates)[:, None, None]
  score = np.where(outcomes == 1, 1 / p, -1 / (1 - p))
  chance = np.where(outcomes == 1, p, 1 - p).prod(axis=2)
  estimate = (credit * score).mean(axis=2)
  return (chance * estimate).sum(axis=1), (chance * estimate**2).sum(axis=1)


def _credit(rewards, size, **knobs):
  won = jnp.asarray(rewards) > 0.5
  return success_counts.success_counted(won, group_size=size, **knobs)


class UnbiasedTest(chex.TestCase):
  @parameterized.parameters(1, 2, 4, 6, 8)
  def test_the_mean_over_all_groups_is_the_slope(self, size):
    rates = np.array([0.05, 0.3, 0.7, 0.95])
    with jax.enable_x64(True):
      for q in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        knobs = {"group_size": size, "q": q}
        slope = success_counts.slope(jnp.asarray(rates), **knobs)
        for baseline in UNBIASED[: 1 if size == 1 else None]:
          mean, _ = _enumerated(rates, baseline=baseline, **knobs)
          np.testing.assert_allclose(mean, slope, rtol=1e-11)

  @parameterized.parameters(0.5, 1.0, 2.0)
  def test_leaving_failures_alone_loses_the_last_order(self, q):
    rates = np.array([0.05, 0.3, 0.7])
    with jax.enable_x64(True):
      mean, _ = _enumerated(rates, group_size=6, q=q, baseline="score_drop")
      slope = success_counts.slope(jnp.asarray(rates), group_size=6, q=q)
      np.testing.assert_allclose(mean, slope - (1 - rates) ** 5, rtol=1e-11)
      if q == 1.0:
        shorter = success_counts.slope(jnp.asarray(rates), group_size=5, q=q)
        np.testing.assert_allclose(mean, shorter, rtol=1e-11)

  def test_the_table_of_the_golden_file(self):
    self.assertGreater(len(TABLE), 20)
    kind = lambda row: (row["q"], row["baseline"])  # noqa: E731
    with jax.enable_x64(True):
      for (q, baseline), rows in itertools.groupby(
        sorted(TABLE, key=kind), key=kind
      ):
        p, e, w, var = np.array(
          [[row[name] for name in ("p", "E", "w", "var")] for row in rows]
        ).T
        mean, square = _enumerated(p, q=q, baseline=baseline, group_size=8)
        np.testing.assert_allclose(mean, e, rtol=1e-9)
        np.testing.assert_allclose(square - mean**2, var, rtol=1e-6, atol=1e-9)
        slope = success_counts.slope(jnp.asarray(p), q=q, group_size=8)
        np.testing.assert_allclose(slope, w, rtol=1e-9)

  @parameterized.parameters(*success_counts.BASELINES)
  def test_sums_over_counts_are_sums_over_groups(self, baseline):
    knobs = {"group_size": 6, "q": 1.5, "baseline": baseline}
    with jax.enable_x64(True):
      rates = jnp.array([0.1, 0.6])
      chex.assert_trees_all_close(
        success_counts.gradient_moments(rates, **knobs),
        _enumerated(rates, **knobs),
        rtol=1e-11,
      )


class SlopeTest(chex.TestCase):
  def test_order_0_is_1_and_order_1_the_likelihood(self):
    p = jnp.array([0.05, 0.4, 0.9, 1.0])
    slope = success_counts.slope
    np.testing.assert_array_equal(slope(p, group_size=8, q=0.0), 1.0)
    np.testing.assert_allclose(
      slope(p, group_size=8, q=1.0), (1 - (1 - p) ** 8) / p, rtol=1e-5
    )
    np.testing.assert_allclose(
      slope(p, group_size=3, q=2.0),
      1 + 2 * (1 - p) + 3 * (1 - p) ** 2,
      rtol=1e-6,
    )

  @parameterized.parameters(0.5, 1.0, 2.0)
  def test_large_groups_have_a_power_of_p(self, q):
    p = jnp.array([0.3, 0.7])
    found = success_counts.slope(p, group_size=80, q=q)
    np.testing.assert_allclose(found, p**-q, rtol=1e-5)


class CreditTest(chex.TestCase):
  REWARDS = jnp.array([1.0, 0, 0, 1, 0, 0, 0, 1])

  def test_order_0_is_reinforce_and_leave_one_out(self):
    chex.assert_trees_all_equal(
      _credit(self.REWARDS, 4, q=0.0, baseline="none"), self.REWARDS
    )
    chex.assert_trees_all_close(
      _credit(self.REWARDS, 4, q=0.0, baseline="loo"),
      group.leave_one_out(self.REWARDS, group_size=4),
      rtol=1e-6,
    )

  def test_order_1_divides_by_the_number_of_successes(self):
    none = _credit(self.REWARDS, 4, q=1.0, baseline="none")
    np.testing.assert_allclose(none, [2, 0, 0, 2, 0, 0, 0, 4], rtol=1e-6)
    score = _credit(self.REWARDS, 4, q=1.0, baseline="score")
    np.testing.assert_allclose(
      score, baselines.mean_scaled(self.REWARDS, group_size=4), rtol=1e-6
    )
    sums = score.reshape(2, 4).sum(axis=1)
    np.testing.assert_allclose(sums, 0.0, atol=1e-6)

  @parameterized.parameters(0.5, 1.0, 3.0)
  def test_a_success_counts_less_among_more_and_1_among_all(self, q):
    counts = jnp.arange(1, 17)
    weights = success_counts.success_weight(
      counts, jnp.full(16, 16), group_size=16, q=q
    )
    self.assertTrue(bool((jnp.diff(weights) < 0).all()))
    self.assertEqual(float(weights[-1]), 1.0)

  def test_the_weight_is_that_of_gamma_functions(self):
    counts, q = jnp.arange(1.0, 65), 2.5
    lg = jax.scipy.special.gammaln
    logs = lg(64 + q) + lg(counts) - lg(64.0) - lg(counts + q)
    found = success_counts.success_weight(
      jnp.arange(1, 65), jnp.full(64, 64), group_size=64, q=q
    )
    np.testing.assert_allclose(found, jnp.exp(logs), rtol=1e-4)

  def test_the_push_of_a_group_has_three_regimes(self):
    rewards = jnp.tril(jnp.ones((8, 8))).reshape(-1)

    def push(q):
      credit = _credit(rewards, 8, q=q, baseline="none")
      return np.asarray(credit.reshape(8, 8).mean(axis=1))

    self.assertTrue((np.diff(push(0.5)) > 0).all())
    np.testing.assert_allclose(push(1.0), 1.0, rtol=1e-5)
    self.assertTrue((np.diff(push(2.0)) < 0).all())

  @parameterized.parameters(
    ("none", 0.0, 1.0),
    ("score", -1.0, 0.0),
    ("score_drop", 0.0, 0.0),
    ("loo", 0.0, 0.0),
  )
  def test_groups_of_one_kind(self, baseline, wrong, right):
    for q in (0.0, 1.0, 2.7):
      knobs = {"q": q, "baseline": baseline}
      np.testing.assert_array_equal(_credit(jnp.zeros(5), 5, **knobs), wrong)
      np.testing.assert_array_equal(_credit(jnp.ones(5), 5, **knobs), right)

  def test_a_row_without_siblings_has_no_baseline(self):
    for baseline in ("loo", "none"):
      found = _credit(jnp.array([1.0, 0.0]), 1, q=2.0, baseline=baseline)
      np.testing.assert_array_equal(found, [1.0, 0.0])

  @parameterized.parameters(*success_counts.BASELINES)
  def test_a_dropped_row_makes_the_group_smaller(self, baseline):
    knobs = {"q": 1.7, "baseline": baseline}
    for lost in (0.0, 1.0):
      rewards = jnp.array([1.0, 0.0, lost, 0.0, 1.0, 1.0, 1.0, lost])
      weights = jnp.array([1.0, 1, 0, 1, 1, 1, 1, 0])
      found = _credit(rewards, 4, weights=weights, **knobs)
      small = _credit(jnp.array([1.0, 0, 0, 1, 1, 1]), 3, **knobs)
      kept = np.asarray(weights) > 0
      np.testing.assert_allclose(found[kept], small, rtol=1e-6)
      np.testing.assert_array_equal(found[~kept], 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_large_groups_of_high_order_stay_finite(self):
    rewards = jnp.arange(512) == 7
    fn = self.variant(_credit, static_argnames=("size", "q", "baseline"))
    found = fn(rewards, size=512, q=3.0, baseline="none")
    expected = 512 * 513 * 514 / 6
    np.testing.assert_allclose(found[7], expected, rtol=1e-4)

  def test_an_unknown_baseline_is_refused(self):
    with self.assertRaisesRegex(ValueError, "loo, score, score_drop, none"):
      _credit(jnp.ones(2), 2, baseline="mean")


class ChooseTest(chex.TestCase):
  def _best(self, rates, *, baseline, pass_at):
    """The same by enumeration, q after q."""
    share = rates * (1 - rates)
    gain = pass_at * (1 - rates) ** (pass_at - 1) * share
    scores = []
    for q in success_counts.GRID:
      mean, square = _enumerated(rates, group_size=4, q=q, baseline=baseline)
      scores.append((gain * mean).sum() ** 2 / (share * square).sum())
    return success_counts.GRID[int(np.argmax(scores))]

  @parameterized.parameters(("loo", 1), ("score", 4), ("none", 2))
  def test_is_the_largest_signal_to_noise(self, baseline, pass_at):
    with jax.enable_x64(True):
      found = success_counts.choose_q(
        jnp.array([0.0, 0.25, 0.75, 1.0]),
        group_size=4,
        baseline=baseline,
        pass_at=pass_at,
      )
      best = self._best(
        np.array([0.25, 0.75]), baseline=baseline, pass_at=pass_at
      )
    np.testing.assert_allclose(found, best, atol=1e-12)

  def test_pass_at_k_asks_for_more_of_the_rare(self):
    rates = jnp.array([0.125, 0.5, 0.875])
    one, eight = (
      success_counts.choose_q(rates, group_size=8, pass_at=k) for k in (1, 8)
    )
    self.assertGreater(float(eight), float(one))

  def test_without_a_mixed_group_any_q_does(self):
    found = success_counts.choose_q(jnp.array([0.0, 1.0]), group_size=8)
    chex.assert_tree_all_finite(found)

  def test_rates_are_of_rows_that_count(self):
    found = success_counts.success_rates(
      jnp.array([True, False, True, True, True, True]),
      jnp.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
      group_size=3,
    )
    np.testing.assert_array_equal(found, [0.5, 0.0])
