"""Trains on eight fake devices, and goes on from the middle on fewer.

    python mesh_resume_worker.py FOLDER "fsdp=2 tensor=2" "fsdp=1" ...

Prints for each mesh one JSON line: the devices, whether the restored state is
that of eight devices to the bit, and the metrics and texts of every step.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from jaxrl_llm import methods  # noqa: E402
from jaxrl_llm.training import (  # noqa: E402
  checkpoint,
  experiment,
  loop,
  metrics,
)

WHOLE = experiment.Mesh(data=1, fsdp=4, tensor=2)
BASE = experiment.Experiment(
  steps=4,
  prompts_per_step=4,
  group_size=4,
  prompt_length=12,
  completion_length=5,
  model=experiment.Model(name="tiny"),
  data=experiment.Data(source="addition", digits=1, few_shot=False, size=64),
  reward=("length:2:characters",),
  method=methods.Grpo(),
  # As in mesh_worker.py: a change in proportion to the gradient.
  optimizer=experiment.Optimizer(
    learning_rate=1.0, eps=1.0, schedule="constant"
  ),
  evaluation=experiment.Evaluation(every=0, examples=4, batch=4),
  checkpoint=experiment.Checkpoint(every=2),
  logging=experiment.Logging(tensorboard=False),
  reward_workers=0,
  mesh=WHOLE,
  export=False,
)


class Recorder(checkpoint.Checkpointer):
  """Remembers the bits that were saved and restored at step 2."""

  saved = restored = None

  def save(self, step, arrays, extra=None):
    """Saves."""
    if step == 2:
      Recorder.saved = bits(arrays)
    super().save(step, arrays, extra)

  def restore(self, template, step=None):
    """Restores."""
    arrays, extra, step = super().restore(template, step)
    assert step == 2
    Recorder.restored = bits(arrays)
    for one, other in zip(
      jax.tree.leaves(arrays), jax.tree.leaves(template), strict=True
    ):
      assert one.sharding == other.sharding
    return arrays, extra, step


def bits(tree) -> list[bytes]:
  """The leaves as the host sees them."""
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def report(config: experiment.Experiment, folder: pathlib.Path):
  """Prints what a finished run wrote."""
  mesh = config.mesh
  print(
    json.dumps(
      {
        "devices": mesh.data * mesh.fsdp * mesh.tensor,
        "same_bits": Recorder.restored == Recorder.saved,
        "metrics": metrics.read(folder / metrics.METRICS),
        "texts": metrics.read(folder / metrics.SAMPLES),
      }
    ),
    flush=True,
  )


def main():
  """Trains on eight devices, then from step 2 on each mesh that is named."""
  runs = pathlib.Path(sys.argv[1])
  config = dataclasses.replace(BASE, runs=str(runs), name="whole")
  checkpoint.Checkpointer = Recorder
  # What costs time and is not looked at.
  loop._Trainer.evaluate = lambda self, step: None
  loop.report.write_report = lambda folder: None
  whole = loop.train(config)
  report(config, whole)
  for number, text in enumerate(sys.argv[2:]):
    sizes = {k: int(v) for k, v in (word.split("=") for word in text.split())}
    config = dataclasses.replace(
      config,
      name=f"resumed{number}",
      mesh=experiment.Mesh(**{"data": 1, "fsdp": 1} | sizes),
    )
    folder = pathlib.Path(shutil.copytree(whole, runs / config.name))
    shutil.rmtree(folder / "checkpoints" / "4")
    loop.train(config, resume=True)
    report(config, folder)


if __name__ == "__main__":
  main()
