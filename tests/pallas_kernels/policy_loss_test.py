"""policy_loss: what the sums are, and what the door refuses."""

import functools
import math

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import blocks, policy_loss

_CLIP = {"clip_low": 0.2, "clip_high": 0.28}
_IMPLS = ("reference", "xla", "interpret")


def problem(rows=4, tokens=9, spread=0.3, seed=0, dtype=jnp.float32):
  """logprob, old, ref, advantages [N], mask; every row has a token."""
  rng = np.random.default_rng(seed)
  old = -2.0 + 0.5 * rng.normal(size=(rows, tokens))
  logprob, ref = old + spread * rng.normal(size=(2, rows, tokens))
  mask = rng.random((rows, tokens)) < 0.7
  mask[:, 0] = True
  advantages = rng.normal(size=rows)
  arrays = (jnp.asarray(x, dtype) for x in (logprob, old, ref, advantages))
  return *arrays, jnp.asarray(mask)


@functools.partial(jax.jit, static_argnames=("options",))
def values_and_slope(logprob, old, ref, advantages, mask, options):
  def loss(logprob):
    sums = policy_loss.policy_loss_sums(
      logprob, old, ref, advantages, mask, **dict(options)
    )
    return sums.loss.sum(), sums

  slope, sums = jax.grad(loss, has_aux=True)(logprob)
  return sums, slope


def run(*arrays, **options):
  return values_and_slope(*arrays, options=tuple((_CLIP | options).items()))


def token_by_token(logprob, old, ref, advantages, mask, beta):
  """The sums with _CLIP and k3, in Python floats."""
  rows = []
  for n in range(len(mask)):
    loss = count = kl = clipped = total = approx = 0.0
    for t in range(len(mask[n])):
      if not mask[n][t]:
        continue
      ratio = math.exp(logprob[n][t] - old[n][t])
      bounded = min(max(ratio, 0.8), 1.28)
      a = advantages[n]
      d = logprob[n][t] - ref[n][t]
      k3 = math.exp(-d) + d - 1
      loss += -min(ratio * a, bounded * a) + beta * k3
      count += 1
      kl += k3
      clipped += bounded * a < ratio * a
      total += ratio
      approx += ratio - 1 - math.log(ratio)
    rows.append((loss, count, kl, clipped, total, approx))
  return np.array(rows).T


