"""One train step: a pure function of state and rollout, compiled once.

A step is one pass of the method's transform and advantage over the WHOLE
rollout, then `epochs * mini_batches` optimizer updates, each over
`micro_batches` pieces whose gradients are summed. Weights are made from the
whole mini-batch before it is cut, so the pieces add up exactly.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
import optax

from jaxrl_llm import types
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy
from jaxrl_llm.training import heads
from jaxrl_llm.training import score as scoring
from jaxrl_llm.training import state as states

StepFn = Callable[
  [states.TrainState, types.Rollout, Any],
  tuple[states.TrainState, types.Metrics],
]


def make_train_step(
  score: scoring.ScoreFn,
  method: base.Method,
  optimizer: optax.GradientTransformation,
  *,
  micro_batches: int = 1,
  mini_batches: int = 1,
  epochs: int = 1,
  old_logprobs: str = "trainer",
  head: heads.AuxiliaryHead | None = None,
  attach: Callable[[Any, Any], Any] = lambda frozen, params: params,
) -> StepFn:
  """Closes over everything static; what is left is arrays in, arrays out.

  Args:
    score: from score.make_score; given the reference too where the method
      needs "reference_kl".
    method: what is optimised.
    optimizer: any optax transformation, of the policy's parameters.
    micro_batches: pieces of a mini-batch that are scored one after another.
    mini_batches: optimizer updates in one pass over the rollout.
    epochs: passes over the rollout.
    old_logprobs: "trainer" takes pi_old from the trainer's own forward: the
      current log-probs, gradient stopped, when the step is a single update
      (no extra forward), else one scoring pass before the first update.
      "sampler" keeps rollout.old_logprobs as they came. Rows with
      extras["stale"] keep them in either case: another policy sampled them.
    head: what a method that has one learns beside the policy.
    attach: (reference, state.params) -> the parameters that `score` takes,
      for a state that holds only what is added to the frozen ones.

  Returns:
    step(state, rollout, reference) -> (state, metrics), jittable; metrics are
    scalars. `reference` is the frozen parameters: those of the method that
    compares with them, those that are attached to; None where neither is.
    The gap between rollout.old_logprobs and the trainer's log-probs before the
    first update is among the metrics.
  """
  if old_logprobs not in ("trainer", "sampler"):
    raise ValueError(
      f"old_logprobs must be 'trainer' or 'sampler', got {old_logprobs!r}."
    )
  if (head is None) != (method.head is None):
    raise ValueError(
      "head must be given for a method that has one, and for no other; this"
      f" one has {method.head}."
    )
  updates = mini_batches * epochs
  own = old_logprobs == "trainer"
  on_policy = own and updates == 1
  rescored = own and not on_policy or "old_scores" in method.needs
  pieces = mini_batches * micro_batches
  chain = heads.side_by_side(optimizer, head)

  def train_step(state, rollout, reference):
    against = {"reference": reference} if "reference_kl" in method.needs else {}

    def whole(params, part):
      policy = attach(reference, params.policy)
      beside = {} if head is None else {"head_params": params.head}
      return score(policy, part, **against, **beside)

    gradient = _make_gradient(
      _make_loss(whole, method, on_policy), micro_batches
    )
    if "ref_logprobs" in method.needs:
      logprobs = lambda part: score(reference, part).logprobs  # noqa: E731
      rollout = rollout.replace(ref_logprobs=_map(logprobs, rollout, pieces))
    params = heads.Pair(state.params, state.head_params)
    if rescored:
      now = lambda part: _old(whole(params, part), part, method)  # noqa: E731
      found = _map(now, rollout, pieces)
      rollout = _with_old_scores(rollout, found, replace=own)
    for extra in method.passes:
      logprobs = lambda part, extra=extra: (  # noqa: E731
        whole(params, _under_another_prompt(part, extra)).logprobs
      )
      found = {extra.name: _map(logprobs, rollout, pieces)}
      rollout = rollout.replace(extras=rollout.extras | found)
    if method.shadow:
      average = attach(reference, state.shadow)
      logprobs = lambda part: score(average, part).logprobs  # noqa: E731
      found = {"shadow_logprobs": _map(logprobs, rollout, pieces)}
      rollout = rollout.replace(extras=rollout.extras | found)
    rollout, method_state = method.transform.update(rollout, state.method_state)
    advantages = base.per_token(method.advantage(rollout), rollout.mask)
    rollout = method.selection(rollout, advantages)
    (params, opt_state), metrics = _updates(
      _make_update(
        gradient,
        method,
        chain,
        _make_prepare(whole, method, micro_batches, on_policy),
      ),
      (params, heads.Pair(state.opt_state, state.head_opt_state)),
      (rollout, advantages),
      mini_batches=mini_batches,
      updates=updates,
    )
    metrics |= _found_before(rollout)
    if method.supervised:  # nothing was sampled: there is no gap
      metrics = {k: v for k, v in metrics.items() if "sampler_gap" not in k}
    return (
      state.replace(
        step=state.step + 1,
        params=params.policy,
        opt_state=opt_state.policy,
        method_state=method.transform.observe(method_state, metrics),
        head_params=params.head,
        head_opt_state=opt_state.head,
        shadow=_shadowed(state, params.policy, method),
      ),
      metrics,
    )

  return train_step


def _shadowed(state, params, method):
  """decay shadow + (1 - decay) params, the decay being the method's."""
  if not method.shadow:
    return None
  decay = method.shadow(state.step)
  return jax.tree.map(
    lambda slow, new: (new + decay * (slow - new)).astype(slow.dtype),
    state.shadow,
    params,
  )


