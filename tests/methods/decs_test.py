"""DECS: its knobs, and its plan beside the real rewards."""

import dataclasses

import pytest

from jaxrl_llm import methods
from jaxrl_llm.training import config_file, setup


@pytest.mark.parametrize(
  "knobs, message",
  [
    ({"beta_len": -1.0}, "beta_len must be 0"),
    ({"redundant_base": "text"}, "redundant_base must be"),
    ({"judge": "model"}, "judge must be answer, reward"),
    ({"words": " , "}, "words must name"),
    ({"kappa_lr": -0.1}, "kappa_lr must be 0"),
    ({"kappa_min": 0.5}, "kappa_min must be 0 or less"),
    ({"kappa_max": 1.0}, "kappa_max must be in"),
    ({"max_rounds": 0}, "max_rounds must be at least 1"),
    ({"seed": -1}, "seed must be 0"),
    ({"dual_clip": 1.0}, "dual_clip must be above"),
  ],
)
def test_bad_knobs_are_one_line(knobs, message):
  with pytest.raises(ValueError, match=message) as caught:
    methods.Decs(**knobs).build()
  assert "\n" not in str(caught.value)


def test_a_missing_judge_is_said_before_the_run():
  config = dataclasses.replace(
    config_file.load("tiny_addition"),
    method=methods.Decs(judge="nowhere.py:judge"),
  )
  with pytest.raises(FileNotFoundError, match="judge 'nowhere.py:judge'"):
    setup.build(config)
