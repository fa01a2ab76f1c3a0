"""SmolLM2-135M on Countdown with Dr. GRPO.

  jaxrl train countdown_dr_grpo

For one accelerator with 16 GiB or more. Given a few numbers the model writes
an expression with each of them once that equals the target. Dr. GRPO divides
neither by the group's deviation nor by the completion's length.
"""

from jaxrl_llm import methods
from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """Dr. GRPO on generated problems; nothing to download but the model."""
  return experiment.Experiment(
    name="countdown_dr_grpo",
    steps=200,
    prompts_per_step=16,
    group_size=8,
    prompt_length=160,
    completion_length=64,
    micro_batches=2,
    model=experiment.Model(name="smollm2-135m", dtype="bfloat16", remat="dots"),
    data=experiment.Data(source="countdown"),
    reward=("countdown",),
    method=methods.DrGrpo(),
    optimizer=experiment.Optimizer(learning_rate=2e-6, warmup_steps=10),
    evaluation=experiment.Evaluation(every=50, examples=200, batch=50),
  )
