"""Where predictions are: a layer of the table, or a table of their own where the layer would cost more than the counts."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from agl_sc._sdata.interval import IntervalRecord
from agl_sc._sdata.records import OwnTablesRecord, forget, remember, remembered
from agl_sc._sdata.table import IS_OF, X
from agl_sc.core.arguments import check_choice
from agl_sc.core.numerics.memory import memory
from agl_sc.core.spots.scaling import row_slices

if TYPE_CHECKING:
    from anndata import AnnData

    from agl_sc._sdata.study import Study

Prediction = Literal["model", "oof"]
WriteTo = Literal["auto", "layer", "table"]

SMALL_LAYER = 256 * 2**20
"""Bytes that a layer of predictions may take whatever the counts take."""

_SOURCES = {"model": "agl_sc.tl.train or agl_sc.tl.predict", "oof": "agl_sc.tl.cross_validate"}

Block = tuple[Any, Sequence[str], NDArray[np.floating[Any]]]
"""Rows, names of genes, and what is predicted of them, (n_rows, n_genes)."""


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Predictions in place, wherever they are."""

    values: NDArray[np.float32]
    """Of every spot of the table, (n_obs, n_genes); NaN where nothing is predicted."""
    genes: "pd.Index[str]"
    """Names of the columns, as the table calls them, (n_genes,)."""
    slot: str
    """What a message calls the place."""

    def of(self, genes: Any) -> NDArray[np.float32]:
        """Predictions of some genes by name, (n_obs, n), NaN for those that are not predicted."""
        wanted = pd.Index(genes)
        if wanted.equals(self.genes):
            return self.values
        return _taken(self.values, self.genes.get_indexer(wanted), axis=1)

    @property
    def known(self) -> "pd.Index[str]":
        """Genes with a prediction in any spot."""
        found = np.zeros(len(self.genes), dtype=bool)
        for rows in row_slices(*self.values.shape):
            found |= ~np.isnan(self.values[rows]).all(axis=0)
        return self.genes[found]


def predicted_of(study: "Study", prediction: Prediction) -> Predicted:
    """Predictions of one model, or out of fold, from the layer or from the table of their own.

    Raises
    ------
    KeyError
        There are none, or out of fold nobody knows the folds.
    ValueError
        What is there are no predictions, or those of other spots.
    """
    check_choice("prediction", prediction, get_args(Prediction))
    table, keys, source = study.table, study.keys, _SOURCES[prediction]
    layer, own = _layer_of(study, prediction), own_table(study, prediction)
    if layer not in table.layers and own is None:
        msg = f'layers["{layer}"] is missing; run {source} first.'
        raise KeyError(msg)
    if prediction == "oof" and keys.fold not in table.obs:
        msg = f'obs["{keys.fold}"] is missing, the fold in which a spot was test; run {source} again.'
        raise KeyError(msg)
    slot = f'layers["{layer}"]' if own is None else f'sdata.tables["{_own_name(study, prediction)}"]'
    values = table.layers[layer] if own is None else own.X
    is_dense = values is not None and not scipy.sparse.issparse(values) and values.dtype.kind == "f"
    if not is_dense or any(np.isinf(values[rows]).any() for rows in row_slices(*values.shape)):
        msg = f"{slot} holds no predictions that agl_sc wrote (dense, decimal, finite or NaN); run {source} again, or pass another key_added."
        raise ValueError(msg)
    if own is None:
        return Predicted(np.asarray(values), table.var_names, slot)
    return Predicted(_in_rows(study, own, np.asarray(own.X), slot=slot, source=source), own.var_names, slot)


def own_table(study: "Study", prediction: Prediction) -> "AnnData | None":
    """The table that predictions have of their own; None where they are a layer, or there are none."""
    name = _own_name(study, prediction)
    if _layer_of(study, prediction) in study.table.layers or name not in study.sdata.tables:
        return None
    found: AnnData = study.sdata.tables[name]
    return found


def genes_table(study: "Study", prediction: Prediction) -> "AnnData":
    """The table whose ``var`` describes genes: the main one, or that of the predictions where the main one has no genes."""
    own = own_table(study, prediction) if study.table.n_vars == 0 else None
    return study.table if own is None else own


