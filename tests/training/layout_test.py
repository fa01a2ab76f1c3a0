"""Where a run lies, without devices: a number stands for them."""

import dataclasses
import math

import jax
import pytest

from jaxrl_llm.models import families
from jaxrl_llm.models.weights import assemble
from jaxrl_llm.training import experiment, layout

BASE = experiment.Experiment(prompts_per_step=16, group_size=4)


def placed(devices, **changes):
  made = layout.Layout(dataclasses.replace(BASE, **changes), devices, 0)
  made.parameters(families.TINY, assemble.abstract(families.TINY))
  return made


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"micro_batches": 2}, r"leaves 8 prompts .* set micro_batches to 1, or"),
    ({"micro_batches": 32}, "leaves 1 prompts"),  # two completions of one
    ({"mini_batches": 2}, "set prompts_per_step to a multiple of 32"),
    (
      {"prompts_per_step": 48, "micro_batches": 6},
      "leaves 8 prompts .* set micro_batches to 3,",
    ),
    # 12 prompts are more than 8 devices, but not a multiple of them.
    (
      {"prompts_per_step": 24, "micro_batches": 2, "mesh": (1, 8)},
      "leaves 12 prompts .* data [*] fsdp = 8 devices",
    ),
  ],
)
def test_pieces_that_the_devices_cannot_share_are_refused(changes, message):
  if "mesh" in changes:
    data, fsdp = changes["mesh"]
    changes = changes | {"mesh": experiment.Mesh(data=data, fsdp=fsdp)}
  with pytest.raises(ValueError, match=message) as error:
    placed(16, **changes)
  assert "\n" not in str(error.value)


def test_what_the_refusal_says_to_set_is_accepted():
  assert placed(16, prompts_per_step=48, micro_batches=3).mesh.size == 16
  assert placed(16, prompts_per_step=32, mini_batches=2).mesh.size == 16


@pytest.mark.parametrize(("shares", "mini"), [(1, 1), (4, 1), (4, 2), (16, 1)])
def test_legal_micro_batches_are_those_that_are_placed(shares, mini):
  config = dataclasses.replace(BASE, mini_batches=mini)
  legal = layout.legal_micro_batches(config, shares)
  rows = BASE.prompts_per_step * BASE.group_size // mini
  for count in (n for n in range(1, rows + 1) if rows % n == 0):
    piece = rows // count
    even = piece // math.gcd(piece, BASE.group_size) % shares == 0
    assert (count in legal) == even
    mesh = experiment.Mesh(data=1, fsdp=shares)
    settings = {"micro_batches": count, "mini_batches": mini, "mesh": mesh}
    if even:
      placed(16, **settings)
    else:
      with pytest.raises(ValueError, match="cannot share evenly"):
        placed(16, **settings)


def test_one_device_takes_groups_apart():
  assert placed(1, micro_batches=64).mesh is None


def test_the_memory_of_absent_devices_decides_how_far_parameters_are_cut():
  shapes = assemble.abstract(families.TINY)
  state = 16 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
  for memory, fsdp in ((0, 1), (2 * state, 1), (state // 2, 4)):
    made = layout.Layout(BASE, 16, memory)
    made.parameters(families.TINY, shapes)
    assert made.mesh.shape["fsdp"] == fsdp
