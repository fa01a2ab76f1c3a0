"""JSON lines, and the one line for each broken one."""

import json

import pytest

from jaxrl_llm.data import jsonl, sources


def write(path, *records):
  lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  return path


def test_both_spellings_are_read(tmp_path):
  file = write(
    tmp_path / "a.jsonl",
    {"prompt": "1 + 1 =", "answer": 2, "source": "me"},
    "",
    {"question": "How many?", "answer": "One and one.\n#### 2"},
    {"prompt": "Write a title", "answer": "#### Title"},
    {"prompt": "½ – ¼ =", "answer": 0.25},
  )
  assert jsonl.read(file) == [
    sources.Problem(0, "1 + 1 =", "2"),
    sources.Problem(1, "How many?", "2"),
    sources.Problem(2, "Write a title", "#### Title"),
    sources.Problem(3, "½ – ¼ =", "0.25"),
  ]


@pytest.mark.parametrize("count", [2, 9, 10, 11, 35])
def test_splits_of_a_file_are_disjoint_and_complete(tmp_path, count):
  records = [{"prompt": f"p{i}", "answer": i} for i in range(count)]
  name = str(write(tmp_path / "a.jsonl", *records))
  train = sources.load(name)
  test = sources.load(name, split="test")
  assert train and test and not {*train} & {*test}
  assert {*train} | {*test} == {*sources.load(name, split="all")}
  assert [problem.id for problem in test] == list(range(0, count, 10))


def test_an_empty_split_is_named(tmp_path):
  name = str(write(tmp_path / "a.jsonl", {"prompt": "p", "answer": 1}))
  with pytest.raises(ValueError, match="split 'train' .* has no problem"):
    sources.load(name)
  (tmp_path / "b.jsonl").write_text("")
  with pytest.raises(ValueError, match="split 'all' .* has no problem"):
    sources.load(str(tmp_path / "b.jsonl"), split="all")


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"prompt": "a", "answer"', "line 2 is not JSON"),
    ("[1, 2]", "line 2 must be an object.*got list"),
    ('{"input": "a", "target": 1}', "it has input, target"),
    ('{"prompt": "a"}', "it has prompt"),
    ("{}", "it has none"),
    ('{"prompt": 3, "answer": 1}', "line 2: prompt must be text, got 3"),
    ('{"question": "", "answer": 1}', "question must be text, got ''"),
    ('{"prompt": "a", "answer": null}', "number, got None"),
    ('{"prompt": "a", "answer": [1]}', r"number, got \[1\]"),
    ('{"prompt": "a", "answer": true}', "number, got True"),
  ],
)
def test_a_broken_line_is_named_by_number(tmp_path, line, message):
  file = write(tmp_path / "a.jsonl", {"prompt": "p", "answer": 1}, line)
  with pytest.raises(ValueError, match=message) as caught:
    jsonl.read(file)
  assert "\n" not in str(caught.value)


def test_missing_and_binary_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="no file.*none.jsonl"):
    sources.load("none.jsonl", path=str(tmp_path))
  (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00\x01")
  with pytest.raises(ValueError, match="is not UTF-8 text"):
    sources.load("a.jsonl", path=str(tmp_path))


def test_an_unknown_split_is_named():
  with pytest.raises(ValueError, match="legal are train, test, all"):
    sources.load("a.jsonl", split="dev")
