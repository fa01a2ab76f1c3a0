"""Endless batches that resume anywhere."""

import itertools
import json

import pytest

from jaxrl_llm.data import batching, sources


def problems(count):
  return [sources.Problem(i, f"p{i}", str(i)) for i in range(count)]


def ids(batches, count):
  return [[p.id for p in batch] for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 5), (7, 1), (3, 8)])
def test_each_epoch_visits_every_problem_once(count, size):
  drawn = ids(batching.batches(problems(count), batch_size=size, seed=1), 60)
  assert all(len(batch) == size for batch in drawn)
  flat = sum(drawn, [])
  epochs = [flat[i : i + count] for i in range(0, len(flat), count)]
  for epoch in epochs[:-1]:
    assert sorted(epoch) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
  data = problems(20)
  one, two = ids(batching.batches(data, batch_size=20, seed=0), 2)
  assert one != two and sorted(one) == sorted(two)
  assert ids(batching.batches(data, batch_size=20, seed=1), 1)[0] != one
  assert ids(batching.batches(data, batch_size=20, seed=0), 2) == [one, two]


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("before", [0, 1, 2, 5, 13])
def test_resuming_continues_exactly(before, size):
  data = problems(7)
  whole = batching.batches(data, batch_size=size, seed=5)
  ids(whole, before)
  state = json.loads(json.dumps(whole.get_state()))
  rest = ids(whole, 10)
  resumed = batching.batches(data, batch_size=size, seed=5)
  ids(resumed, 4)  # where it stood does not matter
  resumed.set_state(state)
  assert ids(resumed, 10) == rest


def test_a_state_of_other_data_is_refused():
  state = batching.batches(problems(9), batch_size=2, seed=0).get_state()
  for data, size, seed, name in (
    (problems(8), 2, 0, "problems 9"),
    (problems(9)[::-1], 2, 0, "content"),
    (problems(9), 3, 0, "batch_size 2"),
    (problems(9), 2, 1, "seed 0"),
  ):
    other = batching.batches(data, batch_size=size, seed=seed)
    with pytest.raises(ValueError, match=name) as caught:
      other.set_state(state)
    assert "\n" not in str(caught.value)


def test_large_and_negative_seeds_are_fine():
  for seed in (-1, 2**40):
    drawn = ids(batching.batches(problems(4), batch_size=4, seed=seed), 1)
    assert sorted(drawn[0]) == [0, 1, 2, 3]


def test_nothing_to_batch_is_refused():
  with pytest.raises(ValueError, match="no problems"):
    batching.batches([], batch_size=1, seed=0)
  with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
    batching.batches(problems(1), batch_size=0, seed=0)
