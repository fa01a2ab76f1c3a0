r"""SmolLM2-135M on grade-school word problems (GSM8K) with GRPO.

  jaxrl train gsm8k_grpo --data.path FOLDER   # train.jsonl and test.jsonl
  jaxrl train gsm8k_grpo                      # through tensorflow-datasets

For one accelerator with 16 GiB or more; on a CPU shorten it, for example with

  --steps 2 --optimizer.warmup-steps 0 --completion-length 64
  --evaluation.examples 10

The answer is the expression in \boxed{} or the last number, by value.
"""

from jaxrl_llm import methods
from jaxrl_llm.training import experiment

TEMPLATE = (
  "Question: {prompt}\nThink step by step and give the final answer in"
  " \\boxed{}.\nAnswer:"
)


def get_config() -> experiment.Experiment:
  """GRPO as published, at a small scale."""
  return experiment.Experiment(
    name="gsm8k_grpo",
    steps=200,
    prompts_per_step=16,
    group_size=8,
    prompt_length=320,
    completion_length=256,
    micro_batches=4,
    model=experiment.Model(name="smollm2-135m", dtype="bfloat16", remat="dots"),
    data=experiment.Data(source="gsm8k", template=TEMPLATE),
    reward=("math",),
    method=methods.Grpo(),
    optimizer=experiment.Optimizer(
      learning_rate=2e-6, schedule="cosine", warmup_steps=10
    ),
    evaluation=experiment.Evaluation(every=50, examples=200, batch=50),
  )
