"""The novelty bonus: answers that stay alive, against GSPO."""

import claims_diversity
import claims_frame as frame

from jaxrl_llm import methods

CLAIM = (
  "A bonus for correct answers that the reference finds unusual raises pass@k"
  " over GSPO."
)
SECONDS = 60


def check(seeds: int) -> frame.Finding:
  """Small and large bonuses on several_answers."""
  return claims_diversity.compare(
    {
      "GSPO": methods.Gspo(),
      "bonus 0.2": methods.NoveltyGspo(),
      "bonus 0.9": methods.NoveltyGspo(coef=0.9),
    },
    seeds=seeds,
    claimed="bonus 0.2",
    against="GSPO",
  )
