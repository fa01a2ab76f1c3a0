"""What every method must satisfy, as functions that raise AssertionError.

Call check_method in the test of a method of your own; the tests of this
project call each check for each row of METHODS.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.methods import base
from jaxrl_llm.testing import rollouts

# The widest a float32 sum over a small batch may differ by its order.
_SUM = {"rtol": 1e-5, "atol": 1e-7}


def check_method(method: base.Method) -> None:
  """Runs every check below that is for methods of its kind."""
  for check in checks(method):
    check(method)


def checks(method: base.Method) -> tuple[Callable[[base.Method], None], ...]:
  """What a method must satisfy; a supervised one reads no rewards."""
  return CHECKS + (SUPERVISED if method.supervised else SAMPLED)


def evaluate(
  method: base.Method,
  scores: types.Scores,
  rollout: types.Rollout,
  *,
  pieces: int = 1,
) -> tuple[jax.Array, types.Metrics, types.Scores]:
  """Loss, metrics and gradient of a method, the batch cut into pieces.

  Args:
    method: under test.
    scores: of the policy being trained; entropy, hidden and values are left
      out unless the method needs them.
    rollout: the whole batch; ref_logprobs likewise.
    pieces: must divide N.

  Returns:
    (loss, metrics, d loss / d scores), each the sum over the pieces.
  """
  scores, rollout = _only_needed(method, scores, rollout)
  rollout, _ = method.transform.update(rollout, method.transform.init())
  advantages = base.per_token(method.advantage(rollout), rollout.mask)
  rollout = method.selection(rollout, advantages)
  now = jax.lax.stop_gradient(scores)
  rollout = method.prepare(
    rollout, advantages, now if "now_scores" in method.needs else None
  )
  weights = method.weighting(rollout.mask, rollout.weights)

  def total(scores):
    tree = (scores, rollout, advantages, weights)
    parts = [
      method.objective(*_piece(tree, index, pieces)) for index in range(pieces)
    ]
    losses, metrics = zip(*parts, strict=True)
    return sum(losses), jax.tree.map(lambda *x: sum(x), *metrics)

  (loss, metrics), grads = jax.value_and_grad(total, has_aux=True)(scores)
  return loss, metrics, grads


def padding_is_never_read(method: base.Method) -> None:
  """inf and NaN outside the mask change no value and no gradient."""
  rollout = rollouts.make_rollout()
  scores = rollouts.make_scores(rollout)
  clean = evaluate(method, scores, rollout)
  for junk in (jnp.inf, -jnp.inf, jnp.nan):
    dirty = evaluate(
      method,
      _spoil_scores(scores, rollout.mask, rollout.prompt_mask, junk),
      rollout.replace(
        old_logprobs=_spoil(rollout.old_logprobs, rollout.mask, junk),
        ref_logprobs=_spoil(rollout.ref_logprobs, rollout.mask, junk),
      ),
    )
    chex.assert_tree_all_finite(dirty)
    chex.assert_trees_all_equal(clean, dirty)


def pieces_add_up(method: base.Method) -> None:
  """1, 2 and 8 pieces of the batch give the same loss, metrics, gradient."""
  rollout = rollouts.make_rollout(group_size=4)
  scores = rollouts.make_scores(rollout)
  whole = evaluate(method, scores, rollout)
  assert _largest(whole[2]) > 1e-3, "the gradient is too small to compare"
  for pieces in (2, 8):
    cut = evaluate(method, scores, rollout, pieces=pieces)
    chex.assert_trees_all_close(whole, cut, **_SUM)


def jit_changes_nothing(method: base.Method) -> None:
  """Compiled and not compiled agree."""
  rollout = rollouts.make_rollout()
  scores = rollouts.make_scores(rollout)
  run = lambda scores, rollout: evaluate(method, scores, rollout)  # noqa: E731
  plain, compiled = run(scores, rollout), jax.jit(run)(scores, rollout)
  chex.assert_trees_all_close(plain, compiled, **_SUM)


def equal_rewards_teach_nothing(method: base.Method) -> None:
  """Equal rewards give exactly zero credit, on-policy with pi = ref.

  And a critic, where there is one, that foresees them: one that does not has
  something to say about equal rewards too.
  """
  rollout = rollouts.make_rollout(length=5)
  rollout = rollout.replace(ref_logprobs=rollout.old_logprobs)

  def fitted(rewards):
    scores = rollouts.make_scores(rollout, scale=0.0)
    foreseen = jnp.broadcast_to(rewards[:, None], rollout.mask.shape)
    return scores.replace(values=foreseen)

  @jax.jit
  def credit(rewards):
    start = rollout.replace(rewards=rewards)
    _, start = _only_needed(method, fitted(rewards), start)
    changed, _ = method.transform.update(start, method.transform.init())
    return method.advantage(changed)

  for constant in (0.0, 1.0, 0.9, 0.1, -3.3, 1000.7):
    rewards = jnp.full(rollout.rewards.shape, constant)
    np.testing.assert_array_equal(credit(rewards), 0.0)
    start = rollout.replace(rewards=rewards)
    grads = evaluate(method, fitted(rewards), start)[2].logprobs
    np.testing.assert_array_equal(grads, 0.0)


def dropped_rows_are_not_seen(method: base.Method) -> None:
  """Rows of weight 0 give no gradient and are read by nobody."""
  rollout = rollouts.make_rollout(groups=2, group_size=4)
  scores = rollouts.make_scores(rollout)
  dropped = jnp.arange(8) == 5
  rollout = rollout.replace(weights=jnp.where(dropped, 0.0, 1.0))
  clean = evaluate(method, scores, rollout)
  np.testing.assert_array_equal(clean[2].logprobs[5], 0.0)
  row = dropped[:, None] & jnp.ones_like(rollout.mask)
  dirty = evaluate(
    method,
    _spoil_scores(scores, ~row, ~dropped[:, None], jnp.nan),
    rollout.replace(
      old_logprobs=_spoil(rollout.old_logprobs, ~row, jnp.nan),
      ref_logprobs=_spoil(rollout.ref_logprobs, ~row, jnp.nan),
      rewards=rollout.rewards.at[5].set(7.0),
    ),
  )
  chex.assert_trees_all_equal(clean, dirty)


def nothing_left_is_zero(method: base.Method) -> None:
  """No tokens at all, or no row that counts: 0 and finite."""
  rollout = rollouts.make_rollout()
  scores = rollouts.make_scores(rollout)
  for empty in (
    rollout.replace(mask=jnp.zeros_like(rollout.mask)),
    rollout.replace(weights=jnp.zeros_like(rollout.weights)),
  ):
    loss, metrics, grads = evaluate(method, scores, empty)
    chex.assert_tree_all_finite((loss, metrics))
    assert float(loss) == 0.0, f"loss of an empty batch is {loss}"
    np.testing.assert_array_equal(grads.logprobs, 0.0)


def empty_rows_add_nothing(method: base.Method) -> None:
  """A row without tokens has no gradient and makes nothing infinite."""
  rollout = rollouts.make_rollout()
  rollout = rollout.replace(mask=rollout.mask.at[2].set(False))
  out = evaluate(method, rollouts.make_scores(rollout), rollout)
  chex.assert_tree_all_finite(out)
  np.testing.assert_array_equal(out[2].logprobs[2], 0.0)


def rewards_push_the_right_way(method: base.Method) -> None:
  """On-policy, descent raises the log-probs of the best of each group."""
  rollout = rollouts.make_rollout()
  rollout = rollout.replace(ref_logprobs=rollout.old_logprobs)
  scores = rollouts.make_scores(rollout, scale=0.0)
  grads = np.asarray(evaluate(method, scores, rollout)[2].logprobs.sum(axis=1))
  best = np.asarray(rollout.rewards) > 0
  assert (grads[best] < 0).all(), f"gradients of the best rows: {grads[best]}"
  assert (grads[~best] > 0).all(), f"gradients of the worst: {grads[~best]}"


def answers_become_likelier(method: base.Method) -> None:
  """Descent pushes tokens of answers up, none down, and few are left out."""
  rollout = rollouts.make_rollout()
  scores = rollouts.make_scores(rollout)
  grads = np.asarray(evaluate(method, scores, rollout)[2].logprobs)
  assert (grads <= 0).all(), f"pushed down: {grads[grads > 0]}"
  pushed = (grads < 0).sum() / np.asarray(rollout.mask).sum()
  assert pushed > 0.3, f"of the answers' tokens only {pushed:.0%} are pushed"


def samples_are_never_read(method: base.Method) -> None:
  """Rewards and what a sampler would have said change nothing."""
  rollout = rollouts.make_rollout()
  scores = rollouts.make_scores(rollout)
  plain = evaluate(method, scores, rollout)
  other = rollout.replace(
    rewards=jnp.full_like(rollout.rewards, jnp.nan),
    old_logprobs=jnp.full_like(rollout.old_logprobs, jnp.nan),
    ref_logprobs=None,
  )
  chex.assert_trees_all_equal(plain, evaluate(method, scores, other))


Checks = tuple[Callable[[base.Method], None], ...]

CHECKS: Checks = (
  padding_is_never_read,
  pieces_add_up,
  jit_changes_nothing,
  dropped_rows_are_not_seen,
  nothing_left_is_zero,
  empty_rows_add_nothing,
)
# Of methods that learn from samples, and of those that learn from answers.
SAMPLED: Checks = (equal_rewards_teach_nothing, rewards_push_the_right_way)
SUPERVISED: Checks = (answers_become_likelier, samples_are_never_read)


def _only_needed(method, scores, rollout):
  """Without what the method does not ask for: `needs` must be honest."""
  needed = method.needs
  unasked = set(rollouts.ARRAYS) - needed - {"logprobs"}
  scores = scores.replace(**dict.fromkeys(unasked))
  rollout = rollouts.with_extras(rollout, method.plan.extras)
  if "old_scores" in needed:
    rollout = _with_old_scores(method, scores, rollout)
  rollout = _with_passes(method, rollout)
  if "ref_logprobs" not in needed:
    rollout = rollout.replace(ref_logprobs=None)
  return scores, rollout


def _with_old_scores(method, scores, rollout):
  """As the step before its first update, with a sampler 0.2 nats away."""
  gap = 0.2 * jnp.sin(jnp.arange(rollout.mask.size))
  found = {
    "trainer_logprobs": rollout.old_logprobs,
    "sampler_logprobs": rollout.old_logprobs + gap.reshape(rollout.mask.shape),
    "old_entropy": scores.entropy,
    "old_values": scores.values,
    "prompt_logprobs": scores.prompt_logprobs,
  }
  found |= method.measure(scores, rollout)
  found = {name: x for name, x in found.items() if x is not None}
  return rollout.replace(extras=found | rollout.extras)


def _with_passes(method, rollout):
  """Under another prompt every completion is a little less likely."""
  tokens = jnp.arange(rollout.mask.size).reshape(rollout.mask.shape)
  found = rollout.old_logprobs - 0.5 - 0.3 * jnp.cos(tokens)
  extras = {extra.name: found for extra in method.passes}
  if method.shadow:  # as far away as the reference
    extras["shadow_logprobs"] = rollout.ref_logprobs
  return rollout.replace(extras=extras | rollout.extras)


def _piece(tree, index, pieces):
  """Rows [index * N / pieces, (index + 1) * N / pieces) of every leaf."""

  def cut(leaf):
    if leaf.ndim == 0:
      return leaf
    size = leaf.shape[0] // pieces
    return leaf[index * size : (index + 1) * size]

  return jax.tree.map(cut, tree)


def _spoil(array, keep, junk):
  keep = keep.reshape(keep.shape + (1,) * (array.ndim - keep.ndim))
  return jnp.where(keep, array, junk)


def _spoil_scores(scores, keep, keep_prompt, junk):
  """Junk in all fields: [N, ...] where not to keep it, of prompts likewise."""
  kept = {"prompt_logprobs": keep_prompt, "prompt_hidden": keep_prompt}
  return scores.replace(
    **{
      name: _spoil(array, kept.get(name, keep), junk)
      for name in rollouts.ARRAYS
      if (array := getattr(scores, name)) is not None
    }
  )


def _largest(tree) -> float:
  return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
