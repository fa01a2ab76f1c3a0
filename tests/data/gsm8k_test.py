"""GSM8K from local files and through tensorflow-datasets' own builder."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from jaxrl_llm.data import gsm8k, sources


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "local"
  folder.mkdir()
  for split, count in (("train", 30), ("test", 5)):
    lines = (
      json.dumps(
        {
          "question": f"{split} {i}: what is {i} + {i}?",
          "answer": f"{i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}",
        }
      )
      for i in range(count)
    )
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
  return folder


def load(folder, **arguments):
  cache = str(folder.parent / "cache")
  return gsm8k.load(str(folder), cache=cache, **arguments)


def test_problems_come_in_the_order_of_the_file(folder):
  train = load(folder)
  assert len(train) == 30 and len(load(folder, split="test")) == 5
  assert train[3] == sources.Problem(3, "train 3: what is 3 + 3?", "6")
  assert train[-1].id == 29
  assert [problem.id for problem in train[:4]] == [0, 1, 2, 3]
  assert [problem.answer for problem in train] == [
    str(2 * i) for i in range(30)
  ]
  with pytest.raises(IndexError):
    train[30]


def test_records_are_array_record_and_are_built_once(folder):
  load(folder)
  built = sorted((folder.parent / "cache").rglob("*.array_record*"))
  times = [file.stat().st_mtime_ns for file in built]
  load(folder)
  assert len(built) == 2
  assert times == [file.stat().st_mtime_ns for file in built]
  assert not list((folder.parent / "cache").rglob("partial-*"))


def test_a_changed_file_is_built_anew(folder):
  assert len(load(folder)) == 30
  with (folder / "train.jsonl").open("a") as file:
    file.write('{"question": "new", "answer": "#### 1"}\n')
  assert load(folder)[30].prompt == "new"


def test_one_split_is_enough(folder):
  (folder / "test.jsonl").unlink()
  assert len(load(folder)) == 30
  with pytest.raises(FileNotFoundError, match="no test.jsonl; it has train.j"):
    load(folder, split="test")


def test_bad_folders_splits_and_lines_give_one_line(folder):
  with pytest.raises(FileNotFoundError, match="data.path must be a folder"):
    load(folder / "train.jsonl")
  with pytest.raises(ValueError, match="legal are train, test"):
    load(folder, split="dev")
  with (folder / "test.jsonl").open("a") as file:
    file.write("{broken\n")
  with pytest.raises(ValueError, match="test.jsonl line 6 is not JSON"):
    load(folder)
  assert not list((folder.parent / "cache").rglob("*.array_record*"))


def test_tensorflow_is_never_imported(folder):
  code = (
    "import sys; from jaxrl_llm.data import sources;"
    f"problems = sources.load('gsm8k', path={str(folder)!r});"
    "print(len(problems), problems[1].answer, 'tensorflow' in sys.modules)"
  )
  out = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | {"XDG_CACHE_HOME": str(folder.parent / "home")},
  )
  assert out.stdout.strip() == "30 2 False"
  assert (folder.parent / "home/jaxrl_llm/gsm8k").is_dir()


def test_the_official_builder_gives_the_same_problems(folder, monkeypatch):
  """Everything but the download, which hands out the local files."""

  def download(self, addresses):
    del self
    split = {name: name.split("_")[0] for name in addresses}
    return {name: folder / f"{split[name]}.jsonl" for name in addresses}

  manager = tfds.download.DownloadManager
  monkeypatch.setattr(manager, "download_and_extract", download)
  monkeypatch.setattr(gsm8k, "_reach", lambda address: None)
  problems = gsm8k.load("", cache=str(folder.parent / "official"))
  same = {(problem.prompt, problem.answer) for problem in load(folder)}
  assert {(problem.prompt, problem.answer) for problem in problems} == same
  assert len(problems) == 30
  with pytest.raises(ValueError, match="train_socratic, test_socratic"):
    gsm8k.load("", split="dev")


def test_without_a_network_one_line_comes_soon(tmp_path, monkeypatch):
  def refuse(request, timeout):
    raise OSError("Name or service not known")

  monkeypatch.setattr(gsm8k.urllib.request, "urlopen", refuse)
  with pytest.raises(ConnectionError, match="set data.path to a folder"):
    gsm8k.load("", cache=str(tmp_path))


def test_a_cache_that_cannot_be_written_is_named(folder):
  blocked = folder.parent / "blocked"
  pathlib.Path(blocked).write_text("a file, not a folder")
  with pytest.raises(ValueError, match="cannot be written.*XDG_CACHE_HOME"):
    gsm8k.load(str(folder), cache=str(blocked))
