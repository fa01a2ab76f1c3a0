"""The plan of a packed batch: every token once, nothing else, deterministic."""

from absl.testing import parameterized
import jax
import numpy as np
import pytest

from jaxrl_llm.rollout import packing
from jaxrl_llm.testing import rollouts

B, G, S, T = 6, 4, 7, 9
N = B * G


def _rollout(seed=0, shape=(B, G, S, T), **knobs):
  return rollouts.make_ragged_rollout(seed, shape=shape, **knobs)


class FirstFitDecreasingTest(parameterized.TestCase):
  @parameterized.parameters(range(5))
  def test_rows_hold_every_sequence_once_without_overlap(self, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 21, 40)
    rows, starts = packing.first_fit_decreasing(lengths, 20)
    taken = np.zeros((rows.max() + 1, 20), int)
    for row, start, length in zip(rows, starts, lengths, strict=True):
      assert start + length <= 20
      taken[row, start : start + length] += 1
    assert taken.max() == 1
    assert taken.sum() == lengths.sum()
    fewest = -(-lengths.sum() // 20)
    assert len(taken) <= max(11 / 9 * fewest + 1, (lengths > 10).sum())

  def test_the_longest_come_first_and_fill_the_gaps(self):
    rows, starts = packing.first_fit_decreasing(np.array([2, 7, 5, 3, 3]), 10)
    np.testing.assert_array_equal(rows, [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(starts, [8, 0, 0, 7, 5])

  def test_nothing_needs_no_row(self):
    rows, _ = packing.first_fit_decreasing(np.array([], int), 10)
    assert rows.size == 0

  def test_what_no_row_holds_is_refused(self):
    with pytest.raises(ValueError, match="from 1 to size = 4, got 2 to 5"):
      packing.first_fit_decreasing(np.array([2, 5]), 4)


class PackerTest(parameterized.TestCase):
  @parameterized.product(
    seed=(0, 1), holes=(False, True), pieces=(1, 2, 8), shares=(1, 3)
  )
  def test_every_token_is_there_once(self, seed, holes, pieces, shares):
    rollout = _rollout(seed, holes=holes)
    packed, _ = packing.Packer(pieces=pieces, shares=shares)(rollout)
    out = packed.packing
    blocks = pieces * shares
    assert len(out.tokens) == blocks
    of_row = np.arange(N) // (N // blocks)
    chosen = out.chosen[of_row[:, None], out.index]
    np.testing.assert_array_equal(
      chosen[rollout.mask], rollout.completions[rollout.mask]
    )
    assert out.real.sum() == rollout.mask.sum()
    places = of_row[:, None] * out.real.shape[1] + out.index
    assert len(set(places[rollout.mask])) == rollout.mask.sum()

  @parameterized.product(seed=(0, 1), holes=(False, True))
  def test_a_chosen_token_attends_to_its_prompt_and_past(self, seed, holes):
    rollout = _rollout(seed, holes=holes)
    packed, _ = packing.Packer(pieces=2)(rollout)
    out = packed.packing
    for row, t in np.argwhere(rollout.mask):
      block = row // (N // 2)
      token = out.before[block, out.index[row, t]]
      r, place = divmod(out.places[block, token], out.rows.shape[2])
      segment = out.segments[block, r, : place + 1]
      past = out.rows[block, r, : place + 1][segment == segment[-1]]
      prompt = rollout.prompts[row][rollout.prompt_mask[row]]
      own = np.where(rollout.mask[row], rollout.completions[row], 0)[:t]
      # The place of a prompt's token may be before any of its completions.
      seen = np.concatenate([prompt, own])
      np.testing.assert_array_equal(out.tokens[block][past], seen)
      np.testing.assert_array_equal(
        out.positions[block][past], np.arange(len(seen))
      )

  def test_equal_rollouts_have_equal_packings(self):
    packer = packing.Packer(pieces=2)
    a, b = (packer(_rollout(3))[0].packing for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)

  def test_sizes_are_few_and_the_largest_is_that_of_full_rows(self):
    packer = packing.Packer(pieces=2)
    shapes = set()
    for seed in range(30):
      fill = (seed % 10 + 1) / 10
      packed, _ = packer(_rollout(seed, fill=fill))
      shapes.add((packed.packing.tokens.shape[1], packed.packing.rows.shape[1]))
    tokens, rows = ({s[i] for s in shapes} for i in range(2))
    assert 2 < len(tokens) <= len(packing.SHARES)
    assert 2 < len(rows) <= len(packing.SHARES)
    full = _rollout()
    full = full.replace(
      mask=np.ones((N, T), bool), prompt_mask=np.ones((N, S), bool)
    )
    packed, metrics = packer(full)
    assert metrics == {"packing/efficiency": 1.0, "packing/tokens": 1.0}
    largest = packer.largest(full).packing
    jax.tree.map(
      lambda a, b: self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype)),
      packed.packing,
      largest,
    )

  def test_a_batch_without_tokens_has_a_packing(self):
    empty = _rollout().replace(mask=np.zeros((N, T), bool))
    packed, metrics = packing.Packer()(empty)
    assert not packed.packing.real.any()
    assert metrics["packing/efficiency"] == 0.0

  def test_short_completions_cost_their_share(self):
    rollout = _rollout(fill=0.3, shape=(8, 8, 64, 256))
    packed, metrics = packing.Packer()(rollout)
    real = rollout.mask.sum() + rollout.prompt_mask[::8].sum()
    assert real <= packed.packing.tokens.size < 1.3 * real
    assert metrics["packing/tokens"] < 0.2
    assert metrics["packing/efficiency"] > 0.75

  def test_what_cannot_be_cut_is_refused(self):
    with pytest.raises(ValueError, match="24 rows in groups of 4 .* 5 pieces"):
      packing.Packer(pieces=5)(_rollout())
