"""The truth: the whole [N, V] matrix, ten obvious lines, plain autodiff."""

import jax
import jax.numpy as jnp


def logprob(hidden, head, targets, scale, spec):
  """Returns (logprob, entropy, logsumexp), each [N], from full logits.

  Args:
    hidden: [N, D].
    head: [V, D], or [D, V] when head_layout is "dv".
    targets: [N] ids; an id outside [0, V) counts as logit 0.
    scale: scalar, the inverse temperature.
    spec: xla.Spec; of it head_layout, softcap and with_entropy.
  """
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  head = (head if spec.head_layout == "dv" else head.T).astype(hidden.dtype)
  precision = "highest" if hidden.dtype == dtype else None
  logits = jnp.dot(
    hidden, head, precision=precision, preferred_element_type=dtype
  )
  if spec.softcap is not None:
    logits = spec.softcap * jnp.tanh(logits / spec.softcap)
  logits = logits * jnp.asarray(scale, dtype)
  logsumexp = jax.nn.logsumexp(logits, axis=1)
  inside = (targets >= 0) & (targets < logits.shape[1])
  index = jnp.where(inside, targets, 0)[:, None]
  chosen = jnp.take_along_axis(logits, index, axis=1)[:, 0]
  logprobs = logits - logsumexp[:, None]
  entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=1)
  entropy = entropy if spec.with_entropy else None
  return jnp.where(inside, chosen, 0) - logsumexp, entropy, logsumexp
