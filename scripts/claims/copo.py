"""COPO: answers that stay alive, against GRPO."""

import claims_diversity
import claims_frame as frame

from jaxrl_llm import methods

CLAIM = (
  "Comparing prompts where the answers of a group agree keeps learning after"
  " GRPO has no signal, without losing pass@k."
)
SECONDS = 60


def check(seeds: int) -> frame.Finding:
  """As the script runs it and as the paper has it, on several_answers."""
  return claims_diversity.compare(
    {
      "GRPO": methods.Grpo(beta=0.0),
      "COPO": methods.Copo(),
      "COPO, consistency": methods.Copo(consistency=True),
    },
    seeds=seeds,
    claimed="COPO",
    against="GRPO",
  )
