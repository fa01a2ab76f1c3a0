"""ReMax: the greedy reward is the baseline, siblings are none."""

import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts


def _rollout(**changes):
  rollout = rollouts.make_rollout()
  rollout = rollout.replace(ref_logprobs=rollout.old_logprobs, **changes)
  greedy = jnp.array([0.5] * 4 + [0.0] * 4)
  return rollout.replace(extras={"greedy_rewards": greedy})


def _credit(rollout, **knobs):
  return np.asarray(methods.Remax(**knobs).build().advantage(rollout))


class RemaxTest(chex.TestCase):
  def test_every_token_has_the_reward_less_that_of_greedy_decoding(self):
    rollout = _rollout(rewards=jnp.arange(8.0))
    expected = jnp.arange(8.0) - rollout.extras["greedy_rewards"]
    expected = jnp.where(rollout.mask, expected[:, None], 0.0)
    np.testing.assert_array_equal(_credit(rollout), expected)

  def test_what_greedy_decoding_earns_too_teaches_nothing(self):
    rollout = _rollout()
    greedy = {"greedy_rewards": rollout.rewards}
    np.testing.assert_array_equal(_credit(rollout.replace(extras=greedy)), 0.0)

  def test_siblings_do_not_matter_and_may_be_missing(self):
    rollout = _rollout()
    alone = rollout.replace(group_size=1)
    np.testing.assert_array_equal(_credit(rollout), _credit(alone))
    contract.evaluate(
      methods.Remax().build(), rollouts.make_scores(alone), alone
    )

  def test_the_divergence_of_later_tokens_is_part_of_the_return(self):
    rollout = _rollout()
    rollout = rollout.replace(
      mask=jnp.ones((8, 6), bool),
      old_logprobs=rollout.ref_logprobs + 0.25,
    )
    with_kl, without = _credit(rollout, beta=0.5), _credit(rollout, beta=0.0)
    left = jnp.arange(6, 0, -1)[None]
    np.testing.assert_allclose(
      without - with_kl, 0.125 * jnp.broadcast_to(left, (8, 6)), rtol=1e-5
    )

  def test_the_paper_sums_over_tokens_and_verl_takes_their_mean(self):
    rollout = _rollout()
    scores = rollouts.make_scores(rollout, scale=0.0)
    mean, total = (
      contract.evaluate(
        methods.Remax(beta=0.0, weigh=weigh).build(), scores, rollout
      )[2].logprobs
      for weigh in ("token_mean", "sequence_sum")
    )
    tokens = float(rollout.mask.sum())
    np.testing.assert_allclose(total, mean * tokens / 8, rtol=1e-5)
