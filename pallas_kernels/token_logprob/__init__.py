"""Log-probability of chosen tokens without the [N, V] logits."""

from pallas_kernels.token_logprob.api import TokenLogprob, token_logprob
from pallas_kernels.token_logprob.sharded import token_logprob_sharded

__all__ = ["TokenLogprob", "token_logprob", "token_logprob_sharded"]
