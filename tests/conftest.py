"""Tests run on four fake CPU devices and refuse silent broadcasting.

Most of their time is the compilation of tiny programs, many of them again and
again. So programs are compiled fast rather than well (a value of your own in
XLA_FLAGS undoes that, an empty one too), and the processes of a session keep
what they have compiled in one folder, which goes with the session.
"""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The runtime's threads: where all of them wait for one another's part of a
# collective, a device whose part has not begun is never given one.
os.environ.setdefault("PJRT_NPROC", "32")
# Workers and commands that a test starts inherit the folder of the first.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  folder = tempfile.mkdtemp(prefix="jaxrl-programs-")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": folder,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

if "XLA_FLAGS" not in os.environ:
  os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
  )
  jax.devices()  # reads them, once
  # Not for libtpu, which ends the process at a flag that it does not know.
  del os.environ["XLA_FLAGS"]

# With two workers a long file that starts last is waited for by one alone.
_LONG_FIRST = (
  "step_contract_test",
  "resume_test",
  "golden_test",
  "method_contract_test",
  "critic_test",
  "step_test",
  "loop_test",
  "plan_loop_test",
  "offpolicy_loop_test",
  "tour_test",
  "compare_methods_test",
  "wrong_inputs_test",
  "implementations_test",
)


def pytest_collection_modifyitems(items):
  order = {name: place for place, name in enumerate(_LONG_FIRST)}
  last = len(order)
  items.sort(key=lambda item: order.get(pathlib.Path(item.path).stem, last))
