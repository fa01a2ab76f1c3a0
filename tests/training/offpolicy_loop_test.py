"""Corrections on real models: a float32 sampler, a bfloat16 trainer; the loop.

On CPU the loop's own sampler rounds as its trainer does, in bfloat16 too, and
is 1e-6 nats away: the step is given another sampler, the loop is run as it is.
"""

import dataclasses
import json
import math

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods
from jaxrl_llm.models import families
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import (
  config_file,
  experiment,
  loop,
  score,
  state,
  step,
)

SMALL = dataclasses.replace(
  families.TINY, vocab_size=32, width=16, heads=2, head_dim=8, mlp_width=16
)


class PrecisionTest(chex.TestCase):
  """The step on a rollout that a float32 model has scored."""

  def _step(self, method, dtype):
    exact = families.build(SMALL)
    params = exact.init(jax.random.key(0))
    params |= {"embed": params["embed"] * 20}  # far from uniform
    rollout = rollouts.make_rollout(
      groups=4, length=8, vocab_size=SMALL.vocab_size
    ).replace(ref_logprobs=None)
    sampled = score.make_score(exact)(params, rollout).logprobs
    rollout = rollout.replace(old_logprobs=sampled)
    method, optimizer = method.build(), optax.sgd(1.0)
    model = families.build(SMALL, dtype=dtype)
    run = step.make_train_step(
      score.make_score(model, needs=method.needs), method, optimizer
    )
    start = state.init_state(params, method, optimizer)
    fast = {"xla_backend_optimization_level": 0}
    new, metrics = jax.jit(run, compiler_options=fast)(start, rollout, None)
    return jax.tree.map(jnp.subtract, new.params, params), metrics

  @parameterized.parameters(
    ({},),
    ({"level": "sequence", "mode": "mask", "low": 0.5},),
    ({"reject": "token_k3", "reject_threshold": "1e-5"},),
  )
  def test_the_gap_of_bfloat16_is_measured_and_corrected(self, knobs):
    inner = methods.Dapo(filter_groups=False)
    wrapped = methods.OffPolicyCorrection(method=inner, **knobs)
    change, metrics = self._step(wrapped, jnp.bfloat16)
    plain, _ = self._step(inner, jnp.bfloat16)
    self.assertGreater(metrics["sampler_gap_max"], 1e-3)
    self.assertGreater(metrics["rollout_k3"], 1e-7)
    self.assertTrue(
      0.5 < metrics["rollout_raw_min"] < 1 < metrics["rollout_raw_max"] < 2
    )
    self.assertTrue(0.9 < metrics["rollout_is_ess"] < 1)
    if "reject" in knobs:
      self.assertTrue(0 < metrics["rejected_tokens"] < 0.9)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, change, plain))
    self.assertGreater(moved, 1e-5)
    if "reject" not in knobs:
      self.assertLess(moved, 0.5 * optax.tree.norm(plain))

  def test_in_float32_nothing_is_corrected(self):
    inner = methods.Dapo(filter_groups=False)
    wrapped = methods.OffPolicyCorrection(
      method=inner, reject="token_k3", reject_threshold="1e-5"
    )
    change, metrics = self._step(wrapped, jnp.float32)
    plain, _ = self._step(inner, jnp.float32)
    chex.assert_trees_all_close(change, plain, atol=1e-5)
    self.assertEqual(metrics["rejected_tokens"], 0.0)
    np.testing.assert_allclose(metrics["rollout_is_mean"], 1.0, atol=1e-5)


def test_a_stack_of_corrections_runs_in_the_loop(tmp_path):
  inner = methods.Opsm(method=methods.Grpo(beta=0.0))
  config = dataclasses.replace(
    config_file.load("tiny_addition"),
    name="run",
    runs=str(tmp_path),
    steps=3,
    method=methods.OffPolicyCorrection(
      method=methods.M2po(method=inner), level="sequence", normalize=True
    ),
    model=experiment.Model(name="tiny", dtype="bfloat16"),
    evaluation=experiment.Evaluation(examples=2, batch=2),
    checkpoint=experiment.Checkpoint(every=100),
    logging=experiment.Logging(tensorboard=False),
    export=False,
  )
  text = (loop.train(config) / "metrics.jsonl").read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert len(rows) == 3
  for row in rows:
    assert row["sampler_gap_max"] > 0
    assert row["rejected_tokens"] == 0
    for name in ("rollout_is_mean", "rollout_raw_max", "rollout_is_ess"):
      assert abs(row[name] - 1) < 1e-3, name
    assert all(math.isfinite(x) for x in row.values() if x is not None)
