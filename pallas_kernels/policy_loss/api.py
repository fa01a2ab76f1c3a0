"""The door: checks and the choice of implementation."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.policy_loss import reference, token_terms, tpu, xla


class RowSums(NamedTuple):
  """Sums over the tokens of each row, [N] float32 each.

  Only loss has a gradient; the others are constants.

  Attributes:
    loss: of the clipped loss with its KL term.
    tokens: how many count.
    kl: of the KL to the reference in nats, without beta; 0 without ref.
    clipped: tokens whose gradient PPO's clip cuts off, on either side.
    ratio: of pi / pi_old.
    approx_kl: of r - 1 - log r, the KL of pi_old to pi in nats.
    clipped_low: of clipped, those below 1 - clip_low.
    clipped_high: those above 1 + clip_high.
    dual_clipped: tokens whose gradient dual_clip cuts off.
  """

  loss: jax.Array
  tokens: jax.Array
  kl: jax.Array
  clipped: jax.Array
  ratio: jax.Array
  approx_kl: jax.Array
  clipped_low: jax.Array
  clipped_high: jax.Array
  dual_clipped: jax.Array


def policy_loss_sums(
  logprob: jax.Array,
  old: jax.Array,
  ref: jax.Array | None,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  clip_low: float,
  clip_high: float,
  dual_clip: float | None = None,
  kl: str = "k3",
  beta: float | jax.Array = 0.0,
  impl: str | None = None,
) -> RowSums:
  """Row sums of PPO's clipped loss, its KL term and what a trainer logs.

    r = exp(bounded(logprob - old, -20, 20));  d = logprob - ref
    token = -min(r A, bounded(r, 1 - clip_low, 1 + clip_high) A)
    token = min(token, -dual_clip A)  where A < 0, if dual_clip is given
    loss  = sum_t mask (token + beta kl(d))

  Sums, because every aggregation is then arithmetic on [N] numbers. With
  v [N] the rows' weights (ones, if all count) and s what this returns:

    token mean (DAPO)         (v s.loss).sum() / (v s.tokens).sum()
    sequence mean (GRPO)      (v s.loss / max(s.tokens, 1)).sum() / v.sum()
    fixed length (Dr. GRPO)   (v s.loss).sum() / (L v.sum())

  of which GRPO and DAPO take advantages that are standardised in a group,
  Dr. GRPO such that are centred. Sums of micro-batches and of shards add up.
  A weight per token that is not negative, as of a rollout correction,
  multiplies the advantages (not the KL).

  The gradient flows to `logprob` and through `loss` alone: advantages, old
  and ref are constants, and so are the other sums. At r = 1 it is exactly the
  policy gradient, -A. A ratio exactly on a bound is inside: its gradient is
  whole and it is not counted as clipped. (torch.min of torch.clamp agrees;
  jnp.minimum of jnp.clip, which halves gradients at ties, gives 3/4 of it.)

  kl is an estimator of KL(pi || ref) from the sampled token:

    k1            d: zero expected gradient
    k2            d^2 / 2: biased value, exact gradient on-policy
    k3            exp(-d) + d - 1, the exponent at most 20: unbiased value, the
                  gradient of the other direction
    abs           |d|
    low_var_kl    min(k3, 10), no gradient beyond
    k1+, k3+, abs+, low_var_kl+   that value with the gradient of k2
    ratio_k1, ratio_k2, ratio_k3, ratio_abs   that value times r, which is
                  not a constant
    ratio_low_var_kl   min(r k3, 10), no gradient beyond
    exact         value r k3, gradient r d: exact in both, also off-policy

  Memory: XLA holds nothing of [N, T] between the passes and reads its inputs
  in each. The TPU kernel reads them once and keeps d loss / d logprob, [N, T]
  in the dtype of logprob, which the backward pass multiplies by the rows'
  cotangents. "auto" takes XLA everywhere: the kernel saves little of a
  step's time and costs that array; impl="pallas" asks for it.

  Args:
    logprob: [N, T] of the policy being trained, in nats.
    old: [N, T] of the policy that sampled, in nats.
    ref: [N, T] of the reference, in nats, or None for no KL.
    advantages: [N], or [N, T] for credit per token.
    mask: [N, T] bool, integer or float; tokens where it is 0 do not count,
      all others count the same. There any input may hold inf or NaN.
    clip_low: how far the ratio may fall below 1; not negative, inf for no
      bound.
    clip_high: how far it may rise above 1; not negative, inf for no bound.
    dual_clip: the ratio beyond which negative advantages are ignored; above
      1, in practice above 1 + clip_high; None for no bound.
    kl: one of KL_NAMES.
    beta: coefficient of the KL; a float or a traced scalar, a constant.
    impl: see dispatch.py.

  Returns:
    RowSums, float32 (float64 where logprob is).

  Raises:
    ValueError: if a shape or a knob is not as said.
    blocks.Unsupported: if impl is "pallas" and the kernel cannot take these.

  References:
    Schulman et al. 2017, arXiv:1707.06347 (the clip); Ye et al. 2019,
    arXiv:1912.09729 (dual clip); Schulman 2020, "Approximating KL Divergence";
    Shao et al. 2024, arXiv:2402.03300; Yu et al. 2025, arXiv:2503.14476; Liu
    et al. 2025, arXiv:2503.20783 (aggregations).
  """
  _check_shapes(logprob, old, ref, advantages, mask)
  _check_knobs(clip_low, clip_high, dual_clip, kl)
  _check_beta(beta, ref)
  spec = token_terms.Spec(clip_low, clip_high, dual_clip, kl)
  dtype = jnp.promote_types(logprob.dtype, jnp.float32)
  constants = jax.lax.stop_gradient(
    (old, ref, advantages, mask, jnp.asarray(beta, dtype))
  )
  terms = dispatch.call(
    "policy_loss",
    impl,
    *(logprob, *constants),
    xla=functools.partial(xla.sums, spec=spec),
    reference=functools.partial(reference.sums, spec=spec),
    pallas=functools.partial(tpu.sums, spec=spec),
    on_tpu=False,
  )
  clipped = terms.clipped_low + terms.clipped_high
  return RowSums(clipped=clipped, **terms._asdict())


def _check_shapes(logprob, old, ref, advantages, mask):
  arrays = {"old": old, "ref": ref, "mask": mask}
  shapes = {k: x.shape for k, x in arrays.items() if x is not None}
  if logprob.ndim != 2 or any(s != logprob.shape for s in shapes.values()):
    raise ValueError(
      "policy_loss needs logprob, old, ref and mask of one shape [N, T], got"
      f" logprob {logprob.shape} and {shapes}."
    )
  if advantages.shape not in (logprob.shape[:1], logprob.shape):
    raise ValueError(
      f"advantages must be [N] {logprob.shape[:1]} or [N, T] {logprob.shape},"
      f" got {advantages.shape}."
    )
  if not jnp.issubdtype(logprob.dtype, jnp.floating):
    raise TypeError(f"logprob must be floating, got {logprob.dtype}.")


def _check_knobs(clip_low, clip_high, dual_clip, kl):
  for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
    if not value >= 0:
      raise ValueError(
        f"{name} must be 0 or more (inf for no bound), got {value}."
      )
  if dual_clip is not None and not dual_clip > 1:
    raise ValueError(f"dual_clip must be above 1 or None, got {dual_clip}.")
  if kl not in token_terms.KL_NAMES:
    raise ValueError(f"kl is one of {token_terms.KL_NAMES}, got {kl!r}.")


def _check_beta(beta, ref):
  if jnp.ndim(beta):
    raise ValueError(f"beta must be a scalar, got shape {jnp.shape(beta)}.")
  if ref is None and not (isinstance(beta, float | int) and beta == 0):
    raise ValueError(
      f"beta is {beta} but ref is None; give the reference's log-probs, or"
      " leave beta at 0."
    )
