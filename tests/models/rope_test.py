"""Rotary positions: turning preserves lengths and sees only distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import api, rope

_LLAMA3 = api.RopeScaling(kind="llama3", factor=8.0, original_positions=1024)
_YARN = api.RopeScaling(kind="yarn", factor=4.0, original_positions=1024)
_LINEAR = api.RopeScaling(kind="linear", factor=4.0)


def _turned(x, positions, scaling=None):
  positions = jnp.full(x.shape[:2], positions)
  turns = rope.tables(positions, x.shape[-1], 10_000.0, scaling)
  return rope.rotate(x, turns)


@pytest.mark.parametrize("scaling", (None, _LINEAR, _LLAMA3))
def test_length_is_kept_and_only_distance_matters(scaling):
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 32))
  np.testing.assert_allclose(
    jnp.linalg.norm(_turned(q, 77, scaling), axis=-1),
    jnp.linalg.norm(q, axis=-1),
    rtol=1e-5,
  )
  near = (_turned(q, 9, scaling) * _turned(k, 2, scaling)).sum(-1)
  far = (_turned(q, 109, scaling) * _turned(k, 102, scaling)).sum(-1)
  np.testing.assert_allclose(near, far, atol=1e-4)
  np.testing.assert_array_equal(_turned(q, 0, scaling), q)


def test_two_dimensions_turn_by_the_position():
  x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
  np.testing.assert_allclose(
    _turned(x, 2).reshape(2), [np.cos(2.0), np.sin(2.0)], rtol=1e-6
  )


def test_linear_divides_positions():
  x = jax.random.normal(jax.random.key(0), (1, 1, 2, 32))
  np.testing.assert_allclose(_turned(x, 40, _LINEAR), _turned(x, 10), atol=1e-5)


@pytest.mark.parametrize("scaling", (_LLAMA3, _YARN))
def test_short_waves_are_kept_and_long_ones_stretched(scaling):
  plain, _ = rope.frequencies(64, 10_000.0)
  stretched, _ = rope.frequencies(64, 10_000.0, scaling)
  assert stretched.dtype == np.float32
  ratio = plain / stretched
  np.testing.assert_allclose(ratio[0], 1.0)
  np.testing.assert_allclose(ratio[-1], scaling.factor, rtol=1e-6)
  assert (np.diff(ratio) > -1e-5).all()
  between = (ratio > 1.01) & (ratio < scaling.factor - 0.01)
  assert 2 <= between.sum() < 20


def test_yarn_makes_cosine_and_sine_longer():
  assert rope.frequencies(64, 1e4, _YARN)[1] == pytest.approx(
    0.1 * np.log(4) + 1
  )
  given = api.RopeScaling(kind="yarn", factor=4.0, attention_factor=1.5)
  assert rope.frequencies(64, 1e4, given)[1] == 1.5
  x = jnp.ones((1, 1, 1, 64))
  np.testing.assert_allclose(_turned(x, 0, given), 1.5 * x, rtol=1e-6)


def test_wrong_settings_are_one_line():
  with pytest.raises(ValueError, match="head_dim must be even, got 7"):
    rope.frequencies(7, 1e4)
  with pytest.raises(ValueError, match="linear, llama3, yarn, got 'ntk'"):
    rope.frequencies(8, 1e4, api.RopeScaling(kind="ntk", factor=2.0))
