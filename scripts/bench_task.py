"""Seconds a step of a real config, through `jaxrl train` itself.

    python scripts/bench_task.py demo_addition --model.dtype float32

Runs a few steps in a temporary folder and prints the median over those after
the first (which compiles). Further options are those of `jaxrl train`.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

_STEPS = 6
_KEYS = ("time/step", "time/rollout", "time/train")


def main() -> None:
  """Trains and prints one line."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "jaxrl_llm", "train", *sys.argv[1:]]
    command += ["--steps", str(_STEPS), "--runs", folder, "--name", "bench"]
    command += ["--evaluation.every", "0", "--evaluation.examples", "1"]
    command += ["--evaluation.batch", "1", "--no-export"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (pathlib.Path(folder) / "bench/metrics.jsonl").read_text()
  steps = [json.loads(line) for line in lines.splitlines()][1:]
  middle = [statistics.median(s[key] for s in steps) for key in _KEYS]
  print(
    "jaxrl seconds/step median {:.3f} rollout {:.3f} train {:.3f}".format(
      *middle
    )
    + f" best {min(s['time/step'] for s in steps):.3f}"
    + f" memory {max(s['memory/resident'] for s in steps):.0f} MiB"
  )


if __name__ == "__main__":
  main()
