"""How likely a frozen model finds texts: a judge that is not trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from jaxrl_llm.distributed import processes
from jaxrl_llm.models import cache, families
from pallas_kernels import token_logprob

if TYPE_CHECKING:  # what imports tokenizers takes seconds
  from jaxrl_llm.models.weights import resolve

# Tokens of the shortest rows; longer ones have twice as many, and so on.
_SHORTEST = 64


def mean_logprob(
  logprobs: Float[Array, "N T"], mask: Bool[Array, "N T"]
) -> Float[Array, "N"]:
  """Mean log-probability of each row's tokens: minus its cross-entropy.

    r_i = sum_t mask_it logprobs_it / max(sum_t mask_it, 1)

  Args:
    logprobs: in nats; may hold anything outside the mask.
    mask: true on tokens that count.

  Returns:
    Nats a token, not positive; 0 for a row without tokens, which no other row
    can exceed: see scored_empty.
  """
  chex.assert_equal_shape([logprobs, mask])
  total = jnp.where(mask, logprobs, 0.0).sum(axis=1)
  return total / jnp.maximum(mask.sum(axis=1), 1)


def scored_empty(
  rewards: Float[Array, "N"],
  empty: Bool[Array, "N"],
  weights: Float[Array, "N"],
  *,
  group_size: int,
  floor: float = -20.0,
) -> Float[Array, "N"]:
  """Gives empty rows the least reward of their group's others.

  Args:
    rewards: of the others, in nats a token.
    empty: rows without a token.
    weights: rows of weight 0 are seen by nobody.
    group_size: G; divides N.
    floor: of a group in which all are empty.
  """
  chex.assert_equal_shape([rewards, empty, weights])
  chex.assert_is_divisible(rewards.shape[0], group_size)
  others = jnp.where(empty | (weights == 0), jnp.inf, rewards)
  least = others.reshape(-1, group_size).min(axis=1)
  least = jnp.where(jnp.isfinite(least), least, floor)
  return jnp.where(empty, jnp.repeat(least, group_size), rewards)


class Verifier:
  """A frozen model that scores answers in its own tokens and chat template."""

  def __init__(
    self,
    loaded: resolve.Loaded,
    *,
    chat: bool = True,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rows: int = 8,
  ):
    """Compiles when first called, once for each length of rows.

    Args:
      loaded: the model, on the first device.
      chat: prompts are a user's turn and answers the assistant's.
      dtype: of the factors of products.
      rows: texts that are scored at once.
    """
    self._loaded, self._chat, self._rows = loaded, chat, rows
    model = families.build(loaded.config, dtype=dtype)

    def score(params, tokens, mask, scored):
      seen = cache.Causal(mask)
      hidden, _ = model.apply(params, tokens, seen.positions(), seen)
      out = token_logprob.token_logprob(
        hidden[:, :-1].reshape(-1, hidden.shape[2]),
        model.head(params),
        tokens[:, 1:].reshape(-1),
        mask=scored[:, 1:].reshape(-1),
        softcap=model.config.final_softcap,
        with_entropy=False,
      )
      logprobs = out.logprob.reshape(len(tokens), -1)
      return mean_logprob(logprobs, scored[:, 1:])

    self._score = jax.jit(score)

  def __call__(
    self, prompts: Sequence[str], texts: Sequence[str], ended: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-probability of each text after its prompt, and its tokens.

    What a context of the model cannot hold is not scored.

    Args:
      prompts: N texts, as a person wrote them if the verifier chats.
      texts: N answers.
      ended: [N] whether an answer ended of itself: then the token that ends it
        is scored, too.

    Returns:
      [N] nats a token at temperature 1, 0 for an empty text; [N] tokens of the
      verifier without the one that ends them.

    Raises:
      ValueError: the tokenizer has no chat template, or cannot encode a text.
    """
    written = list(zip(prompts, texts, np.asarray(ended, bool), strict=True))

    def share(rows):
      return [self._of([self._encoded(*row) for row in written[rows]])]

    parts = sum(processes.divided(share, len(written)), [])
    means, counts = (np.concatenate(x) for x in zip(*parts, strict=True))
    return np.where(counts > 0, means, 0.0).astype(np.float32), counts

  def _encoded(self, prompt, text, ended):
    """All ids of a row, those of its text, and where these begin."""
    tokenizer = self._loaded.tokenizer
    if self._chat:
      prompt = tokenizer.chat([{"role": "user", "content": prompt}])
    before = tokenizer.encode(prompt)
    answer = tokenizer.continuation(text)
    end = [tokenizer.ending(chat=self._chat)] if ended else []
    return before + answer + end, answer, len(before)

  def _of(self, encoded):
    """Means and counts of tokens of some rows."""
    counts = np.array([len(answer) for _, answer, _ in encoded], np.int32)
    longest = max((len(ids) for ids, *_ in encoded), default=1)
    laid = self._laid(encoded, _size(longest, self._loaded.config))
    return self._scored(*laid), counts

  def _laid(self, encoded, length):
    """tokens, mask and scored, [N, length] each."""
    shape = (len(encoded), length)
    tokens = np.zeros(shape, np.int32)
    mask, scored = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, (ids, _, first) in enumerate(encoded):
      ids = ids[:length]
      tokens[row, : len(ids)] = ids
      mask[row, : len(ids)] = True
      scored[row, max(first, 1) : len(ids)] = True
    return tokens, mask, scored

  def _scored(self, *arrays):
    """[N] means, `rows` rows at a time; the last are filled up with nothing."""
    count = len(arrays[0])
    found = [np.zeros(0, np.float32)]
    for first in range(0, count, self._rows):
      part = [x[first : first + self._rows] for x in arrays]
      missing = self._rows - len(part[0])
      part = [np.pad(x, ((0, missing), (0, 0))) for x in part]
      found.append(np.asarray(self._score(self._loaded.params, *part)))
    return np.concatenate(found)[:count]


def _size(longest: int, config) -> int:
  """Tokens of a row: few sizes, so that little is compiled."""
  size = _SHORTEST
  while size < longest:
    size *= 2
  return min(size, config.max_positions)
