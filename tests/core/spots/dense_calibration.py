"""Calibration of whole arrays at once, as the sums over blocks must have it."""

import numpy as np
from numpy.typing import NDArray

from agl_sc.core.numerics.constant import varying

FloatArray = NDArray[np.float64]


def calibrate(predicted: FloatArray, measured: FloatArray, *, shrinkage: float = 1.0) -> tuple[FloatArray, FloatArray]:
    """Least-squares slope, never negative, shrunk, and intercept of measured on predicted, (n_genes,) each."""
    centred = predicted - predicted.mean(axis=0)
    square = (centred**2).sum(axis=0)
    product = (centred * (measured - measured.mean(axis=0))).sum(axis=0)
    varies = varying(predicted)
    slope = np.maximum(np.where(varies, product / np.where(varies, square, 1.0), 0.0), 0.0) * shrinkage
    return slope, measured.mean(axis=0) - slope * predicted.mean(axis=0)
