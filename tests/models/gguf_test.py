"""GGUF files: every type, every architecture, and files that are wrong."""

import dataclasses

import gguf as gguf_package
import jax
import numpy as np
import pytest

from jaxrl_llm.models import api
from jaxrl_llm.models.weights import gguf, gguf_config

Type = gguf_package.GGMLQuantizationType
_LLAMA = api.ModelConfig(
  family="llama",
  vocab_size=96,
  width=64,
  depth=2,
  heads=4,
  kv_heads=2,
  head_dim=16,
  mlp_width=96,
)
_GEMMA = dataclasses.replace(
  _LLAMA,
  activation="gelu_tanh",
  tied=True,
  window=8,
  norm_eps=1e-6,
  head_dim=32,
)
CONFIGS = {
  "llama": _LLAMA,
  "qwen2": dataclasses.replace(
    _LLAMA, family="qwen2", qkv_bias=True, tied=True
  ),
  "qwen3": dataclasses.replace(
    _LLAMA, family="qwen3", qk_norm=True, head_dim=32
  ),
  "gemma2": dataclasses.replace(
    _GEMMA,
    family="gemma2",
    layer_windows=(True, False),
    attention_softcap=50.0,
    final_softcap=30.0,
  ),
  "gemma3": dataclasses.replace(
    _GEMMA,
    family="gemma3",
    layer_windows=(True, True),
    qk_norm=True,
    rope_theta=1e6,
    rope_theta_local=10_000.0,
  ),
}


