"""Every case of bench_kernels, by the name that the command line takes."""

from collections.abc import Callable

import kernel_attention
import kernel_case
import kernel_decode
import kernel_logprob
import kernel_reductions

CASES: dict[str, Callable[[kernel_case.Sizes], kernel_case.Case]] = {
  "token_logprob": kernel_logprob.token_logprob_case,
  "token_logprob_grad": kernel_logprob.token_logprob_grad_case,
  "reverse_scan": kernel_reductions.reverse_scan_case,
  "gae": kernel_reductions.gae_case,
  "group_normalize": kernel_reductions.group_normalize_case,
  "segment_normalize": kernel_reductions.segment_normalize_case,
  "policy_loss_grad": kernel_reductions.policy_loss_grad_case,
  "sample": kernel_decode.sample_case,
  "sample_top_k_p": kernel_decode.sample_top_k_p_case,
  "prefix_attention": kernel_decode.prefix_attention_case,
  "flash_attention_grad": kernel_attention.flash_attention_grad_case,
}
sizes = kernel_case.sizes


def with_torch(
  case: kernel_case.Case, s: kernel_case.Sizes
) -> kernel_case.Case:
  """The case with PyTorch's forms beside ours, where there are any."""
  if not case.op.startswith("token_logprob"):
    return case
  import kernel_peers

  forms = kernel_peers.logprob_forms(s, grad=case.op.endswith("_grad"))
  return case._replace(
    forms=case.forms | forms, measured=case.measured + tuple(forms)
  )