class PropertyTest(chex.TestCase):
  @parameterized.parameters(*_IMPLS)
  def test_on_policy_it_is_exactly_the_policy_gradient(self, impl):
    logprob, _, _, advantages, mask = problem()
    sums, slope = run(logprob, logprob, None, advantages, mask, impl=impl)
    expected = jnp.where(mask, -advantages[:, None], 0)
    np.testing.assert_array_equal(slope, expected)
    chex.assert_trees_all_close(sums.loss, expected.sum(1), rtol=1e-6)
    np.testing.assert_array_equal(sums.ratio, mask.sum(1))
    np.testing.assert_array_equal(sums.approx_kl, np.zeros(4))
    np.testing.assert_array_equal(sums.clipped, np.zeros(4))

  @parameterized.parameters(*_IMPLS)
  def test_without_bounds_it_is_the_plain_ratio(self, impl):
    logprob, old, _, advantages, mask = problem(spread=1.0)
    sums, slope = run(
      *(logprob, old, None, advantages, mask),
      **{"impl": impl, "clip_low": math.inf, "clip_high": math.inf},
    )
    plain = -jnp.exp(logprob - old) * advantages[:, None]
    plain = jnp.where(mask, plain, 0)
    chex.assert_trees_all_close(sums.loss, plain.sum(1), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(slope, plain, rtol=1e-5)
    np.testing.assert_array_equal(sums.clipped, np.zeros(4))

  @parameterized.parameters(*_IMPLS)
  def test_two_rows_of_three_tokens_by_hand(self, impl):
    old = jnp.log(jnp.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]))
    # Ratios 1.5, 0.5, 1.1 (padding) and 0.5, 1.5, 1.1; credit 2 and -3.
    logprob = jnp.log(jnp.array([[0.75, 0.25, 0.55], [0.25, 0.75, 0.55]]))
    ref = jnp.log(jnp.array([[0.75, 0.5, 0.5], [0.25, 0.75, 1.1]]))
    advantages = jnp.array([2.0, -3.0])
    mask = jnp.array([[1, 1, 0], [1, 1, 1]])
    sums, slope = run(
      *(logprob, old, ref, advantages, mask), impl=impl, beta=0.1
    )
    expected = token_by_token(
      *(x.tolist() for x in (logprob, old, ref)),
      *(x.tolist() for x in (advantages, mask)),
      0.1,
    )
    chex.assert_trees_all_close(np.stack(sums[:6]), expected, rtol=2e-6)
    np.testing.assert_array_equal(sums.clipped_high, [1, 0])
    np.testing.assert_array_equal(sums.clipped_low, [0, 1])
    # d = log 1/2 where pi is half the reference: k3's slope is 1 - 2 = -1.
    chex.assert_trees_all_close(
      slope, jnp.array([[0, -1 - 0.1, 0], [0, 4.5, 3.3 - 0.1]]), rtol=1e-5
    )

  @parameterized.parameters(*_IMPLS)
  def test_no_tokens_no_sums(self, impl):
    bad = jnp.full((3, 5), jnp.nan).at[1].set(jnp.inf)
    sums, slope = run(
      *(bad, bad, bad, bad[:, 0], jnp.zeros((3, 5))), impl=impl, beta=1.0
    )
    for x in (*sums, slope):
      np.testing.assert_array_equal(x, np.zeros_like(x))

  @parameterized.parameters("xla", "interpret")
  def test_padding_may_hold_anything(self, impl):
    *arrays, advantages, mask = problem()
    credit = jnp.broadcast_to(advantages[:, None], mask.shape)
    clean = run(*arrays, credit, mask, impl=impl, beta=0.1, kl="exact")
    for junk in (jnp.nan, jnp.inf, -jnp.inf):
      dirty = [jnp.where(mask, x, junk) for x in (*arrays, credit)]
      spoilt = run(*dirty, mask, impl=impl, beta=0.1, kl="exact")
      chex.assert_trees_all_equal(spoilt, clean)

  @parameterized.parameters("xla", "interpret")
  def test_masks_of_any_dtype_and_credit_of_any_rank(self, impl):
    *arrays, advantages, mask = problem()
    plain = run(*arrays, advantages, mask, impl=impl)
    for dtype in (jnp.int32, jnp.bfloat16):
      other = run(*arrays, advantages, 3 * mask.astype(dtype), impl=impl)
      chex.assert_trees_all_equal(other, plain)
    credit = jnp.broadcast_to(advantages[:, None], mask.shape)
    chex.assert_trees_all_equal(run(*arrays, credit, mask, impl=impl), plain)

  def test_rows_and_stretches_add_up(self):
    arrays = problem()
    knobs = {"beta": 0.1, "dual_clip": 1.4}
    whole, slope = run(*arrays, **knobs)
    rows = [
      run(*(x[s] for x in arrays), **knobs) for s in (slice(0, 1), slice(1, 4))
    ]
    chex.assert_trees_all_close(
      jax.tree.map(lambda *x: jnp.concatenate(x), *rows),
      (whole, slope),
      rtol=1e-6,
    )
    *wide, advantages, mask = arrays
    parts = [
      run(*(x[:, s] for x in wide), advantages, mask[:, s], **knobs)
      for s in (slice(0, 4), slice(4, 9))
    ]
    chex.assert_trees_all_close(
      jax.tree.map(jnp.add, parts[0][0], parts[1][0]),
      whole,
      rtol=1e-5,
      atol=1e-6,
    )

  def test_dual_clip_bounds_the_loss_of_negative_credit(self):
    logprob, old, _, advantages, mask = problem(spread=2.0)
    advantages = -jnp.abs(advantages)
    arrays = logprob, old, None, advantages, mask
    free, _ = run(*arrays)
    held, slope = run(*arrays, dual_clip=1.5)
    bound = -1.5 * advantages * held.tokens
    self.assertTrue((held.loss <= bound * (1 + 1e-6)).all())
    self.assertTrue((held.loss < free.loss).any())
    beyond = mask & (jnp.exp(logprob - old) > 1.5)
    np.testing.assert_array_equal(held.dual_clipped, beyond.sum(1))
    np.testing.assert_array_equal(jnp.where(beyond, slope, 0), 0 * slope)
    far, _ = run(*arrays, dual_clip=1e9)
    chex.assert_trees_all_equal(far, free)

  @parameterized.parameters(*policy_loss.KL_NAMES)
  def test_at_the_reference_every_kl_is_zero(self, kl):
    logprob, old, _, advantages, mask = problem()
    sums, slope = run(logprob, old, logprob, advantages, mask, kl=kl, beta=1.0)
    none, alone = run(logprob, old, None, advantages, mask)
    np.testing.assert_array_equal(sums.kl, np.zeros(4))
    chex.assert_trees_all_close(sums.loss, none.loss, rtol=1e-6, atol=1e-6)
    if kl == "k1":
      alone += mask
    if kl == "ratio_k1":
      alone += jnp.where(mask, jnp.exp(logprob - old), 0)
    chex.assert_trees_all_close(slope, alone, atol=1e-6)

  @parameterized.parameters(*_IMPLS)
  def test_a_ratio_on_the_bound_is_inside(self, impl):
    old = jnp.zeros((2, 2))
    logprob = jnp.log(jnp.array([[1.5, 2.0], [0.5, 0.25]]))
    high, low = (float(jnp.exp(logprob[i, 0])) for i in (0, 1))
    sums, slope = run(
      *(logprob, old, None, jnp.array([1.0, -1.0]), jnp.ones((2, 2))),
      **{"impl": impl, "clip_low": 1 - low, "clip_high": high - 1},
    )
    np.testing.assert_array_equal(sums.clipped, [1, 1])
    chex.assert_trees_all_close(
      slope, jnp.array([[-high, 0], [low, 0]]), rtol=1e-6
    )

  @parameterized.parameters(*_IMPLS)
  def test_a_policy_far_away_overflows_nothing(self, impl):
    old = jnp.array([[-100.0, 0.0], [-100.0, 0.0]])
    logprob, advantages = old[:, ::-1], jnp.array([1.0, -1.0])
    for kl in ("k3", "exact", "ratio_k3"):
      sums, slope = run(
        *(logprob, old, old, advantages, jnp.ones((2, 2))),
        **{"impl": impl, "kl": kl, "beta": 0.1},
      )
      chex.assert_tree_all_finite((sums, slope))

  @parameterized.parameters("reference", "xla")
  def test_only_the_loss_has_a_gradient(self, impl):
    *arrays, mask = problem()

    def others(*arrays):
      sums = policy_loss.policy_loss_sums(
        *arrays, mask, **_CLIP, beta=0.1, impl=impl
      )
      return sum(x.sum() for x in sums[1:])

    def loss(old, ref, advantages, beta):
      sums = policy_loss.policy_loss_sums(
        *(arrays[0], old, ref, advantages, mask), **_CLIP, beta=beta, impl=impl
      )
      return sums.loss.sum()

    grads = jax.jit(jax.grad(others, (0, 1, 2, 3)))(*arrays)
    grads += jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*arrays[1:], 0.1)
    for x in grads:
      np.testing.assert_array_equal(x, np.zeros_like(x))


