"""Prior scores that look at more than one gene or spot at a time: arrays in, one score per gene out."""

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_NEIGHBOURS = 6
"""Of a hexagonal grid; on a square grid squidpy drops the two diagonal ones as too far."""


def morans_i(expression: scipy.sparse.csr_matrix, centres: FloatArray, codes: IntArray) -> FloatArray:
    r"""Moran's I of every gene within sections, averaged over sections by their number of spots.

    :math:`I = \sum_{ij} w_{ij} z_i z_j / \sum_i z_i^2 \cdot n / \sum_{ij} w_{ij}` over squidpy's grid graph of every
    section, its rows normalised to sum 1. Spots of different sections are never neighbours.

    Parameters
    ----------
    expression
        Normalised expression, (n_spots, n_genes).
    centres
        Spot centres as (x, y), in any unit that is the same within a section, (n_spots, 2); spots with NaN are left out.
    codes
        Section of every spot, (n_spots,).

    Returns
    -------
    (n_genes,); NaN for a gene that is constant in every section.

    Raises
    ------
    ValueError
        No section has enough spots.
    """
    known = np.isfinite(centres).all(axis=1)
    names, sizes = np.unique(codes[known], return_counts=True)
    if not (sizes > _NEIGHBOURS).any():
        msg = f"No section has more than {_NEIGHBOURS} training spots with coordinates, too few for score='moran'; use another score."
        raise ValueError(msg)
    total, weight = np.zeros(expression.shape[1]), np.zeros(expression.shape[1])
    for name, size in zip(names, sizes, strict=True):
        if size > _NEIGHBOURS:
            rows = known & (codes == name)
            values = _section_morans_i(expression[rows], centres[rows])
            defined = np.isfinite(values)
            total[defined] += size * values[defined]
            weight[defined] += size
    mean: FloatArray = np.divide(total, weight, out=np.full(len(total), np.nan), where=weight > 0)
    return mean


def _section_morans_i(expression: scipy.sparse.csr_matrix, centres: FloatArray) -> FloatArray:
    from anndata import AnnData
    from squidpy.gr import spatial_autocorr
    from squidpy.gr.neighbors import GridBuilder

    varying = np.flatnonzero((expression.max(axis=0) != expression.min(axis=0)).toarray().ravel())
    values = np.full(expression.shape[1], np.nan)
    if len(varying):
        graph, _ = GridBuilder(n_neighs=_NEIGHBOURS).build(centres)
        section = AnnData(scipy.sparse.csr_matrix(expression[:, varying]), obsp={"spatial_connectivities": graph})
        table = spatial_autocorr(section, mode="moran", corr_method=None, copy=True)
        values[varying] = table["I"].reindex(section.var_names).to_numpy()
    return values


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
