"""CorVer: its knobs, and a run that lacks a corpus."""

import dataclasses

import pytest

from jaxrl_llm import methods
from jaxrl_llm.training import config_file, setup


@pytest.mark.parametrize(
  "knobs, message",
  [
    ({"scale": "batch"}, "scale must be group or none"),
    ({"unit": "window"}, "unit must be paragraph or document"),
    ({"few": 30}, "must not fall"),
    ({"min_std": -1.0}, "min_std must be 0 or more"),
    ({"eps": 0.0}, "eps must be positive"),
    ({"beta": -1.0}, "beta must be 0 or more"),
  ],
)
def test_bad_knobs_are_one_line(knobs, message):
  with pytest.raises(ValueError, match=message) as caught:
    methods.Corver(**knobs).build()
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("around", [False, True])
def test_a_run_without_a_corpus_ends_before_it_begins(around):
  method = methods.Corver()
  if around:
    method = methods.DynamicSampling(method=method)
  config = dataclasses.replace(config_file.load("tiny_addition"), method=method)
  with pytest.raises(ValueError, match="facts are counted in a corpus"):
    setup.build(config)
