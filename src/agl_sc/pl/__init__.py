"""Figures: tiles, predictions on tissue, how good they are, and what training did. Every function returns matplotlib axes."""

from agl_sc.pl._benchmark import benchmark
from agl_sc.pl._calibration import calibration
from agl_sc.pl._curves import cutoff, gene_weights, history
from agl_sc.pl._genes import gene_metrics
from agl_sc.pl._predictable import predictable_genes
from agl_sc.pl._spatial import residual_map, spatial_pred
from agl_sc.pl._tiles import tiles

__all__ = [
    "benchmark",
    "calibration",
    "cutoff",
    "gene_metrics",
    "gene_weights",
    "history",
    "predictable_genes",
    "residual_map",
    "spatial_pred",
    "tiles",
]
