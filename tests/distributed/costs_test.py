"""Operations and collectives of programs whose figures are known."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from jaxrl_llm.distributed import costs
from jaxrl_llm.distributed import mesh as meshes

X = jnp.zeros((8, 16))
W = jnp.zeros((16, 16))
ONE = 2.0 * 8 * 16 * 16


def count(function, *args, **options):
  return costs.flops(jax.make_jaxpr(function)(*args), **options)


def test_a_product_costs_a_multiplication_and_an_addition_each():
  assert count(jnp.dot, X, W) == ONE


def test_loops_are_multiplied_out():
  def scanned(x, w):
    return jax.lax.scan(lambda c, _: (c @ w, None), x, length=5)[0]

  assert count(scanned, X, W) == 5 * ONE

  def decoded(x, w):
    return jax.lax.while_loop(
      lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] @ w), (0, x)
    )

  assert count(decoded, X, W, unknown_trips=7) == 7 * ONE


def test_a_gradient_costs_two_products_more_and_remat_another():
  def loss(x, w):
    return jnp.sum(jnp.tanh(x @ w) ** 2)

  assert count(jax.grad(loss, (0, 1)), X, W) == 3 * ONE
  again = jax.grad(jax.checkpoint(loss), (0, 1))
  assert count(again, X, W) == 4 * ONE


def test_of_branches_the_dearest_counts():
  def either(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ w)

  assert count(either, X, W) == 2 * ONE


def collectives(function, specs, *args):
  mesh = meshes.make_mesh(8, fsdp=4, devices=jax.devices()[:4])
  places = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
  placed = [jax.device_put(a, p) for a, p in zip(args, places, strict=True)]
  whole = NamedSharding(mesh, PartitionSpec())
  compiled = jax.jit(function, out_shardings=whole).lower(*placed).compile()
  return costs.collective_bytes(compiled.as_text())


def test_a_gathered_matrix_is_received_whole():
  found = collectives(lambda w: w * 2, [("fsdp",)], np.ones((16, 8), "f4"))
  assert found == {"all-gather": 16 * 8 * 4}


def test_a_sum_over_rows_is_reduced_once():
  found = collectives(
    lambda x: x.sum(axis=0), [(("data", "fsdp"),)], np.ones((8, 32), "f4")
  )
  assert found == {"all-reduce": 32 * 4}


def test_collectives_in_a_loop_count_as_often_as_it_runs():
  def repeated(x):
    def step(total, i):
      return total + (x * i).sum(axis=0), None

    return jax.lax.scan(step, jnp.zeros(32), jnp.arange(1.0, 7.0))[0]

  found = collectives(repeated, [(("data", "fsdp"),)], np.ones((8, 32), "f4"))
  assert found["all-reduce"] in (6 * 32 * 4, 32 * 4)  # hoisted or not


TEXT = """\
%cond (p: (s32[], f32[4])) -> pred[] {
  %c = s32[]{:T(128)} constant(3), metadata={}
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}
%window_cond (p: (f32[4], u32[])) -> pred[] {
  %c.2 = u32[]{:T(128)} constant(4), metadata={}
  ROOT %lt.2 = pred[] compare(%i.2, %c.2), direction=LT
}
%window (p: (f32[4], u32[])) -> (f32[4], u32[]) {
  %p.2 = (f32[4], f32[4]{0}) collective-permute-start(%x.2), channel_id=1
}
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %r = f32[4]{0} all-reduce(%x), to_apply=%add
}
%started (x: f32[2]) -> (f32[2], f32[16]) {
  %g.2 = f32[16]{0} all-gather(%x.3), channel_id=2
}
%async_collective_fusion.1 (x: f32[2], y: f32[16]) -> (f32[2], f32[16]) {
  %g.3 = f32[16]{0} all-gather(%x.4), channel_id=2
}
%ended (x: f32[2]) -> f32[16] {
  %g.4 = f32[16]{0} all-gather(%x.5), channel_id=2
}
ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), condition=%cond, body=%body
  %v = (f32[4], u32[]) while(%t.2), condition=%window_cond, body=%window
  %async-collective-start.1 = (f32[2], f32[16]) fusion(%x), calls=%started
  %f = (f32[2], f32[16]) fusion(%x.6), calls=%async_collective_fusion.1
  %async-collective-done.1 = f32[16] fusion(%x.7), calls=%ended
  %g = (bf16[2], bf16[8]{0}) all-gather-start(%a), dimensions={0}
}
"""


def test_trips_are_read_from_the_condition_and_starts_count_their_result():
  assert costs.collective_bytes(TEXT, unknown_trips=99) == {
    "all-reduce": 3 * 16,
    "all-gather": 16 + 64,  # that which passes through others: once
    "collective-permute": 4 * 16,
  }
