"""Sampling rules against a sort, a histogram and the edges of the uniforms."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.rollout import sampling

ALMOST_ONE = np.float32(1 - 2**-24)


def random_logits(rows, vocab, scale=3.0, seed=0):
  rng = np.random.default_rng(seed)
  return (scale * rng.normal(size=(rows, vocab))).astype(np.float32)


def random_uniforms(rows, seed=0):
  rng = np.random.default_rng(seed)
  return rng.random((rows, 2), dtype=np.float32)


def grid(blocks, lanes):
  """Mid-points of [0, 1) x [0, 1): the whole range of the two uniforms."""
  lines = [(np.arange(n, dtype=np.float32) + 0.5) / n for n in (blocks, lanes)]
  return np.stack(np.meshgrid(*lines), axis=-1).reshape(-1, 2)


def sorted_distribution(logits, temperature=1, top_k=0, top_p=1, min_p=0):
  """One row's probabilities, truncated in float64 with a full sort."""
  z = logits.astype(np.float64) / temperature
  keep = np.ones(len(z), bool)
  if top_k:
    keep &= z >= np.sort(z)[::-1][min(top_k, len(z)) - 1]
  p = np.where(keep, np.exp(z - z.max()), 0)
  p /= p.sum()
  if top_p < 1:
    order = np.argsort(-p, kind="stable")
    count = np.searchsorted(np.cumsum(p[order]), top_p) + 1
    keep &= p >= p[order][min(count, len(p)) - 1]
  keep &= p >= min_p * p.max()
  p = np.where(keep, p, 0)
  return p / p.sum()


RULES = (
  dict(),
  dict(temperature=0.6),
  dict(top_k=5),
  dict(top_p=0.8),
  dict(min_p=0.1),
  dict(temperature=1.5, top_k=40, top_p=0.9, min_p=0.02),
)


