"""What the sampler moves between devices for each token."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import families
from jaxrl_llm.rollout import engine, sampling

B, G, S, T = 4, 2, 8, 4


def _compiled():
  """The program of a tiny model on 2 x 2 devices, as text."""
  mesh = meshes.make_mesh(B, fsdp=2, tensor=2, devices=jax.devices()[:4])
  model = families.build(families.TINY, dtype=jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  places = sharding.parameter_shardings(
    model.config, shapes, mesh, sharding.ROLLOUT_RULES
  )
  rows = NamedSharding(mesh, PartitionSpec(meshes.ROWS))

  def absent(shape, dtype, place):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  params = jax.tree.map(
    lambda x, p: absent(x.shape, x.dtype, p), shapes, places
  )
  generate = engine.make_generate(
    model,
    sampling.make_rule(
      temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, greedy=False
    ),
    length=T,
    group_size=G,
    stop_ids=(0,),
    pad_id=0,
  )
  lowered = jax.jit(meshes.traced_for(mesh, generate)).lower(
    params,
    absent((B, S), jnp.int32, rows),
    absent((B, S), jnp.bool_, rows),
    absent((B * G,), jnp.int32, rows),
    jax.eval_shape(lambda: jax.random.key(0)),
  )
  options = {"xla_backend_optimization_level": 0}
  return lowered.compile(compiler_options=options).as_text()


def test_logits_are_gathered_and_the_head_is_not():
  text = _compiled()
  found = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
  gathered = {tuple(map(int, shape.split(","))) for shape in found}
  vocab, width = families.TINY.vocab_size, families.TINY.width
  assert (B * G // 2, vocab) in gathered
  assert not {(vocab, width), (width, vocab)} & gathered, gathered
