"""The table of a SpatialData: its genes, regions, sections and counts."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from agl_sc.core.arrays import BoolArray, StrArray

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


GENES = "Gene Expression"
"""Type of the features that are genes, in files of 10x Genomics."""
X = "X"
"""What ``layer=`` calls X itself, where another layer was named earlier."""
_YES = ("1", "1.0", "true", "t", "yes", "y")
_NO = ("0", "0.0", "false", "f", "no", "n")
_UNSAID = ("", "nan", "na", "none", "<na>")
"""Spellings of a column that says yes or no, in lower case."""
_FEW = 100
"""Rows of a matrix that are looked at to see whether it may hold counts."""
_LARGEST = 2**31
IS_OF = "agl_sc_predictions_of"
"""Entry of ``uns`` by which a table of predictions is known: the name of the table whose spots they are of."""


def near_matches(names: Iterable[str], known: Iterable[str]) -> str:
    """``", did you mean A, B"`` for the names closest to the first of ``names``; empty when nothing is close."""
    lower = {str(name).lower(): str(name) for name in known}
    close = [lower[hit] for name in list(names)[:3] for hit in difflib.get_close_matches(str(name).lower(), lower, n=2)]
    return f"; did you mean {', '.join(dict.fromkeys(close))}" if close else ""


def get_table(sdata: "SpatialData", table_key: str | None) -> "AnnData":
    """Table of the SpatialData; the only one when ``table_key`` is None."""
    table = find_table(sdata, table_key)
    check_unique_genes(table)
    return table


def find_table(sdata: "SpatialData", table_key: str | None) -> "AnnData":
    """As :func:`get_table`, whatever its genes are."""
    name = name_of_table(sdata, table_key)
    table: AnnData = sdata.tables[name]
    return table


def name_of_table(sdata: "SpatialData", table_key: str | None, key_added: str | None = None) -> str:
    """Name of a table: as said, or the only one, or of several the only one in which an analysis has begun."""
    from spatialdata import SpatialData

    if not isinstance(sdata, SpatialData):
        msg = (
            f"sdata is a {type(sdata).__name__}, not a SpatialData; read sections with agl_sc.io, "
            "or convert an AnnData with agl_sc.io.from_anndata."
        )
        raise TypeError(msg)
    tables = [name for name in sorted(sdata.tables) if name == table_key or IS_OF not in sdata.tables[name].uns]
    if not tables:
        msg = "sdata has no table; add one that annotates the spots, e.g. with agl_sc.io.read_st or read_visium."
        raise KeyError(msg)
    if table_key is None and len(tables) > 1:
        prepared = [name for name in tables if key_added is not None and key_added in sdata.tables[name].uns]
        if len(prepared) == 1:
            return str(prepared[0])
        several = ", or put sections together with spatialdata.concatenate(..., concatenate_tables=True)"
        msg = f"sdata has several tables ({', '.join(tables)}); name one with table_key={several}."
        raise ValueError(msg)
    if table_key is not None and table_key not in tables:
        msg = f"table_key={table_key!r} is not in sdata; its tables are {', '.join(tables)}."
        raise KeyError(msg)
    return str(tables[0]) if table_key is None else table_key


def check_unique_genes(table: "AnnData") -> None:
    """Refuse a table in which a gene name stands twice."""
    if not table.var_names.is_unique:
        twice = sorted(set(table.var_names[table.var_names.duplicated()]))
        msg = (
            f"{len(twice)} gene names stand twice in the table ({', '.join(twice[:3])}); "
            "make them unique with table.var_names_make_unique(), or add their counts up with agl_sc.io.sum_duplicate_genes(table)."
        )
        raise ValueError(msg)


def check_features(table: "AnnData", name: str) -> None:
    """Refuse features that are no matrix of numbers, which agl_sc never writes."""
    if name not in table.obsm:
        return
    found = table.obsm[name]
    matrix = found if hasattr(found, "dtype") else np.asarray(found)
    if scipy.sparse.issparse(matrix) or matrix.dtype.kind not in "fiu" or matrix.ndim != 2 or not matrix.shape[1]:
        kind = "sparse matrix" if scipy.sparse.issparse(matrix) else f"array of {matrix.dtype}"
        msg = (
            f'obsm["{name}"] holds a {kind} of shape {matrix.shape}, not the features of every spot; '
            f'take it away with del table.obsm["{name}"], and run agl_sc.pp.embed(sdata).'
        )
        raise ValueError(msg)


def region_of(table: "AnnData") -> "pd.Series[str]":
    """Region of every spot, from ``uns["spatialdata_attrs"]``."""
    attrs = table.uns.get("spatialdata_attrs")
    keys = [attrs.get(key) for key in ("region_key", "instance_key")] if isinstance(attrs, Mapping) else [None]
    if not attrs or not all(isinstance(key, str) and key in table.obs for key in keys):
        msg = (
            'The table annotates no shapes (no uns["spatialdata_attrs"] with a region_key and an instance_key of obs); '
            "set it with spatialdata.models.TableModel.parse(table, region=, region_key=, instance_key=)."
        )
        raise ValueError(msg)
    regions: pd.Series[str] = table.obs[keys[0]].astype(str)
    return regions


def section_of(table: "AnnData") -> "pd.Series[str]":
    """Section of every spot: ``obs["section"]``, or the region where there is no such column, or where it is :func:`outdated`."""
    if "section" not in table.obs:
        return region_of(table)
    column = table.obs["section"]
    unnamed = column.isna() | column.astype(str).str.strip().str.lower().isin(("", "nan", "none", "<na>"))
    if unnamed.any():
        where = ", ".join(sorted(set(region_of(table)[unnamed])))
        msg = (
            f'obs["section"] is empty for {int(unnamed.sum())} spots (of {where}); name the section of every spot, '
            'or drop the column: table.obs = table.obs.drop(columns="section").'
        )
        raise ValueError(msg)
    named: pd.Series[str] = column.astype(str)
    old = outdated(table)
    return named.where(~old, region_of(table)) if old.any() else named


def as_text(column: "pd.Series[Any]") -> StrArray:
    """Values of a column, (n,), each as a text of its own: pandas 3 cuts all to their first letter where one is missing."""
    return np.array([str(value) for value in column], dtype=str)


def outdated(table: "AnnData") -> BoolArray:
    """Spots whose ``obs["section"]`` is of before spatialdata.concatenate renamed several regions S to S-a, S-b, (n_obs,)."""
    if "section" not in table.obs or "spatialdata_attrs" not in table.uns:
        return np.zeros(table.n_obs, dtype=bool)
    names, regions = table.obs["section"].astype(str), region_of(table)
    found: dict[str, set[str]] = {}
    for name, region in set(zip(names, regions, strict=True)):
        found.setdefault(name, set()).add(region)
    renamed = [
        name for name, of in found.items() if len(of) > 1 and all(region.startswith(f"{name}-") for region in of)
    ]
    old: BoolArray = names.isin(renamed).to_numpy(dtype=bool)
    return old


def off_tissue(obs: "pd.DataFrame") -> BoolArray:
    """Spots that are not on tissue by ``in_tissue``, (n_obs,); none where nobody says, nor where an entry is missing.

    Parameters
    ----------
    obs
        Columns of the spots.

    Raises
    ------
    ValueError
        The column holds something else than yes and no in one of their usual spellings.
    """
    if "in_tissue" not in obs:
        return np.zeros(len(obs), dtype=bool)
    said = obs["in_tissue"].astype(str).str.strip().str.lower()
    odd = ~said.isin((*_YES, *_NO, *_UNSAID)) & obs["in_tissue"].notna()
    if odd.any():
        msg = (
            f"obs['in_tissue'] holds {str(obs['in_tissue'][odd].iloc[0])!r} for {int((said == said[odd].iloc[0]).sum())} of {len(obs)} spots; it must be "
            "1 in tissue and 0 outside: correct it, or rename the column."
        )
        raise ValueError(msg)
    off: BoolArray = said.isin(_NO).to_numpy()
    return off


def counts_of(table: "AnnData", layer: str | None) -> scipy.sparse.csr_matrix:
    """Raw counts of the table as CSR float32, (n_spots, n_genes); anything that is not raw counts is refused.

    Parameters
    ----------
    table
        The table.
    layer
        Layer with raw counts; X by default.
    """
    if layer not in (None, X) and layer not in table.layers:
        msg = f"layer={layer!r} is not in the table; its layers are {', '.join(name for name in table.layers if name) or 'none'} (None means X)."
        raise KeyError(msg)
    _refuse_other_features(table)
    is_layer = layer is not None and layer in table.layers
    matrix = table.layers[layer] if is_layer else table.X
    where = f"layers[{layer!r}]" if is_layer else "X"
    if matrix is None:
        msg = "The table has no X; pass layer= with the layer of raw counts."
        raise ValueError(msg)
    counts = canonical(matrix, where)
    values = counts.data
    if not np.isfinite(values).all():
        fault = "NaN or infinite values"
    elif (values < 0).any():
        fault = "negative values"
    elif (values != np.round(values)).any():
        fault = "values that are not whole numbers, as after normalisation"
    elif (values > _LARGEST).any():
        fault = f"values above {_LARGEST:,}, as no spot has counts"
    else:
        return counts
    msg = f"{where} holds {fault}; raw counts are needed, {_counts_elsewhere(table, layer if is_layer else X)}."
    raise ValueError(msg)


def _refuse_other_features(table: "AnnData") -> None:
    """Refuse antibodies, control probes and the like beside genes, by the column of ``var`` that 10x Genomics' files have."""
    for key in ("feature_types", "feature_type"):
        kinds = table.var[key].astype(str) if key in table.var else None
        if kinds is not None and 0 < (kinds == GENES).sum() < len(kinds):
            others = ", ".join(f"{n} of {kind}" for kind, n in kinds[kinds != GENES].value_counts().items())
            msg = (
                f"var[{key!r}] names features that are no genes ({others}), whose counts would count as those of genes; keep genes alone: "
                f"table[:, table.var[{key!r}] == {GENES!r}].copy()."
            )
            raise ValueError(msg)


