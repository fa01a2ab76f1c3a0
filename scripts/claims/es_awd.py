"""Evolution forgets by drifting; the anchored decay holds what was known.

A tiny model is taught tasks A and B: the right token of B's prompts, and for
those of A some token out of eight. Then its weights move: by a fitness that is
chance, by evolution on the rewards of A, and by gradients. What it still knows
of B is never rewarded. Beside it the drift of chance against its formula.
"""

import dataclasses

import claims_frame as frame
import compare_runs as runs
import compare_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods, types
from jaxrl_llm.rollout import engine, sampling
from jaxrl_llm.training import experiment, optimizer, score, state, step

CLAIM = (
  "Where the reward says nothing, evolution drifts as alpha (T D / P)^1/2 and"
  " forgets an earlier task by it; anchored weight decay bounds the drift and"
  " keeps the task with few members, as many members do."
)
SECONDS = 90

STEPS, FEW, MANY = 100, 8, 128
LUCK = methods.EsAwd(alpha=0.05, population=FEW, lam=0.0, norm="l2")
ES = methods.EsAwd(sigma=0.1, alpha=0.1, population=FEW, lam=0.0, norm="l2")
RL = experiment.Optimizer(learning_rate=5e-3)
KINDS = {"B": jnp.arange(4), "A": jnp.arange(4, 8)}
GROUP = 16
# Random fitness: members, steps, parameters; alpha and lam are the paper's.
DRIFT = {"population": 30, "steps": 800, "size": 500}


def check(seeds: int) -> frame.Finding:
  """Runs all arms, every seed side by side."""
  world = World(seeds)
  luck = {
    "chance, few members": LUCK,
    "chance, few, l2": dataclasses.replace(LUCK, lam=2.0),
    "chance, many members": dataclasses.replace(LUCK, population=MANY),
  }
  learnt = {
    "A by evolution": ES,
    "A by evolution, l2": dataclasses.replace(ES, lam=0.2),
  }
  anchored = dataclasses.replace(RL, anchor=4.0, anchor_norm="l2")
  arms = {
    name: world.evolve(config, luck=True) for name, config in luck.items()
  }
  arms |= {name: world.evolve(config) for name, config in learnt.items()}
  arms |= {
    "A by gradients": world.descend(RL),
    "A by gradients, l2": world.descend(anchored),
  }
  kept = {name: found["B"][:, -1] for name, found in arms.items()}
  few, held, many = (kept[name] for name in luck)
  better = frame.differs(held, few), frame.differs(many, few)
  ratios = random_drift(seeds)
  text = (
    f"After {STEPS} steps of a fitness by chance the model keeps of B"
    f" {frame.band(few, 2)} with {FEW} members, {frame.band(held, 2)} with"
    f" {FEW} and the l2 decay, {frame.band(many, 2)} with {MANY}. Squared drift"
    f" is {frame.band(ratios['none'])} of T alpha^2 D / P without the decay and"
    f" {frame.band(ratios['l2'])} of its limit with it. Where A is learnt from"
    f" rewards B is kept to {frame.band(kept['A by evolution'], 2)} without and"
    f" {frame.band(kept['A by evolution, l2'], 2)} with the decay, by gradients"
    f" to {frame.band(kept['A by gradients'], 2)} and"
    f" {frame.band(kept['A by gradients, l2'], 2)}: in so small a model the"
    " tasks compete for the same weights."
  )
  return frame.Finding(
    shows=None if None in better else all(better),
    text=text,
    rows=[
      _row("before", world.before()),
      *(_row(*arm) for arm in arms.items()),
    ],
    curves={name: found["B"] for name, found in arms.items()},
    axes=("step", "reward on B, which is not trained"),
  )


def _row(name, found):
  """Rewards and drift after the last step."""
  last = {key: np.asarray(value)[:, -1] for key, value in found.items()}
  return {
    "run": name,
    "reward on A": frame.band(last["A"], 2),
    "kept on B": frame.band(last["B"], 2),
    "drift": frame.band(last["drift"], 2),
  }


