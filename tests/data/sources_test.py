"""Sources by name."""

import subprocess
import sys

import pytest

from jaxrl_llm.data import sources


@pytest.mark.parametrize(
  ("source", "near"), [("additon", "addition"), ("gsm8", "gsm8k")]
)
def test_a_typo_gets_a_suggestion(source, near):
  with pytest.raises(ValueError, match=f"did you mean '{near}'") as caught:
    sources.load(source)
  assert "FILE.jsonl" in str(caught.value)


def test_every_listed_source_loads(tmp_path):
  lines = '{"question": "1 + 1?", "answer": "so #### 2"}\n' * 2
  for split in ("train", "test"):
    (tmp_path / f"{split}.jsonl").write_text(lines)
  for name in ("addition", "multiplication", "countdown"):
    assert sources.load(name, size=3)[2].id == 2
  assert sources.load("train.jsonl", path=str(tmp_path))[0].answer == "2"
  assert {*sources.SOURCES} == {
    "addition",
    "multiplication",
    "countdown",
    "gsm8k",
    "FILE.jsonl",
  }


def test_import_is_light():
  code = (
    "import sys;"
    "from jaxrl_llm.data import batching, generators, gsm8k, jsonl;"
    "from jaxrl_llm.data import prompts, sources;"
    "sources.load('addition');"
    "heavy = {'jax', 'grain', 'tensorflow_datasets', 'transformers'};"
    "print(heavy & set(sys.modules))"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == "set()"
