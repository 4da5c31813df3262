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

from agl_sc._sdata.predictions import Predicted, Prediction, predicted_of
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import check_names as check_arguments
from agl_sc.core.arguments import check_seed
from agl_sc.core.evaluation.between import FEWEST_SECTIONS, pearson_between
from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.metrics import overall_gene_structure, top_genes
from agl_sc.core.evaluation.noise_ceiling import RawCounts
from agl_sc.core.evaluation.section_metrics import (
    BETWEEN,
    COVERAGE,
    NAMES,
    SPATIAL,
    check_names,
    section_metrics,
)
from agl_sc.core.evaluation.shift_test import combined_p_values, false_discovery_rate
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.pp._genes.targets_and_ranks import positions_of, role_of
from agl_sc.pp._splits.split import assigned_in
from agl_sc.pp._splits.units import SETS
from agl_sc.tl._model.belongs import (
    check_belongs,
    chosen_sections,
    metric_column,
    oof_method,
)
from agl_sc.tl._model.coverage import coverage_of, intervals_in

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
_N_BEST = 5


@dataclass(frozen=True, eq=False)
class Measured:
    """What predictions are compared with."""

    counts: scipy.sparse.csr_matrix
    """Raw counts, (n_obs, n_genes)."""
    normalize: Callable[[scipy.sparse.csr_matrix], scipy.sparse.csr_matrix]
    """From counts of all genes to the units of the predictions."""
    sections: NDArray[Any]
    """Section of every spot, (n_obs,)."""
    lattices: Mapping[str, Lattice]
    """Lattice of the spots of every section that lies on one, where metrics ask for it."""

    def of(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> scipy.sparse.csr_matrix:
        """Measured expression of some genes in some spots, in the units of the predictions, (n_rows, n_columns)."""
        return self.normalize(self.counts[rows])[:, columns]

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
        measured = self.of(rows, columns).toarray()
        return section_metrics(measured, predicted, names=names, lattice=lattice, counts=counts, seed=seed)


def evaluate(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    *,
    on: str = "test",
    prediction: Prediction = "model",
    sections: Names = None,
    metrics: Sequence[str] | None = None,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
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
        Spots to evaluate: ``"test"``, ``"validation"`` or ``"train"``; only test spots are evidence. Out-of-fold predictions
        are all of test spots.
    prediction
        ``"model"`` for the predictions of one model, or ``"oof"`` for those out of fold that
        ``agl_sc.tl.cross_validate`` wrote, each by a model that had not seen the spot.
    sections
        Name or names of the sections to use; all by default.
    metrics
        Metrics to compute. All if None. Over the spots of a section: ``"pearson"``, ``"spearman"``, ``"mse"`` (in squared
        units of the layer), ``"r2"``, ``"concordance"`` (Lin's), ``"variance_ratio"`` (predicted over measured variance,
        below 1 where a prediction is too smooth) and ``"gene_structure"`` (correlation of a gene's correlations with the
        other genes). ``"pearson_beyond_depth"``, the partial Pearson correlation given the log of the total counts: 0 for a
        gene of which nothing but the depth of its spots is predicted. On the lattice of the spots: ``"ssim"``, ``"moran_ratio"`` (predicted over measured Moran's I),
        ``"p_value"`` (of Pearson > 0, by toroidal shifts, which respect spatial autocorrelation) and ``"fdr"``
        (Benjamini-Hochberg over the genes of the section). ``"noise_ceiling"``, the Pearson correlation that a perfect
        prediction could expect given the noise of the counts, and ``"pearson_of_ceiling"``, the share of it that is reached.
        Between sections: ``"pearson_between"``, of the means over the spots of every section, undefined with fewer than three.
        Where ``agl_sc.tl.predict`` wrote intervals also ``"coverage"``, the share of spots within them; of intervals that hold
        within a section alone, after its level is taken away from both.
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
    seed
        Seed of the count splitting behind the noise ceiling.

    Returns
    -------
    One row per section and target gene: section, gene, n_spots, and a column per metric; NaN where a metric is undefined,
    such as a correlation with a constant, how often is told in the log. Spots without a single count were not measured, and
    are left out. With ``on="test"`` and all sections also writes ``var["agl_pearson"]`` and so forth (out of fold
    ``var["agl_oof_pearson"]``), the means over the sections where a metric is defined; p-values of several
    sections are combined by twice their mean, and ``var["agl_fdr"]`` follows from these.

    Raises
    ------
    KeyError
        There are no predictions yet.
    ValueError
        There is no such spot or metric, or the predictions are in other units than are recorded now, or were made under
        another split. A metric asked for by name needs positions and there are none.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> scores = agl_sc.tl.evaluate(sdata, metrics=["pearson", "mse"])
    >>> list(scores)
    ['section', 'gene', 'n_spots', 'pearson', 'mse']
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
    return evaluate_study(study, on=on, prediction=prediction, sections=sections, metrics=metrics, seed=seed)


def evaluate_study(
    study: Study,
    *,
    on: str = "test",
    prediction: Prediction = "model",
    sections: Names = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    write: bool = True,
) -> pd.DataFrame:
    """As :func:`evaluate`, of what is resolved already; ``write`` says whether anything is written."""
    table = study.table
    check_seed(seed)
    names, with_coverage = _asked(study, metrics, prediction)
    found, rows = _predictions(study, on, prediction)
    genes = _evaluated_genes(study, found, prediction)
    predicted = found.of(table.var_names[genes])
    rows = rows & _in_sections(study, sections) & np.isfinite(predicted).any(axis=1)
    counts = study.counts
    if not rows.any():
        msg = f"{predicted_of(study, prediction).slot} holds no prediction of a {on} spot; run agl_sc.tl.predict on all sections."
        raise ValueError(msg)
    rows = _measured_spots(rows, counts, on)
    normalize = partial(normalize_counts, normalize=study.normalize)
    lattices = lattices_of(study, optional=metrics is None) if set(names) & set(SPATIAL) else {}
    measured = Measured(counts, normalize, study.section_names, lattices)
    computed = [*names, "p_value"] if "fdr" in names and "p_value" not in names else names
    tables, means = [], []
    for name in sorted(set(study.section_names[rows])):
        inside = rows & (study.section_names == name)
        at: dict[str, Any] = {"rows": np.flatnonzero(inside), "columns": genes}
        pair = measured.of(**at).toarray(), predicted[inside]
        values = (
            measured.metrics(pair[1], **at, names=computed, seed=seed)
            if computed
            else pd.DataFrame(index=range(len(genes)))
        )
        values.insert(0, "section", name)
        values.insert(1, "gene", table.var_names[genes])
        values.insert(2, "n_spots", int(inside.sum()))
        _tell(values, [each for each in names if each != BETWEEN], structure=overall_gene_structure(*pair))
        tables.append(values)
        if with_coverage:
            values[COVERAGE] = coverage_of(study, name, pair, rows=inside, genes=table.var_names[genes])
        means.append([each.mean(axis=0, dtype=float) for each in pair])
    result = pd.concat(tables, ignore_index=True)
    if BETWEEN in names:
        result[BETWEEN] = np.tile(_between(means), len(means))
    names += [COVERAGE] if with_coverage else []
    if write and on == "test" and sections is None:
        _write(study, result, names=names, prediction=prediction)
    return result[["section", "gene", "n_spots", *names]]


def _asked(study: Study, metrics: Sequence[str] | None, prediction: Prediction) -> tuple[list[str], bool]:
    """Metrics that are asked for without that of intervals, and whether it is; all there are by default."""
    check_arguments("metrics", metrics)
    has_intervals = isinstance(prediction, str) and prediction == "model" and intervals_in(study) is not None
    if metrics is None:
        return list(NAMES), has_intervals
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    asks = COVERAGE in names
    if asks and not has_intervals:
        msg = 'metrics="coverage" is that of intervals, and there are none; run agl_sc.tl.predict(sdata, model, interval=0.9) first.'
        raise ValueError(msg)
    rest = [name for name in names if name != COVERAGE]
    if rest or not asks:
        check_names(metrics if isinstance(metrics, str) else rest)
    return rest, asks


def _between(means: Sequence[Sequence[NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Pearson of every gene over sections, from the measured and predicted means of each; tells of it."""
    values = pearson_between(np.array([each[0] for each in means]), np.array([each[1] for each in means]))
    if len(means) < FEWEST_SECTIONS:
        logger.info(
            "Levels of sections cannot be compared: it takes %d, and %d were scored.", FEWEST_SECTIONS, len(means)
        )
    elif np.isfinite(values).any():
        told = "Between the levels (pseudobulk) of %d sections: mean Pearson %.2f."
        logger.info(told, len(means), np.nanmean(values))
    return values


def _in_sections(study: Study, sections: Names) -> NDArray[np.bool_]:
    """Spots of the sections that are asked for, (n_obs,)."""
    inside = np.zeros(study.table.n_obs, dtype=bool)
    for _, rows in chosen_sections(study, sections):
        inside[rows] = True
    return inside


def _measured_spots(rows: NDArray[np.bool_], counts: scipy.sparse.csr_matrix, on: str) -> NDArray[np.bool_]:
    """Without the spots that have no count: nothing was measured there."""
    empty = rows & (np.asarray(counts.sum(axis=1)).ravel() == 0)
    if empty.any():
        logger.warning(
            "%d %s spots have no counts: nothing was measured there, and they are left out.", empty.sum(), on
        )
    if not (rows & ~empty).any():
        msg = (
            f"None of the {int(rows.sum())} predicted {on} spots has a single count; there is nothing to compare with."
        )
        raise ValueError(msg)
    measured: NDArray[np.bool_] = rows & ~empty
    return measured


def _predictions(study: Study, on: str, prediction: Prediction) -> tuple[Predicted, NDArray[np.bool_]]:
    """The predictions, and which spots are asked for; refused where they cannot be compared with the counts."""
    table, keys = study.table, study.keys
    predicted = predicted_of(study, prediction)
    if not isinstance(on, str) or on not in SETS[:3]:
        msg = f"on={on!r} is not one of 'test', 'validation', 'train'."
        raise ValueError(msg)
    if prediction == "oof":
        if on != "test":
            msg = f"on={on!r} is asked of out-of-fold predictions, which are all of test spots; leave on= out."
            raise ValueError(msg)
        logger.info(
            "Evaluating the out-of-fold predictions of %s.", oof_method(study) or "a method that is not recorded"
        )
        return predicted, np.ones(table.n_obs, dtype=bool)
    check_belongs(study)
    rows: NDArray[np.bool_] = assigned_in(study) == on
    if not rows.any():
        msg = f'obs["{keys.split}"] has no {on} spot; run agl_sc.pp.split(sdata, {on}=0.2) before training.'
        raise ValueError(msg)
    if on != "test":
        logger.warning("The model was fitted or chosen on %s spots: these numbers are not evidence.", on)
    return predicted, rows


def lattices_of(study: Study, *, optional: bool) -> dict[str, Lattice]:
    """Lattice of all spots of every section that lies on one; where positions are optional, none if nobody knows them."""
    try:
        centres, _ = positions_of(study)
    except (KeyError, ValueError) as error:
        if not optional:
            raise
        logger.warning(
            "%s are undefined, for the positions of spots are unknown: %s", ", ".join(SPATIAL), error.args[0]
        )
        return {}
    names = study.section_names
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
    if "pearson" in names and "variance_ratio" in names:
        n_flat = int((values["pearson"].isna() & (values["variance_ratio"] == 0)).sum())
        if n_flat:
            logger.warning(
                "%d of %d genes are predicted the same at all spots of %s: their tiles tell nothing of them. Wider fields of view may, "
                "agl_sc.pp.embed with a larger tile_px= or context=.",
                *(n_flat, len(values), section),
            )
    if "gene_structure" in names:
        logger.info("Gene-gene correlations of %s agree by %.2f.", section, structure)
    if "pearson" in names:
        best, mean = top_genes(values["pearson"].to_numpy(), values["gene"].tolist(), _N_BEST)
        logger.info("Best predicted in %s: %s (mean Pearson %.2f).", section, ", ".join(best), mean)


def _write(study: Study, result: pd.DataFrame, *, names: Sequence[str], prediction: Prediction) -> None:
    """Summaries over sections in ``var``."""
    table = study.table
    by_gene = result.groupby("gene")
    summaries = {name: by_gene[name].mean() for name in names}
    if "p_value" in result:
        p_values = result.pivot(index="section", columns="gene", values="p_value")
        combined = combined_p_values(p_values.to_numpy())
        summaries["p_value"] = pd.Series(combined, index=p_values.columns)
        summaries["fdr"] = pd.Series(false_discovery_rate(combined), index=p_values.columns)
    for name in names:
        table.var[metric_column(study.keys, name, prediction)] = summaries[name].reindex(table.var_names).to_numpy()
    logger.info('Wrote var["%s"] and %d more metrics.', metric_column(study.keys, names[0], prediction), len(names) - 1)


def _evaluated_genes(study: Study, predicted: Predicted, prediction: Prediction) -> NDArray[np.int64]:
    """Predicted target genes, or all predicted genes where the table has no roles, or out of fold."""
    known: NDArray[np.bool_] = study.table.var_names.isin(predicted.known)
    if prediction == "model" and study.keys.role in study.table.var:
        known &= role_of(study) == "target"
    if not known.any():
        msg = f"{predicted.slot} holds no prediction of a target gene; run agl_sc.tl.train or agl_sc.tl.predict again."
        raise ValueError(msg)
    return np.flatnonzero(known)
