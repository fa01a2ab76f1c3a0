"""The noise of a draw: a function of the row's own key and of nothing else.

Threefry hashes (key, index) alone, so the noise of a vocabulary entry depends
neither on the other rows nor on the size of the vocabulary.
"""

import jax
import jax.numpy as jnp


def row_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
  """One key a row, from (key, id) alone.

    key_i = fold_in(key, id_i)

  Args:
    key: a typed key, jax.random.key(seed). Never use it again.
    ids: [B] integers that name the rows, distinct for one key: a sample's own
      number, not its place in the batch, if draws must not depend on that.

  Returns:
    [B] typed keys.
  """
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


def uniforms(keys: jax.Array) -> jax.Array:
  """[B, 2] float32 uniforms in [0, 1) from [B] keys."""
  return jax.vmap(lambda key: jax.random.uniform(key, (2,), jnp.float32))(keys)


def gumbel(keys: jax.Array, vocab: int, dtype) -> jax.Array:
  """[B, V] standard Gumbel variables from [B] keys."""
  bits = jax.vmap(lambda key: jax.random.bits(key, (vocab,), jnp.uint32))(keys)
  return gumbel_of_bits(bits, dtype)


def gumbel_of_bits(bits: jax.Array, dtype) -> jax.Array:
  """Standard Gumbel variables from 32 random bits each.

    u = (bits + 1/2) / 2^32;  g = -log(-log(1 - u))

  Large g come from small u, which a float resolves finely: the largest g is
  22.9. From a float uniform of step 2^-23 it would be 15.9, and a token whose
  logit lies further than that below the mode's could hardly ever be drawn,
  though a vocabulary has many of them.
  """
  u = (bits.astype(dtype) + 0.5) * 2.0**-32
  # float32 rounds the largest values to 1, where g is -inf.
  u = jnp.minimum(u, 1 - 2.0**-24)
  return -jnp.log(-jnp.log1p(-u))
