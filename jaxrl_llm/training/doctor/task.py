"""Checks of the task: problems and rewards."""

from collections.abc import Iterator

import numpy as np

from jaxrl_llm.data import prompts
from jaxrl_llm.rewards import golden
from jaxrl_llm.training import setup
from jaxrl_llm.training.doctor.finding import FAIL, OK, WARN, Finding
from jaxrl_llm.training.doctor.subject import Subject

_READ = 20_000  # prompts that are tokenised
_TRIED = 4  # problems whose answers are scored


def data(subject: Subject) -> Iterator[Finding]:
  """Whether prompts fit, and whether what is held out is not trained on."""
  training, held_out = subject.training, subject.held_out
  length = subject.config.prompt_length
  counts = [
    count
    for part in (training[:_READ], held_out)
    for count in _lengths(subject, part)
  ]
  long = sum(count > length for count in counts)
  longest = max(counts)
  figure = (
    f"{len(training)} training and {len(held_out)} held-out problems, the"
    f" longest prompt has {longest} of {length} tokens"
  )
  if long or not min(counts):
    yield Finding(
      name="data",
      status=FAIL,
      figure=f"{figure}; {long} of {len(counts)} are longer,"
      f" {counts.count(0)} empty",
      advice=f"raise prompt_length to {longest}, or leave them out",
    )
    return
  trained = {problem.prompt for problem in training}
  both = sum(problem.prompt in trained for problem in held_out)
  yield Finding(
    name="data",
    status=WARN if both else OK,
    figure=f"{figure}, {both} held-out problems are trained on too",
    advice="hold other problems out, or accuracy says nothing" if both else "",
  )


def _lengths(subject, problems) -> list[int]:
  config, tokenizer = subject.config.data, subject.loaded.tokenizer
  texts = prompts.write_prompts(
    problems, tokenizer, template=config.template, chat=config.chat
  )
  return [len(tokenizer.encode(text)) for text in texts]


def rewards(subject: Subject) -> Iterator[Finding]:
  """Whether each reward tells a right completion from a wrong one."""
  config, training = subject.config, subject.training
  picked = np.linspace(0, len(training) - 1, min(_TRIED, len(training)))
  problems = [training[int(i)] for i in picked]
  with setup.make_pool(config) as pool:
    for name, label in zip(config.reward, pool.labels, strict=True):
      subject.say(f"scoring golden answers with {name}")
      yield _reward(pool, name, label, problems)


def _reward(pool, name, label, problems) -> Finding:
  title = f"reward {label}"
  try:
    pairs = [golden.golden(name, problem.answer) for problem in problems]
  except ValueError as error:
    return Finding(name=title, status=FAIL, figure=str(error))
  completions = [text for pair in pairs for text in (pair.right, pair.wrong)]
  twice = [problem for problem in problems for _ in range(2)]
  scored = pool.score(
    [p.prompt for p in twice], completions, [p.answer for p in twice]
  )
  if scored.messages:
    return Finding(
      name=title,
      status=FAIL,
      figure=f"{len(scored.messages)} of {len(twice)} golden completions could"
      f" not be scored: {scored.messages[0]}",
      advice="a run would learn nothing from such rows",
    )
  right, wrong = scored.components[label].reshape(-1, 2).T
  what = "right, {} wrong" if pairs[0].certain else "the answer, {} nothing"
  figure = f"{right.mean():.3g} on average for " + what.format(
    f"{wrong.mean():.3g} for"
  )
  if (right > wrong).all():
    return Finding(name=title, status=OK, figure=figure)
  worst = int(np.argmin(right - wrong))
  shown = (
    f"{figure}; for the answer {problems[worst].answer!r:.40} it gives"
    f" {right[worst]:.3g} to {pairs[worst].right!r:.60} and {wrong[worst]:.3g}"
    f" to {pairs[worst].wrong!r:.40}"
  )
  if pairs[0].certain:
    advice = "answers of the data are not what this reward reads"
    return Finding(name=title, status=FAIL, figure=shown, advice=advice)
  return Finding(
    name=title,
    status=WARN,
    figure=shown,
    advice="see that it scores completions as you mean",
  )
