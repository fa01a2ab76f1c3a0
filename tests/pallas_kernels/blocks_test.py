"""Tiles are refused by arithmetic, and the chips are those of the compiler."""

import pytest

from pallas_kernels import aot, blocks

_MIB = 2**20


def square(tile):
  return tile * tile * 4


def test_the_first_tile_that_fits_is_taken():
  on = blocks.CHIPS["v5p"]
  assert on.limit == int(0.93 * 64 * _MIB)
  tiles = (8192, 4096, 2048, 1024)
  assert blocks.first_that_fits("op", tiles, square, on) == 2048
  assert blocks.first_that_fits("op", reversed(tiles), square, on) == 1024


def test_a_kernel_may_never_have_all_of_the_memory():
  for chip in blocks.CHIPS.values():
    assert chip.limit < chip.vmem_bytes
    assert chip.limit <= 100 * _MIB


def test_a_tile_exactly_at_the_limit_fits():
  on = blocks.CHIPS["v6e"]
  blocks.check_fits("op", "tile", on.limit, on)
  assert blocks.first_that_fits("op", [on.limit], lambda n: n, on) == on.limit
  with pytest.raises(blocks.Unsupported):
    blocks.check_fits("op", "tile", on.limit + 1, on)


@pytest.mark.parametrize("given", [True, False])
def test_the_refusal_holds_the_numbers(given):
  on = blocks.CHIPS["v5e"]
  with pytest.raises(blocks.Unsupported) as caught:
    if given:
      blocks.check_fits("op", (8192, 8192), square(8192), on)
    else:
      blocks.first_that_fits("op", (16384, 8192), square, on)
  message = str(caught.value)
  words = ("op: the tile", "8192", "256.0 MiB", "v5e", "100.0 MiB", "smaller")
  assert all(word in message for word in words), message
  assert "\n" not in message


def test_a_refusal_is_a_value_error():
  assert issubclass(blocks.Unsupported, ValueError)


def test_a_chip_is_known_by_its_name_and_by_all_its_kinds():
  for chip in blocks.CHIPS.values():
    assert chip.name == next(k for k, v in blocks.CHIPS.items() if v == chip)
    for kind in (chip.name, *chip.kinds):
      assert blocks.chip(kind) == chip
  kinds = [kind for chip in blocks.CHIPS.values() for kind in chip.kinds]
  assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("kind", [None, "", "cpu", "NVIDIA H200", "TPU v99"])
def test_an_unknown_kind_is_the_chip_with_the_smallest_memory(kind):
  smallest = min(chip.vmem_bytes for chip in blocks.CHIPS.values())
  assert blocks.chip(kind).vmem_bytes == smallest


@pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
@pytest.mark.parametrize("name", sorted(blocks.CHIPS))
def test_the_compiler_knows_every_chip_by_one_of_its_kinds(name):
  chip = blocks.CHIPS[name]
  kinds = {device.device_kind for device in aot.devices(chip.topology)}
  assert len(kinds) == 1 and kinds <= set(chip.kinds), kinds
