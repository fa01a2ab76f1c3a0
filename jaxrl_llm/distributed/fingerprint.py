"""One number for the bits of an array, the same on every mesh.

Trainer and sampler compare what they hold, and what is read back from a disk
is compared with what was saved without keeping a copy. Each 32-bit word is
mixed with its place, and the results are added modulo 2^32: a sum whose order
does not matter, so an array that is cut over devices or processes has the
fingerprint of the whole one.
"""

from typing import Any

import chex
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


@jax.jit
def fingerprint(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
  """A hash of the bits in their order: 0.0 and -0.0 differ.

    f = sum_i mix(word_i ^ mix(i)) mod 2^32

  One changed word always changes it; of larger damage one case in about 2^32
  goes unseen.

  Args:
    array: bool, or numbers of 8 to 64 bits; on any devices.

  Returns:
    The hash, on all devices of the array.

  References:
    mix is lowbias32 of C. Wellons, Prospecting for Hash Functions, 2018,
    https://nullprogram.com/blog/2018/07/31/.
  """
  chex.assert_is_divisible(8, array.dtype.itemsize)
  words = _words(array)
  place, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    count = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place += count * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  return jnp.sum(_mix(words ^ _mix(place)), dtype=jnp.uint32)


def checksum(tree: Any) -> UInt32[Array, ""]:
  """The fingerprints of all leaves, mixed with their order, in one number.

  Args:
    tree: arrays as in fingerprint(); their names do not count.
  """
  total = jnp.zeros((), jnp.uint32)
  for number, leaf in enumerate(jax.tree.leaves(tree)):
    total += _mix(fingerprint(leaf) + jnp.uint32(number + 1))
  return total


def _words(array: jax.Array) -> jax.Array:
  """The bits as uint32, of 64-bit numbers in two words."""
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  unsigned = _UNSIGNED[array.dtype.itemsize]
  return lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _mix(word: jax.Array) -> jax.Array:
  """A permutation of uint32 in which each bit depends on every other."""
  word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
  word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
  return word ^ (word >> 16)
