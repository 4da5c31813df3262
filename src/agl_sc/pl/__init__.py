"""Figures: predictions on tissue, and what training did. Every function returns matplotlib axes."""

from agl_sc.pl._curves import cutoff, gene_weights, history
from agl_sc.pl._spatial import residual_map, spatial_pred

__all__ = ["cutoff", "gene_weights", "history", "residual_map", "spatial_pred"]
