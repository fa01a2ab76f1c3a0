"""Accelerator kernels with plain-XLA defaults; depends on jax only."""
