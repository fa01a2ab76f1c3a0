"""The trained model as a folder that other libraries load."""

import pathlib
import shutil

from jaxrl_llm.distributed import processes
from jaxrl_llm.models import lora
from jaxrl_llm.models.weights import hf, peft
from jaxrl_llm.training import setup


def export(run: setup.Run, params, folder: pathlib.Path) -> None:
  """Writes a folder that transformers loads, replacing an older one.

  An adapter is merged, and also written as it is to the subfolder adapter/.
  """
  policy = processes.to_host(run.policy(params))
  if not processes.is_main():
    return
  scratch = folder.with_name(folder.name + ".new")
  shutil.rmtree(scratch, ignore_errors=True)
  scratch.mkdir(parents=True)
  hf.save(scratch, run.loaded.config, lora.merge(policy))
  if run.config.lora.rank:
    peft.save(
      scratch / "adapter",
      run.loaded.config,
      lora.trained(policy),
      alpha=run.config.lora.alpha,
      base=run.loaded.source,
    )
  run.loaded.tokenizer.save(scratch)
  shutil.rmtree(folder, ignore_errors=True)
  scratch.rename(folder)
