"""Anchored weight decay: exact shrinking, fixed points, as an optimizer."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.optimizers import anchored

each_norm = parameterized.parameters(*anchored.NORMS)


def _params(number=0):
  key = jax.random.fold_in(jax.random.key(3), number)
  one, two = jax.random.split(key)
  return {
    "w": jax.random.normal(one, (5, 3)),
    "layers": {"b": 1e-3 * jax.random.normal(two, (7,))},
  }


def _moved(start, size=1e-2):
  return jax.tree.map(lambda x, y: x + size * y, start, _params(1))


class PulledTest(chex.TestCase):
  def test_l2_shrinks_the_drift_by_the_factor(self):
    start = _params()
    params = _moved(start)
    before = anchored.drift_norm(params, start)
    after = anchored.drift_norm(
      anchored.pulled(params, start, 0.25, norm="l2"), start
    )
    np.testing.assert_allclose(after, 0.75 * before, rtol=1e-5)

  def test_l1_sets_small_drifts_to_exactly_zero_and_shrinks_the_rest(self):
    start = _params()
    params = _moved(start)
    amount = 5e-3
    new = anchored.pulled(params, start, amount, norm="l1")

    def check(was, now, origin):
      drift = np.float64(was) - origin
      small = np.abs(drift) < amount * (1 - 1e-4)
      assert small.any()
      np.testing.assert_array_equal(now[small], origin[small])
      left = np.sign(drift) * np.maximum(np.abs(drift) - amount, 0)
      np.testing.assert_allclose(now - np.float64(origin), left, atol=3e-7)

      return small.all()

    every = jax.tree.map(check, params, new, start)
    self.assertFalse(all(jax.tree.leaves(every)))

  def test_the_subgradient_overshoots_where_the_proximal_step_stops(self):
    start = {"w": jnp.zeros(3)}
    params = {"w": jnp.array([0.5, 0.1, -0.1])}
    step = anchored.pulled(params, start, 0.2, norm="l1_sign")["w"]
    np.testing.assert_allclose(step, [0.3, -0.1, 0.1], atol=1e-7)
    step = anchored.pulled(params, start, 0.2, norm="l1")["w"]
    np.testing.assert_allclose(step, [0.3, 0.0, 0.0], atol=1e-7)

  @each_norm
  def test_the_start_is_a_fixed_point(self, norm):
    start = _params()
    for amount in (0.0, 1e-3, 0.9):
      new = anchored.pulled(start, start, amount, norm=norm)
      chex.assert_trees_all_equal(new, start)

  @each_norm
  def test_no_decay_leaves_every_bit(self, norm):
    start = _params()
    params = _moved(start)
    new = anchored.pulled(params, start, 0.0, norm=norm)
    chex.assert_trees_all_equal(new, params)

  @each_norm
  def test_drift_never_grows_by_a_proximal_or_l2_step(self, norm):
    start = _params()
    params = _moved(start)
    new = anchored.pulled(params, start, 0.5, norm=norm)
    smaller = anchored.drift_norm(new, start) < anchored.drift_norm(
      params, start
    )
    self.assertEqual(bool(smaller), norm != "l1_sign")

  @each_norm
  def test_dtypes_stay_and_sums_are_in_float32(self, norm):
    start = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
    params = _moved(start, 0.1)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    new = anchored.pulled(low, start, 0.05, norm=norm)
    wanted = anchored.pulled(exact, start, 0.05, norm=norm)
    chex.assert_trees_all_equal(
      new, jax.tree.map(lambda x: x.astype(jnp.bfloat16), wanted)
    )


def _chain(**knobs):
  rate = optax.linear_schedule(0.1, 0.0, 10)
  decay = anchored.anchored_weight_decay(rate, 2.0, **knobs)
  return optax.chain(optax.sgd(rate), decay)


def _run(chain, start, steps, gradient):
  params, state = start, chain.init(start)
  for step in range(steps):
    changes, state = chain.update(gradient(step), state, params)
    params = optax.apply_updates(params, changes)
  return params, state


class TransformationTest(chex.TestCase):
  @each_norm
  def test_it_is_the_decay_after_the_update_at_the_current_rate(self, norm):
    start = _params()
    params, _ = _run(_chain(norm=norm), start, 4, _params)
    wanted = start
    for step in range(4):
      rate = 0.1 * (1 - step / 10)
      wanted = jax.tree.map(
        lambda x, g, rate=rate: x - rate * g, wanted, _params(step)
      )
      wanted = anchored.pulled(wanted, start, rate * 2.0, norm=norm)
    chex.assert_trees_all_close(params, wanted, atol=1e-6)

  def test_strength_zero_leaves_the_updates_as_they_are(self):
    start, rate = _params(), optax.constant_schedule(0.1)
    none = anchored.anchored_weight_decay(rate, 0.0, norm="l2")
    with_it, _ = _run(optax.chain(optax.sgd(rate), none), start, 3, _params)
    without, _ = _run(optax.sgd(rate), start, 3, _params)
    chex.assert_trees_all_equal(with_it, without)

  @each_norm
  def test_without_gradients_nothing_moves_from_the_start(self, norm):
    start = _params()
    zeros = lambda step: jax.tree.map(jnp.zeros_like, start)
    params, _ = _run(_chain(norm=norm), start, 3, zeros)
    chex.assert_trees_all_equal(params, start)

  def test_a_small_drift_is_gone_to_the_last_bit_after_two_steps(self):
    start = _params()
    chain = optax.chain(
      optax.sgd(1.0), anchored.anchored_weight_decay(1.0, 0.5, norm="l1")
    )
    kick = lambda step: jax.tree.map(
      lambda x: 1e-2 * x * (step == 0), _params(5)
    )
    params, _ = _run(chain, start, 2, kick)
    chex.assert_trees_all_equal(params, start)

  def test_the_start_is_a_copy_in_the_dtype_that_was_asked_for(self):
    start = _params()
    state = anchored.anchored_weight_decay(0.1, 1.0).init(start)
    chex.assert_trees_all_equal(state.start, start)
    one, two = jax.tree.leaves(start)[0], jax.tree.leaves(state.start)[0]
    self.assertNotEqual(
      one.unsafe_buffer_pointer(), two.unsafe_buffer_pointer()
    )
    low = anchored.anchored_weight_decay(0.1, 1.0, dtype="bfloat16").init(start)
    chex.assert_trees_all_equal(
      low.start, jax.tree.map(lambda x: x.astype(jnp.bfloat16), start)
    )

  def test_jit_changes_nothing(self):
    start, chain = _params(), _chain(norm="l1")
    state = chain.init(start)
    args = _params(2), state, _moved(start)
    chex.assert_trees_all_close(
      jax.jit(chain.update)(*args)[0], chain.update(*args)[0], atol=1e-7
    )

  @parameterized.parameters(
    ({"strength": -1.0}, "strength must be 0 or more"),
    ({"strength": float("nan")}, "strength must be 0 or more"),
    ({"strength": 1.0, "norm": "l3"}, "norm must be one of l1, l2, l1_sign"),
    ({"strength": 10.0, "norm": "l2"}, r"below 1, got 0.1 \* 10"),
  )
  def test_what_cannot_be_is_refused_in_one_line(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      anchored.anchored_weight_decay(0.1, **knobs)
    with self.assertRaisesRegex(ValueError, "norm must be one of"):
      anchored.pulled(_params(), _params(), 0.1, norm="max")


class DriftTest(chex.TestCase):
  def test_random_steps_drift_as_a_walk_and_saturate_with_the_decay(self):
    """E d^2 = T s^2 D without; s^2 D / (1 - (1 - a)^2) in the limit of l2."""
    size, steps, scale, amount = 4000, 200, 1e-2, 0.05
    keys = jax.random.split(jax.random.key(0), steps)

    def walk(amount):
      def step(params, key):
        params = params + scale * jax.random.normal(key, (size,))
        return anchored.pulled(params, jnp.zeros(size), amount, norm="l2"), None

      return jax.lax.scan(step, jnp.zeros(size), keys)[0]

    free, held = (float((walk(a) ** 2).sum()) for a in (0.0, amount))
    np.testing.assert_allclose(free, steps * scale**2 * size, rtol=0.05)
    kept = (1 - amount) ** 2
    limit = scale**2 * size * kept / (1 - kept)
    np.testing.assert_allclose(held, limit, rtol=0.05)