def _counts_elsewhere(table: "AnnData", asked: str | None) -> str:
    """What to do where the matrix asked for holds no counts."""
    stored = {name: table.layers[name] for name in table.layers if name} | ({} if table.X is None else {X: table.X})
    named = [name for name, matrix in stored.items() if name != asked and _are_whole(matrix)]
    if named:
        return f"pass layer={named[0]!r}, which has whole numbers"
    raw = table.raw
    if raw is not None and table.var_names.isin(raw.var_names).all() and _are_whole(raw.X):
        return "which raw has: table.layers['counts'] = table.raw[:, table.var_names].X, then layer='counts'"
    return "and no layer has them: put them into table.layers['counts'], and pass layer='counts'"


def _are_whole(matrix: Any) -> bool:
    """Whether the first rows of a matrix hold whole, non-negative numbers."""
    try:
        values = canonical(matrix[:_FEW]).data
    except TypeError:
        return False
    return bool((np.isfinite(values) & (values >= 0) & (values == np.round(values))).all())


def in_memory(matrix: Any) -> Any:
    """A SciPy sparse matrix as it is, anything else that AnnData holds as that or a NumPy array; what is lazy is read."""
    loaded = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix
    if hasattr(loaded, "compute"):
        loaded = loaded.compute()
    if scipy.sparse.issparse(loaded):
        return loaded
    return np.asarray(loaded[()] if hasattr(loaded, "chunks") else loaded)


