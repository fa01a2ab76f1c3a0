"""Cases of Hista: smoothed states, nodes, distances, values, credit.

The official lists have one entry a node; ours are cut from padded arrays. Its
distances to prefixes are without the least distance, its credit is before the
division by the group's std, and the last token has none.
"""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import state_values


def adapt(case, dtype):
  """Returns the outputs of a case by name."""
  ours = _all(case, dtype)
  return {name: ours[name]() for name in case.outputs}


def _all(case, dtype):
  params, hidden = case.params, case.array("hidden", dtype)
  rows, total = hidden.shape[:2]
  prompt = int(case.inputs["prompt_len"])
  own = np.asarray(case.inputs["completion_lens"]).astype(int)
  window = int(params.get("mean_window", 5))
  masks = (
    jnp.ones((rows, prompt), bool),
    jnp.arange(total - prompt)[None] < own[:, None],
  )
  prompts, counts = state_values.lengths(*masks)
  nodes = state_values.state_nodes(
    prompts,
    counts,
    min_interval=int(params.get("min_interval", 50)),
    length=total - prompt,
  )
  smoothing = {
    "alpha": params.get("alpha", 0.7),
    "debias": params.get("debias", True),
  }
  parts = hidden[:, :prompt], hidden[:, prompt:]
  x = state_values.smoothed_states(*parts, *masks, window=window, **smoothing)
  rewards = case.array("rewards", dtype)
  values = state_values.state_values(
    x,
    nodes,
    rewards,
    group_size=rows,
    window=window,
    max_k=int(params.get("max_k", 66)),
    min_k=int(params.get("min_k", 6)),
    min_d=params.get("min_d", 5.0),
    exclude_self=params.get("exclude_self", False),
  )
  every = [masks[0], jnp.ones_like(masks[1])]
  sizes = nodes.positions // window + 1
  return {
    "ema": lambda: state_values.smoothed_states(
      *parts, *every, window=1, **smoothing
    ),
    "response_indices": lambda: _cut(nodes.positions, nodes),
    "representation_indices": lambda: _cut(sizes - 1, nodes),
    "existing_nodes": lambda: _flat(
      sizes, nodes, prompt + own, window, rewards
    ),
    "distances": lambda: _distances(x, sizes, nodes),
    "values": lambda: _cut(values, nodes),
    "advantages": lambda: state_values.segment_advantages(
      values,
      nodes,
      prompts,
      masks[1],
      lam=params.get("gae_lambda", 1.0),
      credit_last=params.get("credit_last", False),
    ),
  }


def _cut(array, nodes):
  """Of each row the entries of its nodes."""
  return [row[: int(n)] for row, n in zip(array, nodes.count, strict=True)]


def _flat(sizes, nodes, lengths, window, rewards):
  """[[first, end], reward] of each node, all rows' states side by side."""
  start, out = 0, []
  for row, length in enumerate(lengths):
    for size in _cut(sizes, nodes)[row]:
      out.append([np.array([start, start + int(size)]), rewards[row]])
    start += -(-int(length) // window)
  return out


def _distances(x, sizes, nodes):
  """Of each row's inner nodes to all nodes."""
  there = np.flatnonzero(np.asarray(nodes.valid))
  out = []
  for row in range(len(x)):
    found = state_values.node_distances(x, sizes, row)
    found = found.reshape(len(found), -1)[:, there]
    out.append(found[1 : int(nodes.count[row]) - 1])
  return out
