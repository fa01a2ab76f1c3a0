"""Times every op of pallas_kernels against the naive form and against floors.

    python scripts/bench_kernels.py                      every op, here
    python scripts/bench_kernels.py token_logprob --vocab 32768 --width 512
    python scripts/bench_kernels.py --peers torch        also PyTorch's forms
    python scripts/bench_kernels.py --aot v5e,v5p,v6e    memory on absent TPUs

Variants run in turn, round after round, in one process, so that the drift of a
shared machine meets them all; best and median of the rounds are printed. The
floor is what the op's products and traffic need at the matmul and copy rates
measured in the same process. Memory is that of a process of its own for every
variant: how far its peak rises above what it held before the call.

--aot compiles for TPUs that are not here and prints what their compiler says
of memory, nothing of time: its estimates of time do not hold (it counts the
body of a loop once).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

_HERE = pathlib.Path(__file__).resolve().parent
_MIB = 2.0**20


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  """The arguments; sizes that are not given follow the platform."""
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("ops", nargs="*", help="names of ops; none: all")
  p.add_argument("--rounds", type=int, default=7)
  p.add_argument("--dtype", choices=["float32", "bfloat16"])
  for size, text in (
    ("tokens", "N of token_logprob"),
    ("width", "D"),
    ("vocab", "V"),
    ("rows", "N of [N, T] ops"),
    ("length", "T of [N, T] ops"),
  ):
    p.add_argument(f"--{size}", type=int, help=text)
  p.add_argument("--peers", default="", help="torch: PyTorch eager, compiled")
  p.add_argument("--aot", default="", help="chips, separated by commas")
  p.add_argument("--no-memory", action="store_true", help="time alone")
  p.add_argument("--json", help="write the figures to this file too")
  p.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
  args = p.parse_args(argv)
  if args.rounds < 1:
    p.error(f"--rounds must be at least 1, got {args.rounds}.")
  if args.peers not in ("", "torch"):
    p.error(f"--peers knows torch, got {args.peers!r}.")
  return args


def main(argv: list[str] | None = None) -> None:
  """Prints one table; exits with 2 and one line at a mistake."""
  args = parse(argv)
  if args.aot:
    os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path.insert(0, str(_HERE))
  import kernel_cases

  from pallas_kernels import aot

  aot.quiet_without_tpu()
  unknown = [op for op in args.ops if op not in kernel_cases.CASES]
  if unknown:
    known = ", ".join(kernel_cases.CASES)
    print(f"no op {unknown[0]!r}; there are {known}.", file=sys.stderr)
    sys.exit(2)
  sizes = kernel_cases.sizes(args, tpu=bool(args.aot))
  if args.one:
    case = kernel_cases.CASES[args.one[0]](sizes)
    if args.one[1].startswith("torch"):
      case = kernel_cases.with_torch(case, sizes)
    print(_peak_of(case, args.one[1]))
    return
  if args.aot:
    rows = _compile_all(kernel_cases, args, sizes)
  else:
    rows = _time_all(kernel_cases, args, sizes)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


def _time_all(kernel_cases, args, sizes):
  import floors
  import jax

  device = jax.devices()[0]
  print(f"{device.device_kind}, {jax.default_backend()}; {sizes}")
  speed = floors.rates(sizes.dtype)
  print(
    f"matmul {speed['matmul'] / 1e9:.0f} GFLOP/s ({sizes.dtype}), copy"
    f" {speed['copy'] / 1e9:.1f} GB/s; ratios are to the naive form\n"
  )
  print(
    "| op | form | best ms | median ms | time / naive | time / floor"
    " | extra MiB | memory / naive |"
  )
  print("| --- " * 8 + "|")
  rows = []
  for op in args.ops or kernel_cases.CASES:
    case = kernel_cases.CASES[op](sizes)
    if args.peers:
      case = kernel_cases.with_torch(case, sizes)
    rows += _time_case(case, args, speed)
  return rows


def _time_case(case, args, speed):
  times = _interleaved(case, args.rounds)
  floor = max(case.flops / speed["matmul"], case.nbytes / speed["copy"])
  rows = []
  for form in case.forms:
    memory = None
    if not args.no_memory and form in case.measured:
      memory = _peak_in_a_process(case.op, form, args)
    rows.append(
      {
        "op": case.op,
        "form": form,
        "best_ms": 1e3 * min(times[form]),
        "median_ms": 1e3 * statistics.median(times[form]),
        "floor_ms": 1e3 * floor,
        "extra_mib": memory,
      }
    )
  naive = rows[0]
  for row in rows:
    _print_row(row, naive)
  return rows


def _print_row(row, naive):
  memory = ["", ""]
  if row["extra_mib"] is not None:
    memory[0] = f"{row['extra_mib']:.0f}"
    if naive["extra_mib"]:
      memory[1] = f"{row['extra_mib'] / naive['extra_mib']:.2f}"
  cells = [
    row["op"],
    row["form"],
    f"{row['best_ms']:.2f}",
    f"{row['median_ms']:.2f}",
    f"{row['median_ms'] / naive['median_ms']:.2f}",
    f"{row['median_ms'] / row['floor_ms']:.1f}",
    *memory,
  ]
  print("| " + " | ".join(cells) + " |", flush=True)


def _interleaved(case, rounds) -> dict[str, list[float]]:
  """Seconds of each form in each round; the first call is not counted."""
  ready = {name: form() for name, form in case.forms.items()}
  for run in ready.values():
    run()
  times = {name: [] for name in ready}
  for _ in range(rounds):
    for name, run in ready.items():
      start = time.perf_counter()
      run()
      times[name].append(time.perf_counter() - start)
  return times


def _peak_in_a_process(op, form, args) -> float | None:
  """MiB that the form adds to the peak of a fresh process."""
  given = [
    f"--{name}={value}"
    for name, value in vars(args).items()
    if name in ("tokens", "width", "vocab", "rows", "length", "dtype") and value
  ]
  command = [sys.executable, __file__, "--one", op, form, *given]
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
  )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(f"{op} {form}: {last}")
  return float(done.stdout.split()[-1])


def _peak_of(case, form) -> float:
  """MiB above what the process holds when the program is compiled."""
  import jax

  run = case.forms[form]()
  device = jax.devices()[0]
  if device.platform != "cpu":
    before = device.memory_stats()["bytes_in_use"]
    run()
    return (device.memory_stats()["peak_bytes_in_use"] - before) / _MIB
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
  before = _status("VmRSS")
  run()
  return (_status("VmHWM") - before) / 1024.0


def _status(field) -> int:
  """KiB of a line of /proc/self/status."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field):
      return int(line.split()[1])
  raise RuntimeError(f"/proc/self/status has no {field}.")


