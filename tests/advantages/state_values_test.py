"""Values from neighbouring prefixes: nodes, distances, neighbours, credit."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import state_values
from jaxrl_llm.methods import base
from jaxrl_llm.testing import rollouts

G, S, T, D = 4, 3, 9, 5
REWARDS = jnp.array([1.0, 0.0, 0.25, 0.0])
COUNTS = (9, 7, 2, 1)


def _masks(prompt=S, counts=COUNTS):
  prompts = jnp.arange(S)[None] >= jnp.full((G, 1), S - prompt)
  return prompts, jnp.arange(T)[None] < jnp.array(counts)[:, None]


def _hidden(seed=0):
  key = jax.random.key(seed)
  prompt = jax.random.normal(key, (1, S, D))
  own = jax.random.normal(jax.random.fold_in(key, 1), (G, T, D))
  return jnp.repeat(prompt, G, axis=0), own


def _values(hidden, masks, rewards=REWARDS, weights=None, m=2, **knobs):
  """Nodes and their values; windows of one unless said."""
  knobs = {"window": 1, "min_d": 0.1, "max_k": 6, "min_k": 2} | knobs
  prompt, own = state_values.lengths(*masks)
  nodes = state_values.state_nodes(prompt, own, min_interval=m, length=T)
  x = state_values.smoothed_states(*hidden, *masks, window=knobs["window"])
  run = jax.jit(
    lambda x, rewards, weights: state_values.state_values(
      x, nodes, rewards, weights, group_size=G, **knobs
    )
  )
  return nodes, run(x, rewards, weights), prompt


def _credit(hidden, masks, rewards=REWARDS, *, lam=1.0, last=True, **knobs):
  nodes, values, prompt = _values(hidden, masks, rewards, **knobs)
  return state_values.segment_advantages(
    values, nodes, prompt, masks[1], lam=lam, credit_last=last
  )


class NodesTest(chex.TestCase):
  @parameterized.parameters(
    (4, 22, 5, [4, 5, 10, 15, 20, 25]),
    (4, 17, 5, [4, 5, 10, 15, 20]),  # the last is on the grid
    (4, 5, 5, [4, 5, 8]),
    (5, 5, 5, [5, 9]),
    (3, 9, 50, [3, 11]),  # shorter than the interval
    (3, 2, 1, [3, 4]),
    (3, 1, 1, [3]),
    (3, 0, 1, []),
  )
  def test_are_the_ends_and_the_grid_between(self, prompt, own, m, expected):
    nodes = state_values.state_nodes(
      jnp.array([prompt]), jnp.array([own]), min_interval=m, length=22
    )
    count = int(nodes.count[0])
    self.assertEqual(nodes.positions[0, :count].tolist(), expected)
    self.assertEqual(
      nodes.valid[0].tolist(), [i < count for i in range(len(nodes.valid[0]))]
    )

  def test_smoothing_starts_at_the_first_real_token(self):
    (prompts, own), masks = _hidden(), _masks(prompt=2)
    x = state_values.smoothed_states(prompts, own, *masks, alpha=0.6, window=2)
    row = np.concatenate([prompts[0, 1:], own[0]])
    e, expected = row[0], []
    for k, h in enumerate(row):
      e = 0.6 * e + 0.4 * h
      expected.append(e / (1 - 0.6 ** (k + 1)))
    np.testing.assert_allclose(x[0, :6], expected[::2], rtol=1e-5)
    self.assertEqual(x.shape, (G, 6, D))
    junk = jnp.where(masks[0][..., None], prompts, jnp.nan)
    dirty = jnp.where(masks[1][..., None], own, jnp.inf)
    again = state_values.smoothed_states(
      junk, dirty, *masks, alpha=0.6, window=2
    )
    np.testing.assert_array_equal(x, again)
    plain = state_values.smoothed_states(prompts, own, *masks, debias=False)
    np.testing.assert_allclose(plain[0, 0], row[0], rtol=1e-6)


class DistancesTest(chex.TestCase):
  def test_are_those_of_a_loop(self):
    x = jax.random.normal(jax.random.key(2), (G, 7, D))
    sizes = jnp.array([[1, 3, 7], [2, 2, 5], [1, 4, 6], [7, 7, 7]])
    got = np.asarray(state_values.node_distances(x, sizes, 1))
    for a in range(3):
      for g in range(G):
        for b in range(3):
          u, v = int(sizes[1, a]), int(sizes[g, b])
          apart = np.linalg.norm(x[1, :u, None] - x[g, None, :v], axis=-1)
          mean = apart.min(axis=1 if u >= v else 0).mean()
          if g == 1 and v > u:
            mean = np.inf
          np.testing.assert_allclose(got[a, g, b], mean, atol=1e-5)
    np.testing.assert_array_equal(got[:2, 1, :2], 0.0)  # to itself, exactly

  def test_a_state_that_is_no_number_is_far_from_all(self):
    x = jnp.ones((2, 3, D)).at[1, 0].set(jnp.nan)
    got = state_values.node_distances(x, jnp.array([[1, 3], [1, 3]]), 0)
    self.assertTrue(jnp.isinf(got[:, 1]).all())


class ValuesTest(chex.TestCase):
  def test_ends_are_the_groups_mean_and_the_own_reward(self):
    nodes, values, _ = _values(_hidden(), _masks())
    np.testing.assert_allclose(values[:3, 0], REWARDS.mean(), rtol=1e-6)
    for row in range(3):
      last = int(nodes.count[row]) - 1
      np.testing.assert_allclose(values[row, last], REWARDS[row], atol=1e-6)
    inside = np.asarray(values)[np.asarray(nodes.valid)]
    self.assertTrue((inside >= -1e-6).all() and (inside <= 1 + 1e-6).all())
    np.testing.assert_array_equal(np.asarray(values)[~nodes.valid], 0.0)

  def test_equal_states_have_the_mean_of_all_nodes(self):
    prompts, own = jnp.ones((G, S, D)), jnp.ones((G, T, D))
    masks = _masks(counts=(9, 9, 9, 9))
    # Without debias all prefixes are the same: each row has the same nodes.
    nodes, values, _ = _values(
      (prompts, own), masks, min_d=5.0, max_k=99, min_k=99
    )
    inner = values[:, 1 : int(nodes.count[0]) - 1]
    later = [  # its own later nodes are hidden from a node
      (REWARDS.sum() * int(nodes.count[0]) - REWARDS[row] * hidden)
      / (G * int(nodes.count[0]) - hidden)
      for row in range(G)
      for hidden in [np.arange(int(nodes.count[0]) - 2, 0, -1)]
    ]
    np.testing.assert_allclose(inner, np.stack(later), rtol=1e-5)
    _, values, _ = _values(
      (prompts, own), masks, min_d=5.0, max_k=3, min_k=3, exclude_self=True
    )
    others = (REWARDS.sum() - REWARDS) / (G - 1)
    inner = values[:, 1 : int(nodes.count[0]) - 1]
    others = np.broadcast_to(others[:, None], inner.shape)
    np.testing.assert_allclose(inner, others, rtol=1e-5)

  def test_weights_are_uniform_below_the_least_distance(self):
    near = jax.random.uniform(jax.random.key(0), (3, 8))
    rewards = jnp.arange(8.0)
    each = rewards[None]
    k = jnp.array([8, 8, 8])
    far = state_values.nearest_mean(near, rewards, k, min_d=1e6)
    np.testing.assert_allclose(far, rewards.mean(), rtol=1e-6)
    weighed = state_values.nearest_mean(near, rewards, k, min_d=1e-6)
    expected = (each / near).sum(1) / (1 / near).sum(1)
    np.testing.assert_allclose(weighed, expected, rtol=1e-5)

  def test_only_the_k_nearest_count_and_ties_share(self):
    near = jnp.array([[3.0, 1.0, 2.0, 2.0, jnp.inf]])
    rewards = jnp.array([8.0, 1.0, 2.0, 4.0, jnp.nan])
    for k, expected in ((1, 1.0), (2, (1 + 1.5) / 1.5), (3, 4 / 2), (9, None)):
      got = state_values.nearest_mean(near, rewards, jnp.array([k]), min_d=0.5)
      if expected is None:
        expected = (8 / 3 + 1 + 3) / (1 / 3 + 2)
      np.testing.assert_allclose(got, expected, rtol=1e-6)
    nobody = state_values.nearest_mean(
      jnp.full((1, 3), jnp.inf), jnp.ones(3), jnp.array([2]), otherwise=0.25
    )
    np.testing.assert_array_equal(nobody, 0.25)

  def test_fewer_neighbours_towards_the_end(self):
    k = state_values.neighbour_counts(jnp.array([4, 0]), 6, max_k=66, min_k=6)
    self.assertEqual(k[0].tolist(), [66, 66, 51, 36, 21, 6])
    self.assertEqual(k[1, :2].tolist(), [66, 66])

  def test_the_order_of_rows_does_not_matter(self):
    prompts, own = _hidden()
    order = jnp.array([2, 0, 3, 1])
    masks = _masks()
    _, values, _ = _values((prompts, own), masks, min_d=3.0)
    _, other, _ = _values(
      (prompts, own[order]),
      (masks[0], masks[1][order]),
      REWARDS[order],
      min_d=3.0,
    )
    np.testing.assert_allclose(other, values[order], atol=1e-6)

  def test_rows_that_do_not_count_are_no_neighbours(self):
    (prompts, own), masks = _hidden(), _masks()
    weights = jnp.array([1.0, 1.0, 0.0, 1.0])
    args = {"weights": weights, "masks": masks}
    nodes, values, _ = _values((prompts, own), rewards=REWARDS, **args)
    dirty = own.at[2].set(jnp.nan)
    _, again, _ = _values(
      (prompts, dirty), rewards=REWARDS.at[2].set(jnp.nan), **args
    )
    np.testing.assert_array_equal(values, again)
    np.testing.assert_array_equal(values[2], 0.0)

  def test_early_distances_do_not_know_later_tokens(self):
    x = jax.random.normal(jax.random.key(2), (G, 7, D))
    sizes = jnp.array([[1, 3, 7]] * G)
    one = state_values.node_distances(x, sizes, 1)
    two = state_values.node_distances(x.at[1, 3:].add(9.0), sizes, 1)
    others = jnp.array([0, 2, 3])
    np.testing.assert_allclose(one[:2, others], two[:2, others], atol=1e-5)
    self.assertGreater(float(jnp.abs(one[2, 0] - two[2, 0]).max()), 0.1)


class CreditTest(chex.TestCase):
  def test_is_reward_minus_value_at_lambda_one(self):
    nodes, values, _ = _values(_hidden(), _masks())
    credit = np.asarray(_credit(_hidden(), _masks()))
    for row, count in enumerate(COUNTS[:3]):
      positions = np.asarray(nodes.positions[row, : int(nodes.count[row])])
      for t in range(count):
        segment = min((positions <= S + t).sum() - 1, len(positions) - 2)
        np.testing.assert_allclose(
          credit[row, t], REWARDS[row] - values[row, segment], atol=1e-6
        )
    np.testing.assert_array_equal(credit[3], 0.0)  # one token: no stretch

  def test_lambda_zero_is_the_gain_of_each_stretch(self):
    nodes, values, _ = _values(_hidden(), _masks())
    credit = _credit(_hidden(), _masks(), lam=0.0)
    np.testing.assert_allclose(
      credit[0, 0], values[0, 1] - values[0, 0], atol=1e-6
    )

  def test_the_official_last_token_has_none(self):
    knobs = {"exclude_self": True}
    ours = np.asarray(_credit(_hidden(), _masks(), **knobs))
    theirs = np.asarray(_credit(_hidden(), _masks(), last=False, **knobs))
    last = np.arange(T)[None] == np.array(COUNTS)[:, None] - 1
    np.testing.assert_array_equal(theirs, np.where(last, 0.0, ours))
    self.assertNotEqual(ours[0, -1], 0)

  def test_short_completions_have_grpos_credit(self):
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(mask=rollout.mask.at[:, 1].set(True))
    method = methods.Hista().build()
    found = method.measure(rollouts.make_scores(rollout), rollout)
    rollout = rollout.replace(extras=found)
    plain = methods.Grpo().build().advantage(rollout)
    np.testing.assert_allclose(
      method.advantage(rollout), base.per_token(plain, rollout.mask), rtol=1e-5
    )
    self.assertEqual(method.selection(rollout, None).extras, {})

  @parameterized.parameters(0.9, -3.3, 1000.7)
  def test_equal_rewards_and_groups_of_one_have_none(self, reward):
    credit = _credit(_hidden(), _masks(), jnp.full(G, reward))
    np.testing.assert_array_equal(credit, 0.0)
    masks = _masks()
    prompt, own = state_values.lengths(*masks)
    nodes = state_values.state_nodes(prompt, own, min_interval=2, length=T)
    x = state_values.smoothed_states(*_hidden(), *masks)
    values = state_values.state_values(x, nodes, REWARDS, group_size=1)
    alone = state_values.segment_advantages(values, nodes, prompt, masks[1])
    np.testing.assert_array_equal(alone, 0.0)

  @parameterized.parameters(
    ({"alpha": 1.0}, r"alpha must be in \[0, 1\), got 1.0"),
    ({"mean_window": 0}, "mean_window must be at least 1, got 0"),
    ({"min_interval": 0}, "min_interval must be at least 1, got 0"),
    ({"min_k": 70}, "1 <= min_k <= max_k, got 70 and 66"),
    ({"min_d": 0.0}, "min_d must be positive and finite, got 0.0"),
    ({"lam": 1.1}, r"lam must be in \[0, 1\], got 1.1"),
    ({"scale": "batch"}, "scale must be group or none, got 'batch'"),
  )
  def test_what_cannot_be_is_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      methods.Hista(**knobs).build()
