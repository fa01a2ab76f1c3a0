"""What cannot be among the parts of an experiment; one line says why."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING

from jaxrl_llm.models import lora as low_rank
from jaxrl_llm.optimizers import anchored

if TYPE_CHECKING:
  from jaxrl_llm.training import experiment


def evolution(config: experiment.Experiment) -> None:
  """Refuses what has no meaning without gradients, and would be missed."""
  name = type(config.method).__name__
  for field, least in (
    ("mini_batches", 1),
    ("epochs", 1),
    ("rollout_ahead", 0),
    ("mesh.rollout", 0),
  ):
    value = operator.attrgetter(field)(config)
    if value != least:
      raise ValueError(
        f"{field} must be {least} with {name}, got {value}: its members answer"
        " and the weights move once, in turn."
      )
  if config.optimizer.anchor:
    raise ValueError(
      f"optimizer.anchor must be 0 with {name}, got"
      f" {config.optimizer.anchor}: its own decay is method.lam."
    )


def lora(config: experiment.Lora) -> None:
  """Raises ValueError for an adapter that cannot be."""
  if config.rank < 0:
    raise ValueError(f"lora.rank must be 0 (off) or more, got {config.rank}.")
  if not 0 < config.alpha < math.inf:
    raise ValueError(
      f"lora.alpha must be positive and finite, got {config.alpha}."
    )
  if config.rank:
    try:
      low_rank.check(rank=config.rank, targets=config.targets)
    except ValueError as error:
      raise ValueError(f"lora.{error}") from error


def optimizer(config: experiment.Optimizer) -> None:
  """Raises ValueError for an optimizer that cannot be."""
  if not 0 < config.learning_rate < math.inf:
    raise ValueError(
      "optimizer.learning_rate must be positive and finite, got"
      f" {config.learning_rate}."
    )
  for name in ("b1", "b2"):
    if not 0 <= getattr(config, name) < 1:
      raise ValueError(
        f"optimizer.{name} must be in [0, 1), got {getattr(config, name)}."
      )
  for name in ("eps", "weight_decay", "max_grad_norm"):
    if not 0 <= getattr(config, name) < math.inf:
      raise ValueError(
        f"optimizer.{name} must be 0 or more and finite, got"
        f" {getattr(config, name)}."
      )
  try:
    anchored.check_anchor(
      config.anchor,
      norm=config.anchor_norm,
      learning_rate=config.learning_rate,
    )
  except ValueError as error:
    raise ValueError(f"optimizer.anchor: {error}") from error


def checkpoint(config: experiment.Checkpoint) -> None:
  """Raises ValueError for a schedule of checkpoints that cannot be."""
  if config.keep_period and not config.every:
    raise ValueError(
      "checkpoint.keep_period must be 0 where checkpoint.every is 0, got"
      f" {config.keep_period}: no step is saved on its way."
    )
  if config.keep_period and config.keep_period % config.every:
    raise ValueError(
      "checkpoint.keep_period must be a multiple of checkpoint.every ="
      f" {config.every}, got {config.keep_period}: no other steps are saved."
    )


def sampling(name: str, rule: experiment.Sampling) -> None:
  """Raises ValueError for a rule of sampling that cannot be."""
  if not rule.temperature > 0:
    raise ValueError(
      f"{name}.temperature must be positive, got {rule.temperature}; for"
      f" the likeliest token use {name}.greedy."
    )
  if rule.top_k < 0:
    raise ValueError(f"{name}.top_k must be 0 (all) or more, got {rule.top_k}.")
  if not 0 < rule.top_p <= 1:
    raise ValueError(f"{name}.top_p must be in (0, 1], got {rule.top_p}.")
  if not 0 <= rule.min_p < 1:
    raise ValueError(f"{name}.min_p must be in [0, 1), got {rule.min_p}.")
  truncated = (rule.temperature, rule.top_k, rule.top_p, rule.min_p)
  if rule.greedy and truncated != (1.0, 0, 1.0, 0.0):
    raise ValueError(
      f"{name}.greedy takes the likeliest token, so temperature, top_k, top_p"
      " and min_p must be left at 1, 0, 1 and 0."
    )
