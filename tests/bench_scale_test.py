"""The table of scripts/bench_scale.py: units, kinds, what is not known."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scripts"))

import bench_scale  # noqa: E402


def test_sizes_have_three_digits_and_a_unit():
  found = [bench_scale.size(n) for n in (0, 7, 163_840, 1.5 * 2**20, 2**30)]
  assert found == ["0", "7 B", "160 KiB", "1.5 MiB", "1 GiB"]


def test_a_line_for_each_mesh_and_a_column_for_each_kind_of_the_step():
  row = {
    "weight sync": {"all-gather": 1024.0},
    "rollout": {},
    "score pass": None,
    "train step": {"all-reduce": 2048.0, "all-gather": 1024.0},
  }
  alone = {name: {} for name in row}
  lines = bench_scale.table({"fsdp=2": row, "fsdp=1": alone}).splitlines()
  assert lines[0].endswith("| train step | its all-gather | its all-reduce |")
  assert lines[2] == (
    "| fsdp=2 | 1 KiB | 0 | not known | 3 KiB | 1 KiB | 2 KiB |"
  )
  assert lines[3] == "| fsdp=1 | 0 | 0 | 0 | 0 | 0 | 0 |"
