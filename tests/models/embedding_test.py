"""The lookup on a mesh is the plain one, and its gradient gathers no rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.distributed import mesh as meshes
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


def test_the_gradient_is_the_same_and_gathers_no_rows(mesh, tokens):
  table = jax.random.normal(jax.random.key(0), (32, WIDTH))
  factors = jax.random.normal(jax.random.key(1), (*tokens.shape, WIDTH))

  def loss(table, tokens):
    return (factors * embedding.lookup(table, tokens)).sum()

  gradient = jax.jit(meshes.traced_for(mesh, jax.grad(loss)))
  tokens_there = meshes.place_rows(tokens, mesh)
  np.testing.assert_allclose(
    gradient(table, tokens_there), jax.grad(loss)(table, tokens), rtol=1e-6
  )
  text = gradient.lower(table, tokens_there).compile().as_text()
  assert re.search(r"all-reduce\(", text)
  assert not re.search(r"all-gather(-start)?\(", text)
