import json
import math
import re
import xml.etree.ElementTree as ET

import pytest

from jaxrl_llm.training import metrics, plots, report

CONFIG = {
  "model": {"name": "tiny"},
  "data": {"source": "addition"},
  "method": {"name": "Dapo", "clip_high": 0.28},
  "prompts_per_step": 8,
  "group_size": 4,
  "completion_length": 6,
  "note": "</pre><script>alert(1)</script>",
}


def step(number, **values):
  return {
      "step": number, "reward": 0.4 + 0.01 * number, "reward_std": 0.3,
      "length": 4.5, "entropy": 1.0, "zero_variance": 0.25,
      "sampler_gap_mean": 1e-6, "grad_norm": 0.7, "tokens_per_second": 400.0,
      "time/rollout": 1.0, "time/reward": 0.1, "time/train": 2.0,
      "time/step": 3.1, "memory/resident": 2000.0,
  } | values  # fmt: skip


def sample(number, key, right, text):
  return {
      "step": number, "id": key, "prompt": f"{key} + <i>1</i> =",
      "answer": "7", "completions": [text], "correct": [right],
  }  # fmt: skip


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
  write(tmp_path / metrics.METRICS, [step(i) for i in range(1, 11)])
  write(
      tmp_path / metrics.EVALUATIONS,
      [
          {"step": 0, "accuracy": 0.42, "accuracy_low": 0.38,
           "accuracy_high": 0.46, "problems": 500},
          {"step": 10, "accuracy": 0.99},  # before a kill, done again below
          {"step": 10, "accuracy": 0.731, "accuracy_low": 0.69,
           "accuracy_high": 0.77, "problems": 500},
      ],
  )  # fmt: skip
  rows = [sample(0, i, i < 2, " 5") for i in range(30)]
  rows += [
    sample(10, i, i < 29, "<script>alert(2)</script>") for i in range(30)
  ]
  write(tmp_path / metrics.EVALUATION_SAMPLES, rows)
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  return tmp_path


def test_the_page_has_the_headline_and_stands_alone(folder):
  path = report.write_report(folder)
  page = path.read_text()
  assert path == folder / "report.html"
  for part in ("0.420", "0.731", "+0.311", "0.690 to 0.770, 500 problems"):
    assert part in page
  assert "tiny on addition with Dapo: 8 prompts x 4 completions" in page
  assert "3.10 s" in page and "31 s in all" in page
  assert not re.search(r'(src|href)="?(http|//)', page)
  assert "@import" not in page and "url(" not in page.replace("url(#", "")
  assert (folder / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_a_model_or_config_says_becomes_markup(folder):
  page = report.write_report(folder).read_text()
  assert "<script" not in page and "<i>" not in page
  assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page
  assert "&lt;script&gt;alert(1)" in page


def test_completions_are_of_the_same_problems_and_changed_ones_first(folder):
  page = report.write_report(folder).read_text()
  assert "27 of 30 changed" in page
  body = page.split("<tbody>")[1].split("</tbody>")[0]
  rows = body.strip().split("\n")
  assert len(rows) == 12
  assert all("wrong" in row and "right" in row for row in rows[:8])
  assert rows[0].startswith("<tr><td class='text'>2 + ")


def test_every_number_of_the_run_has_a_picture():
  pictures = plots.panels([step(i) for i in range(1, 4)])
  text = "".join(p.decode() for p in pictures)
  for title in (
      "reward of the rollouts", "completion length", "entropy",
      "groups without signal", "sampler against trainer", "gradient norm",
      "speed", "time", "memory",
  ):  # fmt: skip
    assert f">{title}<" in text
  for picture in pictures:
    ET.fromstring(picture)  # well-formed


def test_pictures_are_the_same_bytes_for_the_same_run():
  steps = [step(i) for i in range(1, 4)]
  assert plots.panels(steps) == plots.panels(steps)


@pytest.mark.parametrize(
  ("steps", "evaluations"),
  [
    ([], [{"step": 0, "accuracy": 0.5}]),
    ([step(1)], []),
    ([{"step": 1, "reward": None, "grad_norm": None}], []),
    ([step(1, **{"time/step": 0.0, "reward": -2.0})], []),
  ],
)
def test_a_run_with_little_in_it_still_has_a_page(tmp_path, steps, evaluations):
  write(tmp_path / metrics.METRICS, steps)
  write(tmp_path / metrics.EVALUATIONS, evaluations)
  assert report.write_report(tmp_path).read_text().endswith("</html>\n")


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path):
  with pytest.raises(FileNotFoundError, match="no run in"):
    report.write_report(tmp_path)


def test_smoothing_keeps_a_constant_and_the_length():
  assert plots._smooth([2.0] * 7) == [2.0] * 7
  assert plots._smooth([]) == []
  assert math.isclose(sum(plots._smooth([0.0, 3.0, 0.0, 0.0, 0.0])) / 5, 0.7)
