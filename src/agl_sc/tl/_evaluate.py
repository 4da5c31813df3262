"""Per-gene metrics of predictions against measurements."""

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agl_sc._boundary import counts_of, get_table, section_of
from agl_sc._keys import Keys
from agl_sc.core import metrics
from agl_sc.pp._genes import normalize_counts, normalize_of, role_of
from agl_sc.pp._split import split_of
from agl_sc.pp._units import SETS

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


METRICS = {"pearson": metrics.pearson, "spearman": metrics.spearman, "mse": metrics.mse}

logger = logging.getLogger(__name__)


def evaluate(
    sdata: "SpatialData",
    *,
    on: str = "test",
    table_key: str | None = None,
    layer: str | None = None,
    key_added: str = "agl",
) -> pd.DataFrame:
    """Compare predicted with measured expression of the target genes, section by section.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections. Predictions are there already.
    on
        Spots to evaluate: ``"test"``, ``"validation"`` or ``"train"``; only test spots are evidence.
    table_key
        Table to use; the only one by default.
    layer
        Layer with raw counts; X by default.
    key_added
        Prefix of all slots.

    Returns
    -------
    One row per section and target gene: section, gene, n_spots, pearson, spearman, and mse in squared units of the layer;
    NaN where a metric is undefined. With ``on="test"`` also writes ``var["agl_pearson"]``, ``var["agl_spearman"]`` and
    ``var["agl_mse"]``, their means over sections.

    Raises
    ------
    KeyError
        There are no predictions yet.
    ValueError
        There is no such spot.
    """
    table = get_table(sdata, table_key)
    keys = Keys(key_added)
    if keys.layer not in table.layers:
        msg = f'layers["{keys.layer}"] is missing; run agl_sc.tl.train or agl_sc.tl.predict first.'
        raise KeyError(msg)
    if on not in SETS[:3]:
        msg = f"on={on!r} is not one of 'test', 'validation', 'train'."
        raise ValueError(msg)
    rows = split_of(table, keys) == on
    if not rows.any():
        msg = f'obs["{keys.split}"] has no {on} spot; run agl_sc.pp.split(sdata, {on}=0.2) before training.'
        raise ValueError(msg)
    if on != "test":
        logger.warning("The model was fitted or chosen on %s spots: these numbers are not evidence.", on)
    predicted = np.asarray(table.layers[keys.layer])
    genes = _evaluated_genes(table, keys, predicted)
    measured = normalize_counts(counts_of(table, layer), normalize_of(table, keys))
    names = section_of(table).to_numpy()
    has_prediction = np.isfinite(predicted[:, genes]).any(axis=1)
    if not (rows & has_prediction).any():
        msg = f'layers["{keys.layer}"] holds no prediction of a {on} spot; run agl_sc.tl.predict on all sections.'
        raise ValueError(msg)
    tables = []
    for name in sorted(set(names[rows & has_prediction])):
        inside = rows & (names == name) & has_prediction
        pair = measured[inside][:, genes].toarray(), predicted[np.ix_(inside, genes)]
        columns = {metric: compute(*pair) for metric, compute in METRICS.items()}
        tables.append(
            pd.DataFrame({"section": name, "gene": table.var_names[genes], "n_spots": int(inside.sum()), **columns})
        )
    result = pd.concat(tables, ignore_index=True)
    if on == "test":
        for metric in METRICS:
            table.var[keys.metric(metric)] = result.groupby("gene")[metric].mean().reindex(table.var_names).to_numpy()
        logger.info('Wrote var["%s"] and %d more metrics.', keys.metric("pearson"), len(METRICS) - 1)
    return result


def _evaluated_genes(table: "AnnData", keys: Keys, predicted: NDArray[np.float32]) -> NDArray[np.int64]:
    """Predicted target genes, or all predicted genes where the table has no roles."""
    known = np.isfinite(predicted).any(axis=0)
    if keys.role in table.var:
        known &= role_of(table, keys) == "target"
    if not known.any():
        msg = f'layers["{keys.layer}"] holds no prediction of a target gene; run agl_sc.tl.train or agl_sc.tl.predict again.'
        raise ValueError(msg)
    return np.flatnonzero(known)
