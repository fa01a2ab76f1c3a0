"""CME: the reward is how likely another, frozen model finds the answer.

    r_i = mean_t log p_verifier(y_t | prompt, y_<t)
    A_i = (r_i - mean_g) / (std_g + eps)
    loss = mean_i mean_t [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
                          + beta * KL_t]

with y the answer in the verifier's own tokens, after the same prompt in the
verifier's own chat template: cross-model entropy. No label is read; rewards of
the run are shown and not learnt from, though a row that they cannot score is
left out.

Against GRPO it changes:
  plan       reads the texts with the verifier, on the first device
  advantage  of these likelihoods in the place of the rewards

Our readings: only the answer's tokens count, at temperature 1; the token that
ends it too, unless it was cut off; an empty answer gets the least r of its
group, or `floor` where all are empty, for 0 would be the best of all. Logged:
cme/reward (nats a verifier token), cme/tokens, cme/empty.

Traps: text that repeats itself is likely: watch cme/tokens and the samples. A
verifier that is the policy's own start rewards it for what it does already.

Cross-model entropy, 2026, arXiv:2605.29009.
"""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.models import likelihood
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.rewards import functions
from jaxrl_llm.rollout import plans

_LOGPROB, _TOKENS = "verifier_logprob", "verifier_tokens"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cme(base.MethodConfig):
  """CME on GRPO."""

  verifier: str = "smollm2-135m"
  """the frozen model: a name as of model.name (hub id, folder, .gguf file), or
  FILE.py:FUNCTION, (dtype) -> models.weights.resolve.Loaded; loaded in the
  first step"""
  chat: bool = True
  """prompts are a user's turn in the verifier's chat template, without
  data.template; False: the text that the policy was given"""
  verifier_dtype: Literal["float32", "bfloat16"] = "float32"
  """of the verifier's matrices and their products"""
  rows: int = 8
  """answers that are scored at once"""
  floor: float = -20.0
  """nats a token, of the answers in a group of empty ones"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.04
  """coefficient of the KL to the reference model; 0: no reference is run"""
  kl: base.KlName = "exact"
  """estimator of the KL term, see objectives.kl (verl kl_loss_type)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in nats a token"""

  def build(self) -> base.Method:
    """Composes the method; nothing is loaded."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    self._check()
    penalties, needs = base.regularizers(beta=self.beta, kl=self.kl)
    return base.Method(
      plan=plans.annotated(
        self._annotate(),
        {_LOGPROB: types.Extra(), _TOKENS: types.Extra(dtype=np.int32)},
      ),
      advantage=self._advantage,
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
        penalties=penalties,
      ),
      needs=needs,
    )

  def _check(self):
    if not self.verifier:
      raise ValueError("verifier must name a model, got ''.")
    if ".py:" in self.verifier:
      functions.split(self.verifier, "verifier")
    if self.verifier_dtype not in ("float32", "bfloat16"):
      raise ValueError(
        "verifier_dtype must be float32 or bfloat16, got"
        f" {self.verifier_dtype!r}."
      )
    if self.rows < 1:
      raise ValueError(f"rows must be at least 1, got {self.rows}.")
    if not -float("inf") < self.floor <= 0:
      raise ValueError(f"floor must be 0 or less and finite, got {self.floor}.")

  def _annotate(self):
    verifier = functools.cache(self._load)

    def annotate(groups, state, tokenizer):
      del tokenizer  # the policy's
      samples, size = groups.samples, groups.group_size
      prompts = [problem.prompt for problem in samples.problems]
      logprob, tokens = verifier()(
        np.repeat(prompts if self.chat else samples.prompt_texts, size),
        samples.texts,
        samples.generation.finish_reason == types.FINISH_STOP,
      )
      some = tokens > 0
      metrics = {
        "cme/reward": float(logprob[some].mean()) if some.any() else self.floor,
        "cme/tokens": float(tokens.mean()),
        "cme/empty": float((~some).mean()),
      }
      return {_LOGPROB: logprob, _TOKENS: tokens}, state, metrics

    return annotate

  def _load(self):
    dtype = jnp.dtype(self.verifier_dtype)
    if ".py:" in self.verifier:
      make = functions.load(self.verifier, kind="verifier", takes="(dtype)")
      loaded = make(dtype)
    else:
      from jaxrl_llm.models.weights import resolve  # takes seconds

      loaded = resolve.load(self.verifier, dtype=dtype)
    return likelihood.Verifier(
      loaded, chat=self.chat, dtype=dtype, rows=self.rows
    )

  def _advantage(self, rollout):
    rewards = likelihood.scored_empty(
      rollout.extras[_LOGPROB],
      rollout.extras[_TOKENS] == 0,
      rollout.weights,
      group_size=rollout.group_size,
      floor=self.floor,
    )
    return group.group_normalized(
      rewards,
      rollout.weights,
      group_size=rollout.group_size,
      ddof=self.ddof,
      eps=self.eps,
    )
