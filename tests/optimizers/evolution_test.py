"""Evolution strategies: credit, noise and the step that they make."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.optimizers import evolution

FITNESS = (0.1, 0.5, 0.4, 0.9)


def _params():
  one, two = jax.random.split(jax.random.key(1))
  return {
    "layers": {"w": jax.random.normal(one, (2, 6, 4))},
    "norm": 1 + 0.1 * jax.random.normal(two, (6,)),
  }


class StandardizedTest(chex.TestCase):
  def test_has_mean_zero_and_deviation_one(self):
    z = np.asarray(evolution.standardized(jnp.array(FITNESS)))
    np.testing.assert_allclose(z.mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(z.std(), 1.0, atol=1e-6)

  @parameterized.parameters((3.0, 0.0), (0.01, 5.0), (100.0, -7.0))
  def test_affine_maps_change_nothing(self, scale, shift):
    z = evolution.standardized(jnp.array(FITNESS))
    mapped = evolution.standardized(scale * jnp.array(FITNESS) + shift)
    np.testing.assert_allclose(mapped, z, atol=1e-6 * (1 + abs(shift) / scale))

  @parameterized.parameters(0.0, 1.0, 0.9, -3.3, 1000.7, np.nan, np.inf)
  def test_equal_fitness_gives_exactly_nothing(self, value):
    for population in (1, 2, 30):
      z = evolution.standardized(jnp.full(population, value))
      np.testing.assert_array_equal(z, 0.0)

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_what_is_not_finite_is_the_least(self, junk):
    z = evolution.standardized(jnp.array([0.4, junk, 0.2, 0.9]))
    wanted = evolution.standardized(jnp.array([0.4, 0.2, 0.2, 0.9]))
    np.testing.assert_array_equal(z, wanted)

  def test_a_worked_example(self):
    z = evolution.standardized(jnp.array([1.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(z, [1, -1, -1, 1], rtol=1e-6)


class NoiseTest(chex.TestCase):
  def test_leaves_members_and_steps_have_noise_of_their_own(self):
    seeds = [
      int(seed)
      for step in range(20)
      for seed in evolution.member_seeds(jax.random.key(0), step, 30)
    ]
    self.assertLen(set(seeds), 600)
    one, two = (evolution.noise(seed, 0, (1000,)) for seed in seeds[:2])
    three = evolution.noise(seeds[0], 1, (1000,))
    for a, b in ((one, two), (one, three)):
      self.assertLess(abs(float((a * b).mean())), 0.15)
    np.testing.assert_allclose(one.std(), 1.0, atol=0.1)

  def test_seeds_are_those_of_a_smaller_population_and_more(self):
    key = jax.random.key(0)
    few, many = (evolution.member_seeds(key, 3, p) for p in (4, 8))
    self.assertLen(set(np.asarray(many).tolist()), 8)
    self.assertEqual(few.dtype, jnp.uint32)

  def test_a_cut_leaf_has_the_noise_of_the_whole_one(self):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b"))
    draw = lambda seed: evolution.noise(seed, 2, (8, 6))
    seed = np.uint32(12345)
    there = jax.jit(draw, out_shardings=cut)(seed)
    self.assertLen(there.addressable_shards, 4)
    np.testing.assert_array_equal(there, jax.jit(draw)(seed))

  def test_no_population_is_refused(self):
    with self.assertRaisesRegex(ValueError, "at least 1, got 0"):
      evolution.member_seeds(jax.random.key(0), 0, 0)


class StepTest(chex.TestCase):
  def test_the_step_is_the_noise_that_the_members_had(self):
    params, seeds = _params(), jnp.arange(4, dtype=jnp.uint32)
    z = evolution.standardized(jnp.array(FITNESS))
    ascent = evolution.ascent(params, seeds, z)
    sigma = 2.0**-6  # exact to divide by
    members = [evolution.perturbed(params, s, sigma=sigma) for s in seeds]
    wanted = jax.tree.map(
      lambda x, *of: (
        sum(c * (m - x) / sigma for c, m in zip(z, of, strict=True)) / 4
      ),
      params,
      *members,
    )
    chex.assert_trees_all_close(ascent, wanted, atol=1e-4)

  def test_members_keep_the_dtypes_and_are_rounded_once(self):
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    member = evolution.perturbed(low, np.uint32(3), sigma=0.1)
    wanted = evolution.perturbed(wide, np.uint32(3), sigma=0.1)
    chex.assert_trees_all_equal(
      member, jax.tree.map(lambda x: x.astype(jnp.bfloat16), wanted)
    )

  def test_it_climbs_a_slope(self):
    """The expectation of z-weighted noise points along the gradient."""
    slope = jnp.linspace(-1.0, 1.0, 50)
    params, key = {"x": jnp.zeros(50)}, jax.random.key(2)

    @jax.jit
    def step(params, number):
      seeds = evolution.member_seeds(key, number, 16)
      one = lambda seed: (
        slope * evolution.perturbed(params, seed, sigma=0.1)["x"]
      ).sum()
      z = evolution.standardized(jax.vmap(one)(seeds))
      way = evolution.ascent(params, seeds, z)
      return jax.tree.map(lambda x, w: x + 0.1 * w, params, way)

    for number in range(100):
      params = step(params, number)
    cosine = (slope * params["x"]).sum() / (
      jnp.linalg.norm(slope) * jnp.linalg.norm(params["x"])
    )
    self.assertGreater(float(cosine), 0.7)

  def test_random_fitness_drifts_as_the_formula(self):
    """E ||theta_T - theta_0||^2 = T alpha^2 D / P, z of mean square 1."""
    size, steps, population, alpha = 2000, 60, 10, 0.01
    key = jax.random.key(4)

    def step(params, number):
      seeds = evolution.member_seeds(key, number, population)
      luck = jax.random.uniform(jax.random.fold_in(key, number), (population,))
      way = evolution.ascent(params, seeds, evolution.standardized(luck))
      return jax.tree.map(lambda x, w: x + alpha * w, params, way), None

    start = {"x": jnp.zeros(size)}
    moved, _ = jax.lax.scan(step, start, jnp.arange(steps))
    found = float((moved["x"] ** 2).sum())
    np.testing.assert_allclose(
      found, steps * alpha**2 * size / population, rtol=0.08
    )
