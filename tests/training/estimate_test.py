"""The arithmetic of a plan where no compiler for TPUs is installed."""

import dataclasses

import pytest

from jaxrl_llm import cli, methods
from jaxrl_llm.models import families
from jaxrl_llm.training import estimate, experiment, layout, plan, plan_report
from pallas_kernels import aot

SMALL = experiment.Experiment(
  model=experiment.Model(name="tiny", remat="full"),
  prompts_per_step=8,
  group_size=2,
  prompt_length=16,
  completion_length=9,
  method=methods.DrGrpo(),
  mesh=experiment.Mesh(fsdp=4),
)


@pytest.fixture
def without_compiler(monkeypatch):
  monkeypatch.setattr(aot, "available", lambda: False)


def parts(name="train step", **changes):
  config = dataclasses.replace(SMALL, **changes)
  places = layout.Layout(config, 4, 0)
  shapes = plan.absent.assemble.abstract(families.TINY)
  places.parameters(families.TINY, shapes)
  return estimate.temporaries(
    name, config, families.TINY, places.mesh, stored=1000.0
  )


def remat(policy):
  return parts(model=experiment.Model(name="tiny", remat=policy))


def test_a_train_step_by_hand():
  # 2 prompts a device with 2 completions: t = 2 * (16 + 2 * 8) tokens, and of
  # each the float32 stream of width 64 before each of 2 blocks.
  found = parts()
  assert found["gradients"] == 4 * 1000
  assert found["kept"] == 2 * (16 + 2 * 8) * 2 * 4 * 64


def test_a_rollout_by_hand():
  # Keys and values: 2 layers, 2 heads of 16, float32; prompts twice.
  found = parts("rollout")
  assert found["cache"] == 2 * 4 * 2 * 2 * 16 * (2 * 2 * 16 + 4 * 8)
  assert found["logits"] == 2 * 4 * 4 * 128


def test_a_remat_policy_that_keeps_less_needs_less():
  none, dots, full = (remat(policy) for policy in ("none", "dots", "full"))
  assert none["kept"] > dots["kept"] > full["kept"]
  assert none["working"] == dots["working"] < full["working"]


def test_micro_batches_halve_the_activations_and_double_the_gradients():
  whole, cut = parts(), parts(micro_batches=2)
  assert cut["kept"] == whole["kept"] / 2
  assert cut["gradients"] == 2 * whole["gradients"]


def test_another_program_is_refused():
  with pytest.raises(ValueError, match="train step, .*, got 'training'"):
    parts("training")


def test_the_command_says_that_it_estimates(without_compiler, tmp_path, capsys):
  page = tmp_path / "plan.html"
  line = f"plan tiny_addition --topology v5e:2x2 --report {page}"
  assert cli.main(line.split()) == 0
  out = capsys.readouterr().out
  assert "An ESTIMATE by arithmetic" in out and "libtpu is not" in out
  assert "train step  gradients" in out and "fits: yes (needs about" in out
  assert "arithmetic estimates" in page.read_text()


@pytest.mark.parametrize(
  ("topology", "chips"), [("v5e:4x4", 16), ("v4:2x2x2", 16), ("v5p:2x2x2", 8)]
)
def test_an_estimate_counts_the_devices_of_a_topology(
  without_compiler, topology, chips
):
  config = dataclasses.replace(
    SMALL, prompts_per_step=64, mesh=experiment.Mesh()
  )
  made = plan.make(config, topology, only=("score pass",))
  assert made.estimated and made.mesh["data"] == chips


def test_a_state_that_no_device_holds_is_refused_before_any_program(
  without_compiler,
):
  large = experiment.Model(name="Qwen/Qwen3-32B")
  config = dataclasses.replace(SMALL, model=large)
  refused = plan.make(config, "v5e:2x2")
  assert not refused.fits and not refused.programs
  # float32 parameters and two moments, cut in four; norms are whole.
  exact = 12 * refused.parameters / 4
  assert exact <= refused.needed <= 1.001 * exact
  assert "state and reference alone" in plan_report.text(refused)
  assert plan_report.verdict(refused) == (
    "fits: no (needs 91.54 GiB of 15.75 GiB on each device)"
  )
  assert plan.search(config, "v5e:2x2")[0].needed == refused.needed


def test_search_tries_only_what_the_devices_share(
  without_compiler, monkeypatch
):
  huge = plan.Program(name="", needed=1e12, fits=False, flops=0.0, seconds=0.0)
  monkeypatch.setattr(plan, "_estimate", lambda *args: huge)
  tried = plan.search(SMALL, "v5e:2x2")
  # 8 prompts in two pieces are one for each of 4 devices; four would be half.
  assert [one.micro_batches for one in tried] == [1, 2] * 3