def write_predicted(study: "Study", prediction: Prediction, *, genes: Sequence[str], blocks: Iterable[Block]) -> str:
    """Write predictions where they belong, and take those of the same kind away from the other place.

    Parameters
    ----------
    study
        Says where to: ``study.write_to``.
    prediction
        Of one model, or out of fold.
    genes
        Names of all genes that are predicted, as the table calls them.
    blocks
        Some rows and genes after the others.

    Returns
    -------
    What a message calls the place.
    """
    genes = list(dict.fromkeys(genes))
    as_layer = is_layer(study, genes)
    columns = study.table.var_names if as_layer else pd.Index(genes)
    _check_fits(study, len(columns))
    values = np.full((study.table.n_obs, len(columns)), np.nan, dtype=np.float32)
    for rows, names, block in blocks:
        where = columns.get_indexer(pd.Index(names))
        if isinstance(rows, slice):
            values[rows, where] = block
        else:
            values[np.ix_(rows, where)] = block
    forget_predicted(study, prediction)
    layer = _layer_of(study, prediction)
    if as_layer:
        study.table.layers[layer] = values
        return f'layers["{layer}"]'
    name = {"model": study.keys.prediction_table, "oof": study.keys.oof_table}[prediction]
    put_table(study, name, _own(study, values, columns))
    before = remembered(study.table, study.keys, OwnTablesRecord) or OwnTablesRecord({})
    remember(study.table, study.keys, OwnTablesRecord({**before.by, prediction: name}))
    return f'sdata.tables["{name}"]'


def forget_predicted(study: "Study", prediction: Prediction) -> None:
    """Take predictions away from wherever they are."""
    layer, name = _layer_of(study, prediction), _own_name(study, prediction)
    beside = (study.keys.lower, study.keys.upper) if prediction == "model" else ()
    for each in {layer, *beside} & set(study.table.layers):
        del study.table.layers[each]
    if beside:
        forget(study.table, study.keys, IntervalRecord.entry)
    if name in study.sdata.tables:
        del study.sdata.tables[name]
    before = remembered(study.table, study.keys, OwnTablesRecord)
    if before is not None and prediction in before.by:
        left = {kind: table for kind, table in before.by.items() if kind != prediction}
        forget(study.table, study.keys, OwnTablesRecord.entry)
        if left:
            remember(study.table, study.keys, OwnTablesRecord(left))


def write_bounds(study: "Study", genes: Sequence[str], bounds: tuple[NDArray[np.float32], NDArray[np.float32]]) -> str:
    """Write lower and upper bounds, (n_obs, n_genes) each, beside the predictions of one model.

    Returns
    -------
    What a message calls the place.
    """
    own = own_table(study, "model")
    table = study.table if own is None else own
    for name, values in zip((study.keys.lower, study.keys.upper), bounds, strict=True):
        placed = np.full(table.shape, np.nan, dtype=np.float32)
        placed[:, table.var_names.get_indexer(pd.Index(genes))] = values
        table.layers[name] = placed
    return f'layers["{study.keys.lower}"] and ["{study.keys.upper}"]' + ("" if own is None else " of that table")


