"""Genes of some spots: normalised expression, its mean and variance, ranks by a score."""

from typing import Literal, get_args

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from agl_sc.core.arguments import check_choice
from agl_sc.core.arrays import FloatArray, Floats, IntArray

Normalize = Literal["log1p_cp10k", "log1p"]


def normalize_counts(counts: scipy.sparse.csr_matrix, normalize: Normalize) -> scipy.sparse.csr_matrix:
    """Raw counts (n_spots, n_genes) in the units that are modelled; spots without counts stay 0."""
    check_choice("normalize", normalize, get_args(Normalize))
    scaled = counts.astype(np.float32, copy=True)
    if normalize == "log1p_cp10k":
        totals = np.asarray(counts.sum(axis=1)).ravel()
        scaled.data *= np.repeat(1e4 / np.where(totals > 0, totals, 1), np.diff(counts.indptr)).astype(np.float32)
    scaled.data = np.log1p(scaled.data)
    return scaled


def with_data(matrix: scipy.sparse.csr_matrix, data: Floats) -> scipy.sparse.csr_matrix:
    """Other values at the same places, which are shared and not copied."""
    return scipy.sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)


def mean_variance_detected(expression: scipy.sparse.csr_matrix) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, variance and fraction of spots detected of every gene, (n_genes,) each."""
    n_spots = expression.shape[0]
    mean = np.asarray(expression.mean(axis=0), dtype=float).ravel()
    square = np.asarray(expression.multiply(expression).mean(axis=0), dtype=float).ravel()
    return mean, np.maximum(square - mean**2, 0), expression.getnnz(axis=0) / n_spots


def ranks(score: FloatArray, auxiliary: NDArray[np.bool_]) -> FloatArray:
    """Position of every auxiliary gene by falling score, NaN scores last, ties in table order; NaN for other genes."""
    unknown = np.isnan(score)
    order = np.lexsort((np.where(unknown, 0.0, -score), unknown))
    order = order[auxiliary[order]]
    rank = np.full(len(score), np.nan)
    rank[order] = np.arange(len(order))
    return rank


def target_correlation(expression: scipy.sparse.csr_matrix, targets: NDArray[np.bool_], codes: IntArray) -> FloatArray:
    """Mean absolute Pearson correlation of every gene with the targets, both centred per section.

    Parameters
    ----------
    expression
        Normalised expression, (n_spots, n_genes).
    targets
        Which genes are targets, (n_genes,).
    codes
        Section of every spot, (n_spots,).

    Returns
    -------
    (n_genes,), in [0, 1]; NaN for a gene that is constant in every section.
    """
    expression = expression.astype(np.float64)
    _, codes = np.unique(codes, return_inverse=True)
    member = scipy.sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    count = np.bincount(codes)[:, None]
    centred = expression[:, targets].toarray()
    centred -= (member @ centred / count)[codes]
    total = np.asarray(expression.multiply(expression).sum(axis=0)).ravel()
    square = total - ((member @ expression).toarray() ** 2 / count).sum(axis=0)
    # What rounding leaves of a constant: nothing that varies comes near.
    defined, target_square = square > 1e-10 * total, (centred**2).sum(axis=0)
    norm = np.sqrt(np.where(defined, square, 1.0)[:, None] * np.where(target_square > 0, target_square, 1.0))
    mean: FloatArray = np.abs((expression.T @ centred) / norm).mean(axis=1)
    return np.where(defined, mean, np.nan)
