"""Per-gene metrics: arrays in, one number per gene out; NaN where a metric is undefined."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

FloatArray = NDArray[np.float64]


def pearson(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """Pearson correlation over spots; NaN where either side is constant.

    Parameters
    ----------
    measured
        (n_spots, n_genes).
    predicted
        (n_spots, n_genes).

    Returns
    -------
    (n_genes,).
    """
    measured, predicted = (np.asarray(values, dtype=float) for values in (measured, predicted))
    constant = (np.ptp(measured, axis=0) == 0) | (np.ptp(predicted, axis=0) == 0)
    measured, predicted = measured - measured.mean(axis=0), predicted - predicted.mean(axis=0)
    norm = np.sqrt((measured**2).sum(axis=0) * (predicted**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: FloatArray = np.where(constant, np.nan, (measured * predicted).sum(axis=0) / norm)
    return correlation


def spearman(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """Spearman correlation over spots, ties averaged, (n_genes,); NaN where either side is constant."""
    return pearson(rankdata(measured, axis=0), rankdata(predicted, axis=0))


def mse(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """Mean squared error over spots, (n_genes,), in squared units of the input."""
    error: FloatArray = np.mean((np.asarray(measured, dtype=float) - np.asarray(predicted, dtype=float)) ** 2, axis=0)
    return error
