"""Log-probability of chosen tokens without the [N, V] logits."""

from pallas_kernels.token_logprob.api import TokenLogprob, token_logprob

__all__ = ["TokenLogprob", "token_logprob"]