class World:
  """The taught models, one a seed, and the ways they learn A."""

  def __init__(self, seeds: int):
    """Teaches them."""
    self.model = runs.Setting(width=16).model()
    self.keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    self.score = score.make_score(self.model, needs=frozenset({"entropy"}))
    self.start = self._all(self._taught, self.keys)

  def before(self) -> dict[str, np.ndarray]:
    """Rewards of the taught models; every array is [seeds, 1]."""
    found = self._all(lambda start: self._told(start, 0.0), self.start)
    return {name: value[:, None] for name, value in found.items()}

  def evolve(
    self, config: methods.EsAwd, *, luck: bool = False
  ) -> dict[str, np.ndarray]:
    """[seeds, steps] of rewards and drift, by the method's own parts.

    Args:
      config: of the method.
      luck: fitness is a uniform number, not the reward on A.
    """
    method = config.build()

    def one(start, key):
      def update(params, number):
        own, chance = jax.random.split(jax.random.fold_in(key, number))
        seeds = jax.random.bits(own, (method.population,))
        if luck:
          fitness = jax.random.uniform(chance, seeds.shape)
        else:
          fitness = jax.vmap(
            lambda seed: self._greedy(method.perturb(params, seed), "A")
          )(seeds)
        params, metrics = method.update(params, start, seeds, fitness)
        return params, self._told(params, metrics["drift_norm"])

      return jax.lax.scan(update, start, jnp.arange(STEPS))[1]

    return self._all(one, self.start, self.keys)

  def descend(self, config: experiment.Optimizer) -> dict[str, np.ndarray]:
    """The same by Dr. GRPO, in the real train step."""
    method = methods.DrGrpo().build()
    chain = optimizer.make_optimizer(config, steps=STEPS)
    train = step.make_train_step(self.score, method, chain)
    sample = self._generate(GROUP, greedy=False)

    def one(start, key):
      def update(now, number):
        rollout = self._rollout(
          sample, now.params, jax.random.fold_in(key, number)
        )
        now, _ = train(now, rollout, None)
        gap = jax.tree.map(jnp.subtract, now.params, start)
        return now, self._told(now.params, optax.tree.norm(gap))

      first = state.init_state(start, method, chain)
      return jax.lax.scan(update, first, jnp.arange(STEPS))[1]

    return self._all(one, self.start, self.keys)

  def _all(self, one, *given):
    """Of every seed, compiled together."""
    run = jax.jit(jax.vmap(one), compiler_options=tasks.COMPILER)
    return jax.device_get(run(*given))

  def _told(self, params, drift):
    return {t: self._greedy(params, t) for t in KINDS} | {"drift": drift}

  def _taught(self, key):
    """Learns B's targets and, for A's prompts, a token out of eight."""
    params, adam = self.model.init(key), optax.adam(3e-3)
    kinds = jnp.concatenate([KINDS["B"], KINDS["A"]])

    def loss(params, key):
      guess = jax.random.randint(key, (8, tasks.T), tasks.V - 8, tasks.V)
      known = jnp.broadcast_to(_targets(kinds)[:, None], guess.shape)
      tokens = jnp.where((kinds < 4)[:, None], known, guess)
      rollout = _told_rollout(kinds, tokens)
      return -self.score(params, rollout).logprobs.mean()

    def update(carry, key):
      params, memory = carry
      changes, memory = adam.update(jax.grad(loss)(params, key), memory)
      return (optax.apply_updates(params, changes), memory), None

    keys = jax.random.split(jax.random.fold_in(key, 1), 300)
    return jax.lax.scan(update, (params, adam.init(params)), keys)[0][0]

  def _generate(self, group, *, greedy):
    return engine.make_generate(
      self.model,
      sampling.make_rule(greedy=greedy),
      length=tasks.T,
      group_size=group,
      stop_ids=[tasks.STOP],
      pad_id=tasks.STOP,
    )

  def _greedy(self, params, task):
    """Mean reward of greedy completions of a task's prompts."""
    kinds = KINDS[task]
    generate = self._generate(1, greedy=True)
    ids = jnp.arange(kinds.size)
    out = generate(params, *_prompts(kinds), ids, jax.random.key(0))
    return _rewards(out, _targets(kinds)).mean()

  def _rollout(self, sample, params, key):
    """G samples of each prompt of A, and their rewards."""
    prompts, mask = _prompts(KINDS["A"])
    ids = jnp.arange(KINDS["A"].size * GROUP)
    out = sample(params, prompts, mask, ids, key)
    wanted = jnp.repeat(_targets(KINDS["A"]), GROUP)
    return types.Rollout(
      prompts=jnp.repeat(prompts, GROUP, axis=0),
      prompt_mask=jnp.repeat(mask, GROUP, axis=0),
      completions=out.completions,
      mask=out.mask,
      old_logprobs=out.logprobs,
      rewards=_rewards(out, wanted),
      weights=jnp.ones(ids.shape),
      finish_reason=out.finish_reason,
      extras={"behaviour_logprobs": out.behaviour_logprobs},
      group_size=GROUP,
    )


def _prompts(kinds):
  prompts = jnp.stack([kinds + 1] * tasks.S, axis=1).astype(jnp.int32)
  return prompts, jnp.ones(prompts.shape, bool)


def _targets(kinds):
  return tasks.V - 1 - kinds


def _rewards(out, wanted):
  return ((out.completions == wanted[:, None]) & out.mask).mean(axis=1)


def _told_rollout(kinds, tokens):
  """Completions as they should be."""
  prompts, mask = _prompts(kinds)
  rows, ones = len(kinds), jnp.ones(tokens.shape)
  return types.Rollout(
    prompts=prompts,
    prompt_mask=mask,
    completions=tokens.astype(jnp.int32),
    mask=ones > 0,
    old_logprobs=0.0 * ones,
    rewards=jnp.zeros(rows),
    weights=jnp.ones(rows),
    finish_reason=jnp.zeros(rows, jnp.int32),
  )


def random_drift(seeds: int) -> dict[str, np.ndarray]:
  """[seeds] squared drift of fitness by chance over what is expected of it.

  T alpha^2 D / P without a decay, and with l2 the limit alpha^2 D / P k /
  (1 - k) where k = (1 - alpha lam)^2.
  """
  found = {}
  count, size = DRIFT["population"], DRIFT["size"]
  paper = methods.EsAwd()
  kept = (1 - 10.0 * paper.alpha) ** 2
  factors = {"none": DRIFT["steps"], "l2": kept / (1 - kept)}
  for name, factor in factors.items():
    lam = 10.0 if name == "l2" else 0.0
    method = methods.EsAwd(population=count, lam=lam, norm="l2").build()

    def one(key, method=method):
      start = {"x": jnp.zeros(size)}

      def update(params, number):
        own, luck = jax.random.split(jax.random.fold_in(key, number))
        seeds = jax.random.bits(own, (count,))
        fitness = jax.random.uniform(luck, (count,))
        return method.update(params, start, seeds, fitness)[0], None

      moved = jax.lax.scan(update, start, jnp.arange(DRIFT["steps"]))[0]
      return (moved["x"] ** 2).sum()

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    squared = jax.jit(jax.vmap(one))(keys)
    unit = paper.alpha**2 * size / count
    found[name] = np.asarray(squared) / (unit * factor)
  return found
