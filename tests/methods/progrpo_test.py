"""ProGRPO as a method."""

import chex
import jax.numpy as jnp

from jaxrl_llm import methods
from jaxrl_llm.advantages import confidence, group
from jaxrl_llm.testing import contract, rollouts


class ProgrpoTest(chex.TestCase):
  def test_without_alpha_it_is_grpo_over_tokens(self):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    dapo = methods.Dapo(filter_groups=False, ddof=0, eps=1e-6)
    (one, _, left), (other, _, right) = (
      contract.evaluate(config.build(), scores, rollout)
      for config in (methods.Progrpo(alpha=0.0), dapo)
    )
    chex.assert_trees_all_close(
      (one, left.logprobs), (other, right.logprobs), rtol=1e-6
    )

  def test_confidences_are_of_prompt_and_completion(self):
    rollout = rollouts.make_rollout(prompt_length=7)
    prompt = rollouts.make_scores(rollout).prompt_logprobs
    extras = {
      "prompt_logprobs": prompt,
      "trainer_logprobs": rollout.old_logprobs,
    }
    method = methods.Progrpo(alpha=0.5).build()
    found = method.advantage(rollout.replace(extras=extras))
    own = jnp.roll(rollout.prompt_mask, 1, axis=1).at[:, 0].set(False)
    c_q, c_o = (
      confidence.low_probability_confidence(*pair)
      for pair in (
        (prompt, own & rollout.prompt_mask),
        (rollout.old_logprobs, rollout.mask),
      )
    )
    plain = group.group_normalized(
      rollout.rewards, group_size=4, ddof=0, eps=1e-6
    )
    chex.assert_trees_all_close(found, plain + 0.5 * (c_q - c_o), atol=1e-6)
