"""What an AnnData must not hold to become the table of a SpatialData, refused before anything is changed."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import pearsonr

from agl_sc.core.arrays import BoolArray, FloatArray

logger = logging.getLogger(__name__)

_GAPS = frozenset({"", "nan", "na", "n/a", "none", "null", "<na>"})
_ATTRIBUTES = ("obs", "obsm", "obsp", "var", "varm", "varp", "uns", "layers")
_FEWEST, _ALONG = 8, 0.98
"""Spots from which on, and correlation from which on, an axis of the array runs along one of the image."""
_MOST_SECTIONS = 200
"""A column with more values than this tells no sections."""


def is_gap(column: "pd.Series[Any]") -> "pd.Series[bool]":
    """Entries that are missing, or are text that says so."""
    return column.isna() | column.astype(str).str.strip().str.lower().isin(_GAPS)


def refuse_gaps(column: "pd.Series[Any]", *, what: str, mend: str) -> None:
    """Refuse a column of ``obs`` in which some spots have no entry, which would become a section or patient named "nan".

    Parameters
    ----------
    column
        The column.
    what
        What it names, such as ``"patient"``.
    mend
        What to do about it.
    """
    gaps = is_gap(column)
    if gaps.any():
        msg = f"{int(gaps.sum())} spots have no {what} in obs[{column.name!r}]; {mend}."
        raise ValueError(msg)


def refuse_names(adata: AnnData, added: Sequence[str]) -> None:
    """Refuse names that SpatialData cannot store, together with the columns that are to be ``added`` to ``obs``.

    Parameters
    ----------
    adata
        The table to be.
    added
        Columns to be added to ``obs``.
    """
    for attribute in ("obs", "var"):
        _refuse_index_name(getattr(adata, attribute), attribute)
    faults = [fault for attribute in _ATTRIBUTES for fault in _faults(adata, attribute, added)]
    if not faults:
        return
    others = f" (and {len(faults) - 1} more, e.g. {faults[1].key!r})" if len(faults) > 1 else ""
    first = faults[0]
    mend = "rename such with spatialdata.sanitize_table(adata)"
    if first.like in added:
        mend = f"rename it: adata.obs = adata.obs.rename(columns={{{first.key!r}: 'my_{first.key}'}})"
    why = "has other characters than letters, digits, underscores, dots and hyphens"
    if first.like:
        why = f"differs from {first.like!r} only in case"
    elif not isinstance(first.key, str):
        why = "is no text"
        mend = f"make it text: adata.{first.attribute}.columns = adata.{first.attribute}.columns.astype(str)"
    elif first.key.startswith("_"):
        why = "starts like a name of its own"
    msg = f"SpatialData cannot store {first.attribute}[{first.key!r}]{others}, whose name {why}; {mend}."
    raise ValueError(msg)


def _refuse_index_name(frame: pd.DataFrame, attribute: str) -> None:
    """An index that is named like a column of other values, which no file of AnnData can hold."""
    name = frame.index.name
    if name in frame.columns and list(frame[name]) != list(frame.index):
        msg = (
            f"The index of {attribute} is named {name!r} as a column of it is that holds something else, and could not be written; "
            f"take the name away: adata.{attribute}.index.name = None."
        )
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class _Fault:
    """A name that SpatialData refuses."""

    attribute: str
    """Part of the AnnData."""
    key: object
    """The name."""
    like: str = ""
    """Name that differs in case only, where that is the fault."""


def _faults(adata: AnnData, attribute: str, added: Sequence[str]) -> Iterator[_Fault]:
    keys = [key for key in getattr(adata, attribute) if not (attribute == "layers" and key is None)]
    taken = {key.lower(): key for key in added if key not in keys} if attribute == "obs" else {}
    for key in keys:
        lower = str(key).lower()
        if lower in taken:
            yield _Fault(attribute, key, like=taken[lower])
        elif not _is_storable(key, is_column=attribute in {"obs", "var"}):
            yield _Fault(attribute, key)
        taken.setdefault(lower, str(key))


def _is_storable(key: object, *, is_column: bool) -> bool:
    """Whether SpatialData takes a name."""
    if not isinstance(key, str) or not key or key in {".", ".."} or key.startswith("__"):
        return False
    return all(letter.isalnum() or letter in "_-." for letter in key) and not (is_column and key == "_index")


def refuse_shared_places(
    adata: AnnData, centres: FloatArray, array: FloatArray | None, *, rows: Any, name: str
) -> None:
    """Refuse a library in which two spots lie at one place, as those of two sections under one name do.

    Parameters
    ----------
    adata
        All spots.
    centres
        Their centres, (n_obs, 2).
    array
        Their places on the array, (n_obs, 2); None if unknown.
    rows
        Spots of the library, boolean (n_obs,).
    name
        The library.
    """
    for places, what in ((centres, "position"), *(((array, "place on the array"),) if array is not None else ())):
        own = pd.DataFrame(places[rows], index=adata.obs_names[rows])
        own = own[own.notna().all(axis=1)]
        repeated = own.duplicated(keep=False)
        if not repeated.any():
            continue
        tell = _columns_that_tell(adata.obs.loc[own.index], own)
        which = (
            f"library_key={tell[0]!r} tells them apart"
            if tell
            else "pass library_key=, a column of obs that tells them apart"
        )
        msg = (
            f"{int(repeated.sum())} of {len(own)} spots of {name!r} share their {what} with another, as the spots of several sections "
            f"under one name do: {which} (with image={{section: image}} where uns['spatial'] has one library); or drop repeated spots."
        )
        raise ValueError(msg)


def _columns_that_tell(obs: pd.DataFrame, places: pd.DataFrame) -> list[str]:
    """Columns of ``obs`` within each of whose values no place repeats."""
    few = [key for key in obs if isinstance(key, str) and 1 < obs[key].astype(str).nunique() <= _MOST_SECTIONS]
    return [key for key in few if not places.assign(value=obs[key].astype(str)).duplicated().any()]


def tell_transposed(adata: AnnData, centres: FloatArray, array: FloatArray | None, *, name: str) -> None:
    """Tell where rows of the array run along x and its columns along y, as where positions are stored as (row, column).

    Parameters
    ----------
    adata
        All spots; a data frame in ``obsm["spatial"]`` says by its columns which is which.
    centres
        Positions of the spots of a library, (n, 2).
    array
        Their rows and columns, (n, 2); None if unknown.
    name
        The library.
    """
    if array is None or isinstance(adata.obsm["spatial"], pd.DataFrame):
        return
    known = np.isfinite(centres).all(axis=1) & np.isfinite(array).all(axis=1)
    places, points = array[known], centres[known]
    if len(points) < _FEWEST or not places.std(axis=0).all() or not points.std(axis=0).all():
        return
    rows_along_x, columns_along_y = (pearsonr(places[:, axis], points[:, axis]).statistic for axis in (0, 1))
    if min(rows_along_x, columns_along_y) > _ALONG:
        logger.warning(
            "%s: rows of the array run along x and its columns along y, as where obsm['spatial'] holds (row, column) instead of (x, y). Look at "
            "agl_sc.pl.tiles; if they do not fit, swap them: adata.obsm['spatial'] = adata.obsm['spatial'][:, ::-1].copy()",
            name,
        )


def tell_outside_tissue(off: BoolArray) -> None:
    """Say how many spots are off tissue; they stay in the table."""
    n_outside = int(off.sum())
    if n_outside:
        logger.warning(
            "%d of %d spots lie outside the tissue (obs['in_tissue'] is 0) and stay in the table; drop them with "
            "adata[adata.obs['in_tissue'] == 1].copy() if they are not wanted",
            *(n_outside, len(off)),
        )
