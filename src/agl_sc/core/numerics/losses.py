"""Losses of shape (n_genes,): 1 - Pearson, squared error, Poisson and negative-binomial likelihood.

Every loss takes a ``mask``, (n_spots, n_genes) of bool: entries that were not measured add neither value nor gradient,
whatever stands in them, NaN included. Where whole sections lack genes, pass ``mask=panels[sections]`` with ``panels``
(n_sections, n_genes). A gene without any measured spot has loss 0; give :func:`weighted_mean` the weights
``weights * mask.any(dim=0)``, so that it does not count in the normaliser either.
"""

import torch

from agl_sc.core.numerics.linear_pearson import linear_moments, linear_pearson_loss
from agl_sc.core.numerics.pearson import Moments, correlation, full, merge, moments, pearson, pearson_loss

__all__ = [
    "Moments",
    "correlation",
    "linear_moments",
    "linear_pearson_loss",
    "merge",
    "moments",
    "mse_loss",
    "negative_binomial_loss",
    "pearson",
    "pearson_loss",
    "poisson_loss",
    "weighted_mean",
]

_LARGE = 100.0
"""Beyond this inverse dispersion a difference of log-gammas loses digits, and Stirling's series is exact."""


def mse_loss(prediction: torch.Tensor, measured: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of every gene, (n_genes,); in units of its variance where genes are scaled to unit variance."""
    prediction, measured = full(prediction), full(measured)
    if mask is not None:
        prediction, measured = torch.where(mask, prediction, 0.0), torch.where(mask, measured, 0.0)
    return _mean((prediction - measured).square(), mask)


def poisson_loss(
    log_rate: torch.Tensor, counts: torch.Tensor, *, log_library: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Mean negative log-likelihood of counts that are Poisson with mean :math:`\exp(log\_rate + log\_library)`.

    Parameters
    ----------
    log_rate
        Log of the share of a gene in a spot's counts, (n_spots, n_genes).
    counts
        Raw counts, (n_spots, n_genes).
    log_library
        Log of the total counts of every spot, (n_spots,).
    mask
        Entries that were measured, (n_spots, n_genes); all by default.

    Returns
    -------
    In nats per spot, (n_genes,).
    """
    log_mean, counts = _log_mean(log_rate, counts, log_library=log_library, mask=mask)
    return _mean(log_mean.exp() - counts * log_mean + torch.lgamma(counts + 1), mask)


def negative_binomial_loss(
    log_rate: torch.Tensor,
    counts: torch.Tensor,
    *,
    log_library: torch.Tensor,
    log_dispersion: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Mean negative log-likelihood of counts with mean :math:`\mu = \exp(log\_rate + log\_library)`, variance :math:`\mu + \alpha \mu^2`.

    Parameters
    ----------
    log_rate
        Log of the share of a gene in a spot's counts, (n_spots, n_genes).
    counts
        Raw counts, (n_spots, n_genes).
    log_library
        Log of the total counts of every spot, (n_spots,).
    log_dispersion
        Log of the dispersion alpha of every gene, (n_genes,); towards minus infinity the counts become Poisson.
    mask
        Entries that were measured, (n_spots, n_genes); all by default.

    Returns
    -------
    In nats per spot, (n_genes,).
    """
    log_mean, counts = _log_mean(log_rate, counts, log_library=log_library, mask=mask)
    inverse = torch.exp(-log_dispersion)
    # log(1 + alpha * mean); the log(theta) of the rising factorial and of the odds cancel where theta is large.
    log_excess = torch.nn.functional.softplus(log_mean + log_dispersion)
    loss = torch.lgamma(counts + 1) - _log_rising(inverse, counts) + inverse * log_excess
    return _mean(loss + counts * (log_excess - log_mean), mask)


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean of per-gene losses under gene weights, with the sum of weights in the graph (see DkGSB's normaliser)."""
    return (losses * weights).sum() / weights.sum()


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Over measured spots, (n_genes,)."""
    if mask is None:
        return values.mean(dim=0)
    return torch.where(mask, values, 0.0).sum(dim=0) / mask.sum(dim=0).clamp(min=1)


def _log_mean(
    log_rate: torch.Tensor, counts: torch.Tensor, *, log_library: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    log_mean, counts = full(log_rate) + log_library[:, None], full(counts)
    if mask is None:
        return log_mean, counts
    return torch.where(mask, log_mean, 0.0), torch.where(mask, counts, 0.0)


def _log_rising(inverse: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Log gamma(inverse + counts) - log gamma(inverse) - counts log(inverse), with all digits."""
    large = inverse > _LARGE
    theta = torch.where(large, inverse, _LARGE)
    total = theta + counts
    series = (1 / total - 1 / theta) / 12 - (1 / total**3 - 1 / theta**3) / 360
    stirling = (total - 0.5) * torch.log1p(counts / theta) - counts + series
    small = torch.where(large, 1.0, inverse)
    plain = torch.lgamma(small + counts) - torch.lgamma(small) - counts * small.log()
    return torch.where(large, stirling, plain)
