"""Our paths in the parameter tree and Hugging Face's names of the tensors."""

from jaxrl_llm.models import api
from jaxrl_llm.models.weights import assemble

# Prefixes that the same decoder carries in text-only and multimodal folders.
PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")
HEAD = "lm_head.weight"
# Tensors of a folder that are no part of the text decoder's parameters.
IGNORED = (
  "rotary_emb.",
  "vision_tower.",
  "multi_modal_projector.",
  "masked_bias",
)

_WHOLE = {"embed": "embed_tokens.weight", "final_norm": "norm.weight"}
_BLOCK = {
  "attention_norm": "input_layernorm.weight",
  "mlp_norm": "post_attention_layernorm.weight",
  "attention/q": "self_attn.q_proj.weight",
  "attention/k": "self_attn.k_proj.weight",
  "attention/v": "self_attn.v_proj.weight",
  "attention/o": "self_attn.o_proj.weight",
  "attention/q_bias": "self_attn.q_proj.bias",
  "attention/k_bias": "self_attn.k_proj.bias",
  "attention/v_bias": "self_attn.v_proj.bias",
  "attention/q_norm": "self_attn.q_norm.weight",
  "attention/k_norm": "self_attn.k_norm.weight",
  "mlp/gate": "mlp.gate_proj.weight",
  "mlp/up": "mlp.up_proj.weight",
  "mlp/down": "mlp.down_proj.weight",
}
# Gemma's post_attention_layernorm comes BEFORE the addition, others' after it.
_GEMMA = {
  "attention_post_norm": "post_attention_layernorm.weight",
  "mlp_norm": "pre_feedforward_layernorm.weight",
  "mlp_post_norm": "post_feedforward_layernorm.weight",
}


def tensor_name(
  config: api.ModelConfig,
  path: str,
  layer: int | None,
  *,
  prefix: str = "model.",
) -> str:
  """The tensor's name in a Hugging Face folder.

  Args:
    config: its family chooses the names.
    path: ours, such as "embed" or "layers/attention/q".
    layer: index of the block, None outside the stack.
    prefix: of everything but the head.
  """
  if path == "head":
    return HEAD
  if layer is None:
    return prefix + _WHOLE[path]
  block = _BLOCK | (_GEMMA if config.family.startswith("gemma") else {})
  return f"{prefix}layers.{layer}.{block[path.removeprefix('layers/')]}"


def is_kernel(path: str, rank: int) -> bool:
  """True if Hugging Face has the transpose, [out, in], of one layer's leaf."""
  return path.startswith("layers/") and rank == 2


def expected(
  config: api.ModelConfig, *, prefix: str = "model."
) -> dict[str, tuple[int, ...]]:
  """Every tensor of the decoder, and its shape in the folder."""
  found = {}
  for path, shape in assemble.shapes(config).items():
    if not path.startswith("layers/"):
      found[tensor_name(config, path, None, prefix=prefix)] = shape
      continue
    one = shape[1:]
    one = one[::-1] if is_kernel(path, len(one)) else one
    for layer in range(config.depth):
      found[tensor_name(config, path, layer, prefix=prefix)] = one
  return found
