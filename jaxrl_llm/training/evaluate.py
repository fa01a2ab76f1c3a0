"""How good the model is, with an interval: accuracy and unbiased pass@k."""

from collections.abc import Callable, Sequence
import dataclasses
import math
import time
from typing import Any

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % of the normal


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
  """What an evaluation found.

  Attributes:
    metrics: accuracy, accuracy_low, accuracy_high (95 %), reward, problems,
      samples, unscorable (share of completions), seconds; and with several
      samples a problem pass@k, pass@k_low, pass@k_high for k = 1, 2, 4, ...
    rows: for each problem id, prompt, answer, completions, rewards, correct.
  """

  metrics: dict[str, float]
  rows: list[dict[str, Any]]


def pass_at_k(n: int, c: int, k: int) -> float:
  """Probability that k of n completions, not put back, hold a right one.

    pass@k = 1 - C(n - c, k) / C(n, k)

  Unbiased for 1 - (1 - p)^k when c ~ Binomial(n, p). The binomials are exact
  integers, subtracted before the one division that rounds.

  Args:
    n: completions of the problem.
    c: right ones among them; 0 <= c <= n.
    k: completions one may try; 1 <= k <= n.

  Returns:
    A probability.

  References:
    Chen et al. 2021, arXiv:2107.03374, equation 1.
  """
  if not 1 <= k <= n:
    raise ValueError(f"pass_at_k needs 1 <= k <= n, got k={k} and n={n}.")
  if not 0 <= c <= n:
    raise ValueError(f"pass_at_k needs 0 <= c <= n, got c={c} and n={n}.")
  total = math.comb(n, k)
  return (total - math.comb(n - c, k)) / total


def wilson(successes: float, n: int, *, z: float = Z95) -> tuple[float, float]:
  """Interval of a proportion from n independent trials.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

  Holds its level for small n and near 0 and 1, where the normal one fails.

  Args:
    successes: number of right ones, 0 <= successes <= n.
    n: number of trials, at least 1.
    z: quantile of the normal; 1.96 gives 95 %.

  Returns:
    (low, high) within [0, 1].

  References:
    Wilson 1927, Journal of the American Statistical Association 22.
  """
  if n < 1:
    raise ValueError(f"wilson needs n >= 1, got {n}.")
  if not 0 <= successes <= n:
    raise ValueError(f"wilson needs 0 <= successes <= {n}, got {successes}.")
  p = successes / n
  centre = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  low = 0.0 if successes == 0 else max((centre - half) / scale, 0.0)
  high = 1.0 if successes == n else min((centre + half) / scale, 1.0)
  return low, high


def bootstrap(
  values: Sequence[float], *, seed: int = 0, resamples: int = 2000
) -> tuple[float, float]:
  """95 % percentile interval of a mean over problems, drawn with return.

  Problems are the independent unit; the completions of one are not. Where all
  values are equal resampling sees no spread, so Wilson over the problems, which
  is no narrower than the truth for any variable in [0, 1], stands in.

  Args:
    values: one number in [0, 1] for each problem.
    seed: of the resampling; the same seed gives the same interval.
    resamples: how many times the problems are drawn.

  Returns:
    (low, high).
  """
  array = np.asarray(values, np.float64)
  if array.ndim != 1 or array.size == 0:
    raise ValueError(f"bootstrap needs [n >= 1] values, got {array.shape}.")
  if np.all(array == array[0]):
    return wilson(float(array.sum()), array.size)
  rng = np.random.default_rng(seed)
  counts = rng.multinomial(
    array.size, np.full(array.size, 1 / array.size), size=resamples
  )
  low, high = np.quantile(counts @ array / array.size, (0.025, 0.975))
  return float(low), float(high)


def run(
  generate: Callable[[list[Any]], list[list[str]]],
  pool: Any,
  problems: Sequence[Any],
  *,
  batch: int,
  samples: int,
  seed: int = 0,
) -> EvaluationResult:
  """Generates, scores and counts.

  A completion is right when the first reward gives it 1 or more; one that
  cannot be scored is wrong. Every call of `generate` gets equally many
  problems (the last one is filled up with repeats), so one shape is compiled.

  Args:
    generate: (problems) -> for each problem its `samples` completions.
    pool: a rewards.pool.RewardPool.
    problems: with id, prompt and answer; at least one.
    batch: problems generated at once.
    samples: completions a problem.
    seed: of the bootstrap.

  Returns:
    Metrics and one row a problem.
  """
  if not len(problems):
    raise ValueError(
      "evaluation needs at least one problem, got none; see"
      " evaluation.examples and data.eval_split."
    )
  start = time.perf_counter()
  rows = []
  batch = min(batch, len(problems))
  for first in range(0, len(problems), batch):
    chunk = [
      problems[i] for i in range(first, min(first + batch, len(problems)))
    ]
    filled = chunk + [chunk[-1]] * (batch - len(chunk))
    rows += _score(pool, chunk, generate(filled)[: len(chunk)], samples)
  metrics = _summary(rows, samples, seed)
  metrics["seconds"] = time.perf_counter() - start
  return EvaluationResult(metrics, rows)


def _score(pool, problems, completions, samples: int) -> list[dict[str, Any]]:
  """One row a problem, scored in one call of the pool."""
  for texts in completions:
    if len(texts) != samples:
      raise ValueError(
        f"generate must return {samples} completions a problem, got"
        f" {len(texts)}."
      )
  scored = pool.score(
    [p.prompt for p in problems for _ in range(samples)],
    [text for texts in completions for text in texts],
    [p.answer for p in problems for _ in range(samples)],
  )
  first = next(iter(scored.components.values()))
  rewards = np.asarray(scored.rewards, np.float64).reshape(-1, samples)
  verdicts = np.asarray(first, np.float64).reshape(-1, samples)
  return [
    {
      "id": problem.id,
      "prompt": problem.prompt,
      "answer": problem.answer,
      "completions": list(texts),
      "rewards": [float(r) for r in reward],
      "correct": [bool(v >= 1 - 1e-6) for v in verdict],  # NaN is wrong
    }
    for problem, texts, reward, verdict in zip(
      problems, completions, rewards, verdicts, strict=True
    )
  ]


def _summary(rows, samples: int, seed: int) -> dict[str, float]:
  """Metrics of all rows."""
  right = [sum(row["correct"]) for row in rows]
  rewards = np.array([row["rewards"] for row in rows])
  scorable = ~np.isnan(rewards)
  metrics = {
    "problems": len(rows),
    "samples": samples,
    "unscorable": float(1 - scorable.mean()),
    "reward": float(rewards[scorable].mean()) if scorable.any() else math.nan,
    "accuracy": sum(right) / (samples * len(rows)),
  }
  if samples == 1:
    interval = wilson(sum(right), len(rows))
  else:
    interval = bootstrap([c / samples for c in right], seed=seed)
  metrics["accuracy_low"], metrics["accuracy_high"] = interval
  for k in _powers_of_two(samples) if samples > 1 else []:
    values = [pass_at_k(samples, c, k) for c in right]
    low, high = bootstrap(values, seed=seed)
    metrics[f"pass@{k}"] = sum(values) / len(values)
    metrics[f"pass@{k}_low"], metrics[f"pass@{k}_high"] = low, high
  return metrics


def _powers_of_two(n: int) -> list[int]:
  """1, 2, 4, ... and n itself."""
  return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})
