"""Adapters: equal to the base at first, exact gradients, one policy."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.models import cache, families, linear, lora

SCALE = 0.5
GEMMA = dataclasses.replace(
  families.TINY,
  family="gemma2",
  activation="gelu_tanh",
  attention_softcap=50.0,
  final_softcap=30.0,
)
QWEN = dataclasses.replace(
  families.TINY, family="qwen2", qkv_bias=True, tied=False
)


def _hidden(model, params):
  tokens = jnp.arange(12).reshape(2, 6)
  rows = cache.Causal(jnp.ones((2, 6), bool))
  return model.apply(params, tokens, rows.positions(), rows)[0]


def _start(config=families.TINY, targets=lora.TARGETS, **options):
  """Model, base, adapter that changes something."""
  model = families.build(config, **options)
  base = model.init(jax.random.key(0))
  adapter = lora.init(jax.random.key(1), base, rank=3, targets=targets)
  noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape)
  return model, base, jax.tree.map(noise, adapter)


class LoraTest(chex.TestCase):
  @parameterized.parameters("float32", "bfloat16")
  def test_a_new_adapter_changes_no_bit(self, dtype):
    model, base, _ = _start(dtype=dtype)
    fresh = lora.init(jax.random.key(1), base, rank=4)
    policy = lora.attach(base, fresh, scale=SCALE)
    run = jax.jit(lambda params: _hidden(model, params))
    chex.assert_trees_all_equal(run(policy), run(base))
    chex.assert_trees_all_equal(lora.merge(policy), base)

  @parameterized.named_parameters(
    ("llama", families.TINY), ("gemma", GEMMA), ("qwen", QWEN)
  )
  def test_it_computes_what_the_merged_weights_do(self, config):
    model, base, adapter = _start(config)
    policy = lora.attach(base, adapter, scale=SCALE)
    run = jax.jit(lambda params: _hidden(model, params))
    merged = run(lora.merge(policy))
    chex.assert_trees_all_close(run(policy), merged, atol=2e-5)
    self.assertGreater(float(jnp.abs(merged - run(base)).max()), 0.1)

  @parameterized.parameters("none", "full")
  def test_gradients_follow_from_that_of_the_merged_weight(self, remat):
    model, base, adapter = _start(remat=remat)

    def loss(params):
      return jnp.sin(_hidden(model, params)).sum()

    attached = lambda adapter: loss(lora.attach(base, adapter, scale=SCALE))
    merged = lora.merge(lora.attach(base, adapter, scale=SCALE))
    full = jax.jit(jax.grad(loss))(merged)["layers"]
    grads = jax.jit(jax.grad(attached))(adapter)["layers"]
    self.assertEqual(
      sorted(name for half in grads.values() for name in half),
      sorted(lora.TARGETS),
    )
    for half, block in grads.items():
      for name, got in block.items():
        a, b = (adapter["layers"][half][name][part] for part in "ab")
        dw = full[half][name]
        wanted = {
          "a": SCALE * jnp.einsum("lio,lro->lir", dw, b),
          "b": SCALE * jnp.einsum("lir,lio->lro", a, dw),
        }
        chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-4)

  def test_gradients_are_those_of_differences(self):
    model, base, adapter = _start()
    loss = jax.jit(
      lambda adapter: jnp.sin(
        _hidden(model, lora.attach(base, adapter, scale=SCALE))
      ).mean()
    )
    direction = jax.tree.map(
      lambda x: jax.random.normal(jax.random.key(3), x.shape), adapter
    )
    step = lambda h: jax.tree.map(lambda x, d: x + h * d, adapter, direction)
    numeric = (loss(step(1e-3)) - loss(step(-1e-3))) / 2e-3
    exact = sum(
      (g * d).sum()
      for g, d in zip(
        jax.tree.leaves(jax.grad(loss)(adapter)),
        jax.tree.leaves(direction),
        strict=True,
      )
    )
    np.testing.assert_allclose(numeric, exact, rtol=1e-2)

  def test_the_base_gets_no_gradient_and_no_product_for_one(self):
    w = linear.LowRank(
      jnp.ones((8, 4)), jnp.ones((8, 2)), jnp.ones((2, 4)), SCALE
    )
    x = jnp.ones((3, 8))
    loss = lambda w: linear.linear(x, w).sum()
    got = jax.grad(loss)(w)
    self.assertEqual(float(jnp.abs(got.w).max()), 0.0)
    self.assertGreater(float(jnp.abs(got.a).max()), 0.0)
    # [in, out] is the shape of no product in the program.
    self.assertNotIn(
      "f32[8,4] = dot_general", str(jax.make_jaxpr(jax.grad(loss))(w))
    )

  def test_frozen_for_sampling_it_says_the_same(self):
    model, base, adapter = _start(dtype="bfloat16")
    policy = lora.attach(base, adapter, scale=SCALE)
    frozen = linear.freeze(policy, jnp.bfloat16)
    self.assertEqual(frozen["layers"]["mlp"]["up"].a.dtype, jnp.uint16)
    run = jax.jit(lambda params: _hidden(model, params))
    chex.assert_trees_all_equal(run(frozen), run(policy))

  def test_merged_in_bfloat16_small_changes_would_be_lost(self):
    model, base, _ = _start(dtype="bfloat16")
    low = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    base = low(base)
    adapter = lora.init(jax.random.key(1), base, rank=4)
    adapter = jax.tree.map(lambda x: x + 1e-5, adapter)
    policy = lora.attach(base, adapter, scale=SCALE)
    merged = low(lora.merge(policy))["layers"]["mlp"]
    same = [merged[k] == base["layers"]["mlp"][k] for k in merged]
    self.assertGreater(float(jnp.mean(jnp.concatenate(same, None))), 0.99)
    run = jax.jit(lambda params: _hidden(model, params))
    self.assertGreater(float(jnp.abs(run(policy) - run(base)).max()), 0.0)

  def test_init_is_that_of_the_official_code(self):
    _, base, _ = _start()
    key = jax.random.key(5)
    adapter = lora.init(key, base, rank=6)["layers"]
    down = adapter["mlp"]["down"]
    chex.assert_shape(down["a"], (2, 128, 6))
    chex.assert_shape(down["b"], (2, 6, 64))
    bound = 128**-0.5
    self.assertLess(float(jnp.abs(down["a"]).max()), bound)
    np.testing.assert_allclose(down["a"].std(), bound / 3**0.5, rtol=0.05)
    self.assertFalse(down["b"].any())
    fewer = lora.init(key, base, rank=6, targets=("down",))
    chex.assert_trees_all_equal(fewer, {"layers": {"mlp": {"down": down}}})
    self.assertGreater(float(jnp.abs(down["a"][0] - down["a"][1]).max()), 0)
    gate, up = adapter["mlp"]["gate"], adapter["mlp"]["up"]
    self.assertGreater(float(jnp.abs(gate["a"] - up["a"]).max()), 0)

  def test_trained_is_the_inverse_of_attach(self):
    _, base, adapter = _start(targets=("q", "up"))
    policy = lora.attach(base, adapter, scale=SCALE)
    chex.assert_trees_all_equal(lora.trained(policy), adapter)
    self.assertIs(lora.trained(base), base)
    self.assertIs(policy["embed"], base["embed"])
    self.assertIs(
      policy["layers"]["attention"]["q"].w, base["layers"]["attention"]["q"]
    )

  def test_on_the_host_it_merges_on_the_host(self):
    _, base, adapter = _start()
    policy = jax.device_get(lora.attach(base, adapter, scale=SCALE))
    merged = lora.merge(policy)
    self.assertIsInstance(merged["layers"]["mlp"]["up"], np.ndarray)

  @parameterized.parameters(
    (0, ("q",), "rank must be at least 1, got 0"),
    (2, ("q", "embed"), "targets must name .* got 'embed'"),
    (2, (), "targets must name .* got 'none'"),
  )
  def test_what_cannot_be_is_refused(self, rank, targets, line):
    _, base, _ = _start()
    with self.assertRaisesRegex(ValueError, line):
      lora.init(jax.random.key(0), base, rank=rank, targets=targets)
