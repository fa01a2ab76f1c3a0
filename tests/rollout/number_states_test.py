"""Sets of numbers as states: parsing, the table, segments, the plan."""

import itertools
import json

import numpy as np
from scripted_sampler import score

from jaxrl_llm.data import sources, tokenizers
from jaxrl_llm.rollout import collect, engine, groups, number_states

TEXT = "12 + 7 = 19, so 12 + 7 is 19"


def test_numbers_are_digits_and_the_last_is_the_answer():
  assert number_states.numbers("a 3.14, -2 and 07 is 7") == (
    ["3", "14", "2", "07"],
    [2, 4, 9, 15],
  )
  assert number_states.numbers("only 5") == ([], [])
  assert number_states.numbers("none") == ([], [])


def test_a_state_is_a_set():
  names = set()
  for written in itertools.permutations(["1", "2", "12"]):
    names.add(list(number_states.states(written))[-1])
  assert len(names) == 1
  path = list(number_states.states(["3", "4", "3", "5", "4"]))
  assert path[2] == path[3] and path[4] == path[5]
  assert len(set(path)) == 4 and path[0] == "0" * 16
  assert list(number_states.states(["07"])) != list(number_states.states(["7"]))


def test_the_value_of_the_empty_set_is_the_mean_reward():
  table, rewards = {}, [1.0, 0.0, 0.5, 0.25]
  for written, reward in zip(["", "5", "57", "7"], rewards, strict=True):
    number_states.record(table, written, reward)
  (empty,) = number_states.states([])
  assert number_states.value(table, empty) == np.mean(rewards)
  *_, five = number_states.states(["5"])
  assert number_states.value(table, five) == 0.25
  assert number_states.value(table, "never seen") == 0.0


def test_a_table_of_one_batch_knows_no_order():
  rows = [(["1", "2"], 1.0), (["2", "1"], 0.0), (["1", "1", "3"], 0.25)]
  tables = []
  for order in itertools.permutations(rows):
    tables.append({})
    for row in order:
      number_states.record(tables[-1], *row)
  assert all(table == tables[0] for table in tables)


def test_close_ends_are_merged_from_the_last_one():
  merged = number_states.merge_close
  assert merged([], 50) == []
  assert merged([7, 21, 95, 98, 106], 50) == [21, 21, 106, 106, 106]
  # Compared with the next one as it was merged: a chain does not run together.
  assert merged([0, 40, 80, 120], 50) == [40, 40, 120, 120]
  assert merged([3, 3, 9], 0) == [3, 3, 9]


def _segments(written, ends, length, table=None, threshold=0):
  kinds, deltas = number_states.segments(
    table or {}, written, ends, length, threshold=threshold
  )
  return kinds.tolist(), deltas.tolist()


def _table(values):
  """Values of states, by the numbers that lead there."""
  return {
    list(number_states.states(numbers))[-1]: [1, value]
    for numbers, value in values.items()
  }


def test_segments_go_from_state_to_state():
  table = _table({"": 0.5, "4": 0.75, "45": 0.125})
  found = _segments(["4", "5", "4"], [1, 3, 4], 6, table)
  assert found == ([1, 0, 1, 0, 0, 2], [0.25, 0, -0.625, 0, 0, -0.125])


def test_without_numbers_there_is_one_segment():
  assert _segments([], [], 3, _table({"": 0.5})) == ([0, 0, 2], [0, 0, -0.5])
  assert _segments([], [], 0) == ([], [])


def test_new_numbers_of_one_end_are_one_transition():
  table = _table({"": 0.5, "4": 0.75, "45": 0.125})
  found = _segments(["4", "5"], [1, 3], 5, table, threshold=3)
  assert found == ([0, 0, 1, 0, 2], [0, 0, -0.375, 0, -0.125])


def test_a_segment_without_tokens_has_no_delta():
  """The last number ends with the text: its segment has R no more."""
  table = _table({"": 0.5, "4": 0.75})
  assert _segments(["4"], [2], 2, table) == ([0, 1], [0, 0.25])
  found = _segments(["4", "5"], [2, 9], 2, table)
  assert found == ([0, 1], [0, 0.25])


