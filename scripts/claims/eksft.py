"""EKSFT: a better start for reinforcement learning than SFT on few examples."""

import claims_frame as frame
import claims_tasks
import compare_runs as runs
import jax
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.training import ahead, score, state, step

CLAIM = (
  "On few demonstrations EKSFT keeps more entropy than SFT, and reinforcement"
  " learning from there ends higher."
)
SECONDS = 60
# Demonstrations of each kind, and how often all of them are gone through.
EACH, PASSES = 3, 40


def check(seeds: int) -> frame.Finding:
  """One taught model a seed; SFT or EKSFT on 12 examples; GRPO from both."""
  task = claims_tasks.several_answers()
  trial = claims_tasks.Trial(
    claims_tasks.Task(
      rewards=task.rewards, hidden=task.hidden, examples=_any_answer
    ),
    runs.Setting(seeds=seeds, steps=40, epochs=1),
  )
  taught, found, curves = trial.start, {}, {}
  for label, config in {"SFT": methods.Sft(), "EKSFT": methods.Eksft()}.items():
    trial.start = taught
    trial.start = _imitated(trial, config)
    run = trial.train(methods.Grpo(beta=0.0))
    curves[label] = run.rewards
    for when, params in (("", trial.start), (" then GRPO", run.params)):
      found[label + when] = claims_tasks.several_answers_measured(
        trial.first_tokens(params)
      )
  entropy = [found[label]["entropy"] for label in ("EKSFT", "SFT")]
  after = [found[f"{label} then GRPO"] for label in ("EKSFT", "SFT")]
  accuracy = [numbers["pass@1"] for numbers in after]
  verdicts = [frame.differs(*entropy), frame.differs(*accuracy)]
  shows = None if None in verdicts else all(verdicts)
  return frame.Finding(
    shows=False if False in verdicts else shows,
    text=(
      f"EKSFT against SFT on {EACH * claims_tasks.KINDS} demonstrations:"
      f" entropy of the first token {frame.band(entropy[0])} against"
      f" {frame.band(entropy[1])} nats, pass@1 after 40 steps of GRPO"
      f" {frame.band(accuracy[0])} against {frame.band(accuracy[1])}, entropy"
      f" then {frame.band(after[0]['entropy'])} against"
      f" {frame.band(after[1]['entropy'])}."
    ),
    rows=[
      {"": label} | {name: frame.band(x) for name, x in numbers.items()}
      for label, numbers in found.items()
    ],
    curves=curves,
    axes=("step of GRPO", "mean reward"),
  )


def _any_answer(rng, kinds):
  """Half of the first tokens can be right, which is all the same."""
  rows = rng.integers(1, claims_tasks.V, (len(kinds), claims_tasks.T))
  chosen = rng.integers(claims_tasks.ANSWERS, size=len(kinds))
  own = claims_tasks.answers_of(kinds)[np.arange(len(kinds)), chosen]
  rows[:, 0] = np.where(rng.random(len(kinds)) < 0.5, own, rows[:, 0])
  rows[:, 1:][rng.random((len(kinds), claims_tasks.T - 1)) < 0.5] = (
    claims_tasks.STOP
  )
  return rows


def _demonstrations(seed: int):
  """A rollout of answers that were accepted once, each with its stop token."""
  rng = np.random.default_rng((11, seed))
  kinds = np.repeat(np.arange(claims_tasks.KINDS), EACH)
  chances = np.array(claims_tasks.ACCEPTED) / sum(claims_tasks.ACCEPTED)
  chosen = rng.choice(claims_tasks.ANSWERS, size=len(kinds), p=chances)
  rows = len(kinds)
  blank = ahead.example_rollout(rows, 1, claims_tasks.S, claims_tasks.T)
  completions = np.full_like(blank.completions, claims_tasks.STOP)
  completions[:, 0] = claims_tasks.answers_of(kinds)[np.arange(rows), chosen]
  prompts = np.stack([kinds + 1] * claims_tasks.S, axis=1).astype(np.int32)
  return blank.replace(
    prompts=prompts,
    prompt_mask=prompts > 0,
    completions=completions,
    mask=np.arange(claims_tasks.T)[None] < np.full((rows, 1), 2),
    weights=np.ones(rows, np.float32),
  )


def _imitated(trial, config):
  """Parameters of all seeds after the passes over their demonstrations."""
  method, optimizer = config.build(), trial.setting.optimizer()
  learn = jax.jit(
    jax.vmap(
      step.make_train_step(
        score.make_score(trial.model, needs=method.needs),
        method,
        optimizer,
        old_logprobs="sampler",
      )
    )
  )
  rollouts = map(_demonstrations, range(trial.setting.seeds))
  rollout = jax.tree.map(lambda *leaves: np.stack(leaves), *rollouts)
  now = jax.vmap(lambda p: state.init_state(p, method, optimizer))(trial.start)
  for _ in range(PASSES):
    now, _ = learn(now, rollout, trial.start)
  return now.params
