"""Preparation: tile features, splits, target genes and prior ranks, all fitted on training spots."""

from agl_sc.pp._duplicates import duplicates
from agl_sc.pp._embed import embed
from agl_sc.pp._encoders import encoders
from agl_sc.pp._genes import rank_auxiliary, target_genes
from agl_sc.pp._split import split

__all__ = ["duplicates", "embed", "encoders", "rank_auxiliary", "split", "target_genes"]
