"""CANON by entropy: answers that stay alive, against GRPO."""

import claims_diversity
import claims_frame as frame

from jaxrl_llm import methods

CLAIM = (
  "Judging halves of a group by entropy explores more than GRPO: higher"
  " entropy and pass@k."
)
SECONDS = 60


def check(seeds: int) -> frame.Finding:
  """CANON-Inter and CANON-Intra on several_answers."""
  return claims_diversity.compare(
    {
      "GRPO": methods.Grpo(beta=0.0),
      "CANON-Inter": methods.Canon(),
      "CANON-Intra": methods.Canon(mu=0.0),
    },
    seeds=seeds,
    claimed="CANON-Inter",
    against="GRPO",
  )
