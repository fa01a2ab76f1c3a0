"""Methods that differ in their surrogate: what each is equal to, and when."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts

GRPO = methods.Grpo(beta=0.0)
TOKEN_MEAN = methods.Dapo(filter_groups=False)


def _gradient(config, *, scale=0.2, **extras):
  """d loss / d logprobs of a rollout, `scale` nats from its policy."""
  rollout = rollouts.make_rollout(groups=4, length=12)
  rollout = rollout.replace(extras=rollout.extras | extras)
  scores = rollouts.make_scores(rollout, scale=scale)
  return contract.evaluate(config.build(), scores, rollout)[2].logprobs


def _mask():
  return rollouts.make_rollout(groups=4, length=12).mask


class OnPolicyTest(chex.TestCase):
  @parameterized.parameters(
    (methods.Gspo(), GRPO),
    (methods.GspoToken(), GRPO),
    (methods.Sapo(), GRPO),
    (methods.Sapo(level="sequence"), GRPO),
    (methods.Gmpo(), GRPO),
    (methods.DualClip(), GRPO),
    (methods.Cispo(), TOKEN_MEAN),
    (methods.Vespo(), TOKEN_MEAN),
    (methods.Dppo(), TOKEN_MEAN),
    (methods.Dppo(divergence="kl"), TOKEN_MEAN),
    (methods.Dro(beta=3.0), TOKEN_MEAN),
    (methods.ClipCov(cov_low=98.0, cov_high=99.0), TOKEN_MEAN),
    (methods.KlCov(fraction=0.5), TOKEN_MEAN),
  )
  def test_the_gradient_is_that_of_the_plain_policy_gradient(self, one, other):
    chex.assert_trees_all_close(
      _gradient(one, scale=0.0), _gradient(other, scale=0.0), atol=1e-6
    )

  def test_luspo_pushes_a_token_the_same_in_short_and_long_rows(self):
    grad = jnp.abs(_gradient(methods.Luspo(), scale=0.0))
    rows = _gradient(methods.Gspo(), scale=0.0)
    length = _mask().sum(axis=1, keepdims=True)
    chex.assert_trees_all_close(grad, jnp.abs(rows) * length, rtol=1e-5)


class OffPolicyTest(chex.TestCase):
  def test_gspo_and_gspo_token_agree_on_credit_per_row(self):
    wide = {"clip_low": 0.03, "clip_high": 0.04}
    chex.assert_trees_all_close(
      _gradient(methods.Gspo(**wide)),
      _gradient(methods.GspoToken(**wide)),
      rtol=1e-4,
      atol=1e-7,
    )

  def test_gspo_clips_whole_rows(self):
    silent = np.asarray(_gradient(methods.Gspo()) == 0)
    mask = np.asarray(_mask())
    by_row = [set(row[own]) for row, own in zip(silent, mask, strict=True)]
    self.assertTrue(all(len(row) == 1 for row in by_row))
    self.assertLen({min(row) for row in by_row}, 2)

  def test_cispo_silences_nobody(self):
    grad = np.asarray(_gradient(methods.Cispo(ratio_high=1.1), scale=1.0))
    self.assertTrue((grad[np.asarray(_mask())] != 0).all())

  def test_a_far_second_clip_is_grpo(self):
    chex.assert_trees_all_close(
      _gradient(methods.DualClip(dual_clip=1e6), scale=1.0),
      _gradient(GRPO, scale=1.0),
      rtol=1e-5,
    )

  @parameterized.parameters("vespo", "gmpo")
  def test_rollout_weights_of_one_change_nothing_and_others_do(self, name):
    config = methods.get(name)()
    ones = jnp.ones(_mask().shape)
    plain = _gradient(config)
    chex.assert_trees_all_close(
      _gradient(config, rollout_is=ones), plain, rtol=1e-5
    )
    changed = _gradient(config, rollout_is=0.5 * ones)
    self.assertGreater(float(jnp.abs(changed - plain).max()), 1e-4)

  def test_gmpo_scales_with_a_weight_once(self):
    half = jnp.full(_mask().shape, 0.5)
    chex.assert_trees_all_close(
      _gradient(methods.Gmpo(), rollout_is=half),
      0.5 * _gradient(methods.Gmpo()),
      rtol=1e-5,
    )

  def test_vespo_takes_a_sequence_weight_once(self):
    row = jnp.exp(jax.random.normal(jax.random.key(0), (_mask().shape[0], 1)))
    everywhere = jnp.broadcast_to(row, _mask().shape)
    first = jnp.where(jnp.arange(12)[None, :] == 0, row, 1.0)
    chex.assert_trees_all_close(
      _gradient(methods.Vespo(rollout_level="sequence"), rollout_is=everywhere),
      _gradient(methods.Vespo(), rollout_is=first),
      rtol=1e-4,
      atol=1e-7,
    )


class ClipCovTest(chex.TestCase):
  CONFIG = methods.ClipCov(fraction=0.1, cov_low=0.05)

  def _marks(self, config, rollouts_seen):
    method = config.build()
    rollout = rollouts.make_rollout(groups=4, length=12)
    advantages = method.advantage(rollout)[:, None] * rollout.mask
    state = method.transform.init()
    for _ in range(rollouts_seen + 1):
      shown, state = method.transform.update(rollout, state)
    return np.asarray(
      method.selection(shown, advantages).extras["clip_cov_drop"]
    )

  def test_every_rollout_draws_anew_and_a_seed_repeats(self):
    first, second = self._marks(self.CONFIG, 0), self._marks(self.CONFIG, 1)
    self.assertEqual(first.sum(), second.sum())
    self.assertGreater(first.sum(), 2)
    self.assertFalse((first == second).all())
    np.testing.assert_array_equal(first, self._marks(self.CONFIG, 0))
    other = methods.ClipCov(fraction=0.1, cov_low=0.05, seed=1)
    self.assertFalse((first == self._marks(other, 0)).all())

  def test_marked_tokens_have_no_gradient_and_the_rest_keep_theirs(self):
    marks = self._marks(self.CONFIG, 0)
    grad = _gradient(self.CONFIG, scale=0.0)
    plain = _gradient(TOKEN_MEAN, scale=0.0)
    chex.assert_trees_all_close(grad, jnp.where(marks, 0.0, plain), atol=1e-6)
