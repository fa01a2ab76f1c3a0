"""A tiny random model on one-digit addition: the whole loop in seconds.

  jaxrl train tiny_addition

For any device, a laptop's CPU too. Two layers of width 64 and a character
tokenizer; it is here to exercise every part (tests, a first look), not to
learn arithmetic. The second reward, for any digit in the answer, is one that
random weights can learn from.
"""

from jaxrl_llm.training import experiment


def get_config() -> experiment.Experiment:
  """The smallest experiment."""
  return experiment.Experiment(
    name="tiny_addition",
    steps=20,
    prompts_per_step=4,
    group_size=4,
    prompt_length=32,
    completion_length=4,
    model=experiment.Model(name="tiny"),
    data=experiment.Data(source="addition", digits=1, few_shot=False, size=50),
    reward=("exact_integer", "format:[0-9]"),
    optimizer=experiment.Optimizer(learning_rate=5e-3),
    evaluation=experiment.Evaluation(every=10, examples=16, batch=8),
    checkpoint=experiment.Checkpoint(every=5),
  )
