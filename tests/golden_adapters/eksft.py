"""EKSFT: the released code's terms, and those of the corrected form."""

import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.objectives import imitation, ranks, weighting

_IGNORED = -100


def adapt(case, dtype):
  logits, reference = (
    case.array("logits", dtype),
    case.array("ref_logits", dtype),
  )
  labels = case.array("labels", int)
  real = labels != case.params.get("ignore_index", _IGNORED)
  scores = _scores(logits, reference, labels)
  found = {
    "kl_rows": jnp.where(real, scores.reference_kl, 0.0),
    "entropy_rows": jnp.where(real, scores.entropy, 0.0),
    "official": _official(case, scores, real),
    "corrected_shifted": _corrected(case, _cut(scores), real[:, 1:]),
  }
  by_kl = imitation.means(_select(case, scores, real, real).kl)[0]
  found["kl_loss_true_on_official_mask"] = imitation.mean_kl(scores, by_kl)
  return {name: found[name] for name in case.outputs}


def _scores(logits, reference, labels) -> types.Scores:
  """[B, S] by rows; the row t predicts label t + 1, the last one nothing."""
  log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
  p = jnp.exp(log_p)
  following = jnp.maximum(jnp.roll(labels, -1, axis=1), 0)[..., None]
  return types.Scores(
    logprobs=jnp.take_along_axis(log_p, following, axis=-1)[..., 0],
    entropy=-(p * log_p).sum(axis=-1),
    reference_kl=(p * (log_p - log_q)).sum(axis=-1),
    collision=(p * p).sum(axis=-1),
    vocab_size=logits.shape[-1],
  )


def _cut(scores) -> types.Scores:
  """Without the last row."""
  return jax.tree.map(lambda x: x[:, :-1], scores)


def _select(case, scores, candidates, valid) -> imitation.Selection:
  return imitation.select(
    scores.entropy,
    scores.reference_kl,
    candidates,
    count=ranks.share(case.params.get("top_ratio", 0.2), valid),
    combine="union" if case.params.get("union", True) else "intersection",
  )


def _lams(case):
  return tuple(case.params.get(f"lambda_{k}", 0.05) for k in ("entropy", "kl"))


def _rollout(mask, **extras) -> types.Rollout:
  """What the objective reads of one."""
  rows = mask.shape[0]
  nothing = jnp.zeros(mask.shape)
  return types.Rollout(
    prompts=jnp.zeros((rows, 1), int),
    prompt_mask=jnp.ones((rows, 1), bool),
    completions=jnp.zeros(mask.shape, int),
    mask=mask,
    old_logprobs=nothing,
    rewards=jnp.zeros(rows),
    weights=jnp.ones(rows),
    finish_reason=jnp.zeros(rows, int),
    extras=extras,
  )


def _terms(scores, mask, selected, drop, lams, *, official):
  """Loss and metrics of the objective, as the method would have them."""
  imitated, explored, anchored = imitation.means(
    mask & ~drop, selected.entropy, selected.kl
  )
  rollout = _rollout(
    mask,
    imitated=imitated,
    explored=explored,
    anchored=anchored,
    lam_h=lams[0],
    lam_k=lams[1],
  )
  return imitation.selective_cross_entropy(
    scores,
    rollout,
    jnp.zeros(mask.shape),
    weighting.token_mean(mask, rollout.weights),
    probability_for_logprob=official,
  )


def _official(case, scores, real):
  selected = _select(case, scores, real, real)
  means = imitation.means(selected.entropy, selected.kl)
  lams = imitation.adjusted(
    *_lams(case),
    imitation.normalized_entropy(scores, means[0]),
    imitation.mean_kl(scores, means[1], probability_for_logprob=True),
  )
  predicted = jnp.pad(real[:, 1:], ((0, 0), (0, 1)))
  drop = imitation.one_before(selected.drop)
  total, metrics = _terms(
    scores, predicted, selected, drop, lams, official=True
  )
  return {
    "k": selected.entropy.sum(),
    "kl_mask": selected.kl,
    "entropy_mask": selected.entropy,
    "combined": selected.drop,
    "ce": metrics["kept_cross_entropy"],
    "entropy_loss": metrics["normalized_entropy"],
    "kl_loss_p_minus_logref": metrics["selected_kl"],
    "lambda_entropy_used": lams[0],
    "lambda_kl_used": lams[1],
    "total": total,
  }


def _corrected(case, scores, valid):
  selected = _select(case, scores, valid, valid)
  total, metrics = _terms(
    scores, valid, selected, selected.drop, _lams(case), official=False
  )
  return {
    "k": selected.entropy.sum(),
    "kl_mask": selected.kl,
    "entropy_mask": selected.entropy,
    "kept": valid & ~selected.drop,
    "ce": metrics["kept_cross_entropy"],
    "entropy_loss": metrics["normalized_entropy"],
    "kl_loss": metrics["selected_kl"],
    "total_fixed_lambda": total,
  }
