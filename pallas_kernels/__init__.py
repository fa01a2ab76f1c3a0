"""Accelerator kernels with plain-XLA defaults; depends on jax only.

Each folder is one op, imported as a module: api.py is its door, reference.py
says what it computes, xla.py is the default, tpu.py the Pallas kernel, if one
pays. dispatch.py chooses between them.

  from pallas_kernels import token_logprob
  token_logprob.token_logprob(hidden, head, targets)
"""
