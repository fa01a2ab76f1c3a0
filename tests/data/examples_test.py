"""Prompts and answers as tokens, and the one line for each that cannot be."""

import json

import numpy as np
import pytest

from jaxrl_llm.data import answers, jsonl, sources, tokenizers

CHARS = tokenizers.CharTokenizer()
END = CHARS.ending()


def _examples(*problems, **knobs):
  knobs = {"prompt_length": 30, "answer_length": 8, "end_id": END} | knobs
  return answers.Examples(problems, CHARS, **knobs)


def _problem(prompt="3 + 4 =", solution=" 7", **fields):
  return sources.Problem(5, prompt, "7", solution, **fields)


def test_an_answer_is_its_text_and_what_ends_it():
  (example,) = _examples(_problem())
  assert CHARS.decode(example.prompt) == "3 + 4 ="
  assert CHARS.decode(example.answer) == " 7"
  assert example.answer[-1] == END and len(example.answer) == 3
  (other,) = _examples(_problem(), end_id=ord("\n"))
  assert other.answer[-1] == ord("\n")


def test_templates_are_written_around_both():
  examples = _examples(
    _problem(solution="7"),
    template="Q: {prompt}",
    answer_template=" <{answer}>",
  )
  assert CHARS.decode(examples[0].prompt) == "Q: 3 + 4 ="
  assert CHARS.decode(examples[0].answer) == " <7>"
  with pytest.raises(ValueError, match="data.answer_template must contain"):
    _examples(answer_template="7")


def test_a_conversation_is_written_by_the_chat_template():
  problem = _problem("And 4?", before=(("user", "3?"), ("assistant", "Three.")))
  examples = _examples(problem, chat=True, prompt_length=60)
  text = "user: 3?\nassistant: Three.\nuser: And 4?\nassistant:"
  assert CHARS.decode(examples[0].prompt) == text
  with pytest.raises(ValueError, match="problem 5 is a conversation; set data"):
    _examples(problem)[0]


def test_rows_are_padded_and_fillers_do_not_count():
  examples = _examples(_problem(), _problem("1 + 1 =", " 10"))
  rollout = examples.rollout(examples[:], rows=4)
  assert rollout.group_size == 1 and rollout.mask.sum(axis=1).tolist()[:2] == [
    3,
    4,
  ]
  assert rollout.weights.tolist() == [1, 1, 0, 0]
  assert rollout.prompt_mask.sum(axis=1).tolist() == [7, 7, 7, 7]
  assert (rollout.prompts[:, -1] == ord("=")).all()
  np.testing.assert_array_equal(rollout.mask[1], rollout.mask[3])
  shapes = answers.empty(4, 30, 8)
  for name in ("prompts", "prompt_mask", "completions", "mask", "weights"):
    one, other = getattr(rollout, name), getattr(shapes, name)
    assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize(
  ("problem", "message"),
  [
    (_problem(solution=""), "problem 5 has no answer to learn from"),
    (_problem(solution="12345678"), "has 9 tokens .* at least 9, or leave"),
    (_problem("x" * 31), "prompt of problem 5 has 31 tokens"),
  ],
)
def test_what_cannot_be_learnt_is_named(problem, message):
  with pytest.raises(ValueError, match=message) as caught:
    _examples(_problem(), problem).check()
  assert "\n" not in str(caught.value)


def test_sources_say_what_is_to_be_imitated():
  sums = sources.load("addition", size=3)
  assert sums[0].solution == f" {sums[0].answer}"
  assert sources.load("countdown", size=3)[0].solution == ""


def _message(role, content):
  return {"role": role, "content": content}


def test_the_forms_of_trl_are_read(tmp_path):
  asked, said = (
    _message("user", "2 + 2?"),
    _message("assistant", "It is\n#### 4"),
  )
  records = [
    {"prompt": "a", "completion": " b"},
    {"prompt": "a", "completion": " b", "answer": 3},
    {"prompt": [asked], "completion": [said]},
    {"messages": [_message("system", "Be brief."), asked, said]},
    {"question": "How many?", "answer": "One.\n#### 1"},
  ]
  file = tmp_path / "a.jsonl"
  file.write_text("\n".join(map(json.dumps, records)))
  found = [(p.prompt, p.answer, p.solution, p.before) for p in jsonl.read(file)]
  assert found == [
    ("a", "b", " b", ()),
    ("a", "3", " b", ()),
    ("2 + 2?", "4", "It is\n#### 4", ()),
    ("2 + 2?", "4", "It is\n#### 4", (("system", "Be brief."),)),
    ("How many?", "1", "One.\n#### 1", ()),
  ]


@pytest.mark.parametrize(
  ("record", "message"),
  [
    ({"completion": "b"}, "has a completion and no prompt"),
    ({"prompt": "", "completion": "b"}, "prompt must be text or messages"),
    ({"prompt": "a", "completion": ""}, "completion must be text or messages"),
    ({"messages": "hello"}, "messages must be messages, got 'hello'"),
    ({"messages": [{"role": "user"}]}, "role and content, both text"),
    ({"messages": [_message("user", "a")]}, "its roles are user"),
    (
      {"messages": [_message("assistant", "a"), _message("user", "b")]},
      "must end with a message of the user and one of the assistant",
    ),
  ],
)
def test_a_broken_line_is_named(tmp_path, record, message):
  file = tmp_path / "a.jsonl"
  file.write_text(json.dumps({"prompt": "p", "answer": 1}) + "\n")
  with file.open("a") as lines:
    lines.write(json.dumps(record))
  with pytest.raises(ValueError, match=f"line 2.*{message}") as caught:
    jsonl.read(file)
  assert "\n" not in str(caught.value)
