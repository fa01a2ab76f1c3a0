"""The wrappers that correct for the sampler, around every method."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts
from jaxrl_llm.training import state, step

Correction = methods.OffPolicyCorrection
EVERYTHING = {
  "mode": "mask",
  "low": 0.5,
  "high": 1.5,
  "normalize": True,
  "reject": "token_ratio,seq_mean_k3",
  "reject_threshold": "0.8_1.25,0.5",
  "variation": 0.1,
}
WRAPPERS = {
  "tis": lambda inner: Correction(method=inner),
  "sequence": lambda inner: Correction(method=inner, level="sequence"),
  "seq_mask": lambda inner: Correction(
    method=inner, mode="seq_mask", low=0.5, high=5.0
  ),
  "everything": lambda inner: Correction(method=inner, **EVERYTHING),
  "original": lambda inner: Correction(
    method=inner, **EVERYTHING, denominator="original"
  ),
  "decoupled": lambda inner: methods.DecoupledPpo(method=inner),
  "m2po": lambda inner: methods.M2po(method=inner),
  "opsm": lambda inner: methods.Opsm(method=inner, delta=5.0),
  "bypass": lambda inner: methods.Bypass(method=inner),
}
# For each check one that differs from GRPO in its advantage, weighting,
# transform, ratio or surrogate.
INNER = ("grpo", "dapo", "rloo")


def _same(rollout):
  """Trainer and sampler agree to the bit."""
  pair = dict.fromkeys(
    ("trainer_logprobs", "sampler_logprobs"), rollout.old_logprobs
  )
  return rollout.replace(extras=rollout.extras | pair)


def _apart(rollout, scale=0.4):
  noise = scale * jax.random.normal(jax.random.key(9), rollout.mask.shape)
  pair = {
    "trainer_logprobs": rollout.old_logprobs,
    "sampler_logprobs": rollout.old_logprobs + noise,
  }
  return rollout.replace(extras=rollout.extras | pair)


class AgreementTest(chex.TestCase):
  @parameterized.product(
    inner=tuple(methods.BY_GRADIENT), wrapper=("everything",)
  )
  def test_around_any_method_it_changes_nothing(self, inner, wrapper):
    self._check(inner, wrapper)

  @parameterized.product(inner=INNER, wrapper=tuple(WRAPPERS))
  def test_nothing_changes_where_sampler_and_trainer_agree(
    self, inner, wrapper
  ):
    self._check(inner, wrapper)

  def _check(self, inner, wrapper):
    inner = methods.METHODS[inner]()
    rollout = _same(rollouts.make_rollout())
    scores = rollouts.make_scores(rollout)
    plain = contract.evaluate(inner.build(), scores, rollout)
    wrapped = contract.evaluate(
      WRAPPERS[wrapper](inner).build(), scores, rollout
    )
    chex.assert_trees_all_close(plain[0], wrapped[0], rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(
      plain[2].logprobs, wrapped[2].logprobs, rtol=1e-6, atol=1e-7
    )

  @parameterized.product(inner=("dapo", "gpg"), wrapper=tuple(WRAPPERS))
  def test_where_they_do_not_the_gradient_changes(self, inner, wrapper):
    inner = methods.METHODS[inner]()
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(ref_logprobs=rollout.old_logprobs)
    scores = rollouts.make_scores(rollout)
    config = WRAPPERS[wrapper](inner)
    if wrapper == "opsm":
      config = dataclasses.replace(config, delta=0.0)
    changed = _apart(rollout)
    plain = contract.evaluate(inner.build(), scores, rollout)[2].logprobs
    wrapped = contract.evaluate(config.build(), scores, changed)[2].logprobs
    chex.assert_tree_all_finite(wrapped)
    moved = np.abs(np.asarray(plain - wrapped)).max()
    if wrapper == "bypass" and type(inner) is methods.Gpg:
      self.assertEqual(moved, 0.0)  # no ratio, nothing to take the place of
    else:
      self.assertGreater(moved, 1e-4)


class WeightsTest(chex.TestCase):
  def _gradients(self, config, rollout, scores):
    return np.asarray(
      contract.evaluate(config.build(), scores, rollout)[2].logprobs
    )

  @parameterized.parameters("token", "sequence", "geometric")
  def test_weights_multiply_the_policy_loss_and_not_the_kl(self, level):
    rollout = _apart(rollouts.make_rollout())
    scores = rollouts.make_scores(rollout, scale=0.0)
    run = lambda config: self._gradients(config, rollout, scores)
    free, tied = methods.Grpo(beta=0.0), methods.Grpo(beta=0.5)
    wrap = lambda inner: Correction(method=inner, level=level)
    kl = run(tied) - run(free)
    self.assertGreater(np.abs(kl).max(), 1e-3)
    np.testing.assert_allclose(run(wrap(tied)) - run(wrap(free)), kl, atol=1e-6)
    ratio = (
      run(wrap(free))[np.asarray(rollout.mask)]
      / (run(free)[np.asarray(rollout.mask)])
    )
    weights = self._weights(rollout, level)[np.asarray(rollout.mask)]
    np.testing.assert_allclose(ratio, weights, rtol=1e-4)

  def _weights(self, rollout, level):
    gap = np.asarray(
      rollout.extras["trainer_logprobs"] - rollout.extras["sampler_logprobs"]
    )
    mask = np.asarray(rollout.mask)
    row = np.where(mask, gap, 0.0).sum(axis=1, keepdims=True)
    if level == "geometric":
      row = row / mask.sum(axis=1, keepdims=True)
    log = gap if level == "token" else row + 0 * gap
    return np.minimum(np.exp(log), 2.0)

  def test_the_two_denominators_differ_by_the_share_that_is_kept(self):
    rollout = _apart(rollouts.make_rollout())
    scores = rollouts.make_scores(rollout, scale=0.0)
    grads = [
      self._gradients(
        Correction(
          method=methods.Dapo(filter_groups=False),
          level="none",
          reject="token_ratio",
          reject_threshold="0.8_1.25",
          denominator=which,
        ),
        rollout,
        scores,
      )
      for which in ("recounted", "original")
    ]
    kept = (grads[0] != 0).sum() / np.asarray(rollout.mask).sum()
    self.assertTrue(0.2 < kept < 0.9)
    np.testing.assert_allclose(grads[1], kept * grads[0], rtol=1e-4, atol=1e-7)

  def test_decoupled_ppo_clips_about_the_trainer_not_the_sampler(self):
    """A sampler of long ago; the policy has not moved since the step began."""
    rollout = _apart(rollouts.make_rollout(), scale=0.6)
    scores = rollouts.make_scores(rollout, scale=0.0)
    decoupled = methods.DecoupledPpo(method=methods.Grpo(beta=0.0))
    metrics = contract.evaluate(decoupled.build(), scores, rollout)[1]
    self.assertEqual(metrics["clip_fraction"], 0.0)
    stale = rollout.replace(old_logprobs=rollout.extras["sampler_logprobs"])
    metrics = contract.evaluate(methods.Grpo(beta=0.0).build(), scores, stale)[
      1
    ]
    self.assertGreater(metrics["clip_fraction"], 0.1)


class BypassTest(chex.TestCase):
  def test_the_clipped_form_is_the_method_with_the_samplers_log_probs(self):
    rollout = _apart(rollouts.make_rollout())
    scores = rollouts.make_scores(rollout)
    inner = methods.Grpo(beta=0.1)
    stale = rollout.replace(old_logprobs=rollout.extras["sampler_logprobs"])
    chex.assert_trees_all_equal(
      contract.evaluate(methods.Bypass(method=inner).build(), scores, rollout)[
        2
      ].logprobs,
      contract.evaluate(inner.build(), scores, stale)[2].logprobs,
    )

  @parameterized.parameters("grpo", "dr_grpo", "dapo", "gpg")
  def test_reinforce_is_the_gradient_at_ratio_one_times_the_weight(self, name):
    rollout = _apart(rollouts.make_rollout())
    rollout = rollout.replace(ref_logprobs=rollout.old_logprobs)
    scores = rollouts.make_scores(rollout)
    inner = methods.METHODS[name]()
    fresh = rollout.replace(
      old_logprobs=scores.logprobs, ref_logprobs=scores.logprobs
    )
    rollout = rollout.replace(ref_logprobs=scores.logprobs)
    config = methods.Bypass(method=inner, form="reinforce", high=1.5)
    ours = contract.evaluate(config.build(), scores, rollout)[2].logprobs
    plain = contract.evaluate(inner.build(), scores, fresh)[2].logprobs
    gap = scores.logprobs - rollout.extras["sampler_logprobs"]
    weights = jnp.minimum(jnp.exp(gap), 1.5)
    expected = jnp.where(rollout.mask, plain * weights, 0.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)

  @parameterized.parameters("ppo_clip", "reinforce")
  def test_rejection_looks_at_the_policy_being_trained(self, form):
    rollout = _apart(rollouts.make_rollout(), scale=0.0)
    scores = rollouts.make_scores(rollout, scale=0.5)
    config = methods.Bypass(
      method=methods.Dapo(filter_groups=False, clip_low=1.0, clip_high=50.0),
      form=form,
      reject="token_ratio",
      reject_threshold="0.7_1.4",
    )
    _, metrics, grads = contract.evaluate(config.build(), scores, rollout)
    ratio = np.exp(np.asarray(scores.logprobs - rollout.old_logprobs))
    mask = np.asarray(rollout.mask)
    inside = mask & (ratio >= 0.7) & (ratio <= 1.4)
    np.testing.assert_array_equal(np.asarray(grads.logprobs) != 0, inside)
    share = 1 - inside.sum() / mask.sum()
    np.testing.assert_allclose(metrics["rejected_tokens"], share, rtol=1e-5)

  def test_a_missing_number_counts_as_agreement(self):
    rollout = _apart(rollouts.make_rollout())
    scores = rollouts.make_scores(rollout)
    sampled = rollout.extras["sampler_logprobs"].at[0, 0].set(jnp.nan)
    rollout = rollout.replace(
      extras=rollout.extras | {"sampler_logprobs": sampled}
    )
    for config in (
      methods.Bypass(),
      methods.Bypass(form="reinforce"),
      methods.Opsm(),
      Correction(),
    ):
      out = contract.evaluate(config.build(), scores, rollout)
      chex.assert_tree_all_finite(out)


class OpsmTest(chex.TestCase):
  def test_failures_left_behind_have_no_policy_gradient_but_their_kl(self):
    rollout = _apart(rollouts.make_rollout(), scale=0.0)
    scores = rollouts.make_scores(rollout, scale=0.0)
    scores = scores.replace(
      logprobs=jnp.where(rollout.mask, scores.logprobs - 0.7, 0.0)
    )
    rollout = rollout.replace(ref_logprobs=rollout.old_logprobs)
    grads = lambda beta, **knobs: contract.evaluate(
      methods.Opsm(method=methods.Grpo(beta=beta), **knobs).build(),
      scores,
      rollout,
    )
    _, metrics, free = grads(0.0)
    bad = np.asarray(rollout.rewards) == 0
    np.testing.assert_array_equal(free.logprobs[bad], 0.0)
    self.assertTrue((np.abs(free.logprobs[~bad]).sum(axis=1) > 0).all())
    np.testing.assert_allclose(metrics["opsm_fraction"], bad.mean(), rtol=1e-5)
    tied = grads(0.1)[2].logprobs
    self.assertTrue((np.abs(tied[bad]).sum(axis=1) > 0).all())
    self.assertEqual(grads(0.0, delta=0.8)[1]["opsm_fraction"], 0.0)


class StepTest(chex.TestCase):
  """In the train step, where trainer and sampler are its own to tell apart."""

  def _step(self, method, gap=0.3, **knobs):
    rollout = rollouts.make_rollout(groups=4, length=5)
    noise = gap * jax.random.normal(jax.random.key(1), rollout.mask.shape)
    trainer = rollout.old_logprobs

    def score(params, part):
      now = jnp.take(trainer, part.extras["row"], axis=0) + params["shift"]
      return rollouts.types.Scores(logprobs=jnp.where(part.mask, now, 0.0))

    rollout = rollout.replace(
      old_logprobs=rollout.old_logprobs + noise,
      ref_logprobs=None,
      extras={"row": jnp.arange(16)},
    )
    optimizer = optax.sgd(1.0)
    params = {"shift": jnp.zeros((1, 5))}
    method = method.build()
    start = state.init_state(params, method, optimizer)
    run = step.make_train_step(score, method, optimizer, **knobs)
    fast = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(run, compiler_options=fast)
    new, metrics = compiled(start, rollout, None)
    return np.asarray(new.params["shift"]), metrics

  @parameterized.parameters({}, {"micro_batches": 4})
  def test_the_step_measures_and_corrects(self, **knobs):
    inner = methods.Dapo()
    plain, _ = self._step(inner)
    ours, metrics = self._step(Correction(method=inner), **knobs)
    self.assertGreater(np.abs(plain - ours).max(), 1e-4)
    self.assertGreater(metrics["rollout_k3"], 0.01)
    self.assertLess(metrics["rollout_is_ess"], 1.0)
    exact, metrics = self._step(Correction(method=inner), gap=0.0, **knobs)
    same, _ = self._step(inner, gap=0.0)
    np.testing.assert_allclose(exact, same, atol=1e-6)
    np.testing.assert_allclose(metrics["rollout_k3"], 0.0, atol=1e-7)

  def test_old_logprobs_of_the_run_do_not_count_the_gap_twice(self):
    config = Correction(method=methods.Dapo())
    one, _ = self._step(config, old_logprobs="trainer")
    two, _ = self._step(config, old_logprobs="sampler")
    np.testing.assert_allclose(one, two, atol=1e-6)

  @parameterized.parameters({}, {"epochs": 2, "mini_batches": 2})
  def test_bypass_takes_the_sampler_whatever_the_run_says(self, **knobs):
    config = methods.Bypass(method=methods.Dapo())
    ours, _ = self._step(config, **knobs)
    plain, _ = self._step(methods.Dapo(), **knobs | {"old_logprobs": "sampler"})
    np.testing.assert_allclose(ours, plain, atol=1e-6)

  @parameterized.parameters("original", "m2po", "bypass")
  def test_micro_batches_add_up(self, name):
    config = WRAPPERS[name](methods.Dapo())
    whole, metrics = self._step(config)
    cut, cut_metrics = self._step(config, micro_batches=4)
    np.testing.assert_allclose(cut, whole, atol=1e-6)
    chex.assert_trees_all_close(cut_metrics, metrics, atol=1e-5, rtol=1e-5)
