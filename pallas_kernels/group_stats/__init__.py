"""Means and deviations of items that belong together: groups and segments.

Groups are contiguous and of one size; segments are told by ids, anywhere
inside a row. Equal values give exactly 0, and what does not count may hold
anything.
"""

from pallas_kernels.group_stats.api import group_moments, group_normalize
from pallas_kernels.group_stats.moments import Moments
from pallas_kernels.group_stats.segments import (
  compact_ids,
  segment_mean,
  segment_normalize,
  segment_std,
)

__all__ = [
  "Moments",
  "compact_ids",
  "group_moments",
  "group_normalize",
  "segment_mean",
  "segment_normalize",
  "segment_std",
]
