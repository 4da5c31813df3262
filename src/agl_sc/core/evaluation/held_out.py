"""Predictions of every gene for spots that were held out, in closed form: what scores and intervals rest on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from agl_sc.core.arrays import Float32Array, FloatArray, Floats, IntArray
from agl_sc.core.linear.choose_by_validation import multiplied, own_penalty
from agl_sc.core.linear.closed_form import ridge_basis, shrinkage_of
from agl_sc.core.linear.predictability import MOST_SPOTS
from agl_sc.core.numerics.constant import divisor
from agl_sc.core.spots.expression import Expression, gene_blocks
from agl_sc.core.spots.scaling import (
    centred_rows,
    depth_weights,
    scale_features,
    scaled_rows,
    section_means,
    spread,
)
from agl_sc.core.spots.thinned import thinned

N_LEADING = 50
"""Genes of highest variance that choose the penalty where nobody names others."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Spots with features and counts."""

    features: Floats
    """Of the encoder, (n_spots, n_features), all finite."""
    expression: scipy.sparse.csr_matrix
    """In the units of the layer, (n_spots, n_genes)."""
    library: FloatArray
    """Total counts of every spot, all positive, (n_spots,)."""
    sections: IntArray
    """Section of every spot, from 0 and without gaps, (n_spots,)."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutFold:
    """Rows of one fold."""

    fit: IntArray
    """Rows that are fitted on."""
    held: IntArray
    """Rows that are predicted."""


@dataclass(frozen=True, slots=True, eq=False)
class _Smoother:
    """Ridge of one fold as what it makes of the standardised expression of the spots it was fitted on."""

    fold: HeldOutFold
    """Its rows, those to fit on as many as were used."""
    factors: tuple[Float32Array, ...]
    """Whose product are the weights of every spot fitted on in the prediction of every one held out, (n_held, n_fit)."""

    @classmethod
    def of(cls, fold: HeldOutFold, left: FloatArray, right: FloatArray) -> "_Smoother":
        """Of two factors, (n_held, q) and (q, n_fit), multiplied where that takes less time and memory than to keep both."""
        (n_held, q), n_fit = left.shape, right.shape[1]
        factors = (left @ right,) if n_held * n_fit <= q * (n_held + n_fit) else (left, right)
        return cls(fold, tuple(each.astype(np.float32) for each in factors))

    def __call__(self, standard: Float32Array) -> Float32Array:
        """Predictions (n_held, n) from the standardised expression of the spots fitted on, (n_fit, n)."""
        for factor in self.factors[::-1]:
            standard = factor @ standard
        return standard


def held_out_predictions(
    samples: Samples, folds: Sequence[HeldOutFold], *, leading: IntArray | None = None
) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
    """Measured expression of all genes, and its prediction by a ridge that has not seen the spot.

    In every fold features are scaled, expression is centred and scaled within sections, spots are weighted by depth and the
    penalty is chosen by leave-one-out, all on the spots fitted on, about 4,096 of them at most: the same share of every section, and all
    of a section of fewer than 20. Features are centred within whole
    sections, as they are in prediction.

    Parameters
    ----------
    samples
        Spots.
    folds
        No spot is held out twice.
    leading
        Genes that choose the penalty; of the spots fitted on, the 50 most variable ones by default.

    Yields
    ------
    A block of consecutive genes: which, measured and predicted, (n_spots, n) each in the units of the layer, the predicted
    NaN for a spot that no fold holds out.
    """
    means = section_means(samples.features, samples.sections)
    smoothers = [_smoother(samples, means, fold, leading=leading) for fold in folds]
    for genes, measured in gene_blocks(samples.expression):
        predicted = np.full(measured.shape, np.nan)
        for each in smoothers:
            fit = each.fold.fit
            standard, mean, scale = _standardised(measured[fit], samples.sections[fit])
            predicted[each.fold.held] = each(standard) * scale + mean
        yield genes, measured, predicted


def _smoother(samples: Samples, means: FloatArray, fold: HeldOutFold, *, leading: IntArray | None) -> _Smoother:
    fit = fold.fit
    fit = fit[thinned(samples.sections[fit], MOST_SPOTS)]
    centred = centred_rows(samples.features[fit], means[samples.sections[fit]])
    scale = spread(centred)
    features = scale_features(centred, scale).astype(np.float32)
    held = scaled_rows(samples.features[fold.held], means, samples.sections[fold.held], scale=scale)
    values = samples.expression[fit]
    chosen = _most_variable(values) if leading is None else leading
    expression = Expression.fitted(scipy.sparse.csr_matrix(values[:, chosen]), samples.sections[fit])
    weights = depth_weights(samples.library[fit], samples.sections[fit])
    basis = ridge_basis(features, expression, weights)
    alpha = own_penalty(basis, features, expression.columns(0, len(chosen)), weights=weights)
    of_fit, of_held = (multiplied(each, basis.to_left) for each in (features, held))
    of_held *= shrinkage_of(basis, alpha)
    return _Smoother.of(HeldOutFold(fit, fold.held), of_held, (weights[:, None] * of_fit).T)


def _most_variable(values: scipy.sparse.csr_matrix) -> IntArray:
    """The most variable genes, (n,)."""
    mean = np.asarray(values.mean(axis=0), dtype=float).ravel()
    variance = np.asarray(values.multiply(values).mean(axis=0), dtype=float).ravel() - mean**2
    return np.sort(np.argsort(-variance, kind="stable")[:N_LEADING])


def _standardised(values: FloatArray, codes: IntArray) -> tuple[Float32Array, FloatArray, FloatArray]:
    """Every section centred and divided by its spread, in single precision; mean and spread of every gene, over spots."""
    mean, scale = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    standard = np.empty(values.shape, dtype=np.float32)
    for code in np.unique(codes):
        inside = codes == code
        own = values[inside]
        middle, wide = own.mean(axis=0), divisor(own.std(axis=0))
        standard[inside] = (own - middle) / wide
        share = inside.mean()
        mean, scale = mean + share * middle, scale + share * wide
    return standard, mean, scale
