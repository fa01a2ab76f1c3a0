"""Long rows attend as short ones do, on one device and on a mesh."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models import api, attention, cache

B, G, S, C, D = 2, 3, 6, 5, 8
MASK = jnp.arange(S)[None] >= jnp.array([[0], [2]])
L = S + G * C
WINDOWS = {
  "all": lambda: api.Window(4),
  "here": lambda: api.Window(4, jnp.array(True)),
  "elsewhere": lambda: api.Window(4, jnp.array(False)),
}


def operands(length, heads=4, kv_heads=2):
  keys = jax.random.split(jax.random.key(0), 3)
  return tuple(
    jax.random.normal(key, (B, length, count, D))
    for key, count in zip(keys, (heads, kv_heads, kv_heads), strict=True)
  )


def grads_and_out(rule, window, softcap, rows, real):
  """Of what real tokens get; what padding gets means nothing."""

  def loss(rows, window):
    out, _ = rule.attend(None, *rows, scale=0.3, softcap=softcap, window=window)
    out = jnp.where(real[:, :, None, None], out, 0)
    return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

  # Not the loss: a sum of many cosines loses digits.
  return jax.jit(jax.grad(loss, has_aux=True))(rows, window)


class LongRowsTest(chex.TestCase):
  @parameterized.parameters(("here", 2.0), ("elsewhere", None), ("all", None))
  def test_long_rows_attend_as_short_ones(self, window, softcap):
    grouped = cache.Grouped(MASK, group_size=G, length=C)
    whole = jnp.concatenate([MASK, jnp.ones((B, G * C), bool)], axis=1)
    for rule in (cache.Causal(whole), grouped):
      run = functools.partial(
        *(grads_and_out, rule, WINDOWS[window](), softcap),
        *(operands(L), whole),
      )
      short = run()
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "LONG", 1)
        long = run()
      chex.assert_trees_all_close(long, short, atol=1e-5)

  def test_a_prompt_that_is_kept_is_kept_in_both(self):
    rule, rows = cache.Causal(MASK, keep=True), operands(S)
    _, short = rule.attend(None, *rows, scale=1.0)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(attention, "LONG", 1)
      _, long = rule.attend(None, *rows, scale=1.0)
    chex.assert_trees_all_equal(long, short)

  def test_rows_are_long_from_a_thousand_tokens(self):
    self.assertTrue(attention.is_long(1024**2))
    self.assertFalse(attention.is_long(1023**2))


def traces(length, group=0):
  """Whether the program of a rule at a size has the loop of long rows."""
  mask = jnp.ones((1, length), bool)
  rule, total = cache.Causal(mask), length
  if group:
    rule = cache.Grouped(mask, group_size=group, length=length)
    total += group * length
  shapes = [
    jax.ShapeDtypeStruct((1, total, heads, D), jnp.float32)
    for heads in (2, 1, 1)
  ]
  run = functools.partial(rule.attend, None, scale=1.0)
  return "scan[" in str(jax.make_jaxpr(run)(*shapes))


@pytest.mark.parametrize(
  ("length", "group", "long"),
  [(512, 0, False), (1024, 0, True), (128, 8, False), (512, 8, True)],
)
def test_the_length_decides(length, group, long):
  assert traces(length, group) == long


@pytest.mark.parametrize(
  ("heads", "kv_heads"),
  [(6, 3), (3, 1)],  # repeated, then cut; whole
)
def test_a_mesh_attends_as_one_device(heads, kv_heads, monkeypatch):
  monkeypatch.setattr(attention, "LONG", 1)
  mesh = meshes.make_mesh(B, data=1, fsdp=2, tensor=2)
  rule = cache.Grouped(MASK, group_size=G, length=C)
  real = jnp.concatenate([MASK, jnp.ones((B, G * C), bool)], axis=1)
  rows = operands(L, heads, kv_heads)
  run = functools.partial(grads_and_out, rule, None, 2.0, rows, real)
  alone = run()
  with jax.set_mesh(mesh):
    shared = run()
  chex.assert_trees_all_close(
    *(jax.tree.map(np.asarray, tree) for tree in (shared, alone)), atol=1e-5
  )
