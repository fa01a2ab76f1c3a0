"""Effective rank of hidden states: definition, invariances, prefixes."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import hidden_rank

N, D = 9, 5


def _hidden(seed=0, shape=(N, D)):
  return jax.random.normal(jax.random.key(seed), shape)


def _by_svd(hidden):
  """The definition, in float64."""
  hidden = np.asarray(hidden, np.float64)
  s = np.linalg.svd(hidden - hidden.mean(0), compute_uv=False)
  q = s / (s.sum() + 1e-8)
  return np.exp(-(q * np.log(q + 1e-8)).sum())


_rank = jax.jit(hidden_rank.effective_rank)
_dynamics = jax.jit(
  hidden_rank.rank_dynamics, static_argnames=("stride", "max_length")
)


class EffectiveRankTest(chex.TestCase):
  @parameterized.parameters((9, 5), (5, 9), (2, 4), (40, 3))
  def test_is_that_of_the_singular_values(self, n, d):
    hidden = 3.0 + _hidden(shape=(n, d))
    rank = _rank(hidden, jnp.ones(n, bool))
    np.testing.assert_allclose(rank, _by_svd(hidden), rtol=1e-4)
    self.assertGreaterEqual(float(rank), 1 - 1e-6)
    self.assertLessEqual(float(rank), min(n - 1, d) + 1e-5)

  def test_rotation_translation_and_scale_change_nothing(self):
    hidden, mask = _hidden(), jnp.ones(N, bool)
    turn = jnp.linalg.qr(_hidden(1, (D, D)))[0]
    rank = _rank(hidden, mask)
    for other in (hidden @ turn, hidden + 7.0, 100.0 * hidden, 0.01 * hidden):
      np.testing.assert_allclose(_rank(other, mask), rank, rtol=1e-4)

  def test_orthogonal_directions_of_one_length_are_all_counted(self):
    # +- each axis: centred already, D equal singular values.
    hidden = jnp.concatenate([jnp.eye(D), -jnp.eye(D)])
    rank = _rank(hidden, jnp.ones(2 * D, bool))
    np.testing.assert_allclose(rank, D, rtol=1e-5)

  @parameterized.parameters(0.1, 1e4)
  def test_equal_vectors_have_rank_one_and_one_vector_none(self, size):
    same = jnp.full((N, D), size)
    self.assertEqual(float(_rank(same, jnp.ones(N, bool))), 1.0)
    self.assertEqual(float(_rank(same, jnp.arange(N) < 1)), 0.0)
    self.assertEqual(float(_rank(same, jnp.zeros(N, bool))), 0.0)

  def test_masked_vectors_never_enter(self):
    mask = jnp.arange(N) % 3 != 1
    for junk in (jnp.nan, jnp.inf, 1e30):
      hidden = jnp.where(mask[:, None], _hidden(), junk)
      np.testing.assert_allclose(
        _rank(hidden, mask), _by_svd(_hidden()[np.asarray(mask)]), rtol=1e-4
      )


class DynamicsTest(chex.TestCase):
  def _slow(self, hidden, stride, max_length):
    """ERA, ERV, ER, as the paper has it, in a loop."""
    kept = hidden[-max_length:]
    sizes = range(stride + 1, len(kept) + 1, stride)
    e = [_by_svd(kept[:size]) for size in sizes]
    v = [e[j] - np.mean(e[:j]) for j in range(1, len(e))]
    a = [v[j] - v[j - 1] for j in range(1, len(v))]
    mean = lambda x: np.mean(x) if x else 0.0  # noqa: E731
    return mean(a), mean(v), _by_svd(hidden)

  @parameterized.parameters((2, 30), (3, 12), (1, 8), (11, 30))
  def test_follows_the_loop(self, stride, max_length):
    hidden = _hidden(shape=(3, 23, D))
    mask = jnp.arange(23)[None] < jnp.array([23, 14, 5])[:, None]
    got = _dynamics(hidden, mask, stride=stride, max_length=max_length)
    for row, count in enumerate((23, 14, 5)):
      slow = self._slow(np.asarray(hidden[row, :count]), stride, max_length)
      np.testing.assert_allclose(got[row], slow, atol=2e-4)

  def test_short_rows_have_no_velocity(self):
    hidden = _hidden(shape=(4, 8, D))
    mask = jnp.arange(8)[None] < jnp.array([8, 7, 1, 0])[:, None]
    got = np.asarray(_dynamics(hidden, mask, stride=4, max_length=512))
    np.testing.assert_array_equal(got[:, :2], 0.0)  # shorter than 2 strides + 1
    np.testing.assert_array_equal(got[2:, 2], 0.0)
    # No prefix at all: the stride is longer than any row.
    got = _dynamics(hidden, mask, stride=40, max_length=512)
    np.testing.assert_array_equal(got[:, :2], 0.0)

  def test_holes_are_closed(self):
    hidden, mask = _hidden(shape=(1, 12, D)), jnp.arange(12)[None] % 4 != 2
    closed = hidden[:, np.flatnonzero(mask[0])]
    knobs = {"stride": 2, "max_length": 7}
    np.testing.assert_allclose(
      _dynamics(hidden, mask, **knobs),
      _dynamics(closed, jnp.ones((1, 9), bool), **knobs),
      rtol=1e-4,
    )

  @parameterized.parameters(
    ({"stride": 0}, "stride must be at least 1 token, got 0"),
    ({"max_length": 1}, "max_length must be at least 2 tokens, got 1"),
  )
  def test_what_cannot_be_is_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      hidden_rank.rank_dynamics(
        _hidden(shape=(1, 4, D)), jnp.ones((1, 4), bool), **knobs
      )
