"""Per-gene metrics of predictions against measurements."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.record import recorded
from agl_sc._sdata.table import counts_of, get_table, section_of
from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.metrics import overall_gene_structure, top_genes
from agl_sc.core.evaluation.noise_ceiling import RawCounts
from agl_sc.core.evaluation.section_metrics import NAMES, SPATIAL, check_names, section_metrics
from agl_sc.core.evaluation.shift_test import combined_p_values, false_discovery_rate
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.pp._genes.targets_and_ranks import normalize_of, places, role_of
from agl_sc.pp._splits.split import split_of
from agl_sc.pp._splits.units import SETS

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
_N_BEST = 5


@dataclass(frozen=True, eq=False)
class Measured:
    """What predictions are compared with."""

    counts: scipy.sparse.csr_matrix
    """Raw, (n_obs, n_genes)."""
    normalize: Callable[[scipy.sparse.csr_matrix], scipy.sparse.csr_matrix]
    """From counts of all genes to the units of the predictions."""
    sections: NDArray[Any]
    """Section of every spot, (n_obs,)."""
    lattices: Mapping[str, Lattice]
    """Of the spots of every section that lies on one, where metrics ask for it."""

    @cached_property
    def expression(self) -> scipy.sparse.csr_matrix:
        """In the units of the predictions, (n_obs, n_genes)."""
        return self.normalize(self.counts)

    @cached_property
    def library(self) -> NDArray[np.float64]:
        """Total counts of every spot, (n_obs,)."""
        return np.asarray(self.counts.sum(axis=1), dtype=float).ravel()

    def metrics(
        self,
        predicted: NDArray[Any],
        *,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        names: Sequence[str],
        seed: int = 0,
    ) -> pd.DataFrame:
        """Metrics of predictions (n_rows, n_columns) of some genes in some spots of one section, a row per gene."""
        section = self.sections[rows[0]]
        lattice = self.lattices.get(section)
        if lattice is not None:
            lattice = lattice.take(np.isin(np.flatnonzero(self.sections == section), rows))
        counts = RawCounts(self.counts[rows][:, columns], self.library[rows], self.normalize)
        measured = self.expression[rows][:, columns].toarray()
        return section_metrics(measured, predicted, names=names, lattice=lattice, counts=counts, seed=seed)


def evaluate(
    sdata: "SpatialData",
    *,
    on: str = "test",
    metrics: Sequence[str] | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    key_added: str = "agl",
    seed: int = 0,
) -> pd.DataFrame:
    """Compare predicted with measured expression of the target genes, section by section.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections. Predictions are there already.
    on
        Spots to evaluate: ``"test"``, ``"validation"`` or ``"train"``; only test spots are evidence.
    metrics
        Metrics to compute. All if None. Over the spots of a section: ``"pearson"``, ``"spearman"``, ``"mse"`` (in squared
        units of the layer), ``"r2"``, ``"concordance"`` (Lin's), ``"variance_ratio"`` (predicted over measured variance,
        below 1 where a prediction is too smooth) and ``"gene_structure"`` (correlation of a gene's correlations with the
        other genes). On the lattice of the spots: ``"ssim"``, ``"moran_ratio"`` (predicted over measured Moran's I),
        ``"p_value"`` (of Pearson > 0, by toroidal shifts, which respect spatial autocorrelation) and ``"fdr"``
        (Benjamini-Hochberg over the genes of the section). ``"noise_ceiling"``, the Pearson correlation that a perfect
        prediction could expect given the noise of the counts, and ``"pearson_of_ceiling"``, the share of it that is reached.
    table_key
        Table to use; the only one by default.
    layer
        Layer with raw counts; X by default.
    key_added
        Prefix of all slots.
    seed
        Seed of the count splitting behind the noise ceiling.

    Returns
    -------
    One row per section and target gene: section, gene, n_spots, and a column per metric; NaN where a metric is undefined,
    such as a correlation with a constant, how often is told in the log. With ``on="test"`` also writes
    ``var["agl_pearson"]`` and so forth, the means over the sections where a metric is defined; p-values of several
    sections are combined by twice their mean, and ``var["agl_fdr"]`` follows from these.

    Raises
    ------
    KeyError
        There are no predictions yet.
    ValueError
        There is no such spot or metric, or the predictions are in other units than are recorded now. A metric asked for by
        name needs positions and there are none.
    """
    table = get_table(sdata, table_key)
    keys = Keys(key_added)
    check_names(NAMES if metrics is None else metrics)
    names = list(NAMES if metrics is None else metrics)
    predicted, rows = _predictions(table, keys, on)
    genes = _evaluated_genes(table, keys, predicted)
    counts = counts_of(table, layer)
    normalize = partial(normalize_counts, normalize=normalize_of(table, keys))
    rows &= np.isfinite(predicted[:, genes]).any(axis=1)
    if not rows.any():
        msg = f'layers["{keys.layer}"] holds no prediction of a {on} spot; run agl_sc.tl.predict on all sections.'
        raise ValueError(msg)
    sections = section_of(table).to_numpy()
    lattices = lattices_of(sdata, table, optional=metrics is None) if set(names) & set(SPATIAL) else {}
    measured = Measured(counts, normalize, sections, lattices)
    computed = [*names, "p_value"] if "fdr" in names and "p_value" not in names else names
    tables = []
    for name in sorted(set(sections[rows])):
        inside = rows & (sections == name)
        pair = measured.expression[inside][:, genes].toarray(), predicted[np.ix_(inside, genes)]
        values = measured.metrics(pair[1], rows=np.flatnonzero(inside), columns=genes, names=computed, seed=seed)
        values.insert(0, "section", name)
        values.insert(1, "gene", table.var_names[genes])
        values.insert(2, "n_spots", int(inside.sum()))
        _tell(values, names, structure=overall_gene_structure(*pair))
        tables.append(values)
    result = pd.concat(tables, ignore_index=True)
    if on == "test":
        _write(table, keys, result, names=names)
    return result[["section", "gene", "n_spots", *names]]


def _predictions(table: "AnnData", keys: Keys, on: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The prediction layer, and which spots are asked for; refused where they cannot be compared with the counts."""
    if keys.layer not in table.layers:
        msg = f'layers["{keys.layer}"] is missing; run agl_sc.tl.train or agl_sc.tl.predict first.'
        raise KeyError(msg)
    if on not in SETS[:3]:
        msg = f"on={on!r} is not one of 'test', 'validation', 'train'."
        raise ValueError(msg)
    units, now = recorded(table, keys, "units"), normalize_of(table, keys)
    if units not in (None, now):
        msg = (
            f'layers["{keys.layer}"] was predicted in units of normalize={units!r}, but uns["{keys.uns}"]["params"] now records '
            f"{now!r}; run agl_sc.tl.train or agl_sc.tl.predict again, or agl_sc.pp.target_genes with normalize={units!r}."
        )
        raise ValueError(msg)
    rows: NDArray[np.bool_] = split_of(table, keys) == on
    if not rows.any():
        msg = f'obs["{keys.split}"] has no {on} spot; run agl_sc.pp.split(sdata, {on}=0.2) before training.'
        raise ValueError(msg)
    if on != "test":
        logger.warning("The model was fitted or chosen on %s spots: these numbers are not evidence.", on)
    return np.asarray(table.layers[keys.layer]), rows


def lattices_of(sdata: "SpatialData", table: "AnnData", *, optional: bool) -> dict[str, Lattice]:
    """Lattice of all spots of every section that lies on one; where positions are optional, none if nobody knows them."""
    try:
        centres, _ = places(sdata, table)
    except (KeyError, ValueError) as error:
        if not optional:
            raise
        logger.warning(
            "%s are undefined, for the positions of spots are unknown: %s", ", ".join(SPATIAL), error.args[0]
        )
        return {}
    names = section_of(table).to_numpy()
    found = {name: Lattice.fitted(centres[names == name]) for name in sorted(set(names))}
    without = [name for name, lattice in found.items() if lattice is None]
    if without:
        logger.warning("Spots of %s lie on no lattice: %s are undefined.", ", ".join(without), ", ".join(SPATIAL))
    return {name: lattice for name, lattice in found.items() if lattice is not None}


def _tell(values: pd.DataFrame, names: Sequence[str], structure: float) -> None:
    """What the table of a section does not say at a glance."""
    section = values["section"].iloc[0]
    undefined = {name: int(values[name].isna().sum()) for name in names}
    if any(undefined.values()):
        counted = ", ".join(f"{name} {n}" for name, n in undefined.items() if n)
        logger.warning("Undefined (NaN) in %s, of %d genes: %s.", section, len(values), counted)
    if "gene_structure" in names:
        logger.info("Gene-gene correlations of %s agree by %.2f.", section, structure)
    if "pearson" in names:
        best, mean = top_genes(values["pearson"].to_numpy(), values["gene"].tolist(), _N_BEST)
        logger.info("Best predicted in %s: %s (mean Pearson %.2f).", section, ", ".join(best), mean)


def _write(table: "AnnData", keys: Keys, result: pd.DataFrame, *, names: Sequence[str]) -> None:
    """Summaries over sections in ``var``."""
    by_gene = result.groupby("gene")
    summaries = {name: by_gene[name].mean() for name in names}
    if "p_value" in result:
        p_values = result.pivot(index="section", columns="gene", values="p_value")
        combined = combined_p_values(p_values.to_numpy())
        summaries["p_value"] = pd.Series(combined, index=p_values.columns)
        summaries["fdr"] = pd.Series(false_discovery_rate(combined), index=p_values.columns)
    for name in names:
        table.var[keys.metric(name)] = summaries[name].reindex(table.var_names).to_numpy()
    logger.info('Wrote var["%s"] and %d more metrics.', keys.metric(names[0]), len(names) - 1)


def _evaluated_genes(table: "AnnData", keys: Keys, predicted: NDArray[np.float32]) -> NDArray[np.int64]:
    """Predicted target genes, or all predicted genes where the table has no roles."""
    known = np.isfinite(predicted).any(axis=0)
    if keys.role in table.var:
        known &= role_of(table, keys) == "target"
    if not known.any():
        msg = f'layers["{keys.layer}"] holds no prediction of a target gene; run agl_sc.tl.train or agl_sc.tl.predict again.'
        raise ValueError(msg)
    return np.flatnonzero(known)
