import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.distributed import fingerprint

DTYPES = ("bool", "uint8", "int16", "bfloat16", "float32", "int32", "uint32")


def _array(dtype, shape=(3, 8, 5)):
  bits = jax.random.bits(jax.random.key(0), shape, jnp.uint32)
  if dtype == "bool":
    return bits % 2 == 0
  return (bits.astype(jnp.float32) / 2**26).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_changed_element_anywhere_changes_it(dtype):
  array = np.array(_array(dtype, (2, 3)))
  seen = {int(fingerprint.fingerprint(array))}
  for place in range(array.size):
    other = array.copy()
    bits = other.reshape(-1).view(np.uint8).reshape(array.size, -1)
    bits[place, 0] ^= 1
    seen.add(int(fingerprint.fingerprint(other)))
  assert len(seen) == array.size + 1


def test_the_order_and_the_sign_of_zero_count():
  for one, other in (
    ([1.0, 2.0], [2.0, 1.0]),
    ([0.0, 1.0], [-0.0, 1.0]),
    ([1.0, 0.0], [1.0, 0.0, 0.0]),
  ):
    one, other = map(
      fingerprint.fingerprint, (jnp.array(one), jnp.array(other))
    )
    assert int(one) != int(other)


@pytest.mark.parametrize("spec", [("x",), (None, "x"), (None, None), ()])
def test_a_cut_array_has_the_fingerprint_of_the_whole(spec):
  mesh = jax.make_mesh((4,), ("x",))
  array = _array("bfloat16", (4, 8, 3))
  cut = jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))
  chex.assert_trees_all_equal(
    int(fingerprint.fingerprint(cut)), int(fingerprint.fingerprint(array))
  )


def test_it_is_the_sum_that_it_says():
  def mix(word):
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    return word ^ word >> 16

  array = _array("float32", (3, 4))
  words = np.asarray(array).reshape(-1).view(np.uint32).tolist()
  by_hand = sum(mix(word ^ mix(i)) for i, word in enumerate(words)) % 2**32
  assert int(fingerprint.fingerprint(array)) == by_hand


def test_nan_and_scalars_have_one():
  nan = jnp.array([jnp.nan, jnp.inf])
  assert int(fingerprint.fingerprint(nan)) == int(fingerprint.fingerprint(nan))
  assert int(fingerprint.fingerprint(jnp.int32(7))) != int(
    fingerprint.fingerprint(jnp.int32(8))
  )


def test_a_checksum_sees_every_leaf_and_their_order():
  one, two = _array("float32"), _array("bfloat16")
  trees = (
    {},
    {"a": one},
    {"a": one, "b": two},
    {"a": two, "b": one},
    {"a": one, "b": -two},
    {"a": one, "b": one},
    {"a": one[::-1], "b": two},
  )
  seen = [int(jax.jit(fingerprint.checksum)(tree)) for tree in trees]
  assert len(set(seen)) == len(trees) and seen[0] == 0
  assert int(fingerprint.checksum({"c": one, "d": two})) == seen[2]
