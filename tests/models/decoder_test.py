"""The decoders as functions: same result by every way, one scan, no leaks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import api, cache, families, linear

_LLAMA = dataclasses.replace(families.TINY, vocab_size=48, width=32, depth=3)
_GEMMA = dataclasses.replace(
  _LLAMA,
  activation="gelu_tanh",
  attention_softcap=20.0,
  final_softcap=10.0,
  query_scale=0.2,
  window=4,
  layer_windows=(True, False, True),
)
CONFIGS = {
  "llama": _LLAMA,
  "untied": dataclasses.replace(_LLAMA, tied=False),
  "mistral": dataclasses.replace(
    _LLAMA, family="mistral", window=3, layer_windows=(True,) * 3
  ),
  "qwen2": dataclasses.replace(_LLAMA, family="qwen2", qkv_bias=True),
  "qwen3": dataclasses.replace(
    _LLAMA,
    family="qwen3",
    qk_norm=True,
    rope_scaling=api.RopeScaling(kind="yarn", factor=4.0, original_positions=8),
  ),
  "gemma2": dataclasses.replace(_GEMMA, family="gemma2"),
  "gemma3": dataclasses.replace(
    _GEMMA, family="gemma3", qk_norm=True, rope_theta_local=100.0
  ),
}
_MASK = jnp.arange(9)[None] >= jnp.array([0, 2, 7])[:, None]
_TOKENS = jax.random.randint(jax.random.key(1), (3, 9), 0, 48)


def random_params(model):
  """Every leaf at random, norms and biases too."""
  rng = np.random.default_rng(0)

  def leaf(path, x):
    std = x.shape[-2] ** -0.5 if x.ndim == 3 else 0.1
    one = path[-1].key.endswith("norm") and "gemma" not in model.config.family
    return jnp.asarray(one + std * rng.normal(size=x.shape), jnp.float32)

  abstract = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(leaf, abstract)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens=_TOKENS, mask=_MASK):
  rows = cache.Causal(mask)
  return model.apply(params, tokens, rows.positions(), rows)[0]


def _square(model, params):
  hidden = forward(model, params)
  kept = jnp.where(_MASK[..., None], hidden.astype(jnp.float32), 0.0)
  return (kept * jnp.cos(jnp.arange(32.0))[None, None]).sum()


@pytest.mark.parametrize("name", CONFIGS)
def test_tree_has_the_agreed_names_and_shapes(name):
  config = CONFIGS[name]
  model = families.build(config)
  assert isinstance(model, api.LanguageModel)
  params = jax.eval_shape(model.init, jax.random.key(0))
  q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
  depth, width, inner = config.depth, config.width, config.mlp_width
  attention = {"q": (width, q), "k": (width, kv), "v": (width, kv)}
  attention["o"] = (q, width)
  if config.qkv_bias:
    attention |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
  if config.qk_norm:
    attention |= dict.fromkeys(("q_norm", "k_norm"), (config.head_dim,))
  block = {
    "attention_norm": (width,),
    "mlp_norm": (width,),
    "attention": attention,
    "mlp": {
      "gate": (width, inner),
      "up": (width, inner),
      "down": (inner, width),
    },
  }
  if config.family.startswith("gemma"):
    block |= {"attention_post_norm": (width,), "mlp_post_norm": (width,)}
  shape = (config.vocab_size, width)
  expected = {"embed": shape, "final_norm": (width,)}
  expected["layers"] = jax.tree.map(
    lambda s: (depth, *s), block, is_leaf=lambda s: isinstance(s, tuple)
  )
  if not config.tied:
    expected["head"] = shape
  assert jax.tree.map(lambda x: x.shape, params) == expected
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ("untied", "gemma2"))
def test_fresh_parameters_are_sane(name):
  model = families.build(CONFIGS[name])
  params = model.init(jax.random.key(0))
  again = model.init(jax.random.key(1))
  config, block = model.config, params["layers"]
  assert model.head(params) is params["embed" if config.tied else "head"]
  norm = 0.0 if name == "gemma2" else 1.0
  assert (block["mlp_norm"] == norm).all() and (
    params["final_norm"] == norm
  ).all()
  kernels = jax.tree.leaves((block["attention"], block["mlp"]))
  for kernel in kernels:
    assert abs(kernel.std() * kernel.shape[1] ** 0.5 - 1) < 0.1
    assert not np.array_equal(kernel[0], kernel[1])
  assert not np.array_equal(params["embed"], again["embed"])


@pytest.mark.parametrize("name", ("llama", "qwen3", "mistral", "gemma3"))
def test_prefill_and_decode_equal_the_whole_row(name):
  model = families.build(CONFIGS[name])
  params = random_params(model)
  group, length, prompts = 2, 5, 9
  own = jax.random.randint(jax.random.key(3), (6, length), 0, 48)
  whole = jnp.concatenate([jnp.repeat(_TOKENS, group, axis=0), own], axis=1)
  mask = jnp.repeat(_MASK, group, axis=0)
  mask = jnp.concatenate([mask, jnp.ones_like(own, bool)], axis=1)
  expected = forward(model, params, whole, mask)

  rows = cache.Causal(_MASK, keep=True)
  apply = jax.jit(model.apply)
  first, rows = apply(params, _TOKENS, rows.positions(), rows)
  np.testing.assert_allclose(
    jnp.repeat(first[:, -1], group, axis=0), expected[:, prompts - 1], atol=1e-5
  )
  past = cache.decode_after(rows, group_size=group, length=length)
  for i in range(length):
    fed = own[:, i : i + 1]
    hidden, past = apply(params, fed, past.positions(), past)
    np.testing.assert_allclose(
      hidden[:, 0], expected[:, prompts + i], atol=1e-5
    )


@pytest.mark.parametrize("name", ("qwen2", "gemma2"))
def test_packed_groups_equal_the_whole_rows(name):
  model = families.build(CONFIGS[name])
  params = random_params(model)
  own = jax.random.randint(jax.random.key(3), (6, 5), 0, 48)
  whole = jnp.concatenate([jnp.repeat(_TOKENS, 2, axis=0), own], axis=1)
  mask = jnp.repeat(_MASK, 2, axis=0)
  mask = jnp.concatenate([mask, jnp.ones_like(own, bool)], axis=1)
  expected = forward(model, params, whole, mask)[:, 9:]
  packed = cache.Grouped(_MASK, group_size=2, length=5)
  tokens = jnp.concatenate([_TOKENS, own.reshape(3, 10)], axis=1)
  apply = jax.jit(model.apply)
  hidden, _ = apply(params, tokens, packed.positions(), packed)
  got = hidden[:, 9:].reshape(6, 5, -1)
  np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("name", ("llama", "gemma3"))
def test_padding_is_not_noticed(name):
  model = families.build(CONFIGS[name])
  params = random_params(model)
  other = jnp.where(_MASK, _TOKENS, jnp.array([[-7], [0], [10**9]]))
  one, two = forward(model, params), forward(model, params, other)
  np.testing.assert_array_equal(one[_MASK], two[_MASK])
  assert np.isfinite(two).all()
  short = forward(model, params, _TOKENS[2:, 7:], _MASK[2:, 7:])
  np.testing.assert_allclose(short, one[2:, 7:], atol=1e-5)


@pytest.mark.parametrize("name", ("mistral", "gemma2"))
def test_window_limits_what_is_seen(name):
  config = dataclasses.replace(
    CONFIGS[name], layer_windows=(True,) * 3, window=2
  )
  mask = jnp.ones((1, 9), bool)
  changed = _TOKENS.at[0, 0].add(1)

  def last(config):
    model = families.build(config)
    params = random_params(model)
    hidden = [forward(model, params, t[:1], mask) for t in (_TOKENS, changed)]
    return np.abs(hidden[0] - hidden[1]).max(axis=(0, 2))

  reach = last(config)  # three layers, each one token back
  assert (reach[:4] > 1e-4).all() and (reach[4:] == 0).all()
  wide = dataclasses.replace(config, layer_windows=(True, False, True))
  assert (last(wide) > 1e-6).all()


def test_remat_policies_give_equal_gradients():
  gradients, held = {}, {}
  for remat in ("none", "dots", "full"):
    model = families.build(CONFIGS["gemma3"], remat=remat)
    params = random_params(model)
    gradients[remat] = jax.jit(jax.grad(functools.partial(_square, model)))(
      params
    )
    pullback = jax.eval_shape(
      lambda p, m=model: jax.vjp(functools.partial(_square, m), p)[1], params
    )
    held[remat] = sum(x.size for x in jax.tree.leaves(pullback))
  for leaf in jax.tree.leaves(gradients["none"]):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
  for remat in ("dots", "full"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4),
      gradients["none"],
      gradients[remat],
    )
  assert held["full"] < held["dots"] < held["none"]


def test_program_does_not_grow_with_depth():
  def lines(depth):
    config = dataclasses.replace(
      CONFIGS["gemma3"], depth=depth, layer_windows=(True, False) * (depth // 2)
    )
    model = families.build(config, remat="full")
    params = jax.eval_shape(model.init, jax.random.key(0))
    grad = jax.jit(jax.grad(lambda p: _square(model, p)))
    return len(grad.lower(params).as_text().splitlines())

  assert lines(2) == lines(12)


@pytest.mark.parametrize("name", ("qwen2", "gemma3"))
def test_bfloat16_is_near_float32_and_frozen_is_the_same(name):
  exact = families.build(CONFIGS[name])
  params = random_params(exact)
  model = families.build(CONFIGS[name], dtype=jnp.bfloat16)
  hidden = forward(model, params)
  assert hidden.dtype == jnp.bfloat16
  hidden = hidden.astype(jnp.float32)
  error = np.abs(hidden - forward(exact, params))[_MASK]
  assert error.max() < 0.3 and error.mean() < 0.03
  frozen = linear.freeze(params, jnp.bfloat16)
  same = forward(model, frozen).astype(jnp.float32)
  np.testing.assert_allclose(same[_MASK], hidden[_MASK], atol=0.05)
  gradient = jax.eval_shape(jax.grad(functools.partial(_square, model)), params)
  assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_rows_over_two_devices_equal_one():
  model = families.build(CONFIGS["gemma3"])
  params = random_params(model)
  tokens = jnp.concatenate([_TOKENS, _TOKENS[:1]])
  mask = jnp.concatenate([_MASK, _MASK[:1]])
  expected = forward(model, params, tokens, mask)
  mesh = jax.make_mesh(
    (2,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:2],
  )
  cut = jax.NamedSharding(mesh, jax.P("data"))
  tokens, mask = jax.device_put((tokens, mask), cut)
  whole = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
  got = forward(model, whole, tokens, mask)
  np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"family": "mamba"}, "family must be one of llama, .*, got 'mamba'"),
    ({"activation": "relu"}, "activation must be one of silu"),
    ({"kv_heads": 3}, "kv_heads must divide heads, got 3 and 4"),
    ({"head_dim": 15}, "head_dim must be even"),
    ({"depth": 0}, "depth must be at least 1, got 0"),
    ({"layer_windows": (True,)}, "depth = 3 entries, got 1"),
    ({"layer_windows": (True,) * 3}, "window must be at least 1"),
    (
      {"rope_scaling": api.RopeScaling(kind="dynamic", factor=2.0)},
      "rope_scaling.kind must be one of linear",
    ),
  ],
)
def test_wrong_shapes_are_one_line(change, message):
  with pytest.raises(ValueError, match=message) as caught:
    families.build(dataclasses.replace(_LLAMA, **change))
  assert "\n" not in str(caught.value)


def test_unknown_remat_is_one_line():
  with pytest.raises(ValueError, match="remat must be one of none, dots, full"):
    families.build(_LLAMA, remat="some")
