"""One token a row from logits, exact, with its log-probabilities."""

from pallas_kernels.sampling.api import Sample, sample
from pallas_kernels.sampling.noise import row_keys

__all__ = ["Sample", "row_keys", "sample"]