def bounds_of(study: "Study", genes: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Lower and upper bounds of some genes by name, (n_obs, n) each; None where there are none."""
    own, names = own_table(study, "model"), (study.keys.lower, study.keys.upper)
    table = study.table if own is None else own
    if not set(names) <= set(table.layers):
        return None
    lower, upper = (np.asarray(table.layers[name]) for name in names)
    if own is not None:
        slot, source = f'layers["{names[0]}"]', _SOURCES["model"]
        lower, upper = (_in_rows(study, own, values, slot=slot, source=source) for values in (lower, upper))
    columns = table.var_names.get_indexer(pd.Index(genes))
    return _taken(lower, columns, axis=1), _taken(upper, columns, axis=1)


def is_layer(study: "Study", genes: Sequence[str] | None = None) -> bool:
    """Whether predictions go to a layer of the table: as said, or where it costs no more than the counts do.

    A layer holds a number per spot and gene of the table, predicted or not. It stays below :data:`SMALL_LAYER`, where the
    counts take as much, and where all genes of the table are predicted.

    Parameters
    ----------
    study
        Whose table it is.
    genes
        Those that are predicted; None before that is known.
    """
    table = study.table
    if study.write_to != "auto":
        return study.write_to == "layer"
    if table.n_vars == 0:
        return False
    needed = 4 * table.n_obs * table.n_vars * study.n_layers
    return needed <= max(SMALL_LAYER, _counts_bytes(study)) or (genes is not None and len(genes) >= table.n_vars)


def check_place(study: "Study") -> None:
    """Refuse, before any work, a place that predictions could not be written to.

    Raises
    ------
    ValueError
        A layer is asked for of a table without genes, or would not fit into memory; or there is a table of that name that
        is not agl_sc's, or of another table's spots.
    """
    table, keys = study.table, study.keys
    check_choice("write_to", study.write_to, get_args(WriteTo))
    if is_layer(study):
        if table.n_vars == 0:
            msg = 'write_to="layer" needs a column for every gene, and the table has no genes; pass write_to="auto".'
            raise ValueError(msg)
        _check_fits(study, table.n_vars)
        return
    for name in (keys.prediction_table, keys.oof_table):
        if name in study.sdata.tables and IS_OF not in study.sdata.tables[name].uns:
            msg = f"sdata.tables[{name!r}] is not agl_sc's and would be overwritten by predictions; pass another key_added."
            raise ValueError(msg)
        if name in study.sdata.tables and study.sdata.tables[name].uns[IS_OF] != study.table_key:
            of = study.sdata.tables[name].uns[IS_OF]
            msg = f"sdata.tables[{name!r}] holds predictions of the table {of!r}, which would be lost; pass another key_added."
            raise ValueError(msg)


def _check_fits(study: "Study", n_genes: int) -> None:
    """Refuse predictions that the memory cannot hold."""
    needed, available = 4 * study.table.n_obs * n_genes * study.n_layers, memory().available
    if needed > available:
        own = f"sdata.tables[{study.table_key!r}]"
        msg = (
            f"Predictions of {study.table.n_obs:,} spots take a layer of {n_genes:,} genes, {needed / 1e9:.1f} GB of memory, and "
            f"{available / 1e9:.1f} GB are available; keep fewer genes or spots, such as {own} = {own}[:, genes].copy()."
        )
        raise ValueError(msg)


def _counts_bytes(study: "Study") -> int:
    """What the counts take in memory; 0 where there are none."""
    layer = study.address.layer
    found = study.table.X if layer in (None, X) else study.table.layers.get(layer)
    if scipy.sparse.issparse(found):
        parts = [getattr(found, name) for name in ("data", "indices", "indptr", "row", "col") if hasattr(found, name)]
        return sum(int(part.nbytes) for part in parts)
    return int(getattr(found, "nbytes", 0))


def _layer_of(study: "Study", prediction: Prediction) -> str:
    return study.keys.layer if prediction == "model" else study.keys.oof


def _own_name(study: "Study", prediction: Prediction) -> str:
    """Name of the table of their own that is recorded, or that would be."""
    found = remembered(study.table, study.keys, OwnTablesRecord)
    return "" if found is None else found.by.get(prediction, "")


def _own(study: "Study", values: NDArray[np.float32], genes: "pd.Index[str]") -> "AnnData":
    """Spots x predicted genes, annotating the same shapes."""
    from anndata import AnnData

    table = study.table
    attrs = table.uns["spatialdata_attrs"]
    kept = list(dict.fromkeys([attrs["region_key"], attrs["instance_key"], *({"section"} & set(table.obs))]))
    uns = {"spatialdata_attrs": dict(attrs), IS_OF: study.table_key}
    return AnnData(values, obs=table.obs[kept].copy(), var=pd.DataFrame(index=genes.astype(str)), uns=uns)


def put_table(study: "Study", name: str, table: "AnnData") -> None:
    """Add a table to the user's SpatialData, in place of one of that name."""
    with warnings.catch_warnings():  # of a region without shapes, which was told when sdata was made
        warnings.filterwarnings("ignore", message="The table is annotating", category=UserWarning)
        if name in study.sdata.tables:
            del study.sdata.tables[name]
        study.sdata.tables[name] = table


def _in_rows(
    study: "Study", own: "AnnData", values: NDArray[np.float32], *, slot: str, source: str
) -> NDArray[np.float32]:
    """Values of the own table in the order of the main one's spots, found by the shape that a spot annotates."""
    attrs = study.table.uns["spatialdata_attrs"]
    names = [attrs["region_key"], attrs["instance_key"]]
    if not set(names) <= set(own.obs):
        msg = f"{slot} does not say which shapes its rows are of (obs lacks {', '.join(names)}); run {source} again."
        raise ValueError(msg)
    here, there = (pd.MultiIndex.from_frame(each.obs[names].astype({names[0]: str})) for each in (study.table, own))
    if here.equals(there):
        return values
    if not there.is_unique:
        msg = f"{slot} has several rows of one shape, and other rows than the table; run {source} again."
        raise ValueError(msg)
    return _taken(values, there.get_indexer(here), axis=0)


def _taken(values: NDArray[np.float32], where: NDArray[np.int64], *, axis: int) -> NDArray[np.float32]:
    """Rows or columns by number, NaN for -1."""
    if not values.shape[axis]:
        shape = (len(where), values.shape[1]) if axis == 0 else (values.shape[0], len(where))
        return np.full(shape, np.nan, dtype=np.float32)
    found: NDArray[np.float32] = np.take(values, where, axis=axis)
    missing = where < 0
    found[(missing, slice(None)) if axis == 0 else (slice(None), missing)] = np.nan
    return found
