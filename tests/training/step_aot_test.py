"""The whole train step, kernels in, compiled for TPUs that are not here.

Small in everything that costs compile time; the vocabulary, which costs none,
is large enough for the kernels: they leave small problems to XLA.
"""

import dataclasses
import functools
import os
import re
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxrl_llm import methods
from jaxrl_llm.models import families
from jaxrl_llm.training import ahead, heads, score, state, step
from pallas_kernels import aot

pytestmark = pytest.mark.skipif(
  not aot.available(), reason="the TPU's compiler, libtpu, is not installed"
)

B, G, S, T, V, D = 4, 4, 8, 32, 32768, 128
LOGITS = 4 * B * G * T * V  # bytes
SMALL = dataclasses.replace(
  families.TINY,
  vocab_size=V,
  width=D,
  depth=1,
  heads=1,
  kv_heads=1,
  head_dim=128,
  mlp_width=128,
)
METHODS = {"grpo": methods.Grpo(beta=0.0), "ppo": methods.Ppo(lam=0.95)}


def _step(name, vocab):
  """The step of a method and the shapes of its state and rollout."""
  method, optimizer = METHODS[name].build(), optax.sgd(1.0)
  config = dataclasses.replace(SMALL, vocab_size=vocab)
  model = families.build(config, dtype=jnp.bfloat16)
  head = heads.of_method(method, model, lambda rate: optimizer)
  train_step = step.make_train_step(
    score.make_score(model, needs=method.needs, head=method.head),
    method,
    optimizer,
    head=head,
  )
  start = jax.eval_shape(
    lambda key: state.init_state(model.init(key), method, optimizer, head=head),
    jax.random.key(0),
  )
  shapes = start, ahead.example_rollout(B, G, S, T)
  return lambda start, rollout: train_step(start, rollout, None), shapes


@functools.cache
def _lowered(name, chip, kernels="auto", vocab=V):
  train_step, shapes = _step(name, vocab)
  with mock.patch.dict(os.environ, {"JAXRL_KERNELS": kernels}):
    return aot.lower_for(chip, train_step, *shapes, donate_argnums=0)


def _kernels(lowered):
  """How many calls of which kernel a program has."""
  names = re.findall(r'kernel_name = "(\w+)"', lowered.as_text())
  assert len(names) == lowered.as_text().count("@tpu_custom_call(")
  return {name: names.count(name) for name in names}


def _temporaries(name, chip, kernels="auto"):
  compiled = _lowered(name, chip, kernels).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
@pytest.mark.parametrize(("name", "passes"), [("grpo", 1), ("ppo", 2)])
def test_kernels_are_in_the_program(name, passes, chip):
  # PPO scores once more, before the update, for its critic's values.
  found = _kernels(_lowered(name, chip))
  assert found["token_logprob_forward"] == passes


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_the_environment_takes_the_kernels_out(name):
  lowered = _lowered(name, "v5e", "xla")
  assert not _kernels(lowered)
  assert "custom_call @tpu" not in lowered.as_text()


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_temporaries_are_less_than_the_logits_and_no_more_than_xlas(chip):
  temporaries = _temporaries("ppo", chip)
  assert temporaries < LOGITS / 2
  assert temporaries <= 1.05 * _temporaries("ppo", chip, "xla")


def test_grpo_compiles_with_less_than_the_logits():
  assert _temporaries("grpo", "v5e") < LOGITS / 2


def test_what_does_not_fit_fails_with_the_numbers():
  with pytest.raises(
    jax.errors.JaxRuntimeError, match=r"exceeds available HBM \(15\.75G\)"
  ):
    _lowered("grpo", "v5e", vocab=2**25).compile()
