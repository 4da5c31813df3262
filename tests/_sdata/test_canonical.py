"""Counts mean the same however they are stored."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import anndata
import dask.array as da
import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agl_sc._sdata.table import canonical, counts_of

Store = Callable[[np.ndarray[Any, Any]], Any]
lazy: Callable[..., Any] = da.from_array


def in_parts(counts: Any) -> Any:
    """Every entry twice, which scipy sums where it knows of them."""
    coo = sp.coo_matrix(counts)
    half = np.floor(coo.data / 2)
    rows = np.tile(coo.row, 2)
    order = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=counts.shape[0]))])
    data, columns = np.concatenate([coo.data - half, half])[order], np.tile(coo.col, 2)[order]
    return sp.csr_matrix((data, columns, indptr), shape=counts.shape)


def with_zeros(counts: Any) -> Any:
    rows, columns = np.indices(counts.shape)
    return sp.csr_matrix((counts.ravel().astype(float), (rows.ravel(), columns.ravel())), shape=counts.shape)


def backwards(counts: Any) -> Any:
    matrix = sp.csr_matrix(counts)
    for start, stop in zip(matrix.indptr, matrix.indptr[1:], strict=False):
        matrix.indices[start:stop], matrix.data[start:stop] = (
            matrix.indices[start:stop][::-1].copy(), matrix.data[start:stop][::-1].copy()
        )  # fmt: skip
    matrix.has_sorted_indices = False
    return matrix


def in_h5(counts: Any) -> Any:
    return h5py.File(BytesIO(), "w").create_dataset("X", data=counts)


STORES: dict[str, Store] = {
    "csr": sp.csr_matrix, "csc": sp.csc_matrix, "coo": sp.coo_matrix, "csr array": sp.csr_array, "parts": in_parts,
    "stored zeros": with_zeros, "unsorted": backwards, "float64": lambda x: x.astype(float), "int8": lambda x: x.astype("i1"),
    "uint64": lambda x: sp.csr_matrix(x.astype("u8")), "Fortran": np.asfortranarray, "h5": in_h5,
    "zarr": lambda x: zarr.array(x), "dask": lambda x: lazy(x, chunks=(3, 2)),
    "dask of csr": lambda x: lazy(x, chunks=(3, -1)).map_blocks(sp.csr_matrix),
}  # fmt: skip


@pytest.mark.parametrize("store", STORES.values(), ids=list(STORES))
@settings(max_examples=15, deadline=None)
@given(counts=arrays(np.int64, (7, 5), elements=st.integers(0, 60)))
def test_every_storage_gives_the_same_bytes(store: Store, counts: Any) -> None:
    stored = store(counts)
    found, expected = canonical(stored), sp.csr_matrix(counts, dtype=np.float32)
    assert found.has_canonical_format
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
        assert getattr(found, part).dtype == getattr(expected, part).dtype


@pytest.mark.parametrize("storage", ["csr_matrix", "csc_matrix", "dense"])
def test_a_backed_table_is_read(tmp_path: Path, storage: str) -> None:
    counts = np.random.default_rng(0).poisson(1, (9, 4)).astype(np.float32)
    AnnData(counts if storage == "dense" else getattr(sp, storage)(counts)).write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_array_equal(counts_of(backed, None).toarray(), counts)
    backed.file.close()


def test_what_was_given_is_left_as_it_was() -> None:
    given_ = in_parts(np.array([[2, 0], [3, 4]]))
    before = given_.data.copy(), given_.indices.copy()
    canonical(given_).data[:] = 0
    np.testing.assert_array_equal(given_.data, before[0])
    np.testing.assert_array_equal(given_.indices, before[1])


@pytest.mark.parametrize(
    "wrong", [np.array([["a", "b"]]), np.zeros(3), np.array([[1 + 2j]])], ids=["text", "flat", "complex"]
)
def test_what_is_no_matrix_of_numbers_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"layers\['x'\] holds .*not a matrix of numbers; raw counts are needed"):
        canonical(wrong, "layers['x']")
