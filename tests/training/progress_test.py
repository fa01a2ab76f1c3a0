import io
import math

import pytest
import rich.console

from jaxrl_llm.training import progress

METRICS = {
    "reward": 0.5234, "reward_std": 0.31, "length": 5.25, "entropy": 0.4312,
    "zero_variance": 0.25, "sampler_gap_mean": 1.2e-6, "grad_norm": 0.517,
    "tokens_per_second": 431.2, "time/rollout": 1.2, "time/reward": 0.1,
    "time/train": 2.9, "time/step": 4.2, "memory/resident": 2150.4,
}  # fmt: skip
HEADER = {"run": "runs/x[y]", "parameters": 134_515_008, "devices": "1 x cpu"}


def show(
  *, terminal, steps=3, metrics=None, start=0, interval=0.0, messages=()
):
  file = io.StringIO()
  console = rich.console.Console(
    file=file, force_terminal=terminal, width=200, highlight=False
  )
  with progress.Progress(
    total=30, start=start, header=HEADER, console=console, interval=interval
  ) as view:
    view.evaluating(10, 20)
    view.evaluation(0, {"accuracy": 0.42, "problems": 500})
    for step in range(start + 1, start + steps + 1):
      view.update(step, METRICS if metrics is None else metrics, messages)
    view.say("saved [1]")
  view.close()
  return file.getvalue()


def test_a_line_holds_everything_one_asks_for():
  assert progress.line(7, 30, METRICS) == (
    "step  7/30  reward 0.523  +- 0.31  length 5.2  entropy 0.431  same 25%"
    "  gap 1.2e-06  grad 0.517  tok/s 431  4.2 s (rollout 1.2, reward 0.1,"
    " train 2.9)  2.1 GiB"
  )


def test_what_is_missing_is_left_out():
  assert progress.line(1, 2, {"reward": 1}) == "step 1/2  reward 1.000"
  assert progress.line(1, 2, {"time/step": 2.0}) == "step 1/2  2.0 s"


def test_the_header_says_what_is_running():
  text = show(terminal=False)
  for part in ("parameters  135 M", "runs/x[y]", "1 x cpu"):
    assert part in text
  assert "resumed" not in text


def test_without_a_terminal_there_are_plain_lines_only():
  text = show(terminal=False)
  assert "\x1b" not in text and "━" not in text
  assert (
    text.count("reward 0.523") == 3 and "saved [1]" in text and "left" in text
  )


def test_on_a_terminal_there_is_a_bar():
  text = show(terminal=True)
  assert "evaluating 10/20" in text
  assert "━" in text and "3/30" in text and "left" in text


def test_lines_are_spaced_but_the_first_one_is_always_there():
  assert show(terminal=False, steps=5, interval=60.0).count("reward 0.523") == 1


def test_the_last_step_is_always_printed():
  text = show(terminal=False, start=27, interval=60.0)
  assert "step 28/30" in text and "step 30/30" in text
  assert "resumed     after step 27" in text


def test_the_first_step_does_not_count_for_the_time_left():
  view = progress.Progress(total=30, header={})
  assert view.seconds_left(0) is None
  view._seconds.extend([100.0, 2.0, 3.0, 2.0])
  assert view.seconds_left(4) == 2.0 * 26


@pytest.mark.parametrize(
  ("metrics", "answer"),
  [
    ({"zero_variance": 1.0, "reward": 0.0}, "none is right"),
    ({"zero_variance": 1.0, "reward": 1.0}, "the task is solved"),
    ({"zero_variance": 1.0, "reward": 0.4}, "tells completions apart"),
    ({"grad_norm": math.nan}, "gradient is nan"),
    ({"unscorable": 1.0, "zero_variance": 1.0}, "no completion could be"),
    ({"truncated": 0.95, "reward": 0.0}, "raise completion_length"),
  ],
)
def test_hints_answer_why_nothing_is_learned(metrics, answer):
  assert answer in progress.hint(metrics)
  assert "\n" not in progress.hint(metrics)


def test_a_healthy_step_has_no_hint():
  assert progress.hint(METRICS) is None and progress.hint({}) is None


def test_a_hint_is_not_repeated_at_each_step():
  text = show(
    terminal=False, steps=12, metrics={"zero_variance": 1.0, "reward": 0.0}
  )
  assert text.count("why is the loss 0?") == 2


def test_a_message_of_the_rewards_is_shown_once_in_ten_steps():
  messages = ["row 3: timeout in [f]", "row 12: timeout in [f]"]
  text = show(terminal=False, steps=9, messages=messages)
  assert text.count("timeout in [f]") == 1


def test_an_evaluation_is_one_line_with_its_interval():
  metrics = {
      "accuracy": 0.73, "accuracy_low": 0.69, "accuracy_high": 0.767,
      "problems": 500, "samples": 4, "pass@4": 0.9, "pass@4_low": 0.8,
      "unscorable": 0.01,
  }  # fmt: skip
  assert progress.verdict(30, metrics) == (
    "evaluation after 30 steps:  accuracy 0.730 (0.690 to 0.767) on 500"
    " problems  pass@4 0.900  unscorable 1.0%"
  )
