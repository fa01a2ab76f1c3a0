"""Attention over keys that lie in several places, one of them shared."""

from pallas_kernels.prefix_attention.api import (
  Part,
  attend,
  merge,
  shared_prefix_attention,
)

__all__ = ["Part", "attend", "merge", "shared_prefix_attention"]
