"""PyTorch's forms of the ops, for bench_kernels --peers torch."""

import functools

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def logprob_forms(sizes, *, grad: bool) -> dict:
  """{name: build}: cross-entropy and entropy from the logits of torch."""
  build = functools.partial(_build, sizes, grad=grad)
  return {
    "torch eager": functools.partial(build, compiled=False),
    "torch compiled": functools.partial(build, compiled=True),
  }


def _build(sizes, *, grad, compiled):
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  options = {"device": device, "dtype": _DTYPES[sizes.dtype]}
  hidden = torch.randn(sizes.tokens, sizes.width, **options) / 4
  head = torch.randn(sizes.vocab, sizes.width, **options) / 4
  targets = torch.randint(0, sizes.vocab, (sizes.tokens,), device=device)
  g = torch.randn(sizes.tokens, device=device)
  function = torch.compile(_logprob) if compiled else _logprob

  def forward():
    with torch.no_grad():
      function(hidden, head, targets)
    _wait(device)

  def both():
    leaves = [x.detach().requires_grad_() for x in (hidden, head)]
    logprob, entropy = function(*leaves, targets)
    ((g * logprob).sum() + 1e-3 * entropy.sum()).backward()
    _wait(device)

  return both if grad else forward


def _logprob(hidden, head, targets):
  logits = (hidden @ head.T).float()
  logprobs = torch.log_softmax(logits, dim=1)
  chosen = logprobs.gather(1, targets[:, None])[:, 0]
  return chosen, -(logprobs.exp() * logprobs).sum(dim=1)


def _wait(device):
  if device == "cuda":
    torch.cuda.synchronize()
