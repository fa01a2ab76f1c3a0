"""ES with AWD: the contract without gradients, and what the paper says."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.optimizers import anchored
from jaxrl_llm.testing import evolution_contract

VARIANTS = {
  "defaults": methods.EsAwd(),
  "l2": methods.EsAwd(norm="l2", population=4),
  "l1_sign": methods.EsAwd(norm="l1_sign", population=3),
  "strong": methods.EsAwd(lam=0.1, alpha=1e-2, population=8),
  "without": methods.EsAwd(lam=0.0, population=5),
  "bfloat16": methods.EsAwd(weights="bfloat16", alpha=0.1, population=4),
  "one": methods.EsAwd(population=1),
}
START = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)}
SEEDS = jnp.arange(6, dtype=jnp.uint32)
FITNESS = jnp.array([0.2, 0.9, 0.4, 0.0, 0.7, 0.3])


class ContractTest(chex.TestCase):
  @parameterized.named_parameters(
    (f"{name}_{check.__name__}", config, check)
    for name, config in VARIANTS.items()
    for check in evolution_contract.CHECKS
  )
  def test(self, config, check):
    check(config.build())

  def test_broken_methods_are_caught(self):
    method = methods.EsAwd(population=4).build()

    def raw(params, start, seeds, fitness):
      new, metrics = method.update(params, start, seeds, fitness)
      return jax.tree.map(lambda x: x + fitness.mean(), new), metrics

    def forgets(params, start, seeds, fitness):
      return method.update(params, start, seeds[::-1], fitness)

    for update, check in (
      (raw, evolution_contract.affine_maps_change_nothing),
      (raw, evolution_contract.equal_fitness_only_decays),
      (forgets, evolution_contract.the_best_member_pulls),
    ):
      with self.assertRaises(AssertionError):
        check(dataclasses.replace(method, update=update))


def _update(config, params=START, fitness=FITNESS):
  method = dataclasses.replace(config, population=6).build()
  return method.update(params, START, SEEDS, fitness)


class DecayTest(chex.TestCase):
  def test_without_the_decay_it_is_evolution_alone(self):
    plain, _ = _update(methods.EsAwd(lam=0.0))
    for norm in ("l1", "l2"):
      chex.assert_trees_all_equal(
        _update(methods.EsAwd(lam=0.0, norm=norm))[0], plain
      )

  def test_l2_shrinks_the_drift_after_the_update_by_exactly_its_share(self):
    away = jax.tree.map(lambda x: x + 0.25, START)
    knobs = {"alpha": 0.05, "norm": "l2"}
    free, _ = _update(methods.EsAwd(lam=0.0, **knobs), away)
    held, metrics = _update(methods.EsAwd(lam=4.0, **knobs), away)
    before = anchored.drift_norm(free, START)
    np.testing.assert_allclose(metrics["drift_norm"], 0.8 * before, rtol=1e-6)
    chex.assert_trees_all_close(
      held, jax.tree.map(lambda x, s: s + 0.8 * (x - s), free, START), rtol=1e-6
    )

  def test_l1_leaves_small_drifts_exactly_at_the_start(self):
    new, metrics = _update(methods.EsAwd(lam=100.0))
    chex.assert_trees_all_equal(new, START)
    self.assertEqual(float(metrics["drift_norm"]), 0.0)
    self.assertGreater(float(metrics["update_norm"]), 0.0)

  def test_the_default_strength_is_that_of_the_norm(self):
    for norm, lam in (("l1", 0.01), ("l2", 10.0), ("l1_sign", 0.01)):
      away = jax.tree.map(lambda x: x + 0.25, START)
      chex.assert_trees_all_equal(
        _update(methods.EsAwd(norm=norm), away),
        _update(methods.EsAwd(norm=norm, lam=lam), away),
      )

  def test_fitness_is_told_as_it_was_counted(self):
    _, found = _update(methods.EsAwd(), fitness=FITNESS.at[1].set(jnp.nan))
    np.testing.assert_allclose(found["fitness/mean"], 1.6 / 6, rtol=1e-6)
    np.testing.assert_allclose(found["fitness/max"], 0.7, rtol=1e-6)
    np.testing.assert_allclose(found["fitness/failed"], 1 / 6, rtol=1e-6)

  def test_more_members_drift_less(self):
    """Random fitness: the update's norm falls as the root of P."""
    norms = []
    for population in (8, 128):
      method = methods.EsAwd(population=population, lam=0.0).build()
      start = {"w": jnp.zeros(4000)}
      seeds = jnp.arange(population, dtype=jnp.uint32)
      luck = jax.random.uniform(jax.random.key(0), (population,))
      found = method.update(start, start, seeds, luck)[1]
      norms.append(float(found["update_norm"]))
    np.testing.assert_allclose(norms[0] / norms[1], 4.0, rtol=0.15)
