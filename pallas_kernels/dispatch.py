"""Which implementation of an op runs: by argument, environment, platform.

  the argument impl  >  the environment's JAXRL_KERNELS  >  "auto"

  auto       Pallas where it is proven better and can run, else XLA
  xla        plain XLA, on every platform
  pallas     the Pallas TPU kernel; raises where it cannot run
  interpret  the Pallas kernel, interpreted on any platform: slow, for tests
  reference  the defining lines, which may hold everything: for tests

JAXRL_KERNELS is one of these words for every op, or words for single ops:
"token_logprob=xla,reverse_scan=pallas". An op without a kernel takes "xla"
where the environment says "pallas".

"auto" looks at the platform that a program is LOWERED for, not at the devices
of the process: a CPU host that compiles for an absent TPU gets the TPU's
program. Mosaic kernels cannot be partitioned automatically, so "auto" takes
them only where it knows that one device runs them: inside shard_map over all
axes, under a mesh of one device (jax.set_mesh), or in a process that sees one
device and has set no mesh.
"""

from collections.abc import Callable
import functools
import os
from typing import Any
import warnings

import jax

from pallas_kernels import blocks

IMPLS = ("auto", "xla", "pallas", "interpret", "reference")
VARIABLE = "JAXRL_KERNELS"

_warned: set[tuple[str, str]] = set()


def call(
  op: str,
  impl: str | None,
  *args: Any,
  xla: Callable,
  reference: Callable,
  pallas: Callable | None = None,
  on_tpu: bool = True,
  cuda: Callable | None = None,
) -> Any:
  """Runs the implementation of `op` that `choose` names on `args`.

  Args:
    op: name of the op, for the environment and for messages.
    impl: one of IMPLS or None.
    *args: arrays (pytrees) that every implementation takes.
    xla: the default of every platform.
    reference: the defining lines.
    pallas: pallas(*args, interpret=bool), or None if there is no kernel. It
      raises blocks.Unsupported, before any other error, for arguments that
      the kernel does not take.
    on_tpu: whether "auto" takes the kernel on TPU.
    cuda: what "auto" takes on NVIDIA's GPUs; None: xla. It raises
      blocks.Unsupported as `pallas` does.

  Raises:
    ValueError: if impl, or the environment, names nothing that is offered.
    blocks.Unsupported: if impl is "pallas" and the kernel cannot take args.
  """
  name = choose(op, impl, kernel=pallas is not None)
  if name == "reference":
    return reference(*args)
  if name in ("pallas", "interpret"):
    return pallas(*args, interpret=name == "interpret")
  platforms = {}
  if name == "auto" and on_one_device():
    if pallas is not None and on_tpu:
      tpu = functools.partial(pallas, interpret=False)
      platforms["tpu"] = _or_xla(op, "TPU", tpu, xla)
    if cuda is not None:
      platforms["cuda"] = _or_xla(op, "NVIDIA", cuda, xla)
  if not platforms:
    return xla(*args)
  return jax.lax.platform_dependent(*args, **platforms, default=xla)


def choose(op: str, impl: str | None, *, kernel: bool) -> str:
  """The member of IMPLS that `impl` or the environment asks of `op`.

  Args:
    op: name of the op.
    impl: what the caller said, or None.
    kernel: whether the op has a Pallas kernel.

  Raises:
    ValueError: if the word is none of IMPLS, or impl asks for a kernel that
      the op does not have.
  """
  offered = IMPLS if kernel else ("auto", "xla", "reference")
  if impl is not None:
    if impl not in offered:
      raise ValueError(f"{op}: impl is one of {offered} or None, got {impl!r}.")
    return impl
  name = _environment().get(op, _environment().get("", "auto"))
  return name if name in offered else "xla"


def on_one_device() -> bool:
  """Whether what is being traced is known to run on one device at a time."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return jax.device_count() == 1
  return mesh.are_all_axes_manual or mesh.size == 1


def target() -> blocks.Chip:
  """The chip that is being traced for; the smallest where that is unknown.

  That of the mesh (jax.set_mesh), which may be of absent devices, else that of
  this process's devices.
  """
  kind = _kind()
  return blocks.chip(kind)


def result(
  shape: tuple[int, ...], dtype: Any, *operands: jax.Array
) -> jax.ShapeDtypeStruct:
  """The out_shape of a kernel; in shard_map it varies as its operands do."""
  varying = frozenset().union(*(_type(x).varying for x in operands))
  if not varying:
    return jax.ShapeDtypeStruct(shape, dtype)
  widest = max((_type(x) for x in operands), key=lambda t: len(t.varying))
  return jax.ShapeDtypeStruct(
    shape, dtype, manual_axis_type=widest.update(varying=varying)
  )


def _environment():
  """{op: impl} of the variable; the key "" is for all ops."""
  chosen = {}
  for word in filter(None, os.environ.get(VARIABLE, "").split(",")):
    op, _, name = word.strip().rpartition("=")
    if name not in IMPLS:
      raise ValueError(
        f"{VARIABLE} has {word!r}; write one of {IMPLS} for all ops, or"
        " op=impl, separated by commas."
      )
    chosen[op] = name
  return chosen


def _type(operand):
  return jax.typeof(operand).manual_axis_type


def _kind():
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  if device:
    return device.device_kind
  return jax.devices()[0].device_kind


def _or_xla(op, maker, kernel, xla):
  """The kernel, or XLA for what it does not take."""

  def call(*args):
    try:
      return kernel(*args)
    except blocks.Unsupported as error:
      _warn_once(op, maker, str(error))
      return xla(*args)

  return call


def _warn_once(op, maker, reason):
  """Warns of a fallback, but only those who trace for a chip of that maker."""
  if maker in (_kind() or "") and (op, reason) not in _warned:
    _warned.add((op, reason))
    warnings.warn(f"Falling back to XLA. {reason}", stacklevel=2)
