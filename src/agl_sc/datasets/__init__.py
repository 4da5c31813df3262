"""Data to learn and to test with."""

from agl_sc.datasets._hest1k import hest1k
from agl_sc.datasets._toy_tissue import toy_tissue

__all__ = ["hest1k", "toy_tissue"]
