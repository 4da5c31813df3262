"""How well features predict every gene, judged on spots that were left out: a prior score of auxiliary genes."""

import numpy as np

from agl_sc.core.arrays import FloatArray, Floats
from agl_sc.core.evaluation.metrics import pearson
from agl_sc.core.linear.choose_by_validation import multiplied, own_penalty
from agl_sc.core.linear.closed_form import ridge_basis, shrinkage_of
from agl_sc.core.progress import Progress
from agl_sc.core.spots.expression import Expression

MOST_SPOTS = 4096
"""More spots than this are not looked at: they would cost much and rank no better."""


def predictability(
    features: Floats, expression: Expression, n_targets: int, *, weights: FloatArray | None = None
) -> FloatArray:
    """Pearson between every gene and its ridge prediction from the features, each spot predicted without itself.

    A gene that H&E does not show teaches a shared trunk nothing but noise, however much it varies. Leave-one-out is exact
    without refitting, and the penalty is the one with the least error of the targets.

    Parameters
    ----------
    features
        Centred per section and scaled, (n_spots, n_features).
    expression
        Centred per section and scaled; targets first, (n_spots, n_genes).
    n_targets
        Number of leading genes that are targets.
    weights
        Of the spots in the fit, with mean 1, (n_spots,); all 1 by default.

    Returns
    -------
    (n_genes,); NaN for a gene that is constant in every section.
    """
    basis = ridge_basis(features, expression, weights)
    alpha = own_penalty(basis, features, expression.columns(0, n_targets), weights=weights)
    root = np.sqrt(np.ones(len(features)) if weights is None else weights)[:, None]
    left = root * multiplied(features, basis.to_left)
    shrunk = left * shrinkage_of(basis, alpha)
    kept = 1 - (left * shrunk).sum(axis=1, keepdims=True)
    scores = np.full(expression.shape[1], np.nan)
    with Progress[int](total=len(scores), desc="ranking", unit="gene") as bar:
        for genes, values in expression.blocks():
            fitted = shrunk @ basis.genes[:, genes] / root
            scores[genes] = pearson(values, values - (values - fitted) / kept)
            bar.update(values.shape[1])
    return scores
