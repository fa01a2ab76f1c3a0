"""Soft overlong: length taken out of the reward; truncation handled.

Around any method: what DAPO, ProRL and others do about completions that come
near the limit or run into it. With n the tokens of a completion, L the limit
and C the buffer before it,

    r    = r - factor * clip((n - (L - C)) / C, 0, 1)
    r    = coef * r, or coef itself if negative, where truncated (stop properly)
    loss = that of the method; truncated rows may be left out (filter)

Against GRPO it changes:
  transform  the penalty, then stop properly, before the method's own
  selection  filter "loss": truncated rows get weight 0 after the advantages

A hard penalty for truncation punishes sound reasoning that was merely long; the
soft one says how long is too long. Groups of equal reward may get a signal, and
so credit, from their lengths alone.

Yu et al. 2025, DAPO, arXiv:2503.14476.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.methods import base, grpo
from jaxrl_llm.transforms import chain, filters, shaping


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftOverlong(base.MethodConfig):
  """The soft penalty in the last fifth of the completion's room."""

  method: base.MethodConfig = dataclasses.field(default_factory=grpo.Grpo)
  """what learns from the changed reward: any method"""
  max_length: int | None = None
  """L, the limit in tokens (TRL max_completion_len, verl max_resp_len); None
  takes the run's completion_length"""
  buffer: int | None = None
  """C, tokens before the limit in which reward is lost (paper: 4096 of 20480;
  TRL soft_punish_cache, verl overlong_buffer_cfg.len); None takes a fifth of
  the limit, 0 punishes only what is longer than it"""
  factor: float = 1.0
  """reward lost at the limit (verl overlong_buffer_cfg.penalty_factor); 0: no
  penalty"""
  bounded: bool = True
  """whether the penalty stays at -factor beyond the limit (TRL, OpenRLHF) or
  grows (verl, AReaL); they differ only where max_length is below the run's
  completion_length"""
  stop_properly: float = 1.0
  """coef of truncated completions: factor of their reward, or, if negative, the
  reward itself (OpenRLHF stop_properly_penalty_coef); 1: off"""
  filter: Literal["off", "loss", "rows"] = "off"
  """truncated rows: as others; not in the loss but in the baseline of their
  group (TRL mask_truncated_completions); in neither"""

  def build(self) -> base.Method:
    """Composes the method."""
    if self.filter not in ("off", "loss", "rows"):
      raise ValueError(
        f"filter must be one of off, loss, rows; got {self.filter!r}."
      )
    inner = self.method.build()

    def select(rollout, advantages):
      rollout = filters.without_truncated(rollout)
      return inner.selection(rollout, advantages)

    return dataclasses.replace(
      inner,
      transform=chain.chain(*self._transforms(), inner.transform),
      selection=select if self.filter == "loss" else inner.selection,
    )

  def _transforms(self):
    penalty = shaping.overlong_penalty(
      buffer=self.buffer,
      max_length=self.max_length,
      factor=self.factor,
      bounded=self.bounded,
    )
    stop = shaping.stop_properly_penalty(self.stop_properly)
    if self.factor:
      yield penalty
    if self.stop_properly != 1:
      yield stop
    if self.filter == "rows":
      yield filters.drop_truncated()