def canonical(matrix: Any, where: str = "X") -> scipy.sparse.csr_matrix:
    """Any matrix that AnnData holds as a CSR of float32, without repeated entries, stored zeros or disorder.

    One that is so already is not copied, and can be read alone.

    Parameters
    ----------
    matrix
        NumPy, SciPy sparse, or of these a lazy one: on disk (backed AnnData), of h5py, zarr or dask.
    where
        What the message calls it.

    Raises
    ------
    TypeError
        It is something else, or holds something else than numbers.
    """
    loaded = in_memory(matrix)
    if loaded.dtype.kind not in "buif" or loaded.ndim != 2:
        msg = f"{where} holds {loaded.dtype} of shape {loaded.shape}, not a matrix of numbers; raw counts are needed."
        raise TypeError(msg)
    if scipy.sparse.issparse(loaded) and loaded.format == "csr" and loaded.dtype == np.float32:
        parts = tuple(np.asarray(part).view() for part in (loaded.data, loaded.indices, loaded.indptr))
        shared = scipy.sparse.csr_matrix(parts, shape=loaded.shape, copy=False)
        if shared.has_canonical_format and bool((shared.data != 0).all()):
            for part in (shared.data, shared.indices, shared.indptr):
                part.flags.writeable = False
            return shared
    counts = scipy.sparse.csr_matrix(loaded, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts
