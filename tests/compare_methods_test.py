"""The comparison of methods, on few steps: scripts/compare_methods.py."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

from jaxrl_llm import methods, types
from jaxrl_llm.data import sources
from jaxrl_llm.methods import base, registry
from jaxrl_llm.rollout import collect, engine, plans, spans

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import compare_methods  # noqa: E402
import compare_report  # noqa: E402
import compare_tasks  # noqa: E402


def _samples(completions, mask, answers):
  completions = np.asarray(completions)
  return collect.Samples(
    problems=[sources.Problem(i, "", str(a)) for i, a in enumerate(answers)],
    prompts=np.zeros((len(answers), 2), np.int32),
    prompt_mask=np.ones((len(answers), 2), bool),
    generation=engine.Generation(
      completions=completions,
      mask=np.asarray(mask, bool),
      logprobs=None,
      behaviour_logprobs=None,
      finish_reason=None,
      checksum=None,
    ),
    prompt_texts=[""] * len(answers),
    texts=[""] * len(completions),
  )


def test_rewards_are_the_share_of_targets_and_whether_there_are_two():
  tokens = [[9, 1, 9, 1, 9, 9, 1, 0], [9, 9, 9, 9, 9, 9, 9, 9]]
  mask = [[1, 1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
  samples = _samples(tokens, mask, answers=[9])
  dense = compare_tasks.score("dense", samples)
  np.testing.assert_allclose(dense.rewards, [2 / 8, 1 / 8])
  np.testing.assert_allclose(dense.components["second"], 0.0)
  sparse = compare_tasks.score("sparse", samples)
  np.testing.assert_array_equal(sparse.rewards, [1.0, 0.0])
  assert np.isnan(sparse.components["second"]).all()
  other = compare_tasks.score("dense", _samples(tokens, mask, answers=[1]))
  np.testing.assert_allclose(other.rewards, [2 / 8, 0.0])


def test_the_interval_of_a_mean_is_that_of_students_t():
  mean, half = compare_report.interval(np.array([[1.0], [2.0], [3.0]]))
  assert mean == 2.0
  np.testing.assert_allclose(half, 4.3027 / 3**0.5, rtol=1e-4)
  assert np.isnan(compare_report.interval(np.ones((1, 4)))[1]).all()


def _result(before, after, error):
  return compare_report.Result(
    name="grpo",
    rewards=np.zeros((2, 2, 3)),
    before=np.array([before, before]),
    after=np.array([after, after]),
    error=np.full((2, 2), error),
    compile_seconds=1.0,
    seconds=1.0,
    metrics={},
  )


@pytest.mark.parametrize(
  "after, better",
  [
    ([0.5, 0.6], True),
    ([0.5, 0.11], False),
    ([0.5, 0.1], False),
    ([0.5, float("nan")], False),
  ],
)
def test_to_beat_the_untrained_policy_is_to_do_so_in_every_seed(after, better):
  assert _result([0.1, 0.1], after, 0.01).beats_untrained() is better


def test_texts_of_the_tasks_are_made_of_their_words():
  words = compare_tasks.TOKENIZER
  ids = [1, 4, 7, 8, 15, 9, 0]
  text = words.decode(ids)
  assert text == "Paris hosts . \n15 9 "
  assert words.encode(text) == ids[:-1]
  assert b"".join(words.pieces(ids)).decode() == text
  for kind in range(compare_tasks.KINDS):
    answer = compare_tasks.problem(kind).answer
    assert words.decode([int(answer)]).strip() == answer
  assert words.encode("15 London") == [15]


def _read(found, state, tokenizer):
  """Which tokens wrote a number."""
  texts = found.samples.texts
  of_tokens = spans.completion_spans(found.samples, tokenizer)
  numbers = [
    [text[start:end].strip().isdigit() for start, end in row]
    for text, row in zip(texts, of_tokens, strict=True)
  ]
  out = found.samples.generation
  np.testing.assert_array_equal(numbers, (out.completions > 8) & out.mask)
  return {"numbers": np.float32(numbers)}, state, {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idle(base.MethodConfig):
  """Dr. GRPO that reads numbers and learns nothing."""

  def build(self):
    extras = {"numbers": types.Extra(("N", "T"))}
    return dataclasses.replace(
      methods.DrGrpo().build(),
      advantage=lambda rollout: 0.0 * rollout.extras["numbers"],
      plan=plans.annotated(_read, extras),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(base.MethodConfig):
  def build(self):
    raise ValueError("a knob must be positive, got 0.")


def test_one_command_compares_and_says_who_did_not_learn(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setitem(registry.METHODS, "idle", Idle)
  monkeypatch.setitem(registry.METHODS, "broken", Broken)
  monkeypatch.setattr(
    compare_report.describe, "describe", lambda name: _Described
  )
  args = ["--methods", "remax,broken,idle", "--seeds", "2", "--steps", "8"]
  assert compare_methods.main([*args, "--out", str(tmp_path)]) == 1
  shown = capsys.readouterr()
  assert "[ 1/3] remax" in shown.out
  assert "could not run broken: ValueError: a knob must be" in shown.err
  assert "than the untrained policy on its task: idle\n" in shown.err
  page = (tmp_path / "report.html").read_text()
  assert "<td title='T: A sentence.'>remax</td>" in page
  assert page.count("<svg") == 3 and "broken: ValueError" in page
  assert "http" not in page.replace("http://www.w3.org", "").replace(
    "http://purl.org", ""
  ).replace("http://creativecommons.org", "").replace(
    "https://matplotlib.org", ""
  )
  found = json.loads((tmp_path / "results.json").read_text())
  rewards = np.array(found["results"][0]["rewards"])
  assert rewards.shape == (2, 2, 8)
  assert rewards[0, :, -2:].mean() > 1.5 * rewards[0, :, :2].mean()


class _Described:
  title, summary, changes = "T", "A sentence.", ("advantage",)


@pytest.mark.parametrize(
  "args, message",
  [
    (["--methods", "grop"], "Did you mean 'grpo'"),
    (["--seeds", "0"], "--seeds must be at least 1, got 0"),
  ],
)
def test_a_mistake_ends_in_one_line(args, message, capsys):
  with pytest.raises(SystemExit) as stop:
    compare_methods.main(args)
  assert stop.value.code == 2
  assert message in capsys.readouterr().err
