"""Gene names that stand several times, summed to one."""

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse

logger = logging.getLogger(__name__)


def sum_duplicate_genes(adata: AnnData) -> AnnData:
    """AnnData in which every gene name stands once, with the counts of its columns added up.

    Counts of columns that share a name are summed, as if their reads had been assigned to one gene. Values that are no
    counts, such as log-normalised ones, cannot be summed and are left out, which the log says.

    Parameters
    ----------
    adata
        Table in which gene names repeat; it stays as it is.

    Returns
    -------
    A new AnnData, in memory. Genes are in order of first appearance; ``var``, ``varm`` and ``varp`` keep the row of the
    first column of each name; ``obs``, ``obsm``, ``obsp``, ``uns`` and ``raw`` are copies. X and each layer are summed where
    they hold whole, non-negative numbers; another layer is missing, and X is None.

    Raises
    ------
    TypeError
        ``adata`` is not an AnnData.
    ValueError
        Names repeat, but neither X nor any layer holds counts.

    Examples
    --------
    >>> import agl_sc
    >>> import anndata, numpy as np
    >>> adata = anndata.AnnData(np.array([[1.0, 5.0, 2.0], [0.0, 3.0, 4.0]]))
    >>> adata.var_names = ["TBCE", "ACTB", "TBCE"]
    >>> agl_sc.io.sum_duplicate_genes(adata).to_df()
       TBCE  ACTB
    0   3.0   5.0
    1   4.0   3.0
    """
    if not isinstance(adata, AnnData):
        msg = f"adata is a {type(adata).__name__}, not an AnnData; pass the table, such as sdata['table']."
        raise TypeError(msg)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique", category=UserWarning)  # they will be
        source = adata.to_memory(copy=True)
    if source.var_names.is_unique:
        return source
    codes, names = pd.factorize(source.var_names.astype(str))
    result = source[:, np.unique(codes, return_index=True)[1]].copy()
    matrices = {"": source.X, **{key: source.layers[key] for key in source.layers if key is not None}}
    stored = {key: matrix for key, matrix in matrices.items() if matrix is not None}
    summed = {key: _sum(matrix, codes) for key, matrix in stored.items() if _are_counts(matrix)}
    if not summed:
        msg = (
            f"{len(codes) - len(names)} columns repeat the name of a gene, but neither X nor a layer holds counts, which alone "
            "can be summed; put raw counts into layers['counts']."
        )
        raise ValueError(msg)
    result.X = summed.get("")
    for key in stored.keys() - {""}:
        if key in summed:
            result.layers[key] = summed[key]
        else:
            del result.layers[key]
    left_out = sorted(key or "X" for key in stored.keys() - summed.keys())
    if left_out:
        logger.warning("left out what holds no counts, which alone can be summed: %s", ", ".join(left_out))
    logger.info("%d genes of %d columns, those of one name summed", len(names), len(codes))
    return result


def _are_counts(matrix: Any) -> bool:
    """Whether a matrix holds nothing but whole, non-negative numbers."""
    values = matrix.data if issparse(matrix) else np.asarray(matrix)
    return bool((np.isfinite(values) & (values >= 0) & (values == np.floor(values))).all())


def _sum(matrix: Any, codes: NDArray[np.int64]) -> Any:
    """Columns of one code added up; a type of few bits becomes a wider one, in which sums fit."""
    n_genes = codes.max() + 1
    wide = np.result_type(matrix.dtype, np.int64 if matrix.dtype.kind in "biu" else np.float32)
    if issparse(matrix):
        entries = matrix.tocoo()
        places = (entries.row, codes[entries.col])
        return csr_matrix((entries.data.astype(wide), places), shape=(matrix.shape[0], n_genes))  # which adds them up
    summed = np.zeros((matrix.shape[0], n_genes), dtype=wide)
    np.add.at(summed.T, codes, np.asarray(matrix, dtype=wide).T)
    return summed
