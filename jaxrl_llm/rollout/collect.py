"""Where host and device meet: problems in, completions and their texts out.

Prompts are tokenised once and completions are decoded once, for the reward;
no text is ever tokenised again (token in, token out).
"""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.data import prompts as encoding
from jaxrl_llm.data import sources, tokenizers
from jaxrl_llm.distributed import processes, weight_sync
from jaxrl_llm.rollout import engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
  """Completions of B problems, G each; arrays live on the host.

  Attributes:
    problems: the B problems.
    prompts: [B, S] token ids, left-padded.
    prompt_mask: [B, S].
    generation: arrays [N, T], groups contiguous.
    prompt_texts: B texts.
    texts: N texts, special tokens dropped.
  """

  problems: Sequence[sources.Problem]
  prompts: np.ndarray
  prompt_mask: np.ndarray
  generation: engine.Generation
  prompt_texts: list[str]
  texts: list[str]

  @property
  def group_size(self) -> int:
    """G."""
    return len(self.texts) // len(self.prompt_texts)

  def rollout(self, rewards: np.ndarray) -> types.Rollout:
    """Joins samples and their rewards; a NaN reward gives weight 0.

    Args:
      rewards: [N] float, NaN where a row could not be scored.
    """
    group = self.group_size
    scorable = np.isfinite(rewards)
    out = self.generation
    return types.Rollout(
      prompts=np.repeat(self.prompts, group, axis=0),
      prompt_mask=np.repeat(self.prompt_mask, group, axis=0),
      completions=out.completions,
      mask=out.mask,
      old_logprobs=out.logprobs,
      rewards=np.where(scorable, rewards, 0.0).astype(np.float32),
      weights=scorable.astype(np.float32),
      finish_reason=out.finish_reason,
      extras={"behaviour_logprobs": out.behaviour_logprobs},
      group_size=group,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collector:
  """Generates completions for problems, one call a step.

  Attributes:
    generate: (params, prompts, prompt_mask, sample_ids, key, step), jitted:
      engine.make_generate with the step's number folded into the key.
    tokenizer: of the model.
    prompt_length: S; a longer prompt raises ValueError.
    group_size: G.
    template: text around each prompt, with {prompt}.
    chat: wrap the prompt with the tokenizer's chat template.
    key: of the run.
    sync: makes what `generate` takes from the trainer's parameters; not
      called here, since several calls of a step share one copy.
    place: puts host arrays [B, ...] or [N, ...] on the devices.
  """

  generate: Callable[..., engine.Generation]
  tokenizer: tokenizers.Tokenizer
  prompt_length: int
  group_size: int
  template: str
  chat: bool
  key: jax.Array
  sync: weight_sync.WeightSync
  place: Callable = lambda tree: tree

  def __call__(
    self,
    params,
    problems: Sequence[sources.Problem],
    step: int,
    *,
    first_id: int = 0,
  ) -> Samples:
    """Samples completions; equal arguments, equal result.

    Args:
      params: of the policy, from `sync`; the trainer's own do too, but on a
        mesh every call then lays them anew.
      problems: B of them.
      step: number that the noise depends on, with the rows' ids.
      first_id: id of the first row, after those that the step had before.
    """
    tokens, mask, texts = encoding.encode_prompts(
      problems,
      self.tokenizer,
      length=self.prompt_length,
      template=self.template,
      chat=self.chat,
    )
    ids = first_id + np.arange(len(problems) * self.group_size)
    out = self.generate(
      params,
      *self.place((tokens, mask, ids.astype(np.int32))),
      self.key,
      np.int32(step),
    )
    out = processes.to_host(out)
    return Samples(
      problems=problems,
      prompts=tokens,
      prompt_mask=mask,
      generation=out,
      prompt_texts=texts,
      texts=self._decode(out),
    )

  def _decode(self, out: engine.Generation) -> list[str]:
    """Texts of all completions; each process decodes its share."""

    def share(rows):
      kept = zip(out.completions[rows], out.mask[rows], strict=True)
      return [self.tokenizer.decode(row[keep].tolist()) for row, keep in kept]

    return sum(processes.divided(share, len(out.mask)), [])
