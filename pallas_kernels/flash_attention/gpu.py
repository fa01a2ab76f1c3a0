"""cuDNN's attention through jax.nn, where its limits hold.

cuDNN knows causal rows with real tokens first and padding behind. So rows are
turned until their real tokens are first, and a row with branches becomes one
row [prefix | branch] for each of its branches: still linear in the length, but
the prefix is attended once a branch.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import blocks

_NAME = "flash_attention"
_DTYPES = (jnp.bfloat16, jnp.float16)
_LARGEST_HEAD = 128  # beyond it the backward pass needs certain chips


def attend(q, k, v, segments, spec, *, implementation="cudnn"):
  """Returns out [R, L, H, d]; segments are 1 on real tokens, 0 on padding.

  Args:
    q, k, v, segments, spec: see reference.py.
    implementation: that of jax.nn.dot_product_attention, for tests.

  Raises:
    blocks.Unsupported: for other dtypes, head sizes and scores that are capped,
      and where cuDNN is not installed.
  """
  if implementation == "cudnn":
    _check(q, spec)
  pattern = spec.pattern
  if segments is None:
    segments = jnp.ones(q.shape[:2], jnp.int32)
  real = _rows(segments, pattern) > 0
  even = real.shape[1] % 2  # JAX refuses a gradient at an odd length
  real = jnp.pad(real, ((0, 0), (0, even)))
  # Real tokens first, in their order.
  order = jnp.argsort(~real, axis=1, stable=True)
  count = real.sum(axis=1, dtype=jnp.int32)
  first = jnp.arange(real.shape[1])[None] < count[:, None]

  def turned(x):
    x = jnp.pad(_rows(x, pattern), ((0, 0), (0, even), (0, 0), (0, 0)))
    return jnp.take_along_axis(x, order[:, :, None, None], axis=1)

  try:
    out = jax.nn.dot_product_attention(
      *map(turned, (q, k, v)),
      scale=spec.scale,
      is_causal=True,
      query_seq_lengths=count,
      key_value_seq_lengths=count,
      local_window_size=_window(pattern),
      implementation=implementation,
    )
  except (RuntimeError, NotImplementedError) as error:
    raise blocks.Unsupported(f"{_NAME}: {error}") from error
  out = jnp.where(first[:, :, None, None], out, 0)
  back = jnp.argsort(order, axis=1)
  out = jnp.take_along_axis(out, back[:, :, None, None], axis=1)
  out = out[:, : out.shape[1] - even]
  return _packed(out, pattern, q.shape[0])[:, : q.shape[1]]


def _check(q, spec):
  if q.dtype not in _DTYPES or q.shape[3] > _LARGEST_HEAD or q.shape[3] % 8:
    raise blocks.Unsupported(
      f"{_NAME}: cuDNN takes bfloat16 and float16 with heads of a multiple of 8"
      f" up to {_LARGEST_HEAD}, got {q.dtype} and {q.shape[3]}."
    )
  if spec.softcap is not None:
    raise blocks.Unsupported(f"{_NAME}: cuDNN has no cap of the scores.")


def _window(pattern):
  return None if pattern.window is None else (pattern.window - 1, 0)


def _rows(x, pattern):
  """[R, S + G C, ...] -> [R * G, S + C, ...]; causal rows as they are."""
  if not pattern.branch:
    return x
  prefix, own = x[:, : pattern.prefix], x[:, pattern.prefix :]
  padding = -own.shape[1] % pattern.branch
  own = jnp.pad(own, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
  own = own.reshape(-1, pattern.branch, *x.shape[2:])
  group = own.shape[0] // x.shape[0]
  return jnp.concatenate([jnp.repeat(prefix, group, axis=0), own], axis=1)


def _packed(x, pattern, rows):
  """The inverse of _rows, its last branch whole."""
  if not pattern.branch:
    return x
  group = x.shape[0] // rows
  own = x[:, pattern.prefix :].reshape(rows, -1, *x.shape[2:])
  return jnp.concatenate([x[::group, : pattern.prefix], own], axis=1)
