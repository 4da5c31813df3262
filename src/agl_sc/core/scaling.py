"""Centring per section, scaling, and calibration to the units of the measured layer."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

CLIP = 3.0
"""Scaled features are kept within this many spreads of their section's mean."""


def center_per_section(values: FloatArray, codes: NDArray[np.int64]) -> FloatArray:
    """Subtract every section's mean; rows with a value that is not finite become NaN and do not count.

    Parameters
    ----------
    values
        (n_spots, n_columns).
    codes
        Section of every spot, (n_spots,).
    """
    centred = np.asarray(values, dtype=float).copy()
    known = np.isfinite(centred).all(axis=1)
    for code in np.unique(codes[known]):
        inside = known & (codes == code)
        centred[inside] -= centred[inside].mean(axis=0)
    centred[~known] = np.nan
    return centred


def spread(values: FloatArray) -> FloatArray:
    """Standard deviation of every column, 1 where it is constant, (n_columns,)."""
    deviation = values.std(axis=0)
    return np.where(deviation > 1e-12, deviation, 1.0)


def scale_features(centred: FloatArray, scale: FloatArray) -> FloatArray:
    """Divide by ``scale`` and clip at +-3.

    Channels that are silent on the training sections and loud on another one would otherwise come out hundreds of
    spreads away, and drown a linear prediction.
    """
    return np.clip(centred / scale, -CLIP, CLIP)


def calibrate(predicted: FloatArray, measured: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least-squares slope and intercept of measured on predicted, per gene.

    A Pearson loss leaves location and scale free; this puts predictions into the units of the measured layer. The slope
    is 0 where the prediction is constant, and never negative.

    Parameters
    ----------
    predicted
        Training spots, (n_spots, n_genes).
    measured
        The same spots, (n_spots, n_genes).

    Returns
    -------
    Slope and intercept, (n_genes,) each.
    """
    centred = predicted - predicted.mean(axis=0)
    square = (centred**2).sum(axis=0)
    product = (centred * (measured - measured.mean(axis=0))).sum(axis=0)
    varies = np.ptp(predicted, axis=0) > 0  # of a constant, the mean may miss the value by a rounding error
    slope = np.maximum(np.where(varies, product / np.where(varies, square, 1.0), 0.0), 0.0)
    return slope, measured.mean(axis=0) - slope * predicted.mean(axis=0)
