"""Losses of shape (n_genes,)."""

import torch

_NO_VARIANCE = 1e-10


def pearson(prediction: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """Pearson correlation of every gene over spots; 0, with zero gradient of every order, where either side is constant.

    Parameters
    ----------
    prediction
        (n_spots, n_genes).
    measured
        (n_spots, n_genes), about unit variance per gene.

    Returns
    -------
    Correlations, (n_genes,).
    """
    prediction = prediction - prediction.mean(dim=0)
    measured = measured - measured.mean(dim=0)
    prediction_square, measured_square = prediction.square().sum(dim=0), measured.square().sum(dim=0)
    defined = (prediction_square > _NO_VARIANCE) & (measured_square > _NO_VARIANCE)
    # Masked before the root: its derivative at 0 is infinite, and infinity times zero is NaN.
    norm = torch.where(defined, prediction_square * measured_square, 1.0).sqrt()
    return torch.where(defined, (prediction * measured).sum(dim=0) / norm, 0.0)


def pearson_loss(prediction: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """1 - Pearson of every gene, (n_genes,); 1 where undefined."""
    return 1 - pearson(prediction, measured)


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean of per-gene losses under gene weights, with the sum of weights in the graph (see DkGSB's normaliser)."""
    return (losses * weights).sum() / weights.sum()
