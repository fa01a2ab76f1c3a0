"""The three caches are one function: whole rows are the truth."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.models import api, cache

B, G, S, C, H, K, D = 2, 3, 5, 4, 4, 2, 8
N = B * G


def _qkv(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  heads = (H, K, K)
  prompt = [
    jax.random.normal(key, (B, S, h, D))
    for key, h in zip(keys, heads, strict=True)
  ]
  own = [
    jax.random.normal(jax.random.fold_in(key, 1), (N, C, h, D))
    for key, h in zip(keys, heads, strict=True)
  ]
  mask = jnp.arange(S)[None] >= jnp.array([[0], [2]])
  return prompt, own, mask


def _whole_rows(prompt, own, mask, **knobs):
  """[N, S + C] rows: the output at completion positions."""
  rows = [
    jnp.concatenate([jnp.repeat(p, G, axis=0), o], axis=1)
    for p, o in zip(prompt, own, strict=True)
  ]
  whole = jnp.concatenate(
    [jnp.repeat(mask, G, axis=0), jnp.ones((N, C), bool)], axis=1
  )
  out, _ = cache.Causal(whole).attend(None, *rows, **knobs)
  return out[:, S:]


def _knobs(softcap, window):
  window = None if window is None else api.Window(window)
  return {"scale": D**-0.5, "softcap": softcap, "window": window}


class CacheTest(chex.TestCase):
  @parameterized.product(softcap=(None, 2.0), window=(None, 3, 6, 10**9))
  def test_packed_groups_equal_whole_rows(self, softcap, window):
    prompt, own, mask = _qkv()
    knobs = _knobs(softcap, window)
    packed = [
      jnp.concatenate([p, o.reshape(B, G * C, *o.shape[2:])], axis=1)
      for p, o in zip(prompt, own, strict=True)
    ]
    rule = cache.Grouped(mask, group_size=G, length=C)
    out, _ = rule.attend(None, *packed, **knobs)
    expected = _whole_rows(prompt, own, mask, **knobs)
    chex.assert_trees_all_close(
      out[:, S:].reshape(expected.shape), expected, atol=1e-6
    )
    first, _ = cache.Causal(mask).attend(None, *prompt, **knobs)
    chex.assert_trees_all_close(out[:, :S], first, atol=1e-6)

  @parameterized.product(softcap=(None, 2.0), window=(None, 3, 6, 10**9))
  def test_decoding_token_by_token_equals_whole_rows(self, softcap, window):
    prompt, own, mask = _qkv()
    knobs = _knobs(softcap, window)
    rows = cache.Causal(mask, keep=True)
    _, kept = rows.attend(None, *prompt, **knobs)
    rows = rows.updated(jax.tree.map(lambda x: x[None], kept))
    past = cache.decode_after(rows, group_size=G, length=C)
    outs = []
    for t in range(C):
      layer = jax.tree.map(lambda x: x[0], past.layers())
      one = [x[:, t : t + 1] for x in own]
      out, kept = past.attend(layer, *one, **knobs)
      past = past.updated(jax.tree.map(lambda x: x[None], kept))
      outs.append(out)
    expected = _whole_rows(prompt, own, mask, **knobs)
    chex.assert_trees_all_close(
      jnp.concatenate(outs, axis=1), expected, atol=1e-6
    )

  def test_positions_count_real_tokens_only(self):
    _, _, mask = _qkv()
    whole = jnp.concatenate([mask, jnp.ones((B, C), bool)], axis=1)
    rows = cache.Causal(whole).positions()
    packed = cache.Grouped(mask, group_size=G, length=C).positions()
    chex.assert_trees_all_equal(packed[:, : S + C], rows)
    chex.assert_trees_all_equal(packed[:, -C:], rows[:, S:])
    self.assertEqual(int(rows[1, -1]), S - 2 + C - 1)

  def test_padding_is_never_read(self):
    prompt, own, mask = _qkv()
    knobs = _knobs(None, None)
    dirty = [jnp.where(mask[:, :, None, None], x, 1e30) for x in prompt]
    chex.assert_trees_all_equal(
      _whole_rows(dirty, own, mask, **knobs),
      _whole_rows(prompt, own, mask, **knobs),
    )

  def test_a_row_does_not_see_its_siblings(self):
    prompt, own, mask = _qkv()
    knobs = _knobs(None, None)

    def packed(own):
      rows = [
        jnp.concatenate([p, o.reshape(B, G * C, *o.shape[2:])], axis=1)
        for p, o in zip(prompt, own, strict=True)
      ]
      rule = cache.Grouped(mask, group_size=G, length=C)
      return rule.attend(None, *rows, **knobs)[0]

    other = [x.at[1].add(5.0) for x in own]
    before, after = packed(own), packed(other)
    same = [*range(S + C), *range(S + 2 * C, S + 3 * C)]
    chex.assert_trees_all_equal(
      before[0][jnp.array(same)], after[0][jnp.array(same)]
    )
    self.assertGreater(
      float(jnp.abs(before[0, S + C] - after[0, S + C]).max()), 0.1
    )
