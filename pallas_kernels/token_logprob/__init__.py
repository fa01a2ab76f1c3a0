"""Log-probability of chosen tokens without the [N, V] logits."""

from pallas_kernels.token_logprob.api import TokenLogprob, token_logprob
from pallas_kernels.token_logprob.sharded import token_logprob_sharded
from pallas_kernels.token_logprob.tiles import Blocks, Tile

__all__ = [
  "Blocks",
  "Tile",
  "TokenLogprob",
  "token_logprob",
  "token_logprob_sharded",
]
