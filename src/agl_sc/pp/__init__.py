"""Preparation: tile features, splits, target genes and prior ranks, all fitted on training spots."""

from agl_sc.pp._features.embed import embed
from agl_sc.pp._features.encoders import encoders
from agl_sc.pp._features.use import use_features
from agl_sc.pp._genes.targets_and_ranks import rank_auxiliary, target_genes
from agl_sc.pp._splits.duplicates import duplicates
from agl_sc.pp._splits.split import split

__all__ = ["duplicates", "embed", "encoders", "rank_auxiliary", "split", "target_genes", "use_features"]