class SamplingTest(chex.TestCase):
  @parameterized.parameters(*RULES)
  def test_frequencies_are_the_probabilities(self, **rule):
    logits = random_logits(1, 300, scale=2.0)
    expected = sorted_distribution(logits[0], **rule)
    count = 20_000
    draw = jax.jit(sampling.make_rule(**rule))
    many = np.repeat(logits, count, axis=0)
    token = np.asarray(draw(many, random_uniforms(count)).token)
    seen = np.bincount(token, minlength=300)
    self.assertEqual(seen[expected == 0].sum(), 0)
    likely = expected * count >= 5
    chi = (seen - expected * count)[likely] ** 2 / (expected * count)[likely]
    # Mean `freedom`, variance 2 freedom: five standard deviations.
    freedom = likely.sum() - 1
    self.assertLess(chi.sum(), freedom + 5 * np.sqrt(2 * freedom) + 5)

  @parameterized.parameters(*RULES)
  def test_kept_set_and_logprobs_equal_those_of_a_sort(self, **rule):
    logits = random_logits(1, 150, scale=0.5, seed=3)
    expected = sorted_distribution(logits[0], **rule)
    full = sorted_distribution(logits[0], rule.get("temperature", 1))
    uniforms = grid(16, 2000)
    many = np.repeat(logits, len(uniforms), axis=0)
    out = jax.tree.map(
      np.asarray, jax.jit(sampling.make_rule(**rule))(many, uniforms)
    )
    tokens, first = np.unique(out.token, return_index=True)
    np.testing.assert_array_equal(tokens, np.flatnonzero(expected))
    logprob = out.logprob[first]
    np.testing.assert_allclose(logprob, np.log(expected[tokens]), atol=2e-6)
    np.testing.assert_allclose(
      out.logprob_full[first], np.log(full[tokens]), atol=2e-6
    )
    np.testing.assert_allclose(np.exp(logprob).sum(), 1, atol=1e-5)

  @parameterized.parameters(*RULES)
  def test_a_row_depends_on_itself_only(self, **rule):
    logits, uniforms = random_logits(9, 1003), random_uniforms(9)
    draw = jax.jit(sampling.make_rule(**rule))
    together = draw(logits, uniforms)
    order = np.random.default_rng(0).permutation(9)
    moved = draw(logits[order], uniforms[order])
    np.testing.assert_array_equal(together.token[order], moved.token)
    np.testing.assert_array_equal(together.logprob[order], moved.logprob)
    for row in range(9):
      alone = draw(logits[row : row + 1], uniforms[row : row + 1])
      self.assertEqual(int(alone.token[0]), int(together.token[row]))
      np.testing.assert_allclose(
        alone.logprob[0], together.logprob[row], atol=1e-6
      )

  @parameterized.parameters(1, 7, 128, 1003)
  def test_extreme_uniforms_stay_inside_the_support(self, vocab):
    edges = [0, 2**-24, 0.5, ALMOST_ONE]
    uniforms = np.array([[a, b] for a in edges for b in edges], np.float32)
    logits = np.repeat(random_logits(1, vocab, seed=1), len(uniforms), axis=0)
    if vocab > 2:
      logits[:, [0, vocab - 1]] = -np.inf
      logits[:, vocab // 2] = -200.0  # underflows to probability 0
    for rule in RULES:
      out = sampling.make_rule(**rule)(logits, uniforms)
      token = np.asarray(out.token)
      self.assertTrue(((token >= 0) & (token < vocab)).all())
      drawn = np.take_along_axis(logits, token[:, None], axis=1)
      self.assertGreater(drawn.min(), -100)
      self.assertTrue(np.isfinite(out.logprob).all())

  def test_equal_logits_cover_a_ragged_vocabulary_evenly(self):
    # 129 entries: the second block has one token of probability 1/129.
    uniforms = grid(129, 256)
    logits = np.zeros((len(uniforms), 129), np.float32)
    token = sampling.make_rule()(logits, uniforms).token
    seen = np.bincount(np.asarray(token), minlength=129) / len(uniforms)
    np.testing.assert_allclose(seen, 1 / 129, rtol=1e-3)

  def test_ties_at_the_threshold_are_all_kept(self):
    logits = np.array([[2.0, 1.0, 1.0, 1.0, 0.0]], np.float32)
    uniforms = grid(2, 500)
    many = np.repeat(logits, len(uniforms), axis=0)
    for rule in (dict(top_k=2), dict(top_p=0.6)):
      token = sampling.make_rule(**rule)(many, uniforms).token
      np.testing.assert_array_equal(np.unique(token), [0, 1, 2, 3])

  @parameterized.parameters(dict(top_k=1), dict(top_p=1e-6), dict(min_p=1.0))
  def test_the_tightest_truncation_is_greedy(self, **rule):
    logits, uniforms = random_logits(16, 500), random_uniforms(16)
    out = sampling.make_rule(**rule)(logits, uniforms)
    best = sampling.make_rule(greedy=True)(logits, uniforms)
    np.testing.assert_array_equal(out.token, best.token)
    np.testing.assert_array_equal(best.token, logits.argmax(axis=1))
    np.testing.assert_allclose(out.logprob, 0, atol=1e-6)
    np.testing.assert_array_equal(best.logprob, np.zeros(16))
    np.testing.assert_allclose(out.logprob_full, best.logprob_full, atol=1e-6)

  def test_without_truncation_the_two_logprobs_agree_with_softmax(self):
    logits, uniforms = random_logits(8, 3000), random_uniforms(8)
    out = sampling.make_rule(temperature=0.5)(logits, uniforms)
    expected = jax.nn.log_softmax(logits / 0.5, axis=1)
    expected = jnp.take_along_axis(expected, out.token[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(out.logprob, out.logprob_full)
    np.testing.assert_allclose(out.logprob, expected, atol=2e-6)

  @parameterized.parameters(
    (dict(temperature=0.0), "temperature must be positive, got 0.0"),
    (dict(top_k=-1), "top_k must be 0 .off. or more, got -1"),
    (dict(top_p=0.0), "top_p must be in .0, 1"),
    (dict(min_p=1.5), "min_p must be in .0, 1"),
  )
  def test_bad_settings_are_refused(self, rule, message):
    with self.assertRaisesRegex(ValueError, message):
      sampling.make_rule(**rule)
