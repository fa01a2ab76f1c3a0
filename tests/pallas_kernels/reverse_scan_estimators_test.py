"""Returns, GAE and V-trace: what they reduce to, holes, padding."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import reverse_scan

N, T = 6, 9


def batch(seed=0):
  """Rewards, values, log-ratios, a mask with holes, one full and one empty."""
  keys = jax.random.split(jax.random.key(seed), 4)
  arrays = [jax.random.normal(key, (N, T)) for key in keys[:3]]
  mask = jax.random.bernoulli(keys[3], 0.6, (N, T))
  return *arrays, mask.at[0].set(True).at[1].set(False)


def all_three(rewards, values, log_ratio, mask, bootstrap=None, **knobs):
  lam = knobs.pop("lam", 1.0)
  return (
    reverse_scan.discounted_returns(
      rewards, mask, bootstrap=bootstrap, **knobs
    ),
    reverse_scan.gae(
      rewards, values, mask, lam=lam, bootstrap=bootstrap, **knobs
    ),
    reverse_scan.vtrace(
      *(log_ratio, rewards, values, mask),
      lam=lam,
      bootstrap=bootstrap,
      **knobs,
    ),
  )


def by_hand(log_ratio, rewards, values, last, *, gamma, lam, rho_bar, c_bar):
  """The sum of the paper's equation 1, for one row without holes."""
  ratio = np.exp(log_ratio)
  rho, c = np.minimum(rho_bar, ratio), lam * np.minimum(c_bar, ratio)
  after = np.append(values[1:], last)
  delta = rho * (rewards + gamma * after - values)
  targets = [
    values[s]
    + sum(
      gamma ** (t - s) * np.prod(c[s:t]) * delta[t]
      for t in range(s, len(values))
    )
    for s in range(len(values))
  ]
  after = np.append(targets[1:], last)
  return np.array(targets), rho * (rewards + gamma * after - values)