def _found_before(rollout) -> types.Metrics:
  """What transform and selection measured: extras "metric/NAME", scalars."""
  return {
    name.removeprefix("metric/"): value
    for name, value in rollout.extras.items()
    if name.startswith("metric/")
  }


def _make_loss(score, method, on_policy):
  """(params, piece) -> (loss, (metrics, gap)); piece with its weights."""

  def loss_fn(params, piece):
    rollout, advantages, weights = piece
    scores = score(params, rollout)
    if on_policy:
      now = jax.lax.stop_gradient(scores.logprobs)
      rollout = rollout.replace(old_logprobs=_pi_old(rollout, now))
    loss, metrics = method.objective(scores, rollout, advantages, weights)
    sampled = piece[0].extras.get("sampler_logprobs", piece[0].old_logprobs)
    fresh = rollout.mask & ~_stale(rollout)
    return loss, (metrics, _gap(scores.logprobs, sampled, fresh))

  return loss_fn


def _make_gradient(loss_fn, micro_batches):
  """(params, batch) -> (gradients, (metrics, gap)), summed over the pieces."""
  grad_fn = jax.grad(loss_fn, has_aux=True)

  def gradient(params, batch):
    if micro_batches == 1:
      return grad_fn(params, batch)

    def accumulate(total, piece):
      grads, aux = grad_fn(params, piece)
      return jax.tree.map(jnp.add, total, grads), aux

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, (metrics, gaps) = jax.lax.scan(
      accumulate, zeros, split(batch, micro_batches)
    )
    total = jax.tree.map(lambda x: x.sum(axis=0), (metrics, gaps))
    total[1]["max"] = gaps["max"].max()
    return grads, total

  return gradient


def _make_prepare(score, method, micro_batches, on_policy):
  """(params, rollout, advantages) -> rollout as the objective wants it."""

  def prepare(params, rollout, advantages):
    if "now_scores" not in method.needs:
      return method.prepare(rollout, advantages, None)
    now = lambda part: score(params, part)  # noqa: E731
    scores = jax.lax.stop_gradient(_map(now, rollout, micro_batches))
    seen = rollout
    if on_policy:  # pi_old as the objective will have it
      seen = seen.replace(old_logprobs=_pi_old(rollout, scores.logprobs))
    prepared = method.prepare(seen, advantages, scores)
    return prepared.replace(old_logprobs=rollout.old_logprobs)

  return prepare


def _make_update(gradient, method, optimizer, prepare):
  """One optimizer update over one mini-batch, weighed as a whole."""

  def update(carry, batch):
    params, opt_state = carry
    rollout, advantages = batch
    rollout = prepare(params, rollout, advantages)
    weights = method.weighting(rollout.mask, rollout.weights)
    grads, (metrics, gap) = gradient(params, (rollout, advantages, weights))
    changes, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, changes)
    metrics = policy.token_averages(metrics)
    metrics |= {"grad_norm": optax.tree.norm(grads.policy)}
    if grads.head is not None:
      metrics |= {"head_grad_norm": optax.tree.norm(grads.head)}
    return (params, opt_state), (metrics, gap)

  return update


