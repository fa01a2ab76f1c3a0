"""Softmax attention inside rows, with memory linear in their length."""

from pallas_kernels.flash_attention.api import flash_attention
from pallas_kernels.flash_attention.pattern import Pattern

__all__ = ["Pattern", "flash_attention"]