class EstimatorsTest(chex.TestCase):
  @parameterized.parameters(1.0, 0.9, 0.0)
  def test_lam_one_gives_returns_less_values(self, gamma):
    rewards, values, _, mask = batch()
    found = reverse_scan.gae(rewards, values, mask, gamma=gamma)
    returns = reverse_scan.discounted_returns(rewards, mask, gamma=gamma)
    np.testing.assert_allclose(found.returns, returns, atol=1e-5)
    wanted = jnp.where(mask, returns - values, 0)
    np.testing.assert_allclose(found.advantages, wanted, atol=1e-5)

  def test_lam_zero_gives_the_errors_of_one_step(self):
    rewards, values, _, _ = batch(1)
    mask, last = jnp.ones((N, T), bool), values[:, 0]
    found = reverse_scan.gae(
      rewards, values, mask, gamma=0.9, lam=0.0, bootstrap=last
    )
    after = jnp.concatenate([values[:, 1:], last[:, None]], axis=1)
    deltas = rewards + 0.9 * after - values
    np.testing.assert_allclose(found.advantages, deltas, atol=1e-6)

  def test_without_discounts_returns_are_the_sum_to_go(self):
    rewards, _, _, mask = batch(2)
    kept = np.where(mask, rewards, 0)
    to_go = np.cumsum(kept[:, ::-1], axis=1)[:, ::-1]
    found = reverse_scan.discounted_returns(rewards, mask)
    np.testing.assert_allclose(found, np.where(mask, to_go, 0), atol=1e-5)

  @parameterized.product(lam=(1.0, 0.7), gamma=(1.0, 0.9), bar=(1.0, 3.0))
  def test_on_policy_vtrace_is_gae(self, lam, gamma, bar):
    rewards, values, _, mask = batch(3)
    found = reverse_scan.vtrace(
      *(jnp.zeros((N, T)), rewards, values, mask),
      **{"gamma": gamma, "lam": lam, "rho_bar": bar},
    )
    wanted = reverse_scan.gae(rewards, values, mask, gamma=gamma, lam=lam)
    np.testing.assert_allclose(found.targets, wanted.returns, atol=1e-5)
    if lam == 1.0:
      np.testing.assert_allclose(found.advantages, wanted.advantages, atol=1e-5)

  def test_vtrace_is_the_sum_of_the_paper(self):
    rewards, values, log_ratio, _ = map(np.asarray, batch(4))
    knobs = {"gamma": 0.9, "lam": 0.8, "rho_bar": 1.5, "c_bar": 1.2}
    last, mask = values[:, 0], np.ones((N, T), bool)
    found = reverse_scan.vtrace(
      *(log_ratio, rewards, values, mask), bootstrap=last, **knobs
    )
    for i in range(N):
      row = log_ratio[i], rewards[i], values[i], last[i]
      targets, advantages = by_hand(*row, **knobs)
      np.testing.assert_allclose(found.targets[i], targets, atol=1e-5)
      np.testing.assert_allclose(found.advantages[i], advantages, atol=1e-5)

  def test_vtrace_of_tokens_that_the_policy_would_not_say_learns_nothing(self):
    rewards, values, _, mask = batch(5)
    never = jnp.full((N, T), -1e4)
    found = reverse_scan.vtrace(never, rewards, values, mask)
    np.testing.assert_array_equal(found.targets, jnp.where(mask, values, 0))
    np.testing.assert_array_equal(found.advantages, 0.0)

  def test_a_hole_takes_no_time(self):
    *arrays, _ = batch(6)
    own = jnp.asarray([0, 2, 3, 6])
    mask = jnp.zeros((N, T), bool).at[:, own].set(True)
    knobs = {"gamma": 0.9, "lam": 0.8, "bootstrap": arrays[0][:, 0]}
    holed = all_three(*arrays, mask, **knobs)
    dense = all_three(*(a[:, own] for a in (*arrays, mask)), **knobs)
    kept = jax.tree.map(lambda a: a[:, own], holed)
    chex.assert_trees_all_close(kept, dense, atol=1e-6)
    outside = jax.tree.map(lambda a: jnp.where(mask, 0, a), holed)
    chex.assert_trees_all_equal(outside, jax.tree.map(jnp.zeros_like, outside))

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_padding_may_hold_anything(self, junk):
    *arrays, mask = batch(7)
    dirty = [jnp.where(mask, a, junk) for a in arrays]
    chex.assert_trees_all_equal(
      all_three(*dirty, mask, gamma=0.9, lam=0.8),
      all_three(*arrays, mask, gamma=0.9, lam=0.8),
    )

    def total(rewards):
      return sum(a.sum() for a in jax.tree.leaves(
        all_three(rewards, *dirty[1:], mask, gamma=0.9, lam=0.8)
      ))  # fmt: skip

    slope = jax.grad(total)(dirty[0])
    chex.assert_tree_all_finite(slope)
    np.testing.assert_array_equal(jnp.where(mask, 0, slope), 0.0)

  def test_a_critic_that_is_right_leaves_exactly_nothing(self):
    _, _, log_ratio, mask = batch(8)
    outcome = jnp.asarray([0.9, 1.0, -3.3, 0.1, 1000.7, 0.0])[:, None]
    last = T - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    is_last = jnp.arange(T)[None] == last[:, None]
    rewards = jnp.where(mask & is_last, outcome, 0.0)
    values = jnp.broadcast_to(outcome, (N, T))
    for impl in ("reference", "xla", "interpret"):
      _, gae, vtrace = all_three(
        rewards, values, log_ratio, mask, lam=0.95, impl=impl
      )
      np.testing.assert_array_equal(gae.advantages, 0.0)
      np.testing.assert_array_equal(vtrace.advantages, 0.0)

  def test_implementations_agree(self):
    *arrays, mask = batch(9)
    knobs = {"gamma": 0.9, "lam": 0.8, "bootstrap": arrays[0][:, 0]}
    wanted = all_three(*arrays, mask, impl="reference", **knobs)
    for impl in ("xla", "interpret"):
      found = all_three(*arrays, mask, impl=impl, **knobs)
      chex.assert_trees_all_close(found, wanted, atol=2e-6)

  def test_no_gradient_comes_back_to_values_and_ratios(self):
    rewards, values, log_ratio, mask = batch()

    def total(values, log_ratio):
      found = all_three(rewards, values, log_ratio, mask)
      return sum(a.sum() for a in jax.tree.leaves(found))

    for slope in jax.grad(total, (0, 1))(values, log_ratio):
      np.testing.assert_array_equal(slope, 0.0)

  def test_discounts_may_be_traced(self):
    *arrays, mask = batch()
    found = jax.jit(lambda a, b: all_three(*arrays, mask, gamma=a, lam=b))(
      0.9, 0.8
    )
    wanted = all_three(*arrays, mask, gamma=0.9, lam=0.8)
    chex.assert_trees_all_close(found, wanted, atol=1e-6)

  @parameterized.parameters(
    ({"gamma": 1.1}, "gamma must be in"),
    ({"lam": -0.1}, "lam must be in"),
    ({"lam": float("nan")}, "lam must be in"),
    ({"bootstrap": jnp.ones(T)}, "bootstrap must be"),
  )
  def test_bad_knobs_are_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      all_three(*batch(), **knobs)

  def test_bad_bars_shapes_and_masks_are_refused(self):
    rewards, values, log_ratio, mask = batch()
    for bars in ({"c_bar": 2.0}, {"c_bar": 0.0}, {"rho_bar": float("nan")}):
      with self.assertRaisesRegex(ValueError, "0 < c_bar <= rho_bar"):
        reverse_scan.vtrace(log_ratio, rewards, values, mask, **bars)
    with self.assertRaisesRegex(ValueError, "values must be of the shape"):
      reverse_scan.gae(rewards, values[:, 1:], mask)
    with self.assertRaisesRegex(TypeError, "mask must be bool"):
      reverse_scan.discounted_returns(rewards, mask.astype(jnp.int32))
