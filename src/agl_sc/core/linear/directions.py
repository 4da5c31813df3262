"""Few directions of many features, for so many spots that all features of each would neither fit into memory nor into a day."""

import numpy as np

from agl_sc.core.arrays import Float32Array, FloatArray
from agl_sc.core.linear.choose_by_validation import ALPHAS, left_out_errors, multiplied
from agl_sc.core.linear.closed_form import ridge_basis, shrinkage_of
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots

MOST_BYTES = 2**31
"""Where the features of all spots would take more in single precision, directions are fitted on."""
WIDTHS = (125, 250, 500)
"""Numbers of directions tried: 2 kB of a spot at most."""
_MAY_COST = 0.001
"""Of the targets' variance that directions may leave unexplained beside what all features do."""


def directions(spots: Spots, n_targets: int) -> Float32Array | None:
    r"""Leading principal directions of the features, as few as predict the targets as well as all features.

    As well is: the leave-one-out error of ridge, at the penalty that is best for so many directions, is above that of all features by
    a thousandth of the targets' variance at most. Where no number of :data:`WIDTHS` will do, it is the largest.

    Parameters
    ----------
    spots
        Some thousand training spots.
    n_targets
        Number of leading genes that are targets.

    Returns
    -------
    Orthogonal columns, most spread first, (n_features, width); None where the features are no more than that. Their length,
    :math:`\sqrt{width / n_{features}}`, leaves a direction about the spread that a feature has, so that penalties, initial weights and
    learning rates, which go by the number of features, mean the same.
    """
    features, weights = spots.features, spots.depth_weights
    targets = Expression.from_dense(spots.expression.columns(0, n_targets))
    basis = ridge_basis(features, targets, weights)
    if min(len(basis.singular_values), features.shape[1] - 1) < WIDTHS[0]:
        return None
    root = np.sqrt(np.ones(len(features)) if weights is None else weights)[:, None]
    left = (root * multiplied(features, basis.to_left))[:, ::-1]  # most spread first
    genes, measured = basis.genes[::-1].astype(float), root * targets.columns(0, n_targets)
    shrinkages = np.stack([shrinkage_of(basis, features.shape[1] * alpha)[::-1] for alpha in ALPHAS])
    best = left_out_errors(left, genes, measured, shrinkages=shrinkages).min()
    allowed = best + _MAY_COST * (measured**2).sum()
    width = WIDTHS[-1]
    for fewer in WIDTHS:
        found = left_out_errors(left[:, :fewer], genes[:fewer], measured, shrinkages=shrinkages[:, :fewer])
        if found.min() <= allowed:
            width = fewer
            break
    if width >= features.shape[1]:
        return None
    leading: FloatArray = basis.loadings[:, ::-1][:, :width] * np.sqrt(width / features.shape[1])
    return leading.astype(np.float32)
