"""Contract 10 for every estimator: equal rewards give exactly 0 in float32."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import (
  baselines,
  batch,
  beta,
  components,
  group,
  optimal_token,
  reshaping,
  token,
)

T = 5


def _lengths(rewards):
  return jnp.arange(rewards.shape[0]) % T + 1


def _mask(rewards):
  return jnp.arange(T)[None] < _lengths(rewards)[:, None]


def _whiten(values, mask, **knobs):
  return token.whiten(jnp.broadcast_to(values[:, None], mask.shape), mask)


def _returns(rewards):
  mask = _mask(rewards)
  return token.discounted_returns(token.last_token_rewards(rewards, mask), mask)


def _optimal(estimator):
  def run(rewards, *, group_size):
    mask = _mask(rewards)
    sampled = jnp.log(0.05 + 0.9 * jnp.abs(jnp.sin(jnp.arange(mask.size))))
    sampled = sampled.reshape(mask.shape).astype(jnp.float32)
    return estimator(
      token.last_token_rewards(rewards, mask),
      mask,
      sampled,
      jnp.exp(sampled),
      group_size=group_size,
    )

  return run


def _two(rewards):
  return jnp.stack([rewards, -2.5 * rewards], axis=1), jnp.array([1.0, 0.3])


# Where equal rewards in one group are enough.
BY_GROUP = {
  "normalized": group.group_normalized,
  "centred": group.group_centred,
  "leave_one_out": group.leave_one_out,
  "leave_one_out_normalized": group.leave_one_out_normalized,
  "batch_normalized": batch.batch_normalized,
  "rloo_scaled": lambda r, **knobs: batch.batch_scaled(
    group.leave_one_out(r, **knobs)
  ),
  "max_rl": baselines.mean_scaled,
  "passk": baselines.best_minus_second,
  "passk_plain": lambda r, **knobs: baselines.best_minus_second(
    r, normalize=False, **knobs
  ),
  "opo": lambda r, **knobs: baselines.length_weighted(r, _lengths(r), **knobs),
  "gpg": baselines.rescaled_centred,
  "gpg_verl": lambda r, **knobs: baselines.rescaled_centred(
    r, count="nonzero_reward", **knobs
  ),
  "remax": lambda r, **knobs: baselines.greedy_baseline(
    _returns(r), r, _mask(r)
  ),
  "gdpo": lambda r, **knobs: components.gdpo(*_two(r), **knobs),
  "optimal_token": _optimal(optimal_token.optimal_token_baseline),
  "tir_optimal_token": _optimal(optimal_token.tir_optimal_token_baseline),
  "a_grae": lambda r, **knobs: reshaping.difficulty_reshaped(
    group.group_normalized(r, **knobs), r, **knobs
  ),
  "pearl": lambda r, **knobs: components.normalized_sum(
    components.discretized(
      _two(r)[0], components.thirds(_two(r)[0]), [[0.0, 0.5, 1.0]]
    ),
    _two(r)[1],
    **knobs,
  ),
  "bnpo": beta.beta_normalized,
  "bnpo_decomposed": lambda r, **knobs: beta.beta_normalized_components(
    _two(r)[0], **knobs
  ),
}
# Where all rewards of the batch must be equal: it is whitened as a whole.
BY_BATCH = {
  "reinforce_pp": lambda r, **knobs: token.whiten(_returns(r), _mask(r)),
  "reinforce_pp_baseline": lambda r, **knobs: _whiten(
    group.group_centred(r, **knobs), _mask(r)
  ),
  "gdpo_tokens": lambda r, **knobs: _whiten(
    components.normalized_sum(*_two(r), **knobs), _mask(r)
  ),
}
ALL = BY_GROUP | BY_BATCH


def _constants(seed, count):
  rng = np.random.default_rng(seed)
  wide = rng.uniform(-1, 1, count // 4) * 10.0 ** rng.integers(
    -25, 25, count // 4
  )
  some = [0.0, 0.1, 0.9, 1 / 3, 1000.7, -1e25, 1e-30]
  return np.concatenate([rng.uniform(-2, 2, count), wide, some]).astype(
    np.float32
  )


class EqualRewardsTest(chex.TestCase):
  @parameterized.product(name=tuple(BY_GROUP), size=(2, 3, 7, 8))
  def test_of_each_group_give_exactly_zero_for_any_constant(self, name, size):
    constants = _constants(size, 400)
    rewards = jnp.asarray(np.repeat(constants, size))
    run = jax.jit(BY_GROUP[name], static_argnames="group_size")
    np.testing.assert_array_equal(run(rewards, group_size=size), 0.0)

  @parameterized.product(name=tuple(BY_BATCH), size=(3, 8))
  def test_of_the_batch_give_exactly_zero_for_any_constant(self, name, size):
    one = jax.jit(lambda x: BY_BATCH[name](x, group_size=size))
    run = jax.jit(jax.vmap(lambda c: one(jnp.full(3 * size, c))))
    constants = jnp.asarray(_constants(size, 400))
    np.testing.assert_array_equal(run(constants), 0.0)

  @parameterized.parameters(*BY_GROUP)
  def test_in_one_group_beside_a_mixed_one_give_exactly_zero(self, name):
    mixed = jnp.array([1.0, 0.0, 0.3, 0.6])
    run = jax.jit(BY_GROUP[name], static_argnames="group_size")
    for constant in _constants(1, 40)[:40]:
      rewards = jnp.concatenate([mixed, jnp.full(4, constant)])
      actual = run(rewards, group_size=4)
      np.testing.assert_array_equal(actual[4:], 0.0)
      if name != "remax":  # its baseline here is the reward itself
        self.assertGreater(float(jnp.abs(actual[:4]).max()), 0.0)
