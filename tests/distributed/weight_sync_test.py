"""The sampler's parameters: the same numbers, the bytes, what is freed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.distributed import sharding, weight_sync
from jaxrl_llm.models import families, linear
from jaxrl_llm.rollout import engine, sampling

TINY = families.TINY
# embed [128, 64]; in both layers q, o [64, 64], k, v [64, 32] and three
# matrices [64, 128]. The rest are vectors, whole everywhere.
EMBED = 128 * 64
STACK = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)


def params_on(mesh):
  params = families.build(TINY).init(jax.random.key(0))
  if mesh is None:
    return params
  places = sharding.parameter_shardings(TINY, params, mesh)
  return jax.device_put(params, places)


def mesh_of(devices=None, **axes):
  return meshes.make_mesh(4, devices=devices or jax.devices()[:4], **axes)


def sync_of(mesh, dtype=jnp.float32, **options):
  model = families.build(TINY, dtype=dtype)
  return weight_sync.WeightSync(model, mesh, **options)


def test_on_one_device_nothing_is_done():
  params = params_on(None)
  for dtype in (jnp.float32, jnp.bfloat16):
    synced = sync_of(None, dtype)(params)
    assert synced.params is params
    assert synced.received == 0 and not synced.copies


def test_on_a_mesh_of_rows_alone_nothing_is_copied():
  params = params_on(mesh_of(data=4, fsdp=1))
  synced = sync_of(mesh_of(data=4, fsdp=1))(params)
  assert synced.params is params and synced.received == 0


@pytest.mark.parametrize(
  ("axes", "share"),
  [({"fsdp": 4}, 1), ({"fsdp": 2, "tensor": 2}, 2), ({"tensor": 4}, None)],
)
def test_float32_brings_what_fsdp_had_cut_away(axes, share):
  mesh = mesh_of(data=1, **axes)
  params = params_on(mesh)
  synced = sync_of(mesh)(params)
  expected = 4 * (EMBED + STACK) / share if share else 0
  assert synced.received == expected
  assert sum(leaf.size for leaf in synced.copies) == (
    EMBED + STACK if share else 0
  )
  chex.assert_trees_all_equal(
    jax.device_get(synced.params), jax.device_get(params)
  )


def test_bfloat16_travels_as_such():
  mesh = mesh_of(data=1, fsdp=4)
  params = params_on(mesh)
  synced = sync_of(mesh, jnp.bfloat16)(params)
  # XLA's CPU backend moves bfloat16 as float32, and the stack's bits as bits.
  assert synced.received == 2 * STACK + 4 * EMBED
  expected = linear.freeze(params_on(None), jnp.bfloat16)
  chex.assert_trees_all_equal(synced.params, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_sampler_draws_the_same_tokens_with_and_without(dtype):
  mesh = mesh_of(data=1, fsdp=2, tensor=2)
  params = params_on(mesh)
  generate = engine.make_generate(
    families.build(TINY, dtype=dtype),
    sampling.make_rule(),
    length=6,
    group_size=2,
    stop_ids=(),
    pad_id=0,
  )
  generate = jax.jit(meshes.traced_for(mesh, generate))
  tokens = np.random.default_rng(0).integers(1, 128, (4, 5), np.int32)
  rows = meshes.place_rows(
    (tokens, np.ones((4, 5), bool), np.arange(8, dtype=np.int32)), mesh
  )
  plain = generate(params, *rows, jax.random.key(1))
  with sync_of(mesh, dtype)(params) as synced:
    out = generate(synced.params, *rows, jax.random.key(1))
  chex.assert_trees_all_equal(out.completions, plain.completions)
  chex.assert_trees_all_equal(out.logprobs, plain.logprobs)


def test_what_was_copied_is_freed_and_nothing_else():
  mesh = mesh_of(data=1, fsdp=4)
  params = params_on(mesh)
  with sync_of(mesh)(params) as synced:
    assert not any(leaf.is_deleted() for leaf in synced.copies)
  assert all(leaf.is_deleted() for leaf in synced.copies)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
  synced.free()


@pytest.mark.parametrize("axes", [None, {"fsdp": 2, "tensor": 2}])
def test_a_copy_to_keep_outlives_the_parameters(axes):
  mesh = mesh_of(data=1, **axes) if axes else None
  params = params_on(mesh)
  expected = jax.device_get(params)
  synced = sync_of(mesh, keep=True)(params)
  jax.tree.map(lambda leaf: leaf.delete(), params)
  chex.assert_trees_all_equal(jax.device_get(synced.params), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("alone", [True, False])
def test_a_sampler_with_devices_of_its_own_gets_everything(alone, dtype):
  first, last = jax.devices()[:2], jax.devices()[2:4]
  mesh = None if alone else mesh_of(first, data=1, fsdp=2)
  params = params_on(mesh)
  own = mesh_of(last, data=2, fsdp=1)
  sync = sync_of(mesh, dtype, rollout_mesh=own)
  synced = sync(params)
  expected = linear.freeze(params_on(None), dtype)
  chex.assert_trees_all_equal(
    jax.device_get(synced.params), jax.device_get(expected)
  )
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(expected))
  # On the trainer's side of two devices, as bfloat16 travels there.
  gathered = 0 if alone else 2 * STACK + 4 * EMBED
  assert synced.received == max(whole, gathered)
  for leaf in synced.copies:
    assert leaf.sharding.device_set == set(last)
  synced.free()
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
