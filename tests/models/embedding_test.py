"""The lookup on a mesh is the plain one, and its gradient stays small."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import embedding

WIDTH = 16


@pytest.fixture
def mesh():
  return meshes.make_mesh(4, data=1, fsdp=2, tensor=2)


@pytest.fixture
def tokens():
  ids = np.random.default_rng(0).integers(-3, 40, (4, 6))
  return ids.astype(np.int32)  # below and beyond the vocabulary too


@pytest.mark.parametrize("vocab", [32, 33])  # 33: tensor does not divide it
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_on_a_mesh_it_is_the_plain_lookup(mesh, tokens, vocab, dtype):
  table = jax.random.normal(jax.random.key(0), (vocab, WIDTH), dtype)
  lookup = jax.jit(meshes.traced_for(mesh, embedding.lookup))
  found = lookup(table, meshes.place_rows(tokens, mesh))
  wanted = table[np.clip(tokens, 0, vocab - 1)]
  np.testing.assert_array_equal(found, wanted)
  np.testing.assert_array_equal(embedding.lookup(table, tokens), wanted)


def test_rows_that_the_devices_cannot_share(mesh, tokens):
  table = jnp.arange(32.0 * WIDTH).reshape(32, WIDTH)
  lookup = jax.jit(meshes.traced_for(mesh, embedding.lookup))
  found = lookup(table, meshes.place_rows(tokens[:3], mesh))
  np.testing.assert_array_equal(found, table[np.clip(tokens[:3], 0, 31)])


def test_the_gradient_moves_neither_the_whole_table_nor_all_rows(mesh):
  vocab, length = 32, 64
  place = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
  table = jax.random.normal(jax.random.key(0), (vocab, WIDTH))
  ids = np.random.default_rng(0).integers(0, vocab, (4, length), np.int32)

  def loss(table, tokens):
    x = embedding.lookup(table, tokens)
    x = sharding.constrain(x, "rows", "length", None)
    return jnp.sin(x @ jnp.ones((WIDTH, WIDTH))).sum()

  gradient = jax.jit(
    meshes.traced_for(mesh, jax.grad(loss)), out_shardings=place
  )
  cut = jax.device_put(table, place), meshes.place_rows(ids, mesh)
  np.testing.assert_allclose(
    gradient(*cut), jax.grad(loss)(table, ids), rtol=1e-5, atol=1e-5
  )
  text = gradient.lower(*cut).compile().as_text()
  moved = re.findall(r"= f32\[([\d,]+)\]\S* all-(?:gather|reduce)\(", text)
  assert moved
  assert f"{vocab},{WIDTH}" not in moved
  assert f"{len(ids)},{length},{WIDTH}" not in moved
