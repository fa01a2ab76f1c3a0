"""Which policy samples which rollout, in which order, and what waits."""

import threading
import time

import chex
import numpy as np
import pytest

from jaxrl_llm.distributed import weight_sync
from jaxrl_llm.rollout import plans
from jaxrl_llm.training import rollouts
from tests.rollout import scripted_sampler

STEPS = 6


class Copy(weight_sync.Synced):
  """Parameters that know whether they were freed."""

  def free(self):
    self.params["freed"] = True


class Script:
  """A run's sampling with scripted rewards, and what it was asked for."""

  def __init__(self):
    self.data = scripted_sampler.Data(np.arange(40.0).reshape(20, 2) % 3)
    self.calls, self.copies = [], []
    self.blocked = None

  def gather(self, step, version, synced):
    assert not synced.params["freed"]
    if self.blocked is not None:
      self.blocked.wait(10)
    self.calls.append((step, version, threading.current_thread()))
    sampler = self.data.sampler(step)
    sampler.version = version
    groups, _, _ = plans.one_round().gather(sampler, {})
    return rollouts.Gathered(
      step=step,
      version=version,
      groups=groups,
      metrics={"reward": float(groups.rewards.mean())},
      rows=[{"id": 0, "reward": None}],
      messages=["one"],
      tokens=8.0,
    )

  def sync(self):
    self.copies.append(Copy(params={"freed": False}))
    return self.copies[-1]

  def all(self, ahead, steps=range(STEPS), queue=None):
    queue = queue or rollouts.Rollouts(self.gather, steps=STEPS, ahead=ahead)
    found = [queue.take(step, self.sync) for step in steps]
    queue.close()
    return found


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_a_policy_is_as_old_as_it_may_be_and_no_older(ahead):
  script = Script()
  found = script.all(ahead)
  assert [one.step for one in found] == list(range(STEPS))
  assert [one.version for one in found] == [
    max(0, step - ahead) for step in range(STEPS)
  ]
  assert max(one.staleness().max() for one in found) == min(ahead, STEPS - 1)
  assert [step for step, _, _ in script.calls] == list(range(STEPS))
  here = threading.current_thread()
  assert all((thread is here) == (not ahead) for _, _, thread in script.calls)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_each_policy_is_copied_once_and_freed(ahead):
  script = Script()
  script.all(ahead)
  # The first makes its own step's and those ahead; the last ones make none.
  assert len(script.copies) == STEPS - ahead
  assert all(copy.params["freed"] for copy in script.copies)


def test_the_next_rollout_is_sampled_while_the_step_trains():
  script = Script()
  queue = rollouts.Rollouts(script.gather, steps=STEPS, ahead=1)
  queue.take(0, script.sync)
  queue.settle()
  script.blocked = threading.Event()
  queue.take(1, script.sync)  # returns although that of step 2 is blocked
  time.sleep(0.05)
  assert [step for step, _, _ in script.calls] == [0, 1]
  script.blocked.set()
  queue.settle()
  assert [step for step, _, _ in script.calls] == [0, 1, 2]
  queue.close()


def test_every_token_carries_its_policy():
  fresh, stale = Script().all(1)[:1], Script().all(1)[3:4]
  for (one,), version, age in ((fresh, 0, 0), (stale, 2, 1)):
    out = one.with_versions()
    chex.assert_equal_shape([out.extras["policy_version"], out.mask])
    assert (out.extras["policy_version"] == version).all()
    assert (out.extras["stale"] == age).all()


@pytest.mark.parametrize("ahead", [1, 2])
def test_what_waits_is_saved_and_goes_on_as_if_nothing_had_been(ahead):
  whole = Script().all(ahead)
  script = Script()
  queue = rollouts.Rollouts(script.gather, steps=STEPS, ahead=ahead)
  first = [queue.take(step, script.sync) for step in range(3)]
  saved = queue.state()
  queue.close()
  assert [fields["step"] for fields in saved] == list(range(3, 3 + ahead))
  again = rollouts.Rollouts(script.gather, steps=STEPS, ahead=ahead)
  again.restore(saved)
  rest = script.all(ahead, range(3, STEPS), again)
  for one, other in zip(whole, first + rest, strict=True):
    assert one.version == other.version and one.metrics == other.metrics
    chex.assert_trees_all_equal(one.with_versions(), other.with_versions())


def test_on_policy_nothing_waits():
  script = Script()
  queue = rollouts.Rollouts(script.gather, steps=STEPS)
  queue.take(0, script.sync)
  queue.settle()
  assert queue.state() == []
  queue.close()


def test_what_sampling_raises_is_raised_in_the_run():
  def fails(step, version, synced):
    raise ValueError("no reward")

  queue = rollouts.Rollouts(fails, steps=STEPS, ahead=1)
  with pytest.raises(ValueError, match="no reward"):
    queue.take(0, Script().sync)
  with pytest.raises(ValueError, match="no reward"):
    queue.settle()
  queue.close()
