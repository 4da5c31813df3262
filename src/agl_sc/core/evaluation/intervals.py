"""Intervals around predictions, from residuals of spots that were held out."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from agl_sc.core.arrays import FloatArray, IntArray

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
"""Shares of spots that intervals can be asked to cover."""
_LEAST_SCALE = 0.2
"""Of a gene's mean absolute residual, what its local scale is at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """How large residuals of a gene are where it is predicted to be high or low: a line in the prediction, with a floor."""

    offset: FloatArray
    """(n_genes,)."""
    slope: FloatArray
    """Never negative, (n_genes,)."""
    least: FloatArray
    """(n_genes,)."""

    @classmethod
    def fitted(cls, residuals: FloatArray, predicted: FloatArray) -> "Scale":
        """Least-squares line of absolute residuals in predictions, both (n_spots, n_genes)."""
        size = np.abs(residuals)
        mean, centred = size.mean(axis=0), predicted - predicted.mean(axis=0)
        square = (centred**2).sum(axis=0)
        slope = np.maximum((centred * (size - mean)).sum(axis=0) / np.where(square > 0, square, 1.0), 0.0)
        least = np.where(mean > 0, _LEAST_SCALE * mean, 1.0)
        return cls(mean - slope * predicted.mean(axis=0), slope, least)

    def at(self, predicted: FloatArray) -> FloatArray:
        """Scale at predictions (n_spots, n_genes), of the same shape."""
        scale: FloatArray = np.maximum(self.offset + self.slope * predicted, self.least)
        return scale


def fewest(level: float) -> int:
    """Donors, or measured spots, that an interval of a level over new ones needs: with fewer, no finite one is sure."""
    return int(np.ceil(level / (1 - level) - 1e-9))


def n_levels(n: int) -> int:
    """How many of :data:`LEVELS`, which rise, so many donors or measured spots allow."""
    return sum(fewest(level) <= n for level in LEVELS)


def donor_quantiles(scores: FloatArray, donors: IntArray) -> FloatArray:
    r"""Quantiles of scores at the levels that the donors allow, every donor counting the same, (n_genes, n_levels).

    For a spot of a new donor the quantile is of :math:`\sum_k \frac{1}{K + 1} \frac{1}{n_k} \sum_i \delta(s_{ki}) +
    \frac{1}{K + 1} \delta(\infty)` over K donors of :math:`n_k` spots: intervals then cover at least the level, over donors
    and spots, whatever the law of the residuals.

    Parameters
    ----------
    scores
        Absolute residuals over their scale, (n_spots, n_genes).
    donors
        Donor of every spot, (n_spots,).

    References
    ----------
    Lee, Barber and Willett, Distribution-free inference with hierarchical data, arXiv 2306.06342, 2023.
    """
    codes = np.unique(donors, return_inverse=True)[1]
    n_donors = int(codes.max()) + 1
    return _quantiles(scores, (1 / np.bincount(codes))[codes] / (n_donors + 1), n_levels(n_donors))


def section_quantiles(scores: FloatArray, sections: IntArray) -> FloatArray:
    """Quantiles of scores over the spots of some sections that count the same, at all levels, (n_genes, n_levels).

    Parameters
    ----------
    scores
        Absolute residuals over their scale, (n_spots, n_genes).
    sections
        Section of every spot, (n_spots,).
    """
    codes = np.unique(sections, return_inverse=True)[1]
    weights = (1 / np.bincount(codes))[codes] / (int(codes.max()) + 1)
    return _quantiles(scores, weights, len(LEVELS))


def spot_quantiles(scores: FloatArray) -> FloatArray:
    """Quantiles of scores at the levels that the number of spots allows, for another spot of the same, (n_genes, n_levels).

    The n scores divide the line into n + 1 parts in which the next one falls equally often.

    Parameters
    ----------
    scores
        Absolute residuals over their scale, (n_spots, n_genes).
    """
    levels = LEVELS[: n_levels(len(scores))]
    if not levels:
        return np.empty((scores.shape[1], 0))
    quantiles: FloatArray = np.quantile(scores, levels, axis=0, method="weibull").T
    return quantiles


def choices_cover(n: int, level: float) -> tuple[float, float]:
    r"""Shares of further spots covered in a gene by intervals of so many measured ones, which nine of ten choices of these lie between.

    The mean over choices is the level. For one choice the share has the law of an order statistic of n uniform numbers,
    :math:`\mathrm{Beta}(p(n + 1), (1 - p)(n + 1))` at the level p.

    Parameters
    ----------
    n
        Measured spots, at least :func:`fewest` of the level.
    level
        Promised on the mean.

    References
    ----------
    Vovk, Conditional validity of inductive conformal predictors, ACML 2012.
    """
    low, high = beta.ppf((0.05, 0.95), level * (n + 1), (1 - level) * (n + 1))
    return float(low), float(high)


def _quantiles(scores: FloatArray, weights: FloatArray, n: int) -> FloatArray:
    """The least scores with so much weight at or below them, for the first n levels."""
    order = np.argsort(scores, axis=0, kind="stable")
    below = np.cumsum(weights[order], axis=0)
    ordered = np.take_along_axis(scores, order, axis=0)
    quantiles = np.empty((scores.shape[1], n))
    for number, level in enumerate(LEVELS[:n]):
        at = np.minimum((below < level - 1e-9).sum(axis=0), len(scores) - 1)
        quantiles[:, number] = ordered[at, np.arange(scores.shape[1])]
    return quantiles


def held_out_coverage(
    residuals: FloatArray, predicted: FloatArray, units: IntArray, *, are_donors: bool = False
) -> FloatArray:
    """Share of the spots of every unit that scale and quantiles of the others cover, mean over genes, (n_units, n_levels).

    Parameters
    ----------
    residuals
        Of held-out spots, (n_spots, n_genes).
    predicted
        What they are residuals of, (n_spots, n_genes).
    units
        Donor or section of every spot, (n_spots,), two or more.
    are_donors
        Whether they are covered as new donors; the levels are then those that one donor less allows.
    """
    quantiles_of = donor_quantiles if are_donors else section_quantiles
    rows = []
    for unit in np.unique(units):
        out = units == unit
        scale = Scale.fitted(residuals[~out], predicted[~out])
        limits = quantiles_of(np.abs(residuals[~out]) / scale.at(predicted[~out]), units[~out])
        scores = np.abs(residuals[out]) / scale.at(predicted[out])
        rows.append([float((scores <= limit + 1e-9).mean()) for limit in limits.T])
    return np.array(rows)


def covered_share(
    measured: FloatArray, predicted: FloatArray, bounds: tuple[FloatArray, FloatArray], *, covers_level: bool
) -> FloatArray:
    """Share of the spots of a section within their bounds, (n_genes,); NaN for a gene without.

    Parameters
    ----------
    measured
        (n_spots, n_genes).
    predicted
        (n_spots, n_genes).
    bounds
        Lower and upper, (n_spots, n_genes) each.
    covers_level
        Whether the level is covered too; otherwise the means of measured and predicted are taken away before.
    """
    off = np.zeros(measured.shape[1]) if covers_level else (measured - predicted).mean(axis=0)
    inside = (measured - off >= bounds[0] - 1e-6) & (measured - off <= bounds[1] + 1e-6)
    known = np.isfinite(bounds[0])
    n_known = known.sum(axis=0)
    share: FloatArray = np.divide(
        (inside & known).sum(axis=0), n_known, out=np.full(measured.shape[1], np.nan), where=n_known > 0
    )
    return share
