"""Dynamic sampling: rounds until B groups have a signal, at a fixed shape."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rollout import groups as grouping
from jaxrl_llm.rollout import plans

METRICS = ("reward", "accuracy")


def dynamic_sampling(
  inner: types.Plan | None = None,
  *,
  max_rounds: int = 10,
  metric: str = "reward",
  low: float | None = None,
  high: float | None = None,
  min_std: float = 0.0,
  max_age: int = 1,
) -> types.Plan:
  """Samples on until B groups have a signal (DAPO); see has_signal.

  Groups without signal are thrown away and rounds of new problems follow, at
  most max_rounds in a step. The batch is always B groups: if they are not
  found, the rest of it is thrown-away groups with weight 0, which are in no
  denominator. What is found beyond B groups waits for the next step, the
  oldest first, for max_age steps.

  A group that waited was sampled by an older policy. Its rows have
  extras["stale"] 1, and the train step takes the sampler's log-probs as their
  pi_old (not the trainer's, of a policy that did not sample them), so that
  the ratio corrects for the age as it does in a second mini-batch. A method
  without a ratio should have max_age 0.

  State: "surplus", the packed groups that wait or None; "inner".
  Metrics: plan/rounds; and, in groups, plan/kept (with signal, from this
  step's rounds), plan/stale (of older steps, in the batch), plan/padded (of
  weight 0, in the batch), plan/surplus (left for the next step), plan/dropped
  (without signal, or too old).

  Args:
    inner: gathers a round; None takes one round of B problems.
    max_rounds: rounds in a step (verl max_num_gen_batches, whose 0 means "as
      many as it takes": with a task that is always solved, for ever).
    metric: what is compared: "reward", or "accuracy", 1 where the first reward
      is at least 1.
    low: keeps only groups whose mean is above; None: no bound.
    high: keeps only groups whose mean is below; None: no bound.
    min_std: keeps groups whose std (over G) is above.
    max_age: steps that a surplus group may wait; 0 throws it away (verl).

  Raises:
    ValueError: for a bad knob, one line.

  References:
    Yu et al. 2025, arXiv:2503.14476, section 3.2.
  """
  knobs = {"low": low, "high": high, "min_std": min_std}
  check(max_rounds=max_rounds, metric=metric, max_age=max_age, **knobs)
  inner = inner or plans.one_round()

  def gather(sampler, state):
    size, inner_state = sampler.batch_size, state["inner"]
    waiting = grouping.unpack(state["surplus"])
    young, expired = _split(waiting, _age(waiting, sampler.version) <= max_age)
    kept, dropped, measured = [young], [], []
    while _count(kept) < size and len(measured) < max_rounds:
      found, inner_state, metrics = inner.gather(sampler, inner_state)
      measured.append(metrics)
      signal, rest = _split(found, has_signal(_values(found, metric), **knobs))
      kept.append(signal)
      dropped.append(rest)
    batch, surplus = exactly(kept, dropped, size)
    dropped.append(expired)
    if max_age:
      batch = _marked(batch, sampler.step)
    else:
      dropped.append(surplus)
      surplus = None
    counts = {
      "rounds": len(measured),
      "kept": _count(kept[1:]),
      "stale": int((batch.version < sampler.version).sum()),
      "padded": max(size - _count(kept), 0),
      "surplus": _count([surplus]),
      "dropped": _count(dropped),
    }
    logged = {f"plan/{name}": float(count) for name, count in counts.items()}
    state = {"surplus": grouping.pack(surplus), "inner": inner_state}
    return batch, state, _means(measured) | logged

  return types.Plan(
    init=lambda: {"surplus": None, "inner": inner.init()},
    gather=gather,
    extras={**inner.extras, "stale": types.Extra()}
    if max_age
    else inner.extras,
    check=inner.check,
  )


def has_signal(
  values: Float[np.ndarray, "B G"],
  *,
  low: float | None = None,
  high: float | None = None,
  min_std: float = 0.0,
) -> Bool[np.ndarray, "B"]:
  """Which groups can teach something.

    std_ddof0(values_g) > min_std  and  low < mean(values_g) < high

  over the rows that could be scored, in float64 and from the lowest of them,
  so that equal values have a std of exactly 0. A group of one has no std and
  is kept if it could be scored, as in verl.

  Args:
    values: [B, G] rewards or accuracies; NaN where unscorable.
    low: exclusive bound of the mean; None: none. OpenRLHF has 0.
    high: exclusive bound of the mean; None: none. OpenRLHF has 1.
    min_std: verl has 0, slime 1e-6 for the std over G - 1, which is
      1e-6 * sqrt((G - 1) / G) here.

  References:
    Yu et al. 2025, arXiv:2503.14476, eq. 11.
  """
  values = np.asarray(values, np.float64)
  known = np.isfinite(values)
  count = known.sum(axis=1)
  start = np.where(known, values, np.inf).min(axis=1)
  above = np.where(known, values - start[:, None], 0.0)
  mean = above.sum(axis=1) / np.maximum(count, 1)
  deviation = np.where(known, above - mean[:, None], 0.0)
  std = np.sqrt((deviation**2).sum(axis=1) / np.maximum(count, 1))
  keep = std > min_std if values.shape[1] > 1 else count > 0
  mean = np.where(count > 0, start, 0.0) + mean
  keep &= True if low is None else mean > low
  return keep & (True if high is None else mean < high)


def exactly(
  kept: Sequence[grouping.Groups | None],
  rejected: Sequence[grouping.Groups | None],
  size: int,
) -> tuple[grouping.Groups, grouping.Groups | None]:
  """The first `size` groups that were kept, and the rest of them or None.

  Where there are too few, rejected ones fill up with weight 0: a round has B
  groups, so there are enough.
  """
  count = _count(kept)
  if count >= size:
    whole = grouping.join(kept)
    return (
      grouping.take(whole, range(size)),
      grouping.take(whole, range(size, count)),
    )
  padding = grouping.take(grouping.join(rejected), range(size - count))
  padding = padding.replace(weights=np.zeros_like(padding.weights))
  return grouping.join([*kept, padding]), None


def check(
  *,
  max_rounds: int,
  metric: str,
  low: float | None,
  high: float | None,
  min_std: float,
  max_age: int,
) -> None:
  """Raises ValueError, one line, for a knob of dynamic_sampling."""
  if max_rounds < 1:
    raise ValueError(
      f"max_rounds must be at least 1, got {max_rounds}; for no limit give a"
      " large one."
    )
  if metric not in METRICS:
    raise ValueError(
      f"metric must be one of {', '.join(METRICS)}; got {metric!r}."
    )
  low, high = -np.inf if low is None else low, np.inf if high is None else high
  if not low < high:
    raise ValueError(f"low must be below high, got {low} and {high}.")
  if not 0 <= min_std < float("inf"):
    raise ValueError(f"min_std must be 0 or more and finite, got {min_std}.")
  if max_age < 0:
    raise ValueError(f"max_age must be 0 steps or more, got {max_age}.")


def _values(found: grouping.Groups, metric: str) -> np.ndarray:
  """[B, G] what the groups are judged by; NaN where a row has weight 0."""
  values = found.rewards
  if metric == "accuracy":
    values = next(iter(found.components.values())) >= 1 - 1e-6
  counted = np.isfinite(found.rewards) & (found.weights > 0)
  return np.where(counted, values, np.nan).reshape(-1, found.group_size)


def _split(found, keep):
  """The groups to keep and the others; None where there are none."""
  if found is None:
    return None, None
  return tuple(grouping.take(found, np.flatnonzero(k)) for k in (keep, ~keep))


def _age(found, version) -> np.ndarray:
  """Steps since each group was sampled."""
  return np.zeros(0) if found is None else version - found.version


def _count(parts) -> int:
  return sum(len(part) for part in parts if part is not None)


def _marked(batch, step):
  """With extras["stale"]: 1 on the rows of an older policy."""
  stale = (batch.version < step).repeat(batch.group_size).astype(np.float32)
  return batch.replace(extras=batch.extras | {"stale": stale})


def _means(measured) -> dict[str, float]:
  """Metrics of the inner plan, the mean over its rounds."""
  names = measured[0] if measured else ()
  return {
    name: sum(each[name] for each in measured) / len(measured) for name in names
  }
