from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.training import experiment, optimizer


def _rates(steps, at, **fields):
  config = experiment.Optimizer(learning_rate=0.4, **fields)
  schedule = optimizer.make_schedule(config, steps=steps)
  return [float(schedule(step)) for step in at]


class ScheduleTest(chex.TestCase):
  def test_constant_stays_at_the_peak(self):
    np.testing.assert_allclose(_rates(10, (0, 5, 9)), [0.4, 0.4, 0.4])

  def test_linear_falls_to_zero_after_the_last_step(self):
    rates = _rates(10, (0, 5, 9, 10), schedule="linear")
    np.testing.assert_allclose(rates, [0.4, 0.2, 0.04, 0.0], atol=1e-7)

  def test_cosine_is_half_in_the_middle(self):
    rates = _rates(10, (0, 5, 10), schedule="cosine")
    np.testing.assert_allclose(rates, [0.4, 0.2, 0.0], atol=1e-7)

  @parameterized.parameters("constant", "linear", "cosine")
  def test_warm_up_rises_from_zero_to_the_peak(self, schedule):
    rates = _rates(10, range(5), schedule=schedule, warmup_steps=4)
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4], atol=1e-7)

  @parameterized.parameters("linear", "cosine")
  def test_the_decay_uses_the_steps_after_warm_up(self, schedule):
    rates = _rates(12, (8, 12), schedule=schedule, warmup_steps=4)
    np.testing.assert_allclose(rates, [0.2, 0.0], atol=1e-7)

  @parameterized.parameters(-1, 10, 11)
  def test_warm_up_outside_the_run_is_refused(self, warmup):
    with self.assertRaisesRegex(ValueError, r"steps = 10\), got"):
      _rates(10, (0,), warmup_steps=warmup)


class OptimizerTest(chex.TestCase):
  def _moment(self, grads, **fields):
    """The first moment after one update, divided by 1 - b1."""
    config = experiment.Optimizer(learning_rate=0.1, b1=0.5, **fields)
    chain = optimizer.make_optimizer(config, steps=3)
    params = jax.tree.map(jnp.ones_like, grads)
    _, state = chain.update(grads, chain.init(params), params)
    moment = optax.tree.get(state, "mu")
    return jax.tree.map(lambda x: 2 * x, moment)

  def test_gradients_are_clipped_by_their_global_norm(self):
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    chex.assert_trees_all_close(
      self._moment(grads, max_grad_norm=1.0),
      {"a": jnp.array([0.6, 0.0]), "b": jnp.array([0.8])},
      atol=1e-6,
    )

  @parameterized.parameters(0.0, 5.5)
  def test_a_norm_of_zero_or_above_theirs_does_not_clip(self, limit):
    grads = {"a": jnp.array([3.0, 4.0])}
    chex.assert_trees_all_close(
      self._moment(grads, max_grad_norm=limit), grads, atol=1e-6
    )

  def test_weight_decay_is_decoupled_and_scaled_by_the_rate(self):
    config = experiment.Optimizer(learning_rate=0.1, weight_decay=0.5)
    chain = optimizer.make_optimizer(config, steps=3)
    params = {"a": jnp.array([2.0])}
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes, _ = chain.update(zeros, chain.init(params), params)
    chex.assert_trees_all_close(changes, {"a": jnp.array([-0.1])}, atol=1e-6)


class AnchorTest(chex.TestCase):
  def _moves(self, **fields):
    config = experiment.Optimizer(learning_rate=0.1, **fields)
    chain = optimizer.make_optimizer(config, steps=3)
    start = {"a": jnp.array([2.0, -1.0])}
    now = {"a": jnp.array([3.0, -1.001])}
    zeros = jax.tree.map(jnp.zeros_like, now)
    return chain.update(zeros, chain.init(start), now)[0]["a"]

  def test_it_pulls_to_the_start_at_the_learning_rate(self):
    np.testing.assert_allclose(
      self._moves(anchor=5.0, anchor_norm="l2"), [-0.5, 0.0005], atol=1e-6
    )
    np.testing.assert_allclose(
      self._moves(anchor=1.0), [-0.1, 0.001], atol=1e-6
    )

  def test_none_keeps_no_copy_of_the_parameters(self):
    params = {"a": jnp.ones(2)}
    config = experiment.Optimizer()
    chain = optimizer.make_optimizer(config, steps=3)
    self.assertIsNone(optax.tree.get(chain.init(params), "start"))

  def test_a_copy_in_bfloat16_is_half_as_large(self):
    config = experiment.Optimizer(anchor=1.0, anchor_dtype="bfloat16")
    chain = optimizer.make_optimizer(config, steps=3)
    state = chain.init({"a": jnp.ones(2)})
    self.assertEqual(optax.tree.get(state, "start")["a"].dtype, jnp.bfloat16)
