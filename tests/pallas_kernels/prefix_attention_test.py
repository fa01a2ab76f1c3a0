"""Attention over parts: one softmax over all keys, merging, padding."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import prefix_attention

# Jitted for the speed of the tests; `impl` and what is refused pass through.
shared_prefix_attention = jax.jit(
  prefix_attention.shared_prefix_attention,
  static_argnames=("group_size", "softcap", "with_logsumexp", "impl"),
)
Part = prefix_attention.Part

B, G, P, C, H, K, D = 2, 3, 5, 6, 4, 2, 8
N = B * G
PROMPT = jnp.array([[False, True, True, True, True], [True] * 5])
LENGTH = jnp.array([6, 0, 1, 3, 6, 2], jnp.int32)


def operands(dtype=jnp.float32, group=G, kv_heads=K):
  """q, prompt_k, prompt_v, k, v."""
  rows = N // group if group == 1 else B
  shared, own = (rows, P, kv_heads, D), (rows * group, C, kv_heads, D)
  shapes = ((rows * group, H, D), shared, shared, own, own)
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return [
    jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)
  ]


def attention(q, pk, pv, k, v, *, prompt=PROMPT, length=LENGTH, **knobs):
  return shared_prefix_attention(
    *(q, pk, pv, prompt, k, v, length), **{"group_size": G} | knobs
  )


def concatenated(
  q, pk, pv, k, v, *, prompt=PROMPT, length=LENGTH, softcap=None
):
  """One cache a row, one softmax, by NumPy in float64; (out, logsumexp)."""
  q, pk, pv, k, v = (np.asarray(x, np.float64) for x in (q, pk, pv, k, v))
  group, share = len(q) // len(pk), q.shape[1] // k.shape[2]
  k, v = (
    np.concatenate([np.repeat(a, group, 0), b], 1).repeat(share, 2)
    for a, b in ((pk, k), (pv, v))
  )
  own = np.arange(C)[None] < np.asarray(length)[:, None]
  ok = np.concatenate([np.repeat(prompt, group, 0), own], 1)[:, None]
  s = np.einsum("nhd,nshd->nhs", q, k) * D**-0.5
  s = softcap * np.tanh(s / softcap) if softcap else s
  weights = np.where(ok, np.exp(s), 0)
  total = weights.sum(-1)
  out = np.einsum("nhs,nshd->nhd", weights, v) / total[..., None]
  return out, np.log(total)


def tilted(function):
  """A scalar that depends on out and on logsumexp."""

  def loss(args):
    out, lse = function(*args)
    tilt = jax.random.normal(jax.random.key(9), out.shape)
    return (tilt * out).sum() + (tilt[..., 0] * lse).sum()

  return loss


def with_logsumexp(*args, **knobs):
  return attention(*args, with_logsumexp=True, **knobs)


class SharedPrefixTest(chex.TestCase):
  @parameterized.product(kv_heads=(1, 2, 4), softcap=(None, 1.5))
  def test_equals_the_concatenated_cache(self, kv_heads, softcap):
    args = operands(kv_heads=kv_heads)
    ours = with_logsumexp(*args, softcap=softcap)
    expected = concatenated(*args, softcap=softcap)
    for actual, exact in zip(ours, expected, strict=True):
      np.testing.assert_allclose(actual, exact, atol=2e-6)

  def test_bfloat16_rounds_operands_and_weights_only(self):
    args = operands(jnp.bfloat16)
    out, lse = with_logsumexp(*args)
    self.assertEqual((out.dtype, lse.dtype), (jnp.float32, jnp.float32))
    exact = concatenated(*args)
    np.testing.assert_allclose(lse, exact[1], atol=2e-6)
    np.testing.assert_allclose(out, exact[0], atol=8e-3)

  def test_groups_of_one_are_rows_with_their_own_prompts(self):
    q, pk, pv, k, v = operands()
    prompt = jnp.repeat(PROMPT, G, axis=0)
    apart = [jnp.repeat(x, G, axis=0) for x in (pk, pv)]
    np.testing.assert_allclose(
      attention(q, *apart, k, v, prompt=prompt, group_size=1),
      attention(q, pk, pv, k, v),
      atol=2e-6,
    )

  def test_an_empty_suffix_leaves_the_prompt_alone(self):
    q, pk, pv, k, v = operands()
    none = jnp.zeros(N, jnp.int32)
    out = attention(q, pk, pv, k, v, length=none)
    chex.assert_trees_all_equal(
      out, attention(q, pk, pv, 1e4 * k, -v, length=none)
    )
    exact = concatenated(q, pk, pv, k, v, length=none)[0]
    np.testing.assert_allclose(out, exact, atol=2e-6)

  def test_lengths_are_masks_of_prompts_padded_on_the_right(self):
    args = operands()
    length = jnp.array([4, 1], jnp.int32)
    chex.assert_trees_all_equal(
      attention(*args, prompt=length),
      attention(*args, prompt=jnp.arange(P)[None] < length[:, None]),
    )

  def test_left_and_right_padding_agree(self):
    q, pk, pv, k, v = operands()
    turned = [jnp.roll(x, -1, axis=1) for x in (pk, pv)]
    np.testing.assert_allclose(
      attention(q, pk, pv, k, v, prompt=PROMPT.at[1, 0].set(False)),
      attention(q, *turned, k, v, prompt=jnp.array([4, 4], jnp.int32)),
      atol=2e-6,
    )

  def test_rows_of_a_group_may_change_places(self):
    q, pk, pv, k, v = operands()
    order = jnp.array([2, 0, 1, 5, 4, 3])
    turned = attention(
      q[order], pk, pv, k[order], v[order], length=LENGTH[order]
    )
    np.testing.assert_allclose(
      turned, attention(q, pk, pv, k, v)[order], atol=2e-6
    )

  def test_a_row_does_not_see_its_siblings(self):
    q, pk, pv, k, v = operands()
    before = attention(q, pk, pv, k, v)
    after = attention(q.at[0].add(3), pk, pv, k.at[0].add(3), v.at[0].add(3))
    chex.assert_trees_all_equal(before[1:], after[1:])
    self.assertGreater(float(jnp.abs(before[0] - after[0]).max()), 0.1)

  @parameterized.parameters(None, 1.5)
  def test_hidden_keys_are_never_noticed(self, softcap):
    q, pk, pv, k, v = operands()
    hidden = ~PROMPT[..., None, None]
    late = (jnp.arange(C)[None] >= LENGTH[:, None])[..., None, None]

    def run(fill):
      args = [q]
      args += [jnp.where(hidden, fill, x) for x in (pk, pv)]
      args += [jnp.where(late, fill, x) for x in (k, v)]
      loss = tilted(lambda *a: with_logsumexp(*a, softcap=softcap))
      return jax.value_and_grad(loss)(args)

    clean, dirty = run(0.0), run(1e30)
    chex.assert_trees_all_equal(clean, dirty)
    for grad, mask in zip(
      dirty[1][1:], (hidden, hidden, late, late), strict=True
    ):
      self.assertTrue((np.asarray(jnp.where(mask, grad, 0)) == 0).all())

  def test_not_a_number_in_a_hidden_key_does_not_reach_the_weights(self):
    q, pk, pv, k, v = operands()
    bad = pk.at[0, 0].set(jnp.nan), k.at[1].set(jnp.inf)
    chex.assert_trees_all_equal(
      with_logsumexp(q, bad[0], pv, bad[1], v), with_logsumexp(q, pk, pv, k, v)
    )

  @parameterized.parameters(None, 1.5)
  def test_a_row_without_keys_is_zero_and_has_no_gradient(self, softcap):
    args = operands()
    prompt = PROMPT.at[0].set(False)  # row 1 has no own token either

    def run(*args):
      return with_logsumexp(*args, prompt=prompt, softcap=softcap)

    out, lse = run(*args)
    np.testing.assert_array_equal(out[1], np.zeros((H, D)))
    np.testing.assert_array_equal(lse[1], np.full(H, -1e30, np.float32))
    grads = jax.grad(tilted(run))(args)
    chex.assert_tree_all_finite(grads)
    for grad, index in zip(grads, (1, 0, 0, 1, 1), strict=True):
      np.testing.assert_array_equal(grad[index], np.zeros_like(grad[index]))
    self.assertGreater(float(jnp.abs(grads[0][0]).max()), 1e-3)

  @parameterized.parameters(None, 2.0)
  def test_finite_differences_in_float64(self, softcap):
    with jax.enable_x64(True):
      args = operands(jnp.float64)
      loss = tilted(lambda *a: with_logsumexp(*a, softcap=softcap))
      jax.test_util.check_grads(
        loss, (args,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6
      )

  def test_large_scores_do_not_overflow(self):
    q, pk, pv, k, v = operands()
    args = 1e3 * q, pk, pv, k, v
    s = tilted(with_logsumexp)
    chex.assert_tree_all_finite(jax.value_and_grad(s)(args))


class AttendTest(chex.TestCase):
  def parts(self, window):
    """Every query, at its own place, sees `window` places back."""
    q, pk, pv, k, v = operands()
    q = jnp.stack([q, -q, 2 * q], axis=2).reshape(N, K, -1, D)
    place = P + jnp.tile(jnp.arange(q.shape[2]) % 3 + 3, N).reshape(N, -1)
    near_prompt = place[..., None] - jnp.arange(P)[None, None] < window
    age = place[..., None] - (P + jnp.arange(C))[None, None]
    own = (age >= 0) & (age < window)
    prompt = near_prompt.reshape(B, 1, -1, P) & PROMPT[:, None, None]
    return q, (pk, pv, prompt), (k, v, own[:, None])

  @parameterized.product(softcap=(None, 1.5), window=(3, 6, 100))
  def test_windows_agree_with_the_reference(self, softcap, window):
    q, prompt, own = self.parts(window)

    def loss(impl):
      def run(args):
        q, pk, pv, k, v = args
        parts = [
          Part(pk, pv, prompt[2], "skd", "skd"),
          Part(k, v, own[2], "skd", "skd"),
        ]
        out = prefix_attention.attend(
          q, parts, scale=0.4, softcap=softcap, impl=impl
        )
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()

      return jax.jit(jax.value_and_grad(run))

    args = (q, *prompt[:2], *own[:2])
    chex.assert_trees_all_close(
      loss("xla")(args), loss("reference")(args), atol=1e-5, rtol=1e-5
    )

  def test_layouts_are_one_function(self):
    q, prompt, own = self.parts(6)

    def run(k_layout, v_layout):
      def lie(x, layout):
        return jnp.einsum(f"bskd->b{layout}", x)

      parts = [
        Part(lie(k, k_layout), lie(v, v_layout), ok, k_layout, v_layout)
        for k, v, ok in (prompt, own)
      ]
      return jax.jit(lambda: prefix_attention.attend(q, parts, scale=0.4))()

    for layouts in (("ksd", "ksd"), ("kds", "ksd"), ("dks", "skd")):
      np.testing.assert_allclose(run(*layouts), run("skd", "skd"), atol=2e-6)

  def test_the_logsumexp_does_not_change_the_output(self):
    q, prompt, own = self.parts(100)
    parts = [Part(*part, "skd", "skd") for part in (prompt, own)]
    out = prefix_attention.attend(q, parts, scale=0.4)
    both = prefix_attention.attend(q, parts, scale=0.4, with_logsumexp=True)
    np.testing.assert_allclose(out, both[0], atol=1e-6)


def three_parts():
  """(out, logsumexp) of three disjoint sets of keys, and of their union."""
  q, _, _, k, v = operands()
  q = q.reshape(N, K, -1, D)
  ok = jnp.arange(C)[None, None, None]
  sets = (ok < 1, (ok >= 1) & (ok < 4), ok >= 4, ok >= 0)

  def run(allowed):
    part = Part(k, v, allowed, "skd", "skd")
    return prefix_attention.attend(q, [part], scale=1.0, with_logsumexp=True)

  return [run(allowed) for allowed in sets]


class MergeTest(chex.TestCase):
  def test_merging_is_attention_over_the_union(self):
    a, b, c, union = three_parts()
    merge = prefix_attention.merge
    for merged in (
      merge(*merge(*a, *b), *c),
      merge(*a, *merge(*b, *c)),
      merge(*merge(*c, *a), *b),
    ):
      chex.assert_trees_all_close(merged, union, atol=2e-6)

  def test_merging_commutes(self):
    a, b, *_ = three_parts()
    chex.assert_trees_all_close(
      prefix_attention.merge(*a, *b), prefix_attention.merge(*b, *a), atol=1e-6
    )

  @parameterized.parameters(-1e30, -np.inf)
  def test_an_empty_part_changes_no_bit(self, nothing):
    a = three_parts()[0]
    empty = jnp.full_like(a[0], jnp.nan), jnp.full_like(a[1], nothing)
    chex.assert_trees_all_equal(prefix_attention.merge(*a, *empty), a)
    chex.assert_trees_all_equal(prefix_attention.merge(*empty, *a), a)
    grads = jax.grad(tilted(prefix_attention.merge))((*a, *empty))
    for grad in jax.tree.leaves(grads):
      chex.assert_tree_all_finite(grad)
    out, lse = prefix_attention.merge(*empty, *empty)
    np.testing.assert_array_equal(out, np.zeros_like(out))
    np.testing.assert_array_equal(lse, np.full_like(lse, -1e30))

  def test_gradients_of_merged_calls_are_those_of_one(self):
    args = operands()

    def apart(q, pk, pv, k, v):
      nothing = jnp.zeros(N, jnp.int32)
      first = with_logsumexp(q, pk, pv, k, v, length=nothing)
      second = with_logsumexp(q, pk, pv, k, v, prompt=jnp.zeros_like(PROMPT))
      return prefix_attention.merge(*first, *second)

    chex.assert_trees_all_close(
      jax.jit(jax.value_and_grad(tilted(apart)))(args),
      jax.jit(jax.value_and_grad(tilted(with_logsumexp)))(args),
      atol=1e-5,
    )


class RefusalTest(chex.TestCase):
  @parameterized.parameters(
    ({"group_size": 2}, ValueError, "group_size must be N / B = 6 / 2, got 2"),
    ({"softcap": 0.0}, ValueError, "softcap must be positive"),
    ({"impl": "pallas"}, ValueError, "impl is one of"),
    ({"prompt": jnp.ones(3, jnp.int32)}, ValueError, "prompt_mask must be"),
    ({"prompt": jnp.ones((B, P))}, TypeError, "prompt_mask is"),
    ({"length": jnp.ones(N)}, TypeError, "length must be integers"),
    ({"length": jnp.ones(B, jnp.int32)}, ValueError, "length must be of"),
  )
  def test_bad_arguments_are_refused(self, knobs, error, message):
    with self.assertRaisesRegex(error, message):
      attention(*operands(), **knobs)

  def test_heads_that_do_not_divide_are_refused(self):
    q, *rest = operands()
    with self.assertRaisesRegex(ValueError, "K must divide H"):
      attention(q[:, :3], *rest)

  def test_parts_that_do_not_fit_are_refused(self):
    q, *_, k, v = operands()
    q, ok = q.reshape(N, K, -1, D), jnp.ones((1, 1, 1, 1), bool)
    bad = {
      "at least one part": [],
      "order 'ksd'": [Part(k, v, ok, "skx", "skd")],
      "B dividing N": [Part(k[:4], v[:4], ok, "skd", "skd")],
      "at least one key": [Part(k[:, :0], v[:, :0], ok, "skd", "skd")],
      "the same K and d": [Part(k, v, ok)],
    }
    for message, parts in bad.items():
      with self.assertRaisesRegex(ValueError, message):
        prefix_attention.attend(q, parts, scale=1.0)
