"""EKSFT: a better start for reinforcement learning than SFT on few examples."""

import claims_diversity as diversity
import claims_frame as frame
import claims_taught
from compare_tasks import KINDS, STOP, S, T, V
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
  runs = diversity.Runs(seeds, steps=40, epochs=1, evaluations=1)
  taught = claims_taught.taught(runs, _any_answer)
  found, curves = {}, {}
  for label, config in {"SFT": methods.Sft(), "EKSFT": methods.Eksft()}.items():
    imitated = _imitated(runs, taught, config)
    trained = runs.train(
      methods.Grpo(beta=0.0), diversity.reward, params=imitated
    )
    curves[label] = trained.curves["reward"]
    for when, params in (("", imitated), (" then GRPO", trained.params)):
      found[label + when] = diversity.measured(
        claims_taught.first_tokens(runs, params)
      )
  entropy = [found[label]["entropy"] for label in ("EKSFT", "SFT")]
  after = [found[f"{label} then GRPO"] for label in ("EKSFT", "SFT")]
  accuracy = [numbers["pass@1"] for numbers in after]
  verdicts = [frame.differs(*entropy), frame.differs(*accuracy)]
  shows = None if None in verdicts else all(verdicts)
  return frame.Finding(
    shows=False if False in verdicts else shows,
    text=(
      f"EKSFT against SFT on {EACH * KINDS} demonstrations: entropy of the"
      f" first token {frame.band(entropy[0])} against"
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
  rows = rng.integers(1, V, (len(kinds), T))
  chosen = rng.integers(diversity.ANSWERS, size=len(kinds))
  own = diversity.answers_of(kinds)[np.arange(len(kinds)), chosen]
  rows[:, 0] = np.where(rng.random(len(kinds)) < 0.5, own, rows[:, 0])
  rows[:, 1:][rng.random((len(kinds), T - 1)) < 0.5] = STOP
  return rows


def _demonstrations(seed: int):
  """A rollout of answers that were accepted once, each with its stop token."""
  rng = np.random.default_rng((11, seed))
  kinds = np.repeat(np.arange(KINDS), EACH)
  chances = np.array(diversity.ACCEPTED) / sum(diversity.ACCEPTED)
  chosen = rng.choice(diversity.ANSWERS, size=len(kinds), p=chances)
  rows = len(kinds)
  blank = ahead.example_rollout(rows, 1, S, T)
  completions = np.full_like(blank.completions, STOP)
  completions[:, 0] = diversity.answers_of(kinds)[np.arange(rows), chosen]
  prompts = np.stack([kinds + 1] * S, axis=1).astype(np.int32)
  return blank.replace(
    prompts=prompts,
    prompt_mask=prompts > 0,
    completions=completions,
    mask=np.arange(T)[None] < np.full((rows, 1), 2),
    weights=np.ones(rows, np.float32),
  )


def _imitated(runs, taught, config):
  """Parameters of all seeds after the passes over their demonstrations."""
  method, optimizer = config.build(), runs.setting.optimizer()
  learn = jax.jit(
    jax.vmap(
      step.make_train_step(
        score.make_score(runs.model, needs=method.needs),
        method,
        optimizer,
        old_logprobs="sampler",
      )
    )
  )
  rollouts = map(_demonstrations, range(runs.setting.seeds))
  rollout = jax.tree.map(lambda *leaves: np.stack(leaves), *rollouts)
  now = jax.vmap(lambda p: state.init_state(p, method, optimizer))(taught)
  for _ in range(PASSES):
    now, _ = learn(now, rollout, taught)
  return now.params
