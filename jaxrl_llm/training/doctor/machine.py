"""Checks of the machine: devices, mesh, disk, memory."""

from collections.abc import Iterator
import glob
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

import jax

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.training import plan
from jaxrl_llm.training.doctor.finding import FAIL, OK, WARN, Finding, size
from jaxrl_llm.training.doctor.subject import Subject

_PACKAGES = (
  "jax",
  "jaxlib",
  "libtpu",
  "jax-cuda12-plugin",
  "jax-cuda13-plugin",
)
_FULL = 0.9  # of a device's memory: above it little may be added


def devices(subject: Subject) -> Iterator[Finding]:
  """Which devices JAX sees, and whether an accelerator is left unseen."""
  del subject
  found = jax.devices()
  first = found[0]
  versions = ", ".join(
    f"{name} {version}" for name in _PACKAGES if (version := _version(name))
  )
  memory = meshes.device_bytes(first)
  each = f", {size(memory)} each" if memory else ""
  figure = (
    f"{len(found)} x {first.device_kind} ({first.platform}){each}; {versions}"
  )
  unseen = accelerator() if first.platform == "cpu" else ""
  if not unseen:
    yield Finding(name="devices", status=OK, figure=figure)
    return
  yield Finding(
    name="devices",
    status=WARN,
    figure=f"{figure}; {unseen} is in this machine but JAX uses the CPU",
    advice="install the extra [cuda] or [tpu], and leave JAX_PLATFORMS unset",
  )


def accelerator() -> str:
  """What tells of a GPU or TPU in this machine; empty if nothing does."""
  if glob.glob("/dev/nvidia[0-9]*"):
    return "an NVIDIA GPU (/dev/nvidia*)"
  if shutil.which("nvidia-smi"):
    return "an NVIDIA GPU (nvidia-smi)"
  if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"):
    return "a TPU (/dev/accel* or /dev/vfio/*)"
  return ""


def mesh(subject: Subject) -> Iterator[Finding]:
  """How the devices share the work, and how many have none."""
  made, config = subject.layout.mesh, subject.config
  count = len(jax.devices())
  used = made.size if made else 1
  axes = ", ".join(f"{k} {v}" for k, v in made.shape.items()) if made else ""
  prompts = config.prompts_per_step / subject.row_shares
  figure = (
    f"{axes or 'one device'}; {prompts:g} prompts x {config.group_size} on each"
    f" device, {used} of {count} used"
  )
  if used == count:
    yield Finding(name="mesh", status=OK, figure=figure)
    return
  shares = count // config.mesh.tensor
  pieces = config.mini_batches * config.micro_batches
  yield Finding(
    name="mesh",
    status=WARN,
    figure=figure,
    advice=f"prompts_per_step as a multiple of {shares * pieces} would use"
    f" {shares * config.mesh.tensor}"
    + (
      ", with mesh.data and mesh.fsdp left at 0"
      if config.mesh.data or config.mesh.fsdp
      else ""
    ),
  )


def disk(subject: Subject) -> Iterator[Finding]:
  """Whether `runs` can be written, and holds checkpoints and export."""
  config = subject.config
  folder = _existing(pathlib.Path(config.runs).expanduser())
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    yield Finding(
      name="disk",
      status=FAIL,
      figure=f"{folder} cannot be written: {error.strerror}",
      advice="set --runs to a folder that can be",
    )
    return
  state = jax.tree.leaves(subject.absent.state)
  one = sum(leaf.size * leaf.dtype.itemsize for leaf in state)
  # A new export lies beside the old one until it is complete.
  export = 8 * subject.absent.parameters if config.export else 0
  periods = config.checkpoint.keep_period
  kept = config.checkpoint.keep + (config.steps // periods if periods else 0)
  needed = (kept + 1) * one + export
  free = shutil.disk_usage(folder).free
  figure = (
    f"{size(free)} free in {folder}; a checkpoint is {size(one)}, {kept} kept"
    f" and one being written and the export are {size(needed)}"
  )
  status = FAIL if free < one + export else WARN if free < needed else OK
  advice = (
    "" if status == OK else "free space, lower checkpoint.keep, or --runs"
  )
  yield Finding(name="disk", status=status, figure=figure, advice=advice)


def memory(subject: Subject) -> Iterator[Finding]:
  """What the compiled programs need on a device, against what it has."""
  available = meshes.device_bytes(jax.devices()[0])
  what = f"{size(available)} on each device"
  if not available:
    local = jax.local_device_count()
    available = _host_bytes() // local
    what = f"{size(available)} of host memory for each of {local} devices"
  made = plan.here(
    subject.config,
    available,
    only=("train step", "rollout"),
    say=subject.say,
  )
  programs = ", ".join(f"{p.name} {size(p.needed)}" for p in made.programs)
  figure = f"state {size(made.resident)}, {programs or 'too large'}; of {what}"
  if not made.fits:
    status, advice = FAIL, "raise micro_batches, or set model.remat to full"
    if made.resident > available:
      advice = "more devices along mesh.fsdp, or a smaller model"
  elif made.needed > _FULL * available:
    status, advice = WARN, "little is left; raise micro_batches"
  else:
    status, advice = OK, ""
  yield Finding(name="memory", status=status, figure=figure, advice=advice)


def _existing(folder):
  """The folder, or the nearest above it that is there."""
  folder = folder.absolute()
  while not folder.exists():
    folder = folder.parent
  return folder


def _host_bytes() -> int:
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package):
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ""
