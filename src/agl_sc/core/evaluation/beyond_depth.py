"""What a prediction knows beyond how many counts a spot has."""

import numpy as np

from agl_sc.core.arrays import BoolArray, FloatArray
from agl_sc.core.evaluation.metrics import pearson, per_gene
from agl_sc.core.numerics.constant import constant

_LEAST_LEFT = 1e-6
"""Share of a spread, or of the largest value, that single precision leaves where depth explains all of it."""


@per_gene
def pearson_beyond_depth(measured: FloatArray, predicted: FloatArray, library: FloatArray) -> FloatArray:
    r"""Partial Pearson correlation of measured and predicted expression given the log of the total counts, (n_genes,).

    The Pearson correlation of what is left of either side after least squares on :math:`\log n`. A gene that is predicted
    through nothing but the depth of its spots has 0. Where all spots have the same total counts it is the plain Pearson
    correlation; NaN where depth explains a side completely, as it does the predictions of the depth model, or where a side
    is constant.

    Parameters
    ----------
    measured
        Expression of the spots of one section, (n_spots, n_genes).
    predicted
        (n_spots, n_genes).
    library
        Total counts of every spot, (n_spots,); a spot without any does not count.
    """
    known = library > 0
    depth = np.log(library[known])
    of_measured, some_measured = _beyond(measured[known], depth)
    of_predicted, some_predicted = _beyond(predicted[known], depth)
    return np.where(some_measured & some_predicted, pearson(of_measured, of_predicted), np.nan)


def _beyond(values: FloatArray, depth: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Residuals of every column on depth, and in which columns there are any."""
    centred = values - values.mean(axis=0)
    residual = centred
    if not constant(depth[:, None])[0]:
        own = depth - depth.mean()
        residual = centred - np.outer(own, own @ centred / (own @ own))
    floor = _LEAST_LEFT * np.maximum(np.abs(values).max(axis=0), centred.std(axis=0))
    return residual, residual.std(axis=0) > floor
