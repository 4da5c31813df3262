"""Soft top-k over prior ranks: one scalar cutoff in, gene weights out."""

import torch

from agl_sc.core.config import TEMPERATURE

_REACH = 15.0


def soft_top_k(cutoff: torch.Tensor, prior_rank: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    r"""Weights of auxiliary genes, :math:`w_j(c) = \sigma((c - rank_j) / temperature)`.

    Differentiable in the cutoff. Shiku et al., AAAI 2026 (arXiv 2511.18336).

    Parameters
    ----------
    cutoff
        Scalar in [0, 1] on the rank axis.
    prior_rank
        Rank of every gene scaled to [0, 1], 0 = most promising, (n_genes,).
    temperature
        Width of the soft edge on the rank axis; towards 0 the gate becomes a hard top-k.

    Returns
    -------
    Weights in [0, 1], (n_genes,).
    """
    return torch.sigmoid((cutoff - prior_rank) / temperature)


def scaled_rank(n_genes: int) -> torch.Tensor:
    """Ranks 0 .. n_genes - 1 as positions in [0, 1], (n_genes,)."""
    return torch.arange(n_genes, dtype=torch.float64) / max(n_genes - 1, 1)


def n_active(cutoff: float, n_genes: int, temperature: float = TEMPERATURE) -> int:
    """Number of leading genes whose weight is above exp(-15); the others need not be computed at all."""
    return int((scaled_rank(n_genes) < cutoff + _REACH * temperature).sum())
