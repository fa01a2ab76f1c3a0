"""Drawn distributions, kept sets, edges of the noise, lowering and memory."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, sampling, token_logprob
from pallas_kernels.sampling import noise, reference, xla

ALMOST_ONE = np.float32(1 - 2**-24)
ALL = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.02}
RULES = ({}, {"top_k": 5}, {"top_p": 0.8}, ALL)
DRAWS = [
  {"method": method, **rule}
  for method in ("inverse", "gumbel")
  for rule in RULES
]


def random_logits(rows, vocab, seed=0, scale=2.0):
  rng = np.random.default_rng(seed)
  return (scale * rng.normal(size=(rows, vocab))).astype(np.float32)


def keys(rows, seed=0):
  return sampling.row_keys(jax.random.key(seed), jnp.arange(rows))


def draw(logits, noise, **knobs):
  return jax.jit(functools.partial(sampling.sample, **knobs))(logits, noise)


def distribution(logits, **knobs):
  """[V] probabilities of one row, from the defining lines in float64."""
  knobs = dict(knobs)
  knobs.pop("method", None)
  temperature = knobs.pop("temperature", 1)
  with jax.enable_x64(True):
    z = jnp.asarray(logits[None].astype(np.float64)) / temperature
    keep = reference.kept(z, xla.Spec(**knobs))
    return np.asarray(jax.nn.softmax(jnp.where(keep, z, -jnp.inf), axis=1))[0]


class DistributionTest(chex.TestCase):
  @parameterized.parameters(*DRAWS)
  def test_frequencies_are_the_probabilities(self, **knobs):
    logits, count = random_logits(1, 300), 20_000
    expected = distribution(logits[0], **knobs)
    many = np.repeat(logits, count, axis=0)
    token = np.asarray(draw(many, keys(count), **knobs).token)
    seen = np.bincount(token, minlength=300)
    self.assertEqual(seen[expected == 0].sum(), 0)
    likely = expected * count >= 5
    chi = (seen - expected * count)[likely] ** 2 / (expected * count)[likely]
    # Mean `freedom`, variance 2 freedom: five standard deviations.
    freedom = likely.sum() - 1
    self.assertLess(chi.sum(), freedom + 5 * np.sqrt(2 * freedom) + 5)
    # Its mean is at most sqrt(support / (2 pi n)) and, by McDiarmid's
    # inequality, it exceeds that by 2 / sqrt(n) once in e^8 times.
    variation = np.abs(seen / count - expected).sum() / 2
    mean = np.sqrt((expected > 0).sum() / (2 * np.pi * count))
    self.assertLess(variation, mean + 2 / np.sqrt(count))

  def test_gumbel_noise_has_its_quantiles_and_a_long_upper_tail(self):
    # P(g > x) = 1 - e^(-e^-x), and small u give large g.
    u = np.array([1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999])
    bits = np.round(u * 2**32 - 0.5).astype(np.uint32)
    u = (bits.astype(np.float64) + 0.5) / 2**32
    g = noise.gumbel_of_bits(jnp.asarray(bits), jnp.float32)
    np.testing.assert_allclose(g, -np.log(-np.log1p(-u)), rtol=3e-6, atol=1e-6)
    ends = jnp.asarray([0, 2**32 - 1], jnp.uint32)
    top, bottom = np.asarray(noise.gumbel_of_bits(ends, jnp.float32))
    self.assertGreater(top, 22.8)
    self.assertTrue(-3 < bottom < -2)

  def test_keys_give_the_uniforms_of_the_inverse_method(self):
    logits = random_logits(16, 300)
    by_keys = draw(logits, keys(16))
    by_uniforms = draw(logits, noise.uniforms(keys(16)))
    chex.assert_trees_all_equal(by_keys, by_uniforms)


class RowTest(chex.TestCase):
  @parameterized.parameters(*DRAWS)
  def test_a_row_depends_on_itself_only(self, **knobs):
    logits, noises = random_logits(9, 1003), keys(9)
    step = jax.jit(functools.partial(sampling.sample, **knobs))
    together = step(logits, noises)
    order = np.random.default_rng(0).permutation(9)
    moved = step(logits[order], noises[order])
    chex.assert_trees_all_equal(
      jax.tree.map(lambda x: x[order], together), moved
    )
    others = np.where(np.arange(9)[:, None] == 4, logits, -7 * logits)
    near = step(others, noises)
    chex.assert_trees_all_equal(*([a[4] for a in x] for x in (together, near)))
    alone = step(logits[4:5], noises[4:5])
    self.assertEqual(int(alone.token[0]), int(together.token[4]))
    np.testing.assert_allclose(alone.logprob[0], together.logprob[4], atol=1e-6)

  def test_noise_of_an_entry_does_not_depend_on_the_vocabulary(self):
    short, long = (noise.gumbel(keys(2), v, jnp.float32) for v in (5, 300))
    np.testing.assert_array_equal(short, long[:, :5])

  def test_temperature_may_be_traced_and_differ_by_row(self):
    logits, noises = random_logits(4, 300), keys(4)
    temperatures = jnp.asarray([0.5, 1.0, 2.0, 4.0])

    @jax.jit
    def step(temperature):
      return sampling.sample(logits, noises, temperature=temperature, top_k=9)

    many = step(temperatures)
    for row, temperature in enumerate((0.5, 1.0, 2.0, 4.0)):
      chex.assert_trees_all_equal(
        [a[row] for a in many], [a[row] for a in step(temperatures[row])]
      )
      fixed = draw(logits, noises, temperature=temperature, top_k=9)
      self.assertEqual(int(fixed.token[row]), int(many.token[row]))
      np.testing.assert_allclose(
        fixed.logprob[row], many.logprob[row], atol=1e-6
      )

  @parameterized.parameters({}, ALL, {"method": "gumbel", **ALL})
  def test_logprobs_are_those_of_the_kept_set_and_of_token_logprob(
    self, **knobs
  ):
    logits = random_logits(8, 64, scale=1.0)
    out = draw(logits, keys(8), **knobs)
    full = token_logprob.token_logprob(
      jnp.asarray(logits),
      jnp.eye(64),
      out.token,
      inv_temperature=1 / knobs.get("temperature", 1),
    )
    np.testing.assert_allclose(out.logprob_untruncated, full.logprob, atol=2e-6)
    for row, token in enumerate(np.asarray(out.token)):
      p = distribution(logits[row], **knobs)[token]
      np.testing.assert_allclose(out.logprob[row], np.log(p), atol=2e-6)


class ThresholdTest(chex.TestCase):
  @parameterized.product(
    dtype=("float32", "bfloat16"),
    vocab=(128, 1003),
    rule=({"top_k": 7}, {"top_p": 0.6}, {"top_k": 50, "top_p": 0.8}),
  )
  def test_both_searches_keep_what_a_sort_keeps(self, dtype, vocab, rule):
    logits = jnp.asarray(random_logits(16, vocab), dtype).astype(jnp.float32)
    relative = logits - logits.max(axis=1, keepdims=True)
    spec = xla.Spec(**rule)
    expected = np.asarray(reference.kept(relative, spec))
    searches = [xla.by_bisection]
    if "top_k" in rule:
      searches.append(xla.by_top_k)
    for search in searches:
      threshold = np.asarray(jax.jit(search, static_argnums=1)(relative, spec))
      kept = np.asarray(relative) >= threshold[:, None]
      np.testing.assert_array_equal(kept, expected)
      # The threshold is an entry of the row: nothing lies between.
      self.assertTrue((np.asarray(relative) == threshold[:, None]).any(1).all())

  @parameterized.parameters({"top_k": 2}, {"top_p": 0.6})
  def test_ties_at_the_threshold_are_all_kept_by_both(self, **rule):
    relative = jnp.asarray([[0.0, -1.0, -1.0, -1.0, -2.0]])
    threshold = xla.by_bisection(relative, xla.Spec(**rule))
    np.testing.assert_array_equal(threshold, [-1])
    both = xla.Spec(**{"top_k": 2, **rule})
    np.testing.assert_array_equal(xla.by_top_k(relative, both), [-1])
    uniforms = np.random.default_rng(0).random((500, 2), dtype=np.float32)
    many = jnp.repeat(relative, 500, axis=0)
    np.testing.assert_array_equal(
      np.unique(draw(many, uniforms, **rule).token), [0, 1, 2, 3]
    )

  def test_ties_beyond_the_k_th_count_in_the_mass(self):
    # 1 + 4/e = 2.47 in all; 0.7 of it is beyond the mode and one of the ties.
    relative = jnp.asarray([[0.0, -1.0, -1.0, -1.0, -1.0]])
    for p, expected in ((0.4, 0), (0.7, -1), (0.99, -1)):
      spec = xla.Spec(top_k=2, top_p=p)
      for search in (xla.by_bisection, xla.by_top_k):
        np.testing.assert_array_equal(search(relative, spec), [expected])

  def test_what_is_off_changes_nothing(self):
    logits, noises = random_logits(8, 300), keys(8)
    off = draw(logits, noises, top_k=300, top_p=1.0, min_p=0.0)
    chex.assert_trees_all_equal(off, draw(logits, noises))
    np.testing.assert_array_equal(off.logprob, off.logprob_untruncated)


class EdgeTest(chex.TestCase):
  @parameterized.parameters(1, 127, 128, 129, 1003, 32003)
  def test_no_noise_leaves_the_support(self, vocab):
    edges = [0, 2**-24, 0.5, ALMOST_ONE]
    uniforms = np.array([[a, b] for a in edges for b in edges], np.float32)
    logits = np.repeat(random_logits(1, vocab, seed=1), 16, axis=0)
    if vocab > 2:
      logits[:, [0, vocab - 1]] = -np.inf
      logits[:, vocab // 2] = -200.0  # underflows to probability 0
    for knobs in ({}, ALL, {"method": "gumbel"}):
      noises = keys(16) if "method" in knobs else uniforms
      out = draw(logits, noises, **knobs)
      token = np.asarray(out.token)
      self.assertTrue(((token >= 0) & (token < vocab)).all())
      drawn = np.take_along_axis(logits, token[:, None], axis=1)
      self.assertGreater(drawn.min(), -100)
      self.assertTrue(np.isfinite(out.logprob).all())
      self.assertEqual(out.token.dtype, jnp.int32)

  @parameterized.product(
    knobs=({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}),
    method=("inverse", "gumbel"),
  )
  def test_the_tightest_truncation_is_greedy(self, knobs, method):
    logits = random_logits(16, 500)
    out = draw(logits, keys(16), method=method, temperature=0.7, **knobs)
    best = sampling.sample(logits, greedy=True, temperature=0.7)
    np.testing.assert_array_equal(best.token, logits.argmax(axis=1))
    np.testing.assert_array_equal(out.token, best.token)
    np.testing.assert_array_equal(best.logprob, np.zeros(16))
    np.testing.assert_allclose(
      out.logprob_untruncated, best.logprob_untruncated, atol=1e-6
    )

  @parameterized.parameters(
    ({"temperature": 0.0}, ValueError, "temperature must be positive, got 0.0"),
    ({"temperature": jnp.ones(3)}, ValueError, "scalar or .B. .2,., got .3,."),
    ({"top_k": 0}, ValueError, "top_k must be at least 1 or None .off., got 0"),
    ({"top_p": 0.0}, ValueError, "top_p must be in .0, 1"),
    ({"min_p": 1.5}, ValueError, "min_p must be in .0, 1"),
    ({"method": "sort"}, ValueError, "method is one of .*, got 'sort'"),
    ({"method": "gumbel"}, ValueError, "needs keys as noise, got uniforms"),
    ({"noise": None}, ValueError, "noise is .* unless greedy=True"),
    (
      {"noise": np.zeros((2, 3), np.float32)},
      ValueError,
      "must be .2, 2., got",
    ),
    ({"noise": np.zeros((2, 2), np.uint32)}, TypeError, "typed keys"),
    ({"noise": jax.random.key(0)}, ValueError, "sampling.row_keys"),
    ({"logits": np.zeros((2, 0), np.float32)}, ValueError, "not empty"),
    ({"impl": "pallas"}, ValueError, "impl is one of"),
  )
  def test_bad_arguments_are_refused(self, wrong, error, message):
    good = {
      "logits": np.zeros((2, 5), np.float32),
      "noise": np.zeros((2, 2), np.float32),
    }
    with self.assertRaisesRegex(error, message):
      sampling.sample(**(good | wrong))


class LoweringTest(chex.TestCase):
  @parameterized.parameters(*DRAWS)
  def test_lowers_for_cuda(self, **knobs):
    def step(logits):
      return sampling.sample(logits, keys(4), **knobs)

    logits = jax.ShapeDtypeStruct((4, 32003), jnp.bfloat16)
    jax.jit(step).trace(logits).lower(lowering_platforms=("cuda",))

  @parameterized.parameters(
    ("v5e", "gumbel"),
    ("v5e", "inverse"),
    ("v5p", "inverse"),
    ("v6e", "inverse"),
  )
  @pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
  def test_neither_a_distribution_nor_its_noise_is_held_on(self, chip, method):
    def step(logits, data, temperature):
      return sampling.sample(
        logits,
        jax.random.wrap_key_data(data, impl="threefry2x32"),
        temperature=temperature,
        top_k=50,
        top_p=0.95,
        method=method,
      )

    logits = jax.ShapeDtypeStruct((256, 151936), jnp.float32)
    data = jax.ShapeDtypeStruct((256, 2), jnp.uint32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    compiled = aot.compile_for(chip, step, logits, data, scalar)
    held = compiled.memory_analysis().temp_size_in_bytes
    # v5p copies the chunk whose blocks are summed; v5e and v6e hold 0.3 MiB.
    self.assertLess(held, 1.2 * 256 * xla.CHUNK * 4)
