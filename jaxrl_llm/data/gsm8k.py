"""GSM8K through tensorflow-datasets, from the network or from local files.

Records are kept as array_record and read one by one through NumPy; TensorFlow
is neither imported nor needed, to read or to build.

References:
  Cobbe et al. 2021, arXiv:2110.14168.
"""

from collections.abc import Sequence
import contextlib
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any
import urllib.error
import urllib.request

from jaxrl_llm.data import jsonl, sources

SPLITS = ("train", "test")

# Seconds for a first answer from the network: the download itself retries for
# minutes before it gives up.
PATIENCE = 10.0


class Problems(Sequence):
  """Problems read from array_record files when they are asked for."""

  def __init__(self, records: Sequence[dict[str, Any]]):
    """Wraps a data source whose records have a question and an answer."""
    self._records = records

  def __len__(self) -> int:
    """Number of problems."""
    return len(self._records)

  def __getitem__(self, index):
    """A problem; a list of problems for a slice."""
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    position = range(len(self))[index]
    record = self._records[position]
    solution = _text(record["answer"])
    return sources.Problem(
      position,
      _text(record["question"]),
      jsonl.final_answer(solution),
      solution,
    )


def load(path: str = "", *, split: str = "train", cache: str = "") -> Problems:
  """GSM8K problems; the answer is the number after "####".

  Args:
    path: folder with train.jsonl and test.jsonl, whose lines have the fields
      question and answer. Empty: tensorflow-datasets' own builder, which
      downloads once into its data folder.
    split: "train" or "test"; without path also "train_socratic" and
      "test_socratic".
    cache: folder for the records; empty: for what is built from path,
      jaxrl_llm in $XDG_CACHE_HOME or ~/.cache (changed files are built anew),
      for what is downloaded, tensorflow-datasets' own default.

  Raises:
    FileNotFoundError: the folder or the split's file is not there.
    ValueError: a split or a line that cannot be.
    ConnectionError: the download failed.
  """
  if not path:
    return Problems(_downloaded(split, cache))
  sources.check_split(split, SPLITS, source="gsm8k with data.path")
  files = _local_files(pathlib.Path(path), split)
  return Problems(_built(files, _cache(cache)).as_data_source(split=split))


def _local_files(folder: pathlib.Path, split: str) -> dict[str, pathlib.Path]:
  """Files of the splits that are there."""
  if not folder.is_dir():
    raise FileNotFoundError(
      f"data.path must be a folder with train.jsonl and test.jsonl, there is"
      f" no folder {str(folder)!r}."
    )
  files = {name: folder / f"{name}.jsonl" for name in SPLITS}
  files = {name: file for name, file in files.items() if file.is_file()}
  if split not in files:
    present = sorted(file.name for file in folder.iterdir())[:10]
    raise FileNotFoundError(
      f"data.path {str(folder)!r} has no {split}.jsonl; it has"
      f" {', '.join(present) or 'no files'}."
    )
  return files


def _built(files: dict[str, pathlib.Path], cache: pathlib.Path) -> Any:
  """Builder whose records are on disk; builds them the first time."""
  digest = hashlib.sha256()
  for name, file in sorted(files.items()):
    digest.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
  folder = cache / "gsm8k" / digest.hexdigest()[:16]
  if not folder.is_dir():
    _build(files, folder)
  return _builder(files, folder)


def _build(files: dict[str, pathlib.Path], folder: pathlib.Path) -> None:
  """Builds beside `folder` and renames: all of it is there, or nothing."""
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(prefix="partial-", dir=folder.parent)
  except OSError as error:
    raise ValueError(
      f"the cache folder {str(folder.parent)!r} cannot be written"
      f" ({error.strerror}); set XDG_CACHE_HOME to one that can."
    ) from None
  try:
    _prepare(_builder(files, pathlib.Path(partial)))
    os.rename(partial, folder)
  except OSError:
    if not folder.is_dir():  # else another process was faster
      raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _builder(files: dict[str, pathlib.Path], folder: pathlib.Path) -> Any:
  """tensorflow-datasets' builder of local files."""
  from jaxrl_llm.data import gsm8k_builder

  return gsm8k_builder.Gsm8kLocal(
    files=files, data_dir=str(folder), file_format="array_record"
  )


def _downloaded(split: str, cache: str) -> Sequence[dict[str, Any]]:
  """Data source of tensorflow-datasets' own gsm8k."""
  import tensorflow_datasets as tfds
  import tensorflow_datasets.text.gsm8k  # noqa: F401  registers the builder

  socratic = tuple(f"{name}_socratic" for name in SPLITS)
  sources.check_split(split, SPLITS + socratic, source="gsm8k")
  builder = tfds.builder(
    "gsm8k", data_dir=cache or None, file_format="array_record"
  )
  if not builder.is_prepared():
    _reach(builder.info.homepage)
    _prepare(builder)
  return builder.as_data_source(split=split)


def _prepare(builder: Any) -> None:
  """Downloads and writes records; what is printed goes to stderr."""
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(sys.stderr):
      builder.download_and_prepare()
  except ConnectionError as error:
    raise _no_network(error) from None


def _reach(address: str) -> None:
  """Raises ConnectionError, one line and soon, without a network."""
  request = urllib.request.Request(address, method="HEAD")
  try:
    urllib.request.urlopen(request, timeout=PATIENCE).close()
  except urllib.error.HTTPError:
    return  # somebody answered
  except OSError as error:
    raise _no_network(error) from None


def _no_network(error: OSError) -> ConnectionError:
  reason = " ".join(str(error).split())[:120]
  return ConnectionError(
    f"gsm8k cannot be downloaded ({reason}); set data.path to a folder with"
    " train.jsonl and test.jsonl."
  )


def _cache(folder: str) -> pathlib.Path:
  if folder:
    return pathlib.Path(folder)
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(home) / "jaxrl_llm"


def _text(value: bytes | str) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)
