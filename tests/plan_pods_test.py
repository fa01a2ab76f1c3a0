"""The script that plans the configs for pods, without its compiler."""

import dataclasses
import importlib.util
import math
import pathlib

import pytest

from jaxrl_llm.models.weights import assemble, resolve
from jaxrl_llm.training import config_file, layout

ROOT = pathlib.Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location(
  "plan_pods", ROOT / "scripts" / "plan_pods.py"
)
plan_pods = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(plan_pods)

PLAN = {
  "mesh": {"data": 1, "fsdp": 8, "tensor": 2},
  "available": 16 * 2**30,
  "estimated": False,
  "programs": [
    {
      "name": name,
      "arguments": 2**30,
      "temporaries": 2**31,
      "needed": 3 * 2**30,
      "flops": 5e15,
      "collectives": {"all-gather": 2**30, "all-reduce": 2**30},
      "seconds": 60.0,
    }
    for name in plan_pods.PROGRAMS
  ],
}


def test_every_config_is_planned_on_the_slices_that_it_names():
  configs = sorted((ROOT / "configs").glob("pod_*.py"))
  assert len(configs) == 7
  for path in configs:
    mine = [row for row in plan_pods.FIT if row[0] == path.stem]
    assert {topology.split(":")[0] for _, topology, *_ in mine} == {
      *("v5e", "v5p", "v6e")
    }
    text = path.read_text()
    assert all(topology in text for _, topology, *_ in mine)
    assert config_file.load(path.stem).name == path.stem


def test_a_table_has_a_line_for_each_program_that_was_measured():
  row = plan_pods.rows()[0]
  lines = plan_pods.fit_table({row.command: PLAN}).splitlines()
  assert len(lines) == 2 + len(plan_pods.PROGRAMS)
  assert lines[2] == (
    f"| `{row.config} --topology {row.topology}` | fsdp 8 x tensor 2 | train"
    " step | 1.00 | 2.00 | 3.00 | 16.00 | 5,000 | 2.00 | 60 s |"
  )
  grown = plan_pods.grown_table({r.command: PLAN for r in plan_pods.rows()})
  assert "| v5e:16x16 | 256 | fsdp 8 x tensor 2 | 3.00 |" in grown


def test_tables_are_put_between_their_marks_again_and_again():
  page = "a\n<!-- plans -->\nold\n<!-- end of plans -->\nb\n"
  once = plan_pods.page_with(page, {"plans": "new"})
  assert once == "a\n<!-- plans -->\nnew\n<!-- end of plans -->\nb\n"
  assert plan_pods.page_with(once, {"plans": "new"}) == once
  with pytest.raises(ValueError, match="no pair of marks '<!-- other -->'"):
    plan_pods.page_with(page, {"other": "new"})


def test_every_row_shares_its_micro_batches_evenly():
  for row in plan_pods.rows():
    config = config_file.load(row.config)
    changes = {
      "mesh": dataclasses.replace(
        config.mesh, data=row.data or config.mesh.data
      ),
      "prompts_per_step": row.prompts or config.prompts_per_step,
      "micro_batches": row.micro_batches or config.micro_batches,
    }
    count = math.prod(map(int, row.topology.split(":")[1].split("x")))
    shape = resolve.shape(config.model.name)
    made = layout.Layout(dataclasses.replace(config, **changes), count)
    made.parameters(shape, assemble.abstract(shape))
    assert made.mesh.size == count
