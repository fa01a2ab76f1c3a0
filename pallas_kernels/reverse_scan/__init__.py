"""Reverse recurrences over tokens: returns, GAE, V-trace; one scan for all."""

from pallas_kernels.reverse_scan.api import reverse_scan
from pallas_kernels.reverse_scan.estimators import (
  Gae,
  Vtrace,
  discounted_returns,
  gae,
  vtrace,
)

__all__ = [
  "Gae",
  "Vtrace",
  "discounted_returns",
  "gae",
  "reverse_scan",
  "vtrace",
]
