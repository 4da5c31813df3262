"""One section under two names is found, and nothing else is."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from anndata import AnnData, read_h5ad
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation, set_transformation

from agl_sc.pp import duplicates
from agl_sc.pp._splits.duplicates import profile_hashes, same_profiles

COLUMNS = ["section", "other", "what", "share"]


@pytest.fixture(scope="module")
def counts() -> NDArray[np.float32]:
    """Of 60 spots and 200 genes, about 60 detected."""
    return np.random.default_rng(0).poisson(0.4, size=(60, 200)).astype(np.float32)


def test_different_sections_have_no_duplicates(tissue: SpatialData) -> None:
    found = duplicates(tissue)
    assert found.columns.tolist() == COLUMNS
    assert found.empty


def test_the_same_counts_in_another_order_are_found(
    tissue: SpatialData, unchanged: Callable[[SpatialData], AbstractContextManager[None]]
) -> None:
    copy_counts(tissue, order=np.random.default_rng(1).permutation(53))
    with unchanged(tissue):
        found = duplicates(tissue)
    assert found.values.tolist() == [["section_1", "section_2", "expression", 1.0]]


def copy_counts(sdata: SpatialData, order: NDArray[np.int64]) -> None:
    """Counts of section_1, in another order, as those of section_2."""
    table = sdata["table"]
    first, second = (np.flatnonzero(table.obs["section"] == name) for name in ("section_1", "section_2"))
    dense = table.X.toarray()
    dense[second] = dense[first[order]]
    table.X = scipy.sparse.csr_matrix(dense)


def test_the_same_image_is_found(tissue: SpatialData) -> None:
    image = tissue.images["section_1_image"].copy()
    system = get_transformation(tissue.images["section_3_image"], get_all=True)
    set_transformation(image, system, set_all=True)
    tissue.images["section_3_image"] = image
    found = duplicates(tissue)
    assert found.values.tolist() == [["section_1", "section_3", "image", 1.0]]


def test_regions_on_one_image_are_not_the_same_image(tissue: SpatialData) -> None:
    """Two pieces of tissue on one slide."""
    system = get_transformation(tissue.images["section_1_image"], get_all=True)
    set_transformation(tissue["section_2"], system, set_all=True)
    del tissue.images["section_2_image"]
    assert duplicates(tissue).empty


@pytest.mark.parametrize(("n_shared", "n_own", "share"), [(31, 29, 31 / 60), (20, 0, 1.0), (60, 200, 1.0)])
def test_more_than_half_of_the_smaller_section(
    *, counts: NDArray[np.float32], n_shared: int, n_own: int, share: float
) -> None:
    own = np.random.default_rng(5).poisson(0.4, size=(n_own, 200)).astype(np.float32)
    names = np.repeat(["A", "B"], [60, n_shared + n_own])
    assert same_profiles(np.concatenate([counts, counts[:n_shared], own]), names) == [("A", "B", share)]


def test_one_section_is_no_pair(counts: NDArray[np.float32]) -> None:
    assert same_profiles(np.concatenate([counts, counts]), np.array(["A"] * 120)) == []


def test_half_is_not_enough(counts: NDArray[np.float32]) -> None:
    own = np.random.default_rng(5).poisson(0.4, size=(30, 200)).astype(np.float32)
    assert same_profiles(np.concatenate([counts, counts[:30], own]), np.repeat(["A", "B"], 60)) == []


@pytest.mark.parametrize("kept", [0, 9], ids=["empty", "nine genes"])
def test_profiles_that_tell_nothing_do_not_count(kept: int) -> None:
    sparse = np.zeros((40, 200), dtype=np.float32)
    sparse[:, :kept] = 1
    assert same_profiles(sparse, np.repeat(["A", "B"], 20)) == []


def test_one_count_more_is_another_profile(counts: NDArray[np.float32]) -> None:
    other = counts.copy()
    other[:, 0] += 1
    swapped = counts[:, ::-1]
    assert same_profiles(np.concatenate([counts, other, swapped]), np.repeat(["A", "B", "C"], 60)) == []


def test_hashes_are_of_the_values_whatever_holds_them(counts: NDArray[np.float32]) -> None:
    expected, n_detected = profile_hashes(counts)
    np.testing.assert_array_equal(n_detected, (counts != 0).sum(axis=1))
    assert len(set(expected.tolist())) == 60
    csr = scipy.sparse.csr_matrix(counts)
    twice = shuffled_twice(csr)
    explicit = csr.copy()
    explicit.data[:5] = 0
    without = counts.copy()
    without[explicit.toarray() == 0] = 0
    for held in (csr, csr.tocsc(), csr.astype(np.int64), csr.astype(float), twice):
        np.testing.assert_array_equal(profile_hashes(held)[0], expected)
    for found, wanted in zip(profile_hashes(explicit), profile_hashes(without), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert not twice.has_canonical_format  # of the user's matrix nothing was changed


def shuffled_twice(csr: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """The same matrix with every entry stored as two halves, out of order."""
    rows = [np.tile(csr.indices[a:b][::-1], 2) for a, b in zip(csr.indptr, csr.indptr[1:], strict=False)]
    data = [np.tile(csr.data[a:b][::-1] / 2, 2) for a, b in zip(csr.indptr, csr.indptr[1:], strict=False)]
    return scipy.sparse.csr_matrix((np.concatenate(data), np.concatenate(rows), 2 * csr.indptr), shape=csr.shape)


def test_a_missing_layer_is_named(tissue: SpatialData) -> None:
    with pytest.raises(KeyError, match="layer='counts' is not in the table"):
        duplicates(tissue, layer="counts")
    tissue["table"].layers["counts"] = tissue["table"].X.copy()
    tissue["table"].X = None
    pd.testing.assert_frame_equal(duplicates(tissue, layer="counts"), pd.DataFrame(columns=COLUMNS), check_dtype=False)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_a_table_that_stays_on_disk_has_the_profiles_of_one_in_memory(kind: str, tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(0.5, (40, 25)).astype(np.float32)
    AnnData(scipy.sparse.csr_matrix(counts) if kind == "sparse" else counts).write_h5ad(tmp_path / "a.h5ad")
    backed = read_h5ad(tmp_path / "a.h5ad", backed="r")
    lazy: Any = da
    for stored in (backed.X, lazy.from_array(counts, chunks=(7, 25))):
        for found, expected in zip(profile_hashes(stored), profile_hashes(counts), strict=True):
            np.testing.assert_array_equal(found, expected)
    backed.file.close()