class DoorTest(chex.TestCase):
  @parameterized.parameters(
    ({"clip_low": -0.1}, "clip_low must be 0 or more"),
    ({"clip_high": math.nan}, "clip_high must be 0 or more"),
    ({"dual_clip": 1.0}, "dual_clip must be above 1"),
    ({"kl": "k4"}, "kl is one of"),
    ({"impl": "magic"}, "impl is one of"),
    ({"beta": jnp.ones(4)}, "beta must be a scalar"),
    ({"ref": None, "beta": 0.1}, "beta is 0.1 but ref is None"),
    ({"old": jnp.ones((4, 8))}, "of one shape"),
    ({"advantages": jnp.ones(9)}, "advantages must be"),
  )
  def test_bad_arguments_are_refused(self, change, message):
    names = ("logprob", "old", "ref", "advantages", "mask")
    arguments = _CLIP | dict(zip(names, problem(), strict=True)) | change
    with self.assertRaisesRegex(ValueError, message):
      policy_loss.policy_loss_sums(**arguments)

  def test_the_kernel_refuses_what_it_does_not_take(self):
    *arrays, mask = problem()
    half = [x.astype(jnp.float16) for x in arrays]
    empty = [x[:0] for x in (*arrays, mask)]
    for arguments, word in (((*half, mask), "float16"), (empty, "empty")):
      with self.assertRaisesRegex(blocks.Unsupported, word):
        policy_loss.policy_loss_sums(*arguments, **_CLIP, impl="pallas")
      policy_loss.policy_loss_sums(*arguments, **_CLIP)

  def test_beta_may_be_traced(self):
    *arrays, advantages, mask = problem()
    for impl in ("xla", "interpret"):
      loss = jax.jit(
        lambda beta, impl=impl: policy_loss.policy_loss_sums(
          *(*arrays, advantages, mask), **_CLIP, beta=beta, impl=impl
        )
      )(0.3)
      chex.assert_trees_all_close(
        loss, run(*arrays, advantages, mask, beta=0.3)[0], rtol=1e-5
      )

  def test_lowers_for_accelerators_and_auto_takes_no_kernel(self):
    arrays = problem(dtype=jnp.bfloat16)
    for platform in ("cuda", "tpu"):
      text = (
        values_and_slope.trace(*arrays, options=tuple(_CLIP.items()))
        .lower(lowering_platforms=(platform,))
        .as_text()
      )
      self.assertNotIn("tpu_custom_call", text)

  @parameterized.parameters("xla", "pallas")
  def test_runs_inside_shard_map(self, impl):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    specs = jax.sharding.PartitionSpec("data")
    options = tuple((_CLIP | {"beta": 0.1, "impl": impl}).items())
    split = jax.jit(
      jax.shard_map(
        lambda *x: values_and_slope(*x, options=options),
        mesh=mesh,
        in_specs=specs,
        out_specs=specs,
      )
    )
    arrays = problem(rows=8)
    text = split.trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()
    self.assertEqual("tpu_custom_call" in text, impl == "pallas")
    if impl == "xla":
      chex.assert_trees_all_close(
        split(*arrays), run(*arrays, beta=0.1), rtol=1e-6
      )
