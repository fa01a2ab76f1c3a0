"""Kernels for RL of language models; depends on jax only."""
