"""Adapters as the folder that the library PEFT loads: LoRA, nothing merged.

PEFT wraps a model: a layer's matrices are base_model.model.NAME.lora_A.weight
[r, in] and lora_B.weight [out, r], beside an adapter_config.json.
"""

import json
import os
import pathlib

import jax
import numpy as np
import safetensors.numpy

from jaxrl_llm.models import api, lora
from jaxrl_llm.models.weights import assemble, names


def save(
  folder: str | os.PathLike[str],
  config: api.ModelConfig,
  adapter: lora.Adapter,
  *,
  alpha: float,
  base: str,
) -> None:
  """Writes adapter_model.safetensors and adapter_config.json.

  Args:
    folder: made if it is not there.
    config: of the base.
    adapter: as lora.init makes it, on the host.
    alpha: the product of the matrices is multiplied by alpha / rank.
    base: name or folder of the base's weights, which PEFT loads with it.
  """
  tensors, modules = {}, set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(adapter):
    path, _, part = assemble.path_name(path).rpartition("/")
    for layer, matrix in enumerate(np.asarray(leaf, np.float32)):
      weight = names.tensor_name(config, path, layer)
      module = weight.removesuffix(".weight")
      name = f"base_model.model.{module}.lora_{part.upper()}.weight"
      tensors[name] = np.ascontiguousarray(matrix.T)
      modules.add(module.rpartition(".")[2])
    rank = leaf.shape[-1 if part == "a" else -2]
  words = _config(rank, alpha, sorted(modules), base)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(
    tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"}
  )
  (folder / "adapter_config.json").write_text(json.dumps(words, indent=2))


def _config(rank, alpha, modules, base):
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": rank,
    "lora_alpha": alpha,
    "lora_dropout": 0.0,
    "target_modules": modules,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "modules_to_save": None,
    "use_rslora": False,
    "use_dora": False,
  }
