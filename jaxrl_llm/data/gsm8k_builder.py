"""tensorflow-datasets' builder of GSM8K from local JSON lines.

A file of its own because a builder is registered when its class is made, and
importing tensorflow-datasets takes a second.
"""

from collections.abc import Iterator, Mapping
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from jaxrl_llm.data import jsonl


class Gsm8kLocal(tfds.core.GeneratorBasedBuilder):
  """Records with a question and its final answer, in the files' order."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, files: Mapping[str, pathlib.Path], **kwargs: Any):
    """Remembers the files.

    Args:
      files: split -> file.
      **kwargs: of every builder, such as data_dir and file_format.
    """
    self._files = dict(files)
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    fields = ("question", "answer")
    return tfds.core.DatasetInfo(
      builder=self,
      description="GSM8K from local JSON lines.",
      features=tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in fields}
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing to download
    return {
      split: self._generate_examples(file)
      for split, file in self._files.items()
    }

  def _generate_examples(
    self, file: pathlib.Path
  ) -> Iterator[tuple[int, dict[str, str]]]:
    for problem in jsonl.read(file):
      record = {"question": problem.prompt, "answer": problem.answer}
      yield problem.id, record
