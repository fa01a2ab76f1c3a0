import fractions
import itertools
import math
import types

import numpy as np
import pytest

from jaxrl_llm.training import evaluate


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n):
  for c, k in itertools.product(range(n + 1), range(1, n + 1)):
    outcomes = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(outcomes, k))
    share = fractions.Fraction(sum(map(any, subsets)), len(subsets))
    assert evaluate.pass_at_k(n, c, k) == float(share)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_pass_at_k_is_unbiased(p, k):
  n = 8
  expected = sum(
    math.comb(n, c) * p**c * (1 - p) ** (n - c) * evaluate.pass_at_k(n, c, k)
    for c in range(n + 1)
  )
  assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_the_plug_in_estimate_would_be_biased():
  n, k, p = 8, 4, 0.3
  plug_in = sum(
    math.comb(n, c) * p**c * (1 - p) ** (n - c) * (1 - (1 - c / n) ** k)
    for c in range(n + 1)
  )
  assert abs(plug_in - (1 - (1 - p) ** k)) > 0.01


def test_pass_at_k_is_exact_for_large_n():
  n, c, k = 10_000, 1, 1
  assert evaluate.pass_at_k(n, c, k) == 1e-4
  assert evaluate.pass_at_k(n, 1, n // 2) == 0.5
  assert evaluate.pass_at_k(n, 5000, 6000) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1)])
def test_pass_at_k_refuses_what_cannot_be(n, c, k):
  with pytest.raises(ValueError, match="pass_at_k needs"):
    evaluate.pass_at_k(n, c, k)


def test_wilson_is_the_published_interval():
  # Newcombe 1998, Statistics in Medicine 17, table I: 81/263 and 0/20.
  assert np.round(evaluate.wilson(81, 263), 4).tolist() == [0.2553, 0.3662]
  assert np.round(evaluate.wilson(0, 20), 4).tolist() == [0.0, 0.1611]


@pytest.mark.parametrize("p", [0.03, 0.42, 0.73])
def test_wilson_covers_the_truth_as_often_as_it_says(p):
  n = 200
  coverage = sum(
    math.comb(n, c) * p**c * (1 - p) ** (n - c)
    for c in range(n + 1)
    if evaluate.wilson(c, n)[0] <= p <= evaluate.wilson(c, n)[1]
  )
  assert 0.93 < coverage < 0.975


def test_bootstrap_covers_the_mean_over_problems():
  rng = np.random.default_rng(0)
  truth, hits, trials = 0.4, 0, 300
  for trial in range(trials):
    p = rng.beta(0.8, 1.2, size=80)  # problems differ; mean 0.4
    values = rng.binomial(4, p) / 4
    low, high = evaluate.bootstrap(values, seed=trial, resamples=400)
    hits += low <= truth <= high
  assert 0.90 < hits / trials < 0.99


def test_bootstrap_repeats_itself_and_is_wider_with_fewer_problems():
  values = np.random.default_rng(1).uniform(size=100)
  once = evaluate.bootstrap(values, seed=3)
  assert once == evaluate.bootstrap(values, seed=3)
  few = evaluate.bootstrap(values[:20], seed=3)
  assert few[1] - few[0] > once[1] - once[0]


def test_bootstrap_of_equal_values_still_has_a_width():
  low, high = evaluate.bootstrap([1.0] * 20)
  assert low < 0.9 and high == 1.0


class Pool:
  """Right when the completion is the answer; "?" cannot be scored."""

  def score(self, prompts, completions, answers):
    assert len(prompts) == len(completions) == len(answers)
    scores = np.array(
      [
        np.nan if c == "?" else float(c == a)
        for c, a in zip(completions, answers, strict=True)
      ]
    )
    return types.SimpleNamespace(
      rewards=2 * scores, components={"exact": scores}
    )


def problems(n):
  return [
    types.SimpleNamespace(id=i, prompt=f"say {i}", answer=str(i))
    for i in range(n)
  ]


def test_run_asks_for_equal_batches_and_keeps_the_order():
  sizes = []

  def generate(chunk):
    sizes.append(len(chunk))
    return [[p.answer if p.id % 2 else "wrong"] for p in chunk]

  result = evaluate.run(generate, Pool(), problems(7), batch=3, samples=1)
  assert sizes == [3, 3, 3]
  assert [row["id"] for row in result.rows] == list(range(7))
  assert result.metrics["accuracy"] == 3 / 7
  assert result.metrics["problems"] == 7
  assert result.metrics["reward"] == pytest.approx(6 / 7)
  low, high = evaluate.wilson(3, 7)
  assert result.metrics["accuracy_low"] == low
  assert result.metrics["accuracy_high"] == high
  assert not any("pass@" in name for name in result.metrics)


def test_run_counts_pass_at_k_and_what_cannot_be_scored():
  def generate(chunk):
    return [[p.answer, "?", "no", "no"] if p.id else ["no"] * 4 for p in chunk]

  result = evaluate.run(generate, Pool(), problems(4), batch=10, samples=4)
  assert result.metrics["accuracy"] == 3 / 16
  assert result.metrics["pass@1"] == 3 / 16
  assert result.metrics["pass@2"] == pytest.approx(0.75 * 0.5)
  assert result.metrics["pass@4"] == 0.75
  assert result.metrics["unscorable"] == 3 / 16
  assert result.metrics["pass@4_low"] < 0.75 < result.metrics["pass@4_high"]
  assert result.rows[1]["correct"] == [True, False, False, False]


def test_run_refuses_no_problems_and_a_wrong_number_of_completions():
  with pytest.raises(ValueError, match="at least one problem"):
    evaluate.run(lambda _: [], Pool(), [], batch=2, samples=1)
  with pytest.raises(ValueError, match="2 completions a problem, got 1"):
    evaluate.run(
        lambda chunk: [["x"]] * len(chunk),
        Pool(), problems(2), batch=2, samples=2,
    )  # fmt: skip
