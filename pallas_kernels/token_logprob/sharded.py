"""Token log-probabilities where each device holds a slice of the vocabulary.

Every device runs the op on its own rows of the head and three numbers a token
are merged, so neither the logits nor the head are ever gathered. With the
local lse_i, entropy H_i and target logit t_i (0 where the target is elsewhere)

  M = pmax lse_i;  s_i = e^(lse_i - M);  S = psum s_i
  logsumexp = M + log S;  logprob = psum t_i - logsumexp
  entropy = log S + psum(s_i (H_i - lse_i + M)) / S

The gradient is plain autodiff of these lines: it hands the local op the
cotangents of all three of its results.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.token_logprob import api


def token_logprob_sharded(
  hidden: jax.Array,
  head_shard: jax.Array,
  targets: jax.Array,
  *,
  axis_name: str | tuple[str, ...],
  vocab: int | None = None,
  head_layout: str = "vd",
  mask: jax.Array | None = None,
  with_entropy: bool = True,
  impl: str | None = None,
  **options: Any,
) -> api.TokenLogprob:
  """token_logprob with the head split over a mesh axis, inside shard_map.

  Equals token_logprob on the concatenated shards. Communicates one pmax and
  three psums of [N] numbers (two without entropy) whatever D and V are, and
  its gradient one psum of [N, D]. Memory is that of the local op on V / n
  rows.

  Take gradients under jit, and outside of shard_map or inside of one with
  check_vma=True; inside of one with check_vma=False JAX's own transpose of
  psum counts each device again.

  A head that is split over its width as well (FSDP) is gathered along it
  before the call, in the dtype of the products.

  Args:
    hidden: [N, D], the same on all devices of the axis; other mesh axes may
      split N.
    head_shard: [V / n, D], or [D, V / n] when head_layout is "dv": the rows
      that follow those of the previous device of the axis.
    targets: [N] integer ids of the whole vocabulary. An id outside [0, V)
      matches nothing.
    axis_name: mesh axis (or axes) of n devices that splits the vocabulary.
    vocab: V where n does not divide it and the last rows are padding: pad the
      head to n * ceil(V / n) rows. Rows from V on match no target, carry no
      mass and get a gradient of exactly 0, whatever they hold. None: all rows
      count. Each device then works on two slices of its shard, the second as
      long as the padding, at the price of a copy of the shard.
    head_layout: "vd" or "dv".
    mask: [N]; as in token_logprob.
    with_entropy: False saves its work and its psum.
    impl: see dispatch.py.
    **options: other keywords of token_logprob.

  Returns:
    TokenLogprob, the same on all devices of the axis.

  Raises:
    ValueError: if vocab is not in [1, n V_shard], or token_logprob refuses.

  References:
    Shoeybi et al. 2019, arXiv:1909.08053 (vocabulary-parallel cross entropy).
  """
  axis = 0 if head_layout == "vd" else 1
  size = head_shard.shape[axis]
  total = size * jax.lax.axis_size(axis_name)
  if vocab is not None and not 1 <= vocab <= total:
    raise ValueError(
      f"vocab must be in [1, {total}], the rows of all shards, got {vocab}."
    )
  targets = targets - jax.lax.axis_index(axis_name) * size
  hidden, head_shard, targets = _as_varying(hidden, head_shard, targets, mask)
  parts = []
  for start, stop, real in _pieces(size, total, vocab, axis_name):
    weights = jax.lax.slice_in_dim(head_shard, start, stop, axis=axis)
    if real is not None:
      weights = jnp.where(real, weights, 0)
    out = api.token_logprob(
      hidden,
      weights,
      targets - start,
      head_layout=head_layout,
      mask=mask,
      with_entropy=with_entropy,
      # Padding is a handful of rows: no kernel wants them.
      impl=impl if start == 0 or impl == "reference" else "xla",
      **options,
    )
    found = (targets >= start) & (targets < stop)
    parts.append(_without_padding(out, found, real))
  return _merge(parts, axis_name, mask)


def _pieces(size, total, vocab, axis_name):
  """(start, stop, real) of slices of a shard; real: are its rows vocabulary?

  The slices are the same on every device and each is all vocabulary or all
  padding, which the device's index decides; None where it is never padding.
  """
  if vocab is None or vocab == total:
    return [(0, size, None)]
  first = jax.lax.axis_index(axis_name) * size
  cuts = (0, vocab % size, size) if vocab % size else (0, size)
  return [
    (start, stop, first + stop <= vocab)
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True)
  ]


def _without_padding(out, found, real):
  """Target logit, entropy and logsumexp of a slice; padding has no mass.

  Its logsumexp is finite all the same: no gradient may be NaN. Its rows are
  zeros by now, so that a target among them has logit 0 as it should.
  """
  logprob, entropy, logsumexp = out
  if real is not None:
    logsumexp = jnp.where(real, logsumexp, -1e30)
  return jnp.where(found, logprob + out.logsumexp, 0), entropy, logsumexp


def _merge(parts, axis_name, mask):
  """The module's equations; one pmax and one psum of two or three [N]."""
  logits, entropies, logsumexps = zip(*parts, strict=True)
  top = jax.lax.stop_gradient(jnp.stack(logsumexps).max(axis=0))
  top = jax.lax.pmax(top, axis_name)
  masses = [jnp.exp(lse - top) for lse in logsumexps]
  moment = None
  if entropies[0] is not None:
    moment = sum(
      jnp.where(mass > 0, mass * (entropy - (lse - top)), 0)
      for mass, entropy, lse in zip(masses, entropies, logsumexps, strict=True)
    )
  chosen, total, moment = jax.lax.psum(
    (sum(logits), sum(masses), moment), axis_name
  )
  logsumexp = top + jnp.log(total)
  entropy = None if moment is None else jnp.log(total) + moment / total
  out = chosen - logsumexp, entropy, logsumexp
  if mask is not None:
    zero = lambda x: jnp.where(mask.astype(bool), x, 0)  # noqa: E731
    out = jax.tree.map(zero, out)
  return api.TokenLogprob(*out)


def _as_varying(hidden, head, targets, mask):
  """Marks all as varying over every mesh axis that one of them varies over.

  A custom vjp must return gradients of the type of its arguments; the
  transpose of the mark sums them over the axis. Without check_vma nothing is
  marked and shard_map itself sums.
  """
  arrays = [x for x in (hidden, head, targets, mask) if x is not None]
  types = [jax.typeof(x).manual_axis_type.varying for x in arrays]
  every = frozenset().union(*types)

  def mark(x, varying):
    missing = tuple(sorted(every - varying))
    return jax.lax.pcast(x, missing, to="varying") if missing else x

  return tuple(map(mark, arrays[:3], types[:3]))
