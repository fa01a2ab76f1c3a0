"""Every parameter of every family has logical axes, and rules cut them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm import methods
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import families, shapes
from jaxrl_llm.models.weights import assemble
from jaxrl_llm.testing import rollouts

TINY = families.TINY
_SMALL = {
  "hista": {"min_interval": 2, "mean_window": 1, "min_d": 0.1},
  "verl_rank": {"stride": 1},
}


def mesh_of(fsdp=2, tensor=2):
  return meshes.make_mesh(
    8, data=1, fsdp=fsdp, tensor=tensor, devices=jax.devices()[:4]
  )


def specs(config, mesh, rules=sharding.RULES):
  placed = sharding.parameter_shardings(
    config, assemble.abstract(config), mesh, rules
  )
  leaves = jax.tree_util.tree_leaves_with_path(placed)
  return {
    "/".join(part.key for part in path): tuple(leaf.spec)
    for path, leaf in leaves
  }


@pytest.mark.parametrize("name", sorted(shapes.SHAPES))
def test_every_matrix_of_published_models_is_cut(name):
  config = shapes.SHAPES[name]
  placed = specs(config, mesh_of())
  tree = assemble.shapes(config)
  for path, spec in placed.items():
    matrix = len(tree[path]) - path.startswith("layers/") == 2
    assert (set(spec) >= {"fsdp", "tensor"}) == matrix, (path, spec)


def test_a_matrix_without_a_name_is_refused():
  with pytest.raises(ValueError, match="layers/odd .* has no logical axes"):
    sharding.parameter_shardings(
      TINY, {"layers": {"odd": jnp.zeros((2, 4, 4))}}, mesh_of()
    )


def test_heads_are_never_cut_in_their_middle():
  config = dataclasses.replace(TINY, heads=4, kv_heads=1)
  placed = specs(config, mesh_of())
  assert placed["layers/attention/k"] == (None, "fsdp", None)
  assert placed["layers/attention/q"] == (None, "fsdp", "tensor")


def test_the_sampler_has_parameters_whole_over_fsdp():
  placed = specs(TINY, mesh_of(), sharding.ROLLOUT_RULES)
  assert not any("fsdp" in spec for spec in placed.values())
  assert placed["layers/mlp/gate"] == (None, None, "tensor")


def test_optimizer_state_is_cut_like_the_parameters():
  mesh = mesh_of()
  params = assemble.abstract(TINY)
  places = sharding.parameter_shardings(TINY, params, mesh)
  chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  state = jax.eval_shape(chain.init, params)
  placed = sharding.like_parameters(state, places, mesh)
  adam = placed[1][0]
  assert jax.tree.all(
    jax.tree.map(lambda a, b: a == b, (adam.mu, adam.nu), (places, places))
  )
  assert adam.count.is_fully_replicated


def test_constraints_are_nothing_without_a_mesh():
  x = jnp.zeros((4, 3))
  assert sharding.constrain(x, "rows", None) is x
  params = {"embed": x}
  assert sharding.constrain_parameters(TINY, params) is params


def test_constraints_cut_activations_of_a_mesh():
  mesh = mesh_of()

  def place(x):
    return sharding.constrain(x, "rows", None, "heads")

  out = jax.jit(meshes.traced_for(mesh, place))(
    meshes.replicate(np.zeros((4, 3, 2)), mesh)
  )
  assert out.addressable_shards[0].data.shape == (2, 3, 1)


@pytest.mark.parametrize("name", ("hista", "verl_rank"))
def test_rows_are_gone_through_where_they_lie(name):
  method = methods.get(name)(**_SMALL[name]).build()
  rollout = rollouts.make_rollout(groups=4, group_size=4)
  scores = rollouts.make_scores(rollout)

  def measured(scores, rollout):
    found = method.measure(scores, rollout)
    if name == "verl_rank":
      return found["rank_dynamics"]
    return method.advantage(rollout.replace(extras=found))

  expected = jax.jit(measured)(scores, rollout)
  mesh = mesh_of()
  run = jax.jit(meshes.traced_for(mesh, measured))
  got = run(meshes.place_rows(scores, mesh), meshes.place_rows(rollout, mesh))
  np.testing.assert_allclose(got, expected, atol=1e-5)
  assert np.abs(expected).max() > 0.1
