"""One section under two names: the same expression profiles, or the same image."""

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc._sdata.table import in_memory
from agl_sc.pp._features.tiles import overview

if TYPE_CHECKING:
    from spatialdata import SpatialData

UInt64Array = NDArray[np.uint64]
Pair = tuple[str, str, float]

_MIN_SHARE = 0.5
_MIN_DETECTED = 10
"""Genes in a spot from which on another spot with the same profile is the same spot."""
_ROWS = 4096
_GENE_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def duplicates(
    sdata: "SpatialData",
    *,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    layer: str | None = None,
    key_added: str = "agl",
) -> pd.DataFrame:
    """Find sections that are in the data under two names.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    image_mpp
        Microns per pixel of the full image, a number or a mapping by section; from metadata or spot pitch by default.
    layer
        Layer with raw counts; X by default.
    key_added
        Prefix of all slots.

    Returns
    -------
    One row per pair: ``section``, ``other``, ``what`` (``"expression"``: more than half of the spots of the one with at
    least 10 detected genes have the profile of a spot of the other, in any order; ``"image"``: two images whose coarsest
    pyramid levels have the same pixels), and ``share`` (fraction of those spots in the smaller section; 1 for images).
    No row when there are none.

    Raises
    ------
    KeyError
        An element does not exist.
    ValueError
        The counts are not raw, or several images or coordinate systems fit.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> len(agl_sc.pp.duplicates(sdata))
    0
    """
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    study = Study.of(sdata, address, key_added)
    counts, names, found = study.counts, study.section_names, study.imaged
    rows: list[tuple[str, str, str, float]] = [
        (a, b, "expression", share) for a, b, share in same_profiles(counts, names)
    ]
    digests = {section.image_key: overview(section).digest for section in {s.image_key: s for s in found}.values()}
    for first, second in combinations(found, 2):
        pair = sorted(str(names[section.rows[0]]) for section in (first, second))
        if first.image_key != second.image_key and digests[first.image_key] == digests[second.image_key]:
            rows.append((pair[0], pair[1], "image", 1.0))
    return pd.DataFrame(sorted(rows), columns=["section", "other", "what", "share"])


def same_profiles(matrix: Any, names: NDArray[np.str_]) -> list[Pair]:
    """Pairs of sections more than half of whose spots, of the smaller one, have the same expression profile.

    Parameters
    ----------
    matrix
        Expression, sparse or dense, (n_spots, n_genes).
    names
        Section of every spot, (n_spots,).
    """
    if len(np.unique(names)) < 2:
        return []
    hashes, n_detected = profile_hashes(matrix)
    telling = n_detected >= _MIN_DETECTED
    known, codes = np.unique(names[telling], return_inverse=True)
    _, profile = np.unique(hashes[telling], return_inverse=True)
    shape = (int(profile.max(initial=-1)) + 1, len(known))
    n_spots = scipy.sparse.coo_array((np.ones(len(codes)), (profile, codes)), shape=shape).tocsr()
    shared = (n_spots.T @ (n_spots > 0).astype(float)).toarray() / np.bincount(codes, minlength=len(known))[:, None]
    return [
        (str(known[i]), str(known[j]), float(max(shared[i, j], shared[j, i])))
        for i, j in combinations(range(len(known)), 2)
        if max(shared[i, j], shared[j, i]) > _MIN_SHARE
    ]


def profile_hashes(matrix: Any) -> tuple[UInt64Array, NDArray[np.int64]]:
    """Hash of the non-zero values of every row and their genes, and how many there are, (n_spots,) each."""
    matrix = in_memory(matrix)
    whole = scipy.sparse.csr_array(matrix) if scipy.sparse.issparse(matrix) else matrix
    if whole.dtype.kind not in "buif":
        msg = f"X holds {whole.dtype}, not numbers; raw counts are needed."
        raise TypeError(msg)
    whole = whole.astype(np.float32) if whole.dtype == np.float16 else whole  # which scipy has not
    if isinstance(whole, scipy.sparse.csr_array) and not whole.has_canonical_format:
        whole = whole.copy()
        whole.sum_duplicates()
    hashes = np.zeros(whole.shape[0], dtype=np.uint64)
    n_detected = np.zeros(whole.shape[0], dtype=np.int64)
    for start in range(0, whole.shape[0], _ROWS):
        rows = scipy.sparse.csr_array(whole[start : start + _ROWS])
        filled = np.flatnonzero(np.diff(rows.indptr))
        if len(filled):
            begin = rows.indptr[filled]
            is_there = rows.data != 0
            entries = np.where(is_there, _entry_hashes(rows.data, rows.indices), np.uint64(0))
            hashes[start + filled] = np.add.reduceat(entries, begin)
            n_detected[start + filled] = np.add.reduceat(is_there.astype(np.int64), begin)
    return hashes, n_detected


def _entry_hashes(values: NDArray[Any], genes: NDArray[Any]) -> UInt64Array:
    """SplitMix64 of a value and its gene (Steele et al., OOPSLA 2014), so that their sum tells rows apart."""
    mixed: UInt64Array = (
        values.astype(np.float64).view(np.uint64) + (genes.astype(np.uint64) + np.uint64(1)) * _GENE_STEP
    )
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MULTIPLIERS[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MULTIPLIERS[1]
    return mixed ^ (mixed >> np.uint64(31))
