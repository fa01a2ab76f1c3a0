"""OCC: its loss around lam, its regimes in the real step, its warm-up."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods, types
from jaxrl_llm.models import families, mtp
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.testing import contract, rollouts
from jaxrl_llm.training import heads, score, state, step

V, B, G, T = 16, 4, 4, 6
SMALL = dataclasses.replace(
  families.TINY,
  vocab_size=V,
  width=16,
  depth=1,
  heads=2,
  head_dim=8,
  mlp_width=16,
)


def _occ(**knobs):
  return methods.Occ(**{"warmup": 0} | knobs).build()


def _gradient(method, rollout, scores):
  return contract.evaluate(method, scores, rollout)


class LossTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.rollout = rollouts.make_rollout()
    self.scores = rollouts.make_scores(self.rollout)

  def test_without_lam0_or_a_change_it_is_the_main_loss(self):
    plain = methods.DualClip(clip_high=0.28, dual_clip=10.0).build()
    plain = dataclasses.replace(plain, weighting=weighting.token_mean)
    loss, _, grads = _gradient(plain, self.rollout, self.scores)
    unmoved = self.scores.replace(logprobs=self.rollout.old_logprobs)
    for method, scores in ((_occ(lam0=0.0), self.scores), (_occ(), unmoved)):
      if scores is unmoved:
        loss, _, grads = _gradient(plain, self.rollout, unmoved)
      own, metrics, found = _gradient(method, self.rollout, scores)
      np.testing.assert_array_equal(own, loss)
      np.testing.assert_array_equal(metrics["mtp_lam"], 0.0)
      np.testing.assert_array_equal(found.logprobs, grads.logprobs)
      np.testing.assert_array_equal(found.mtp_logprobs, 0.0)

  @parameterized.parameters("inner", "elementwise_mean")
  def test_the_modules_gradient_is_of_a_loss_with_constant_credit(self, form):
    method = _occ(calibration=form)
    _, metrics, grads = _gradient(method, self.rollout, self.scores)
    lam = metrics["mtp_lam"]
    self.assertGreater(abs(lam), 1e-3)
    # A loss of the module alone, as if it were the policy.
    alone = self.scores.replace(logprobs=self.scores.mtp_logprobs)
    seen = self.rollout.replace(mask=mtp.predicted(self.rollout))
    advantage = method.advantage(self.rollout)
    weights = method.weighting(self.rollout.mask, self.rollout.weights)
    loss = policy.policy_objective(
      surrogate=lambda tokens: surrogates.dual_clip_surrogate(
        tokens.log_ratio, tokens.advantages, clip_high=0.28, dual_clip=10.0
      )
    )

    def own(x):
      credit = lam * advantage[:, None] * jnp.ones(seen.mask.shape)
      return loss(types.Scores(logprobs=x), seen, credit, weights)[0]

    expected = jax.grad(own)(alone.logprobs)
    np.testing.assert_allclose(grads.mtp_logprobs, expected, atol=1e-6)
    self.assertGreater(float(jnp.abs(expected).max()), 1e-4)

  def test_a_negative_lam_swaps_the_side_that_is_clipped(self):
    method = _occ(mtp="policy")
    rollout = self.rollout.replace(mask=jnp.ones_like(self.rollout.mask))
    ahead = rollout.old_logprobs + 1.0  # far above the clip
    weights = jnp.ones(rollout.mask.shape)

    def loss(ahead, lam):
      extras = {"mtp_lam": jnp.float32(lam), "mtp_ce": jnp.zeros(())}
      scores = types.Scores(logprobs=rollout.old_logprobs, mtp_logprobs=ahead)
      credit = jnp.ones(rollout.mask.shape)
      started = rollout.replace(extras=extras)
      return method.objective(scores, started, credit, weights)[0]

    for lam, clipped in ((0.5, True), (-0.5, False)):
      grads = jax.grad(loss)(ahead, lam)
      self.assertEqual(bool((grads == 0).all()), clipped)

  def test_what_no_module_predicts_is_in_no_sum(self):
    first = jnp.arange(3)[None] == 2  # prompts of one token
    rollout = self.rollout.replace(
      prompt_mask=jnp.broadcast_to(first, self.rollout.prompt_mask.shape)
    )
    junk = self.scores.mtp_logprobs.at[:, 0].set(jnp.nan)
    for method in (_occ(), _occ(mtp="ce")):
      dirty = _gradient(method, rollout, self.scores.replace(mtp_logprobs=junk))
      clean = _gradient(method, rollout, self.scores)
      chex.assert_trees_all_equal(clean, dirty)
      np.testing.assert_array_equal(clean[2].mtp_logprobs[:, 0], 0.0)

  @parameterized.parameters("ce", "detach")
  def test_cross_entropy_does_not_read_the_rewards(self, regime):
    method = _occ(mtp=regime, lam0=0.5)
    found = _gradient(method, self.rollout, self.scores)[2].mtp_logprobs
    mask = np.asarray(self.rollout.mask)
    wanted = np.where(mask, -0.5 / mask.sum(), 0.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@functools.cache
def _model():
  model = families.build(SMALL)
  params = model.init(jax.random.key(0))
  return model, params | {"embed": params["embed"] * 20}


@functools.cache
def _made(mini_batches, **knobs):
  """A state and the step that follows it."""
  method, (model, params) = methods.Occ(**knobs).build(), _model()
  head = heads.of_method(method, model, lambda rate: optax.sgd(rate))
  train_step = step.make_train_step(
    score.make_score(model, needs=method.needs, head=method.head),
    method,
    optax.sgd(0.5),
    mini_batches=mini_batches,
    head=head,
  )
  start = state.init_state(params, method, optax.sgd(0.5), head=head)
  return start, jax.jit(train_step)


def _stepped(steps=1, mini_batches=1, **knobs):
  """Changes of policy and module after some steps of descent, and metrics."""
  start, run = _made(mini_batches, **knobs)
  rollout = rollouts.make_rollout(
    groups=B, group_size=G, length=T, vocab_size=V
  ).replace(ref_logprobs=None)
  now, metrics = start, []
  for _ in range(steps):
    now, found = run(now, rollout, None)
    metrics.append(jax.device_get(found))
  after, before = ((x.params, x.head_params) for x in (now, start))
  return jax.tree.map(jnp.subtract, after, before), metrics


def _moved(change):
  return float(optax.tree.norm(change))


class StepTest(chex.TestCase):
  def test_detached_it_trains_the_policy_as_without_a_module(self):
    (policy_, module), _ = _stepped(mtp="detach")
    (alone, still), _ = _stepped(mtp="ce", lam0=0.0, warmup=0)
    chex.assert_trees_all_close(policy_, alone, atol=1e-7)
    self.assertEqual(_moved(still), 0.0)
    self.assertGreater(_moved(module), 1e-2)

  def test_cross_entropy_reaches_the_policy(self):
    (policy_, _), _ = _stepped(mtp="ce", warmup=0)
    (alone, _), _ = _stepped(mtp="detach")
    gap = jax.tree.map(jnp.subtract, policy_, alone)
    self.assertGreater(_moved(gap), 1e-2)

  def test_one_update_on_policy_teaches_the_module_nothing(self):
    (_, module), metrics = _stepped(warmup=0)
    self.assertEqual(metrics[0]["mtp_lam"], 0.0)
    self.assertEqual(_moved(module), 0.0)

  def test_with_several_updates_lam_acts(self):
    (policy_, module), metrics = _stepped(warmup=0, mini_batches=2)
    self.assertNotEqual(metrics[0]["mtp_lam"], 0.0)
    self.assertGreater(_moved(module), 0.0)
    (alone, _), _ = _stepped(mtp="detach", mini_batches=2)
    gap = jax.tree.map(jnp.subtract, policy_, alone)
    self.assertGreater(_moved(gap), 0.0)

  def test_the_warm_up_is_detached_cross_entropy(self):
    warm, metrics = _stepped(steps=2, mini_batches=2, warmup=2)
    detached, other = _stepped(steps=2, mini_batches=2, mtp="detach")
    chex.assert_trees_all_close(warm, detached, atol=1e-5)
    self.assertLess(metrics[1]["mtp_nll"], metrics[0]["mtp_nll"])
    np.testing.assert_allclose(
      metrics[1]["mtp_nll"], other[1]["mtp_nll"], rtol=1e-5
    )
    _, later = _stepped(steps=3, mini_batches=2, warmup=2)
    self.assertEqual(later[1]["mtp_lam"], 0.0)
    self.assertNotEqual(later[2]["mtp_lam"], 0.0)
