r"""Qwen3-0.6B on grade-school word problems with GRPO, for a TPU slice.

  jaxrl plan pod_qwen3_0_6b --topology v5e:2x4    # also v6e:2x4, v5p:2x2x1
  jaxrl train pod_qwen3_0_6b --runs FOLDER    # on each host of the slice

The other pod_*.py files change what their model's size asks for. What each
needs of which slice, and how to launch it, is in docs/pods.md; no figure of
learning or speed is known yet. The KL to the reference is off, so no second
model is held; --method.beta 0.001 turns it on.
"""

from jaxrl_llm import methods
from jaxrl_llm.training import experiment

ASK = "Think step by step and give the final answer in \\boxed{}."
PLAIN = experiment.Data(
  source="gsm8k", template=f"Question: {{prompt}}\n{ASK}\nAnswer:"
)
CHAT = experiment.Data(source="gsm8k", template=f"{{prompt}}\n{ASK}", chat=True)


def get_config() -> experiment.Experiment:
  """512 completions a step; parameters and rows cut over all devices."""
  return experiment.Experiment(
    name="pod_qwen3_0_6b",
    steps=500,
    prompts_per_step=64,
    group_size=8,
    prompt_length=512,
    completion_length=1024,
    micro_batches=8,
    mesh=experiment.Mesh(data=1),
    model=experiment.Model(
      name="Qwen/Qwen3-0.6B", dtype="bfloat16", remat="full"
    ),
    data=PLAIN,
    reward=("math",),
    reward_workers=8,
    method=methods.Grpo(beta=0.0),
    optimizer=experiment.Optimizer(learning_rate=1e-6, warmup_steps=10),
    evaluation=experiment.Evaluation(every=50, examples=256, batch=64),
  )
