"""What programs need besides the state, by arithmetic instead of a compiler.

Letters: on one device, p prompts of a micro-batch with g completions each make
t = p (S + g (T - 1)) tokens; n = devices that cut heads, MLP and vocabulary;
b = bytes of the model's dtype. In a train step, in bytes,

  gradients  4 a trained parameter, twice where micro-batches add up
  kept       t L times what the remat policy keeps of a token in a block
  working    twice the largest scores of attention (prompt to itself, completion
             to prompt, completion to itself; none where rows are long, see
             models/attention.py); of t tokens the widest values of a block or,
             under "full", all but the gates; embedding and head gathered over
             "fsdp", and hidden states, with their gradients

and in a rollout

  weights    b a parameter, gathered over "fsdp", a tied embedding twice
  cache      2 b L K h / n a token, and the prompts' once more
  working    of the prefill: scores twice, and the widest values of a block

docs/runs.md says how far this is from what the compiler finds.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models import api, attention
from jaxrl_llm.training import experiment

_FLOAT = 4


def temporaries(
  name: str,
  config: experiment.Experiment,
  shape: api.ModelConfig,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None,
  *,
  stored: float,
) -> dict[str, float]:
  """Bytes on one device, by part, that a program adds to the state.

  Args:
    name: "train step", "score pass", "prefill" or "rollout".
    config: the experiment.
    shape: of the model.
    mesh: as the layout chose it.
    stored: trained parameters that one device holds.

  Raises:
    ValueError: for another name.
  """
  if name not in _PROGRAMS:
    raise ValueError(
      f"name must be one of {', '.join(_PROGRAMS)}, got {name!r}."
    )
  return _PROGRAMS[name](_Sizes(config, shape, mesh, stored))


class _Sizes:
  """The letters of the module's docstring, as numbers."""

  def __init__(self, config, shape, mesh, stored):
    self.config, self.shape, self.stored = config, shape, stored
    axes = dict(mesh.shape) if mesh else {}
    self.cut, self.fsdp = axes.get("tensor", 1), axes.get("fsdp", 1)
    self.shares = meshes.row_shares(mesh)
    self.bytes = jnp.dtype(config.model.dtype).itemsize
    rows = config.prompts_per_step * config.group_size
    rows //= config.mini_batches * config.micro_batches
    self.group = math.gcd(rows, config.group_size)
    self.prompts = max(rows // self.group / self.shares, 1)

  @property
  def tokens(self) -> float:
    fed = self.group * (self.config.completion_length - 1)
    return self.prompts * (self.config.prompt_length + fed)

  @property
  def vocabulary(self) -> float:
    """Entries of the embedding, gathered over "fsdp"."""
    return self.shape.vocab_size * self.shape.width / self.cut

  @property
  def block_weights(self) -> float:
    """Entries of a block's matrices, gathered over "fsdp"."""
    shape = self.shape
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return shape.width * (attention + 3 * shape.mlp_width) / self.cut

  @property
  def ends(self) -> float:
    """Entries of the embedding and of a head of its own."""
    return self.vocabulary * (1 if self.shape.tied else 2)

  @property
  def products(self) -> float:
    """Bytes of a token's products with weights, and attention, in a block."""
    shape = self.shape
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    attention = self.bytes * shape.heads * shape.head_dim
    inside = _FLOAT * (heads + 2 * shape.mlp_width) + attention
    return inside / self.cut + _FLOAT * shape.width

  @property
  def between(self) -> float:
    """Bytes of a token's other values in a block: norms, rotary, gates."""
    shape = self.shape
    inside = self.bytes * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    if shape.qk_norm:
      inside += _FLOAT * (shape.heads + shape.kv_heads) * shape.head_dim
    inside += _FLOAT * 4 * shape.mlp_width
    return inside / self.cut + _FLOAT * 3 * shape.width

  @property
  def anew(self) -> float:
    """Bytes of a token's values that "full" computes anew, but the gates."""
    gates = _FLOAT * 4 * self.shape.mlp_width / self.cut
    return self.products + self.between - gates

  def forward(self, tokens: float) -> float:
    """Bytes of the widest values of a block, all there at one time."""
    shape = self.shape
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    widest = max(heads, 3 * shape.mlp_width) / self.cut
    return _FLOAT * tokens * (2 * shape.width + widest)

  def scores(self, prompts: float, group: int) -> float:
    """Bytes of the largest attention scores of a block."""
    s, c = self.config.prompt_length, self.config.completion_length - 1
    if attention.is_long(s * s + group * c * (s + c)):
      return 0.0
    pairs = max(s * s, group * c * s, group * c * c)
    return _FLOAT * prompts * pairs * self.shape.heads / self.cut


def _train_step(sizes: _Sizes) -> dict[str, float]:
  added = 2 if sizes.config.micro_batches > 1 else 1
  kept = {
    "none": sizes.products + sizes.between,
    "dots": sizes.products,
    "full": 0.0,
  }[sizes.config.model.remat]
  stream = _FLOAT * sizes.shape.width / sizes.cut
  working = _working(sizes, copies=2)
  if not kept:
    working += sizes.tokens * sizes.anew - sizes.forward(sizes.tokens)
  return {
    "gradients": _FLOAT * sizes.stored * added,
    "kept": sizes.tokens * sizes.shape.depth * (stream + kept),
    "working": working,
  }


def _score_pass(sizes: _Sizes) -> dict[str, float]:
  return {"working": _working(sizes, copies=1)}


def _working(sizes: _Sizes, copies: int) -> float:
  """Of one block, and of embedding, head and hidden states, `copies` times."""
  gathered = sizes.ends if sizes.fsdp > 1 else 0.0
  rows = sizes.prompts * sizes.group * sizes.config.completion_length
  return (
    2 * sizes.scores(sizes.prompts, sizes.group)
    + sizes.forward(sizes.tokens)
    + _FLOAT * copies * (gathered + rows * sizes.shape.width)
  )


def _prefill(sizes: _Sizes) -> dict[str, float]:
  prompts = sizes.config.prompts_per_step / sizes.shares
  tokens = prompts * sizes.config.prompt_length
  return {
    "weights": _own_weights(sizes),
    "cache": 2 * _cache(sizes, tokens),
    "working": sizes.forward(tokens) + 2 * sizes.scores(prompts, 0),
    "logits": _drawn(sizes),
  }


def _rollout(sizes: _Sizes) -> dict[str, float]:
  config = sizes.config
  rows = config.prompts_per_step * config.group_size / sizes.shares
  parts = _prefill(sizes)
  parts["cache"] += _cache(sizes, rows * (config.completion_length - 1))
  return parts


def _own_weights(sizes: _Sizes) -> float:
  """The sampler's copy; in float32 on one device there is none."""
  if sizes.bytes == _FLOAT and sizes.fsdp == 1:
    return 0.0
  blocks = sizes.shape.depth * sizes.block_weights
  return sizes.bytes * (2 * sizes.vocabulary + blocks)


def _cache(sizes: _Sizes, tokens: float) -> float:
  shape = sizes.shape
  cut = sizes.cut if shape.kv_heads % sizes.cut == 0 else 1
  width = shape.depth * shape.kv_heads * shape.head_dim / cut
  return 2 * sizes.bytes * tokens * width


def _drawn(sizes: _Sizes) -> float:
  """Logits of one token a row, and a copy."""
  rows = sizes.config.prompts_per_step * sizes.config.group_size
  return 2 * _FLOAT * rows / sizes.shares * sizes.shape.vocab_size


_PROGRAMS: dict[str, Callable[[_Sizes], dict[str, float]]] = {
  "train step": _train_step,
  "score pass": _score_pass,
  "prefill": _prefill,
  "rollout": _rollout,
}
