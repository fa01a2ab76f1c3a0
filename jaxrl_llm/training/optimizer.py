"""AdamW with clipping, an anchor and the three usual learning-rate shapes."""

import optax

from jaxrl_llm.optimizers import anchored
from jaxrl_llm.training import experiment


def make_schedule(
  config: experiment.Optimizer, *, steps: int
) -> optax.Schedule:
  """Linear warm-up to the peak, then constant, linear or cosine to zero.

  Args:
    config: the optimizer's part of an experiment.
    steps: optimizer steps of the whole run, warm-up included.

  Returns:
    A function from optimizer step (0-based) to learning rate.
  """
  if not 0 <= config.warmup_steps < steps:
    raise ValueError(
      "optimizer.warmup_steps must be in [0, optimizer steps ="
      f" {steps}), got {config.warmup_steps}."
    )
  peak, rest = config.learning_rate, steps - config.warmup_steps
  decay = {
    "constant": lambda: optax.constant_schedule(peak),
    "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
    "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
  }[config.schedule]()
  if not config.warmup_steps:
    return decay
  warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
  return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(
  config: experiment.Optimizer, *, steps: int
) -> optax.GradientTransformation:
  """Clipping by global norm, AdamW, the anchor; 0 leaves first or last out."""
  schedule = make_schedule(config, steps=steps)
  parts = [
    optax.adamw(
      schedule,
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
    )
  ]
  if config.max_grad_norm:
    parts.insert(0, optax.clip_by_global_norm(config.max_grad_norm))
  if config.anchor:
    parts.append(
      anchored.anchored_weight_decay(
        schedule,
        config.anchor,
        norm=config.anchor_norm,
        dtype=config.anchor_dtype,
      )
    )
  return optax.chain(*parts) if len(parts) > 1 else parts[0]
