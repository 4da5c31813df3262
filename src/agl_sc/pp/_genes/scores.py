"""Prior scores that look at more than one gene or spot at a time: arrays in, one score per gene out."""

import numpy as np
import scipy.sparse

from agl_sc.core.arrays import FloatArray, IntArray

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
