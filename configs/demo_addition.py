"""SmolLM2-135M learns two-digit addition with DAPO's loss, on a CPU.

  jaxrl train demo_addition

For two CPU cores and 4 GiB of memory, or any accelerator. Few-shot prompts
("3 + 4 = 7", "21 + 15 = 36", then "x + y ="), at most 6 new tokens, the last
integer of the first line counts. No KL, no overlong penalty; the learning rate
falls linearly to zero. Greedy accuracy on 500 held-out problems every 50 steps.
"""

from jaxrl_llm import methods
from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """The demo's experiment."""
  return experiment.Experiment(
    name="demo_addition",
    steps=100,
    prompts_per_step=8,
    group_size=8,
    prompt_length=26,  # every prompt has exactly this many tokens
    completion_length=6,
    model=experiment.Model(name="smollm2-135m", dtype="bfloat16"),
    data=experiment.Data(source="addition", digits=2, few_shot=True),
    reward=("exact_integer",),
    method=methods.Dapo(),
    optimizer=experiment.Optimizer(learning_rate=2e-5, schedule="linear"),
    evaluation=experiment.Evaluation(
      every=50, examples=500, batch=50, dtype="float32"
    ),
    checkpoint=experiment.Checkpoint(every=0, keep=1),
  )