def write(path, config, *, kind=Type.F32, tensors=None, metadata=None):
  """Writes a model of random weights; returns them as the file has them.

  `tensors` {name: (raw, type)} stand in place of, or besides, random ones.
  """
  tensors = tensors or {}
  rng = np.random.default_rng(0)
  writer = gguf_package.GGUFWriter(str(path), config.family)
  writer.add_context_length(config.max_positions)
  writer.add_embedding_length(config.width)
  writer.add_block_count(config.depth)
  writer.add_feed_forward_length(config.mlp_width)
  writer.add_head_count(config.heads)
  writer.add_head_count_kv(config.kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  writer.add_rope_freq_base(config.rope_theta)
  if config.window:
    writer.add_sliding_window(config.window)
  for key, value in (metadata or {}).items():
    add = writer.add_string if isinstance(value, str) else writer.add_float32
    add(key, value)
  stored = {}
  for name, shape in gguf.expected_shapes(config).items():
    if name in tensors:
      continue
    values = rng.normal(size=shape).astype(np.float32)
    chosen = kind if len(shape) == 2 else Type.F32
    stored[name] = gguf_package.quants.quantize(values, chosen)
    writer.add_tensor(name, stored[name], raw_dtype=chosen)
    stored[name] = gguf_package.quants.dequantize(stored[name], chosen)
  for name, (values, chosen) in tensors.items():
    writer.add_tensor(name, values, raw_dtype=chosen)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return stored


def _permute(rows, heads):
  """What convert_hf_to_gguf.py does to q and k of llama, copied from it."""
  return (
    rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    .swapaxes(1, 2)
    .reshape(rows.shape)
  )


@pytest.mark.parametrize("family", CONFIGS)
def test_config_comes_back_from_metadata(tmp_path, family):
  write(tmp_path / "m.gguf", CONFIGS[family])
  assert gguf.File(tmp_path / "m.gguf").config == CONFIGS[family]


@pytest.mark.parametrize("family", CONFIGS)
def test_every_tensor_lands_in_the_tree(tmp_path, family):
  config = CONFIGS[family]
  stored = write(tmp_path / "m.gguf", config)
  _, params = gguf.load(tmp_path / "m.gguf")
  np.testing.assert_array_equal(params["embed"], stored["token_embd.weight"])
  assert ("head" in params) == (not config.tied)
  one = np.float32(1) if family.startswith("gemma") else np.float32(0)
  np.testing.assert_array_equal(
    params["final_norm"], stored["output_norm.weight"] - one
  )
  seen = 2 if config.tied else 3
  for path, name in gguf.NAMES.items():
    if not path.startswith("layers/") or name.format(0) not in stored:
      continue
    leaf = params["layers"]
    for part in path.split("/")[1:]:
      leaf = leaf[part]
    for layer in range(config.depth):
      ours, theirs = np.asarray(leaf[layer]), stored[name.format(layer)]
      if family == "llama" and path[-2:] in ("/q", "/k"):
        heads = config.heads if path[-1] == "q" else config.kv_heads
        ours = _permute(ours.T, heads).T
      if name.endswith("norm.weight"):
        theirs = theirs - one
      np.testing.assert_array_equal(ours, theirs.T)
      seen += 1
  assert seen == len(stored)


@pytest.mark.parametrize("axis", (1, 2))
def test_shards_are_the_parts_of_the_whole(tmp_path, axis):
  write(tmp_path / "m.gguf", _LLAMA, kind=Type.Q8_0)
  _, whole = gguf.load(tmp_path / "m.gguf")
  mesh = jax.make_mesh((4,), ("x",))

  def place(leaf):
    names = [None] * leaf.ndim
    names[min(axis, leaf.ndim - 1)] = "x"
    spec = jax.sharding.PartitionSpec(*names)
    return jax.sharding.NamedSharding(mesh, spec)

  wanted = jax.tree.map(place, whole)
  _, parts = gguf.load(tmp_path / "m.gguf", sharding=wanted)
  assert jax.tree.map(lambda leaf: leaf.sharding, parts) == wanted
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.parametrize("name", "F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1".split())
def test_quantised_types_are_read(tmp_path, name):
  stored = write(tmp_path / "m.gguf", _LLAMA, kind=Type[name])
  _, params = gguf.load(tmp_path / "m.gguf")
  np.testing.assert_array_equal(params["embed"], stored["token_embd.weight"])
  down = np.asarray(params["layers"]["mlp"]["down"][1])
  np.testing.assert_array_equal(down, stored["blk.1.ffn_down.weight"].T)
  exact = np.random.default_rng(0).normal(size=(96, 64))
  bits = {"F16": 10, "BF16": 7, "Q8_0": 6}.get(name, 2)
  first = next(iter(gguf.expected_shapes(_LLAMA)))
  assert first == "token_embd.weight"
  assert np.abs(params["embed"] - exact).max() < 4.0 * 2.0**-bits


def _q4_k(block):
  """256 values of one Q4_K block, by ggml-quants.c, one at a time."""
  d, dmin = (float(x) for x in block[:4].view(np.float16))
  scales, quants = block[4:16].astype(int), block[16:].astype(int)
  out = []
  for sub in range(8):
    if sub < 4:
      scale, low = scales[sub] & 63, scales[sub + 4] & 63
    else:
      scale = (scales[sub + 4] & 15) | ((scales[sub - 4] >> 6) << 4)
      low = (scales[sub + 4] >> 4) | ((scales[sub] >> 6) << 4)
    for i in range(32):
      byte = quants[sub // 2 * 32 + i]
      q = byte >> 4 if sub % 2 else byte & 15
      out.append(d * scale * q - dmin * low)
  return np.array(out)


def _q6_k(block):
  """256 values of one Q6_K block, by ggml-quants.c, one at a time."""
  low, high = block[:128].astype(int), block[128:192].astype(int)
  scales = block[192:208].view(np.int8)
  d = float(block[208:].view(np.float16)[0])
  out = np.zeros(256)
  for half in range(2):
    for i in range(32):
      top = high[32 * half + i]
      first, second = low[64 * half + i], low[64 * half + 32 + i]
      for quarter, nibble in enumerate(
        (first & 15, second & 15, first >> 4, second >> 4)
      ):
        place = 128 * half + 32 * quarter + i
        q = (nibble | ((top >> (2 * quarter)) & 3) << 4) - 32
        out[place] = d * int(scales[place // 16]) * q
  return out


@pytest.mark.parametrize(
  "name, size, halves, oracle",
  [("Q4_K", 144, (0, 2), _q4_k), ("Q6_K", 210, (208,), _q6_k)],
)
def test_k_quants_agree_with_their_block_layout(
  tmp_path, name, size, halves, oracle
):
  config = dataclasses.replace(_LLAMA, width=256, tied=True)
  rng = np.random.default_rng(1)
  blocks = rng.integers(0, 256, (config.vocab_size, size), dtype=np.uint8)
  for at in halves:  # a finite float16 in place of random bits
    scale = rng.normal(size=(len(blocks), 1)).astype(np.float16)
    blocks[:, at : at + 2] = scale.view(np.uint8)
  path = tmp_path / "m.gguf"
  write(path, config, tensors={"token_embd.weight": (blocks, Type[name])})
  _, params = gguf.load(path)
  expected = np.stack([oracle(block) for block in blocks])
  np.testing.assert_allclose(params["embed"], expected, rtol=1e-5, atol=1e-5)


def test_half_split_undoes_the_permutation_of_the_converter():
  rows = np.arange(3 * 8)
  there = _permute(rows, 3)
  np.testing.assert_array_equal(there[gguf.half_split_rows(3, 8)], rows)


@pytest.mark.parametrize("factor", (8.0, 32.0))
def test_llama3_scaling_is_found_from_its_factors(tmp_path, factor):
  scaling = api.RopeScaling(kind="llama3", factor=factor)
  config = dataclasses.replace(_LLAMA, head_dim=64, rope_theta=500_000.0)
  factors = gguf_config.llama3_factors(scaling, 500_000.0, 64)
  assert factors[0] == 1.0 and factors[-1] == factor
  values = factors.astype(np.float32)
  write(
    tmp_path / "m.gguf",
    config,
    tensors={"rope_freqs.weight": (values, Type.F32)},
  )
  assert gguf.File(tmp_path / "m.gguf").config.rope_scaling == scaling


def test_yarn_scaling_is_read(tmp_path):
  metadata = {
    "qwen3.rope.scaling.type": "yarn",
    "qwen3.rope.scaling.factor": 4.0,
    "qwen3.rope.scaling.original_context_length": 2048.0,
  }
  write(tmp_path / "m.gguf", CONFIGS["qwen3"], metadata=metadata)
  scaling = gguf.File(tmp_path / "m.gguf").config.rope_scaling
  assert scaling == api.RopeScaling(
    kind="yarn", factor=4.0, original_positions=2048
  )


def test_unsupported_type_names_tensor_and_type(tmp_path):
  blocks = np.zeros((96, 84), np.uint8)
  config = dataclasses.replace(_LLAMA, width=256)
  tensors = {"token_embd.weight": (blocks, Type.Q2_K)}
  write(tmp_path / "m.gguf", config, tensors=tensors)
  with pytest.raises(ValueError, match="token_embd.weight has the type Q2_K"):
    gguf.File(tmp_path / "m.gguf")


def test_unknown_architecture_is_refused(tmp_path):
  config = dataclasses.replace(_LLAMA, family="mamba")
  write(tmp_path / "m.gguf", config)
  with pytest.raises(ValueError, match="'mamba'; legal: llama, qwen2"):
    gguf.File(tmp_path / "m.gguf")


def test_surplus_tensor_is_refused(tmp_path):
  extra = {"blk.0.attn_q.bias": (np.zeros(64, np.float32), Type.F32)}
  write(tmp_path / "m.gguf", _LLAMA, tensors=extra)
  with pytest.raises(ValueError, match="attn_q.bias has no place"):
    gguf.File(tmp_path / "m.gguf")


@pytest.mark.parametrize("kept", (0, 3, 4, 30, 200, 700, 3000, -40))
def test_truncated_file_is_one_line(tmp_path, kept):
  path = tmp_path / "m.gguf"
  write(path, _LLAMA)
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(ValueError) as caught:
    gguf.load(path)
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_damaged_header_is_one_line(tmp_path):
  path = tmp_path / "m.gguf"
  write(path, _LLAMA)
  whole = path.read_bytes()
  rng, refused = np.random.default_rng(0), 0
  for _ in range(200):
    damaged = bytearray(whole)
    damaged[rng.integers(0, 2500)] = rng.integers(0, 256)
    path.write_bytes(damaged)
    try:
      gguf.File(path)
    except ValueError as error:
      refused += 1
      assert "\n" not in str(error) and len(str(error)) < 500
  assert refused > 50


def test_missing_file_is_one_line(tmp_path):
  with pytest.raises(FileNotFoundError, match="No GGUF file at"):
    gguf.File(tmp_path / "none.gguf")


def test_other_file_is_one_line(tmp_path):
  (tmp_path / "m.gguf").write_text("<html>not found</html>")
  with pytest.raises(ValueError, match="not start with the bytes GGUF"):
    gguf.File(tmp_path / "m.gguf")
