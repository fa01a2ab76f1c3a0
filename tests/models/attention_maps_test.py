"""Taps of the stream and attention made anew: those of the forward itself."""

import dataclasses
import functools

import decoder_test
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import attention_maps, cache, families, packed
from jaxrl_llm.rollout import packing
from jaxrl_llm.testing import rollouts

V, G = 48, 2
ROLLOUT = rollouts.make_ragged_rollout(shape=(3, G, 5, 6), vocab_size=V)


@struct.dataclass
class Recorder:
  """Attends as `rows` does and keeps values and outputs of every block."""

  rows: object
  kept: object = None

  def layers(self):
    return None

  def attend(self, layer, q, k, v, **knobs):
    out, _ = self.rows.attend(layer, q, k, v, **knobs)
    return out, (v, out)

  def updated(self, kept):
    return self.replace(kept=kept)


def _fed(layout):
  """Tokens, positions and rows, the prompts' padding on the left."""
  prompts, mask = ROLLOUT.prompts[::G], jnp.asarray(ROLLOUT.prompt_mask[::G])
  if layout == "causal":
    rows = cache.Causal(mask)
    return jnp.asarray(prompts), rows.positions(), rows
  if layout == "grouped":
    own = np.where(ROLLOUT.mask, ROLLOUT.completions, 0).reshape(len(mask), -1)
    rows = cache.Grouped(mask, group_size=G, length=6)
    tokens = jnp.concatenate([prompts, own], axis=1)
    return tokens, rows.positions(), rows
  found = packing.Packer()(ROLLOUT)[0].packing
  found = jax.tree.map(jnp.asarray, found)
  rows = packed.Packed(found.rows, found.segments, found.places)
  return found.tokens, found.positions, rows


@functools.cache
def _model(name):
  model = families.build(decoder_test.CONFIGS[name])
  return model, decoder_test.random_params(model)


@pytest.mark.parametrize(
  ("name", "layout"),
  [(name, "grouped") for name in decoder_test.CONFIGS]
  + [("gemma3", "packed"), ("qwen3", "packed"), ("mistral", "causal")],
)
def test_weights_times_values_are_what_each_block_attended(name, layout):
  model, params = _model(name)
  tokens, positions, rows = _fed(layout)
  plain, depth = rows.plain_rows(), model.config.depth

  @jax.jit
  def run(params):
    recorded = model.apply(params, tokens, positions, Recorder(rows))[1].kept
    _, streams = model.tapped(
      params, tokens, positions, rows, after=tuple(range(depth))
    )
    out = []
    for block, stream in enumerate(streams):
      asked = model.asked(params, stream, positions, block=block)
      q, k = plain.lay(asked.q)[:, plain.first :], plain.lay(asked.k)
      places = plain.first + jnp.arange(q.shape[1])
      weights = attention_maps.attention_weights(
        q,
        k,
        attention_maps.allowed_keys(plain.segments, places, asked.window),
        scale=asked.scale,
        softcap=asked.softcap,
      )
      v, expected = (plain.lay(x[block]) for x in recorded)
      v = jnp.repeat(v, weights.shape[1] // v.shape[2], axis=2)
      made = jnp.einsum("rhcl,rlhd->rchd", weights, v)
      out.append((made, expected[:, plain.first :], weights.sum(axis=-1)))
    return out

  real = np.asarray(plain.segments[:, plain.first :] > 0)
  for made, expected, total in run(params):
    np.testing.assert_allclose(made[real], expected[real], atol=2e-5)
    total = np.asarray(total).swapaxes(1, 2)
    np.testing.assert_allclose(total[real], 1.0, rtol=1e-5)
    np.testing.assert_array_equal(total[~real], 0.0)


@pytest.mark.parametrize("name", ("llama", "gemma3"))
def test_streams_are_those_of_a_shorter_model(name):
  model, params = _model(name)
  tokens, positions, rows = _fed("grouped")
  depth = model.config.depth
  hidden, streams = jax.jit(
    lambda p: model.tapped(p, tokens, positions, rows, after=(depth, 0, 2, 2))
  )(params)
  plain, _ = jax.jit(model.apply)(params, tokens, positions, rows)
  np.testing.assert_array_equal(hidden, plain)
  np.testing.assert_array_equal(model.normed(params, streams[0]), hidden)
  short = families.build(
    dataclasses.replace(
      model.config, depth=2, layer_windows=model.config.layer_windows[:2]
    )
  )
  cut = params | {"layers": jax.tree.map(lambda w: w[:2], params["layers"])}
  expected, _ = jax.jit(short.apply)(cut, tokens, positions, rows)
  np.testing.assert_allclose(
    model.normed(params, streams[2]), expected, atol=1e-5
  )
  np.testing.assert_array_equal(streams[2], streams[3])
  with pytest.raises(ValueError, match="after must be in 0 to 3 blocks"):
    model.tapped(params, tokens, positions, rows, after=(4,))


@pytest.mark.parametrize("layout", ("grouped", "packed"))
def test_chunks_change_nothing_and_one_block_agrees_with_itself(layout):
  model, params = _model("gemma2")
  tokens, positions, rows = _fed(layout)
  after = (0, 2)

  @functools.partial(jax.jit, static_argnums=1)
  def jsd(params, chunk):
    _, streams = model.tapped(params, tokens, positions, rows, after=after)
    one, two = (
      model.asked(params, x, positions, block=block)
      for x, block in zip(streams, after, strict=True)
    )
    found = attention_maps.attention_jsd(rows, one, two, chunk=chunk)
    same = attention_maps.attention_jsd(rows, two, two)
    tilt = jnp.cos(jnp.arange(found.size)).reshape(found.shape)
    return (found * tilt).sum(), (found, same)

  run = jax.value_and_grad(jsd, has_aux=True)
  (_, (whole, same)), grads = run(params, None)
  (_, (cut, _)), cut_grads = run(params, 2)
  np.testing.assert_allclose(cut, whole, atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cut_grads, grads
  )
  np.testing.assert_array_equal(same, 0.0)
  assert 0.01 < whole.max() <= np.log(2) + 1e-6
  later = jax.tree.map(lambda g: np.abs(g[1:]).max(), grads["layers"])
  assert max(jax.tree.leaves(later)) == 0  # the last block is a constant