def _groups(texts, rewards, ids, weights=None):
  """Completions of characters, a group for each id."""
  rows, length = len(texts), max(map(len, texts)) + 1
  tokens, mask = np.zeros((rows, length), int), np.zeros((rows, length), bool)
  for row, text in enumerate(texts):
    tokens[row, : len(text)] = [ord(char) for char in text]
    mask[row, : len(text)] = True
  samples = collect.Samples(
    problems=[sources.Problem(i, "", "") for i in ids],
    prompts=np.zeros((len(ids), 1), int),
    prompt_mask=np.ones((len(ids), 1), bool),
    generation=engine.Generation(
      completions=tokens,
      mask=mask,
      logprobs=np.zeros(mask.shape),
      behaviour_logprobs=np.zeros(mask.shape),
      finish_reason=np.zeros(rows),
      checksum=None,
    ),
    prompt_texts=[""] * len(ids),
    texts=list(texts),
  )
  found = groups.fresh(samples, score(rewards), version=0)
  return found if weights is None else found.replace(weights=weights)


class _Sampler:
  tokenizer = tokenizers.CharTokenizer()

  def __init__(self, found):
    self.sample = lambda: found


def _gather(plan, state, *args, **options):
  return plan.gather(_Sampler(_groups(*args, **options)), state)


def test_the_plan_counts_the_batch_before_it_values_it():
  plan = number_states.plan(threshold=0)
  texts = ["4 5", "4 6", "x 5", "44"]
  found, state, metrics = _gather(
    plan, plan.init(), texts, [1, 0, 1, 1], ids=[3, 8]
  )
  ends, deltas = (found.extras[name] for name in number_states.EXTRAS)
  assert ends.dtype == np.int32 and deltas.dtype == np.float32
  np.testing.assert_array_equal(
    ends, [[1, 0, 2, 0], [1, 0, 2, 0], [0, 0, 2, 0], [0, 2, 0, 0]]
  )
  np.testing.assert_array_equal(
    deltas, [[0, 0, -0.5, 0], [0, 0, -0.5, 0], [0, 0, -1, 0], [0, -1, 0, 0]]
  )
  assert metrics == {"plan/segments": 1.5, "plan/states": 3.0}
  assert set(state["annotated"]) == {"3", "8"}
  # The same prompt again: its history counts.
  found, after, _ = _gather(plan, state, ["4 5", "1"], [0, 0], ids=[3])
  np.testing.assert_allclose(
    found.extras["segment_deltas"],
    [[1 / 3 - 1 / 4, 0, -1 / 3, 0], [-1 / 4, 0, 0, 0]],
    rtol=1e-6,
  )
  assert after["annotated"]["8"] == state["annotated"]["8"]


def test_what_was_remembered_is_not_changed():
  """A checkpoint may still be writing it."""
  plan = number_states.plan()
  _, state, _ = _gather(plan, plan.init(), ["1 2", "2 3"], [1, 0], ids=[0])
  before = json.dumps(state)
  _gather(plan, state, ["1 2", "5 3"], [1, 1], ids=[0])
  assert json.dumps(state) == before


def test_a_state_read_back_from_json_goes_on_the_same():
  plan = number_states.plan(threshold=0)
  _, state, _ = _gather(plan, plan.init(), ["1 2", "2 3"], [1, 0], ids=[0])
  one, other = (
    _gather(plan, each, ["1 2", "5 3"], [1, 1], ids=[0])
    for each in (state, json.loads(json.dumps(state)))
  )
  assert one[1] == other[1]
  for name in number_states.EXTRAS:
    np.testing.assert_array_equal(one[0].extras[name], other[0].extras[name])


def test_rows_that_do_not_count_are_in_no_table():
  plan = number_states.plan(threshold=0)
  weights = np.float32([1, 0, 1])
  found, state, _ = _gather(
    plan, plan.init(), ["4 5"] * 3, [1, 0, np.nan], ids=[0], weights=weights
  )
  assert [count for count, _ in state["annotated"]["0"].values()] == [1, 1]
  assert np.isfinite(found.extras["segment_deltas"]).all()


def test_the_states_seen_most_are_kept():
  plan = number_states.plan(threshold=0, max_states=2)
  texts = ["1 2 9", "1 3 9", "1 4 9", "5 9"]
  _, state, metrics = _gather(plan, plan.init(), texts, [1] * 4, ids=[0])
  empty, one = number_states.states(["1"])
  assert state["annotated"]["0"] == {empty: [4, 4.0], one: [3, 3.0]}
  assert metrics["plan/states"] == 2


def test_a_batch_may_hold_a_prompt_twice():
  plan = number_states.plan()
  _, state, _ = _gather(plan, plan.init(), ["x"] * 4, [1, 0, 1, 1], ids=[5, 5])
  assert list(state["annotated"]["5"].values()) == [[4, 3.0]]
