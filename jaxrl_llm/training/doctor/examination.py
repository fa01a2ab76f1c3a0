"""Goes through all checks of a run, from the machine to the task."""

from collections.abc import Callable, Iterator

from jaxrl_llm.training import experiment
from jaxrl_llm.training.doctor import machine, model, task
from jaxrl_llm.training.doctor.finding import FAIL, SKIPPED, Finding
from jaxrl_llm.training.doctor.subject import Subject

# What each check is called while nothing is known of it yet.
CHECKS: dict[str, Callable[[Subject], Iterator[Finding]]] = {
  "devices": machine.devices,
  "mesh": machine.mesh,
  "weights": model.weights,
  "tokenizer": model.tokenizer,
  "data": task.data,
  "reward": task.rewards,
  "gap": model.gap,
  "disk": machine.disk,
  "memory": machine.memory,
}


def examine(
  config: experiment.Experiment,
  *,
  say: Callable[[str], None] = lambda line: None,
) -> Iterator[Finding]:
  """Findings as they are made; nothing of the run is written.

  A check that raises is a Finding that FAILs with the error's line, and where
  a later one stumbles over the very same error it is SKIPPED.

  Args:
    config: the experiment.
    say: told what is being looked at.

  Raises:
    ValueError: one line: a field that cannot be.
  """
  experiment.validate(config)
  subject = Subject(config, say)
  seen = set()
  for name, check in CHECKS.items():
    say(f"looking at {name}")
    try:
      yield from check(subject)
    except Exception as error:  # whatever it is, the run would meet it too
      line = " ".join(str(error).split()) or type(error).__name__
      status = SKIPPED if line in seen else FAIL
      figure = "it needs what failed above" if line in seen else line
      seen.add(line)
      yield Finding(name=name, status=status, figure=figure)