def _updates(update, carry, batch, *, mini_batches, updates):
  """All updates on one rollout; metrics are their means, the gap the first."""
  if updates == 1:
    carry, (metrics, gap) = update(carry, batch)
    return carry, metrics | _gap_metrics(gap)
  passes = split(batch, mini_batches)
  carry, (metrics, gaps) = jax.lax.scan(
    lambda carry, index: update(
      carry, jax.tree.map(lambda x: x[index % mini_batches], passes)
    ),
    carry,
    jnp.arange(updates),
  )
  metrics = jax.tree.map(lambda x: x.mean(axis=0), metrics)
  return carry, metrics | _gap_metrics(jax.tree.map(lambda x: x[0], gaps))


def _map(function, rollout, pieces) -> Any:
  """What a function of rows makes of the rollout, piece after piece."""
  out = jax.lax.map(function, split(rollout, pieces))
  rows = rollout.mask.shape[0]
  return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), out)


def _stale(rollout) -> Array:
  """[N, 1] true on rows that an older policy sampled (extras["stale"])."""
  stale = rollout.extras.get("stale", jnp.zeros(rollout.mask.shape[0]))
  return stale[:, None] > 0


def _pi_old(rollout, logprobs) -> Array:
  """The trainer's log-probs; on stale rows those of the policy that sampled.

  The trainer's are of a policy that did not sample them: the ratio to it would
  be 1 and leave the age uncorrected.
  """
  return jnp.where(_stale(rollout), rollout.old_logprobs, logprobs)


def _old(scores, rollout, method) -> dict[str, Array]:
  """What is kept, by the names of extras, of a forward before the update."""
  found = {
    "trainer_logprobs": scores.logprobs,
    "old_entropy": scores.entropy,
    "old_values": scores.values,
    "prompt_logprobs": scores.prompt_logprobs,
  }
  found |= method.measure(scores, rollout)
  return {name: x for name, x in found.items() if x is not None}


def _with_old_scores(rollout, found, *, replace) -> types.Rollout:
  """The rollout with what the policy said before the first update.

  On stale rows the trainer's and the sampler's log-probs are one, so that no
  correction for their difference comes on top of the ratio's.
  """
  old = _pi_old(rollout, found["trainer_logprobs"])
  found |= {"sampler_logprobs": rollout.old_logprobs, "trainer_logprobs": old}
  rollout = rollout.replace(extras=rollout.extras | found)
  return rollout.replace(old_logprobs=old) if replace else rollout


def _under_another_prompt(rollout, extra: types.Pass) -> types.Rollout:
  """The same completions after the prompts that a pass names."""
  return rollout.replace(
    prompts=rollout.extras[extra.prompts],
    prompt_mask=rollout.extras[extra.prompt_mask],
    packing=None,
  )


def split(tree: Any, parts: int) -> Any:
  """[N, ...] -> [parts, N / parts, ...] on every leaf; scalars are repeated.

  A rollout cut inside its groups gets the largest group size that still
  divides the piece: siblings matter only before the advantage stage.
  """

  def cut(leaf):
    if leaf.ndim == 0:
      return jnp.broadcast_to(leaf, (parts,))
    return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

  def regroup(node):
    if not isinstance(node, types.Rollout):
      return node
    rows = node.mask.shape[1]
    return node.replace(group_size=math.gcd(node.group_size, rows))

  tree = jax.tree.map(cut, tree)
  is_rollout = lambda node: isinstance(node, types.Rollout)  # noqa: E731
  return jax.tree.map(regroup, tree, is_leaf=is_rollout)


def _gap(logprobs, sampled, mask):
  """|trainer - sampler| over chosen tokens in nats: sum, count, largest."""
  gap = jnp.where(mask, jnp.abs(logprobs - jnp.where(mask, sampled, 0.0)), 0.0)
  gap = jax.lax.stop_gradient(gap)
  count = mask.sum().astype(jnp.float32)
  return {"sum": gap.sum(), "count": count, "max": gap.max()}


def _gap_metrics(gap):
  mean = gap["sum"] / jnp.maximum(gap["count"], 1.0)
  return {"sampler_gap_mean": mean, "sampler_gap_max": gap["max"]}
