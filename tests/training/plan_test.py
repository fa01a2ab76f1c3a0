"""Plans of small runs on TPUs that are not here."""

import dataclasses

import jax
import pytest

from jaxrl_llm import cli, methods
from jaxrl_llm.training import absent, experiment, plan, plan_report
from pallas_kernels import aot

needs_compiler = pytest.mark.skipif(
  not aot.available(), reason="libtpu is not installed"
)
SMALL = experiment.Experiment(
  model=experiment.Model(name="tiny"),
  prompts_per_step=4,
  group_size=2,
  prompt_length=16,
  completion_length=8,
  method=methods.DrGrpo(),
  mesh=experiment.Mesh(fsdp=2, tensor=2),
)


@pytest.fixture(scope="module")
def small():
  return plan.make(SMALL, "v5e:2x2")


@needs_compiler
def test_every_program_is_compiled_and_fits(small):
  names = [program.name for program in small.programs]
  assert names == [
    "train step",
    "weight sync",
    "rollout",
    "prefill",
    "score pass",
  ]
  assert small.fits and small.mesh == {"data": 1, "fsdp": 2, "tensor": 2}
  for program in small.programs:
    assert small.resident < program.needed < small.available
    assert program.collectives
    assert (program.flops > 0) == (program.name != "weight sync")


@needs_compiler
def test_state_is_cut_over_all_devices(small):
  # float32 parameters and two moments; norms are whole on each device.
  whole = 12 * small.parameters
  assert whole / 4 <= small.resident <= whole / 4 * 1.1


@needs_compiler
def test_what_an_estimate_does_not_estimate_is_exact(small, monkeypatch):
  monkeypatch.setattr(aot, "available", lambda: False)
  guessed = plan.make(SMALL, "v5e:2x2")
  assert guessed.resident == small.resident and guessed.mesh == small.mesh
  # The sync has no products; an estimate counts its bytes in the rollout.
  compiled = [one for one in small.programs if one.name != "weight sync"]
  for guess, found in zip(guessed.programs, compiled, strict=True):
    assert guess.name == found.name and guess.flops == found.flops


def test_of_an_adapter_the_base_stays_once_and_has_no_optimizer():
  low = dataclasses.replace(
    SMALL,
    method=methods.Grpo(beta=0.1),
    model=experiment.Model(name="tiny", dtype="bfloat16"),
    lora=experiment.Lora(rank=4),
    mesh=experiment.Mesh(data=1, fsdp=1),
  )
  run = absent.AbsentRun(low, jax.devices()[:1])
  vectors = 5 * 64  # float32 norms of width 64: two blocks' and the last
  base = 2 * (run.parameters - vectors) + 4 * vectors
  # float32 adapter and two moments; the counters of step and optimizer.
  state = 12 * run.trained
  # Inputs and outputs of q and o, of k and v, of gate, up and down.
  assert run.trained == 2 * 4 * (2 * 128 + 2 * 96 + 3 * 192)
  assert base + state < run.resident <= base + state + 32


@needs_compiler
def test_the_rollout_costs_more_than_its_prefill(small):
  flops = {program.name: program.flops for program in small.programs}
  assert flops["train step"] > flops["rollout"] > flops["prefill"]


@needs_compiler
def test_what_the_compiler_refuses_is_near_the_estimate(monkeypatch):
  large = dataclasses.replace(
    SMALL,
    model=experiment.Model(name="Qwen/Qwen3-0.6B", dtype="bfloat16"),
    group_size=64,
    prompt_length=512,
    completion_length=1024,
    mesh=experiment.Mesh(fsdp=4),
  )
  refused = plan.make(large, "v5e:2x2")
  assert not refused.fits and len(refused.programs) == 1
  assert "fits: no (needs" in plan_report.text(refused)
  monkeypatch.setattr(aot, "available", lambda: False)
  guessed = plan.make(large, "v5e:2x2")
  assert 0.9 < guessed.needed / refused.needed < 1.1


@needs_compiler
def test_the_command_prints_a_table_and_writes_a_page(tmp_path, capsys):
  page = tmp_path / "plan.html"
  code = cli.main(
    f"plan tiny_addition --topology v5e:2x2 --completion-length 2"
    f" --report {page}".split()
  )
  out = capsys.readouterr().out
  assert code == 0 and "fits: yes" in out and "train step" in out
  assert "<svg" in page.read_text()


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("", "--topology says for which TPUs"),
    ("v9:2x2", "names no chip"),
    ("v5e:2x2x2x2", "which has 2 numbers, as in v5e:2x2"),
    ("v5p:4x4", "which has 3 numbers"),
    ("v5e:", "is no shape of v5e"),
    ("v5e:0x4", "is no shape of v5e"),
  ],
)
def test_wrong_topologies_are_one_line(topology, message, capsys):
  args = ["plan", "tiny_addition", "--topology", topology]
  assert cli.main(args) == 2
  error = capsys.readouterr().err.strip()
  assert message in error and "\n" not in error


@pytest.mark.parametrize(
  ("message", "needed"),
  [
    ("... size (31.10G) exceeds available HBM (15.75G)", 31.10 * 2**30),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.27G"
      " of 15.75G hbm. Exceeded hbm capacity by 5.52G.",
      21.27 * 2**30,
    ),
    ("INTERNAL: Mosaic failed to compile", None),
  ],
)
def test_a_refusal_of_the_compiler_says_how_much_is_needed(message, needed):
  assert plan.refused_bytes(message) == needed
