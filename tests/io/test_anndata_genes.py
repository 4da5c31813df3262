"""Columns of one gene name, summed."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse
from tests.io.test_anndata import make

from agl_sc.io import from_anndata, sum_duplicate_genes

NAMES = ["p", "q", "p", "r", "s", "q", "p"]
COUNTS = np.random.default_rng(0).poisson(1.5, (30, 7))
SUMMED = np.column_stack([COUNTS[:, [0, 2, 6]].sum(1), COUNTS[:, [1, 5]].sum(1), COUNTS[:, 3], COUNTS[:, 4]])


def repeating(x: Any = None) -> AnnData:
    """Names repeat, which anndata warns of."""
    adata = make(["s1"])
    adata.X = sparse.csr_matrix(COUNTS.astype(np.float32)) if x is None else x
    adata.var["gene_ids"] = [f"E{i}" for i in range(7)]
    adata.var_names = NAMES
    adata.varm["loading"] = np.arange(14.0).reshape(7, 2)
    adata.varp["distance"] = np.arange(49.0).reshape(7, 7)
    return adata


def dense(matrix: Any) -> Any:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


from_array: Callable[..., Any] = da.from_array
STORED: dict[str, Callable[[Any], Any]] = {
    "array": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "sparse array": sparse.csr_array,
    "dask": lambda matrix: from_array(matrix, chunks=(7, 3)),
}
pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")  # of what is built here


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize("stored", STORED)
def test_counts_add_up_however_they_are_stored(stored: str, dtype: str) -> None:
    with_layer = repeating(STORED[stored](COUNTS.astype(dtype)))
    with_layer.layers["counts"] = STORED[stored](100 * COUNTS.astype(np.int64))
    found = sum_duplicate_genes(with_layer)
    assert found.var_names.tolist() == ["p", "q", "r", "s"]
    np.testing.assert_array_equal(dense(found.X), SUMMED)
    np.testing.assert_array_equal(dense(found.layers["counts"]), 100 * SUMMED)


def test_sums_fit_where_the_counts_hardly_did() -> None:
    found = sum_duplicate_genes(repeating(np.full((30, 7), 200, dtype=np.uint8)))
    assert dense(found.X)[0].tolist() == [600, 400, 200, 200]


def test_everything_else_is_carried_and_the_table_stays_as_it_was() -> None:
    adata = repeating()
    before = adata.copy()
    found = sum_duplicate_genes(adata)
    assert found.var["gene_ids"].tolist() == ["E0", "E1", "E3", "E4"]
    np.testing.assert_array_equal(found.varm["loading"], before.varm["loading"][[0, 1, 3, 4]])
    np.testing.assert_array_equal(found.varp["distance"], before.varp["distance"][np.ix_([0, 1, 3, 4], [0, 1, 3, 4])])
    pd.testing.assert_frame_equal(found.obs, before.obs)
    np.testing.assert_array_equal(found.obsm["spatial"], before.obsm["spatial"])
    assert set(found.uns["spatial"]["s1"]["images"]) == {"hires", "lowres"}
    assert adata.var_names.tolist() == NAMES
    np.testing.assert_array_equal(dense(adata.X), COUNTS)
    found.obs["library"] = "changed"
    assert set(adata.obs["library"]) == {"s1"}


def test_values_that_are_no_counts_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    adata = repeating(np.log1p(COUNTS))
    adata.layers["counts"] = COUNTS
    adata.layers["scaled"] = COUNTS - 1.0
    with caplog.at_level(logging.WARNING, logger="agl_sc"):
        found = sum_duplicate_genes(adata)
    assert found.X is None
    assert {key for key in found.layers if key} == {"counts"}
    np.testing.assert_array_equal(found.layers["counts"], SUMMED)
    assert "left out what holds no counts, which alone can be summed: X, scaled" in caplog.text


def test_unique_names_give_a_copy() -> None:
    adata = make(["s1"])
    found = sum_duplicate_genes(adata)
    assert found is not adata
    np.testing.assert_array_equal(dense(found.X), dense(adata.X))


def test_a_backed_table(tmp_path: Path) -> None:
    repeating().write_h5ad(tmp_path / "a.h5ad")
    found = sum_duplicate_genes(read_h5ad(tmp_path / "a.h5ad", backed="r"))
    np.testing.assert_array_equal(dense(found.X), SUMMED)


def test_no_warning_of_its_own_and_the_result_can_be_read() -> None:
    adata = repeating()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sum_duplicate_genes(adata)
    assert from_anndata(found)["table"] is found


def test_nothing_to_sum() -> None:
    with pytest.raises(ValueError, match="3 columns repeat the name of a gene, but neither X nor a layer holds counts"):
        sum_duplicate_genes(repeating(np.log1p(COUNTS)))


def test_not_an_anndata() -> None:
    with pytest.raises(TypeError, match="adata is a DataFrame, not an AnnData"):
        sum_duplicate_genes(pd.DataFrame())