def _compile_all(kernel_cases, args, sizes):
  from pallas_kernels import aot

  chips = args.aot.split(",")
  print(f"{sizes}; MiB as the compiler reports them\n")
  print("| chip | op | form | arguments | results | temporaries | compile s |")
  print("| --- " * 7 + "|")
  rows = []
  for chip in chips:
    for op in args.ops or kernel_cases.CASES:
      case = kernel_cases.CASES[op](sizes)
      for form, function in case.compiled.items():
        row = _compiled_row(aot, chip, case, form, function)
        rows.append(row)
        print("| " + " | ".join(_cells(row)) + " |", flush=True)
  return rows


def _compiled_row(aot, chip, case, form, function) -> dict[str, Any]:
  row = {"chip": chip, "op": case.op, "form": form}
  start = time.perf_counter()
  try:
    compiled = aot.compile_for(chip, function, *case.shapes)
  except Exception as error:  # the compiler's own refusal is a result
    return row | {"refused": " ".join(str(error).split())[:100]}
  memory = compiled.memory_analysis()
  return row | {
    "arguments_mib": memory.argument_size_in_bytes / _MIB,
    "results_mib": memory.output_size_in_bytes / _MIB,
    "temporaries_mib": memory.temp_size_in_bytes / _MIB,
    "compile_s": time.perf_counter() - start,
  }


def _cells(row):
  head = [row["chip"], row["op"], row["form"]]
  if "refused" in row:
    return [*head, row["refused"], "", "", ""]
  return head + [
    f"{row[name]:.1f}"
    for name in ("arguments_mib", "results_mib", "temporaries_mib", "compile_s")
  ]


if __name__ == "__main__":
  main()
