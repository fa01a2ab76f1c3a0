"""ProGRPO: answers that stay alive, against GRPO."""

import claims_diversity
import claims_frame as frame

from jaxrl_llm import methods

CLAIM = (
  "Credit for what the policy was less sure of keeps the entropy up: pass@k"
  " gains more than pass@1 over GRPO."
)
SECONDS = 60


def check(seeds: int) -> frame.Finding:
  """The printed rule, and more of it, on several_answers."""
  return claims_diversity.compare(
    {
      "GRPO": methods.Grpo(beta=0.0),
      "ProGRPO": methods.Progrpo(),
      "ProGRPO, alpha 1": methods.Progrpo(alpha=1.0),
      "ProGRPO, correct only": methods.Progrpo(alpha=1.0, correct_only=True),
    },
    seeds=seeds,
    claimed="ProGRPO",
    against="GRPO",
  )
