"""Numca: what its credit is, and that its table outlives a kill."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import methods, types
from jaxrl_llm.rollout import number_states
from jaxrl_llm.testing import rollouts


def _rollout(texts, rewards, group_size, table=None, threshold=0):
  """Completions of one prompt, a token a character."""
  length = max(map(len, texts))
  mask = np.array([[t < len(text) for t in range(length)] for text in texts])
  table = {} if table is None else table
  parsed = [number_states.numbers(text) for text in texts]
  for (written, _), reward in zip(parsed, rewards, strict=True):
    number_states.record(table, written, reward)
  ends, deltas = np.zeros(mask.shape, np.int32), np.zeros(mask.shape)
  for row, (written, starts) in enumerate(parsed):
    size = len(texts[row])
    ends[row, :size], deltas[row, :size] = number_states.segments(
      table, written, [s + 1 for s in starts], size, threshold=threshold
    )
  start = rollouts.make_rollout(
    groups=len(texts) // group_size if group_size > 1 else len(texts),
    group_size=max(group_size, 2),
    length=length,
  )
  rows = slice(0, len(texts))
  return types.Rollout(
    prompts=start.prompts[rows],
    prompt_mask=start.prompt_mask[rows],
    completions=start.completions[rows],
    mask=jnp.asarray(mask),
    old_logprobs=start.old_logprobs[rows],
    rewards=jnp.asarray(rewards, jnp.float32),
    weights=jnp.ones(len(texts)),
    finish_reason=start.finish_reason[rows],
    extras={
      "segment_ends": jnp.asarray(ends),
      "segment_deltas": jnp.asarray(deltas, jnp.float32),
    },
    group_size=group_size,
  )


def _credit(rollout, **knobs):
  return np.asarray(methods.Numca(**knobs).build().advantage(rollout))


TEXTS = ["1 2 9", "1 3 9", "4 no more 9", "words"]


def test_a_token_has_the_reward_less_the_value_where_its_segment_begins():
  credit = _credit(_rollout(TEXTS, [1, 0, 0, 1], 4), scale="none")
  # {}: 2 of 4; {1}: 1 of 2; {1, 2}: 1; {1, 3}: 0; {4}: 0.
  np.testing.assert_allclose(credit[0, :5], [0.5, 0.5, 0.5, 0, 0])
  np.testing.assert_allclose(credit[1, :5], [-0.5, -0.5, -0.5, 0, 0])
  np.testing.assert_allclose(credit[2], [-0.5, *[0] * 10])
  np.testing.assert_allclose(credit[3], [*[0.5] * 5, *[0] * 6])


def test_without_history_the_first_credits_sum_to_zero():
  credit = _credit(_rollout(TEXTS, [1, 0.25, 0, 0.5], 4), scale="none")
  np.testing.assert_allclose(credit[:, 0].sum(), 0.0, atol=1e-6)


def test_it_is_divided_by_the_std_of_the_group():
  rollout = _rollout(TEXTS, [1, 0, 0, 1], 4)
  std = np.std([1, 0, 0, 1], ddof=1)
  np.testing.assert_allclose(
    _credit(rollout), _credit(rollout, scale="none") / (std + 1e-4), rtol=1e-6
  )


def test_equal_rewards_on_a_prompt_with_history():
  """The code divides R - V by eps; by default there is no credit."""
  table = {}
  _rollout(TEXTS, [0, 0, 1, 0], 4, table)
  rollout = _rollout(TEXTS, [1, 1, 1, 1], 4, table)
  np.testing.assert_array_equal(_credit(rollout), 0.0)
  official = _credit(rollout, min_std=0.0)
  np.testing.assert_allclose(official[3, 0], (1 - 5 / 8) / 1e-4, rtol=1e-4)
  fresh = _rollout(TEXTS, [1, 1, 1, 1], 4)
  np.testing.assert_array_equal(_credit(fresh, min_std=0.0), 0.0)


def test_one_completion_is_compared_with_the_history():
  table = {}
  _rollout(["1 9", "x"], [1, 0], 2, table)
  credit = _credit(_rollout(["7 9"], [1], 1, table))
  np.testing.assert_allclose(credit[0], [1 - 2 / 3, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(
  "knobs, message",
  [
    ({"lam": 1.5}, "lam must be in"),
    ({"threshold": -1}, "threshold must be 0 or more"),
    ({"max_states": 0}, "max_states must be 1 or more"),
    ({"scale": "batch"}, "scale must be group or none"),
    ({"eps": 0.0}, "eps must be positive"),
    ({"min_std": -1.0}, "min_std must be 0 or more"),
    ({"clip_low": 0.0}, "clip_low must be in"),
  ],
)
def test_bad_knobs_are_one_line(knobs, message):
  with pytest.raises(ValueError, match=message) as caught:
    methods.Numca(**knobs).build()
  assert "\n" not in str(caught.value)
