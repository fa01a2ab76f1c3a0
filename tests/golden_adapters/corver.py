"""Sentences, tiers, queries, returns and advantages of the official code.

Facts and counts are the case's own; a token is a piece of text.
"""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import token_returns
from jaxrl_llm.rollout import fact_counts, fact_rewards, sentences, spans


def adapt(case, dtype):
  if "tokens" in case.inputs:
    found = _completions(case, dtype)
    return {name: found[name] for name in case.outputs}
  if "penalty" in case.outputs:
    counts = [
      None if count is None or np.isnan(count) else int(count)
      for count in case.inputs["counts"]
    ]
    return {"penalty": fact_rewards.Tiers()(counts)}
  (name,) = case.outputs
  if isinstance(case.inputs.get("head"), str):
    return {name: _query(case.inputs["head"], case.inputs["tail"])}
  return {name: [_query(*pair) for pair in _pairs(case.inputs)]}


def _pairs(inputs):
  """(head, tail), however they are given."""
  for heads, tails in (("heads", "tails"), ("head", "tail")):
    if heads in inputs:
      return zip(inputs[heads], inputs[tails], strict=True)
  (listed,) = (value for value in inputs.values() if isinstance(value, list))
  return [
    (pair["head"], pair["tail"]) if isinstance(pair, dict) else _ends(pair)
    for pair in listed
  ]


def _ends(pair):
  return pair[0], pair[-1]


def _query(head, tail):
  words = fact_counts.words_of(head, tail)
  return " AND ".join(words) if words else None


def _tools(case):
  counts, triplets = case.inputs["counts"], case.inputs["triplets"]
  default = int(case.inputs.get("default_count", 0))

  return fact_rewards.Tools(
    extract=lambda texts: [triplets.get(text, []) for text in texts],
    count=lambda queries: [
      counts.get(" AND ".join(query), default) for query in queries
    ],
  )


def _completions(case, dtype):
  params = case.params
  pieces = case.inputs["tokens"]
  length = max(map(len, pieces))
  mask = np.array([[t < len(row) for t in range(length)] for row in pieces])
  steps = np.full(mask.shape, -1)
  rewards, aligned, small = np.zeros(mask.shape), [], []
  for row, texts in enumerate(pieces):
    of_tokens, text = spans.piece_spans([piece.encode() for piece in texts])
    each = sentences.align(of_tokens, text)
    own = fact_rewards.Tiers()(_tools(case).counts(each.texts))
    steps[row, : len(texts)] = each.of_tokens
    rewards[row, : len(texts)] = sentences.spread(each, own)
    aligned.append(each)
    small.append(own if each.usable else np.zeros(0))
  whole = params.get("beta_judge", 1.0) * np.asarray(case.inputs["judge"])
  outcome = jnp.asarray(whole + case.inputs["format"], dtype)
  tokens = jnp.asarray(rewards, dtype)
  returns = jnp.where(mask, outcome[:, None] + tokens, 0.0)
  size = params.get("G", len(pieces))
  advantages = token_returns.group_token_returns(
    outcome,
    tokens,
    jnp.asarray(mask),
    group_size=size,
    eps=params.get("eps", 1e-4),
    scale=params.get("scale_rewards", "group") != "none",
    min_std=0.0,
  )
  return {
    "token_sentence": steps,
    "sentences": [each.texts for each in aligned],
    "alignment_rate": [each.rate for each in aligned],
    "fallback": [not each.usable for each in aligned],
    "sentence_reward": small,
    "token_returns": returns,
    "R_k": returns.sum(axis=1) / np.maximum(mask.sum(axis=1), 1),
    "advantages": advantages,
  }
