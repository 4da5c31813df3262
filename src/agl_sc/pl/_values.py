"""What figures of predictions are made of: checked genes and sections, measured and predicted expression, and its spots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from agl_sc._sdata.genes import find_genes, near_genes, own_names
from agl_sc._sdata.keys import Keys
from agl_sc._sdata.predictions import Prediction, genes_table, predicted_of
from agl_sc._sdata.records import HeldOutRecord, remembered
from agl_sc._sdata.sections import Names, Section
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import near_matches, region_of
from agl_sc.core.arrays import BoolArray, FloatArray
from agl_sc.core.numerics.constant import constant
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.tl._model.belongs import (
    check_belongs,
    chosen_sections,
    listed,
    oof_method,
)

if TYPE_CHECKING:
    from anndata import AnnData


SEEN = {"train": "training", "validation": "validation", "unused": "unused"}
"""Splits other than test, and what a title calls them."""
_SHOWN = 3
_UNITS = {"log1p_cp10k": "log1p(CP10k)", "log1p": "log1p(counts)"}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Expression of the chosen genes in some spots."""

    measured: FloatArray
    """(n_spots, n_genes), in the units of the prediction; NaN where nothing was measured."""
    predicted: FloatArray
    """(n_spots, n_genes), NaN where there is no prediction."""
    split: NDArray[np.object_]
    """(n_spots,), ``"test"`` or a key of ``SEEN``."""
    n_folds: int = 0
    """Folds in which the spots were test, of out-of-fold predictions; 0 of those of one model."""
    method: str = ""
    """What out-of-fold predictions are of, where that is recorded."""
    held_out: FloatArray | None = None
    """Held-out Pearson correlation of every gene in the training of the model, (n_genes,); None where nobody knows."""
    held_out_on: str = ""
    """Sections that it is over, as a title says it."""

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to compare predictions with."""
        return bool(np.isfinite(self.measured).any())

    @property
    def out_of_fold(self) -> str:
        """Words for spots that were all predicted by models that had not seen them, and for the method of these."""
        n_folds = f"{self.n_folds} folds" if self.n_folds > 1 else ""
        return ", ".join(part for part in ("out of fold", n_folds, self.method) if part)

    def held_out_text(self, gene: int) -> list[str]:
        """What is to be expected of a gene, as lines of a title; none where nobody knows."""
        if self.held_out is None or not np.isfinite(self.held_out[gene]):
            return []
        return [f"held-out r = {round(float(self.held_out[gene]), 2) + 0.0:.2f} {self.held_out_on}".rstrip()]

    def scored(self, gene: int) -> tuple[BoolArray, str]:
        """Spots that a score of a gene is over, (n_spots,), and words for them: test spots where there are any."""
        known = np.isfinite(self.predicted[:, gene])
        if self.is_measured:
            known &= np.isfinite(self.measured[:, gene])
        if self.n_folds:
            return known, f"spots, {self.out_of_fold}"
        is_test = known & (self.split == "test")
        if is_test.any():
            return is_test, "test spots"
        seen = [word for name, word in SEEN.items() if (known & (self.split == name)).any()]
        return known, f"{' and '.join(seen)} spots"


def units_of(study: Study) -> str:
    """What an axis calls expression in the units of the prediction."""
    normalize = study.normalize
    return _UNITS.get(normalize, normalize)


def pearson_text(measured: FloatArray, predicted: FloatArray) -> str:
    """Pearson correlation as a title gives it."""
    if len(measured) < 2 or constant(np.column_stack([measured, predicted])).any():
        return "r undefined"
    r = np.corrcoef(measured, predicted)[0, 1]
    return f"r = {round(float(r), 2) + 0.0:.2f}"


def check_genes(study: Study, genes: str | Sequence[str], prediction: Prediction) -> list[str]:
    """The table's own names of the genes to draw, all of them predicted."""
    found, table = predicted_of(study, prediction), genes_table(study, prediction)
    wanted = listed(genes, "genes")
    columns = find_genes(table, wanted)
    unknown = [name for name, column in zip(wanted, columns, strict=True) if column < 0]
    if unknown:
        msg = f"Gene {unknown[0]!r} is not in the table{near_genes(table, unknown)}."
        raise KeyError(msg)
    names = own_names(table, wanted)
    is_missing = np.asarray(np.isnan(found.of(names)).all(axis=0))
    if is_missing.any():
        missing = [name for name, is_so in zip(names, is_missing, strict=True) if is_so]
        available = found.known
        msg = (
            f"Gene {missing[0]!r} was not predicted: {found.slot} holds predictions of {len(available)} "
            f"other genes{near_matches(missing, available)}."
        )
        raise ValueError(msg)
    return names


def parts_of(study: Study, sections: Names, *, need_image: bool = False) -> list[Section]:
    """The sections that are asked for, each as the part of its region that it is; other regions are not looked at."""
    parts, chosen = [], chosen_sections(study, sections)
    of_spots = region_of(study.table).to_numpy(dtype=str)
    wanted = study.of_regions(sorted({str(name) for _, rows in chosen for name in np.unique(of_spots[rows])}))
    regions = wanted.imaged if need_image else wanted.pictured
    for name, rows in chosen:
        inside = [(region, np.isin(region.rows, rows)) for region in regions]
        found = [(region, spots) for region, spots in inside if spots.any()]
        for region, spots in found:
            parts.append(region.take(spots, name if len(found) == 1 else f"{name} ({region.name})"))
    return parts


def expression_of(
    study: Study,
    rows: Sequence[NDArray[np.int64]],
    genes: list[str],
    *,
    prediction: Prediction,
    may_lack_counts: bool = False,
) -> list[Comparison]:
    """Expression of genes in several sets of spots.

    Parameters
    ----------
    study
        With predictions.
    rows
        Rows of every set.
    genes
        Names of the genes.
    prediction
        Which predictions.
    may_lack_counts
        Whether a table without X is of spots where nothing was measured, rather than refused.
    """
    table, keys = study.table, study.keys
    predicted = predicted_of(study, prediction).of(genes)
    if prediction == "model":
        check_belongs(study)
    if may_lack_counts and study.address.layer is None and (table.X is None or table.n_vars == 0):
        measured = np.full((table.n_obs, len(genes)), np.nan)
    else:
        measured = _measured(study, table.var_names.get_indexer(genes))
    split, method = _split(table, keys), oof_method(study) if prediction == "oof" else ""
    scores, scored_on = _held_out(study, genes) if prediction == "model" else (None, "")
    found = []
    for chosen in rows:
        values = predicted[chosen].astype(np.float64)
        is_known = np.isfinite(values).any(axis=1)
        folds = table.obs[keys.fold].to_numpy()[chosen[is_known]] if prediction == "oof" else []
        n_folds = len(set(folds))
        found.append(Comparison(measured[chosen], values, split[chosen], n_folds, method, scores, scored_on))
    return found


def _held_out(study: Study, genes: list[str]) -> tuple[FloatArray | None, str]:
    """Held-out correlation of every gene in the training of the model, and the sections that it is over."""
    var, column = genes_table(study, "model").var, study.keys.held_out("pearson")
    said = remembered(study.table, study.keys, HeldOutRecord)
    listed_in = None if said is None else said.values.get("sections")
    if said is None or column not in var or not isinstance(listed_in, list | np.ndarray):
        return None, ""
    names = [str(name) for name in listed_in]
    within = "within " if said.values.get("by") == "block" else "on "
    listed = ", ".join(names) if len(names) <= _SHOWN else f"{len(names)} training sections"
    return var[column].reindex(genes).to_numpy(dtype=float), within + listed


def _measured(study: Study, columns: NDArray[np.int64]) -> FloatArray:
    """Normalised expression of some genes in all spots, (n_spots, n_genes), NaN in spots without a single count.

    The other genes enter as one, for the totals.
    """
    chosen = study.counts[:, columns]
    totals = np.asarray(study.counts.sum(axis=1))
    others = totals - np.asarray(chosen.sum(axis=1))
    reduced = scipy.sparse.csr_matrix(scipy.sparse.hstack([chosen, others]))
    expression = normalize_counts(reduced, study.normalize)[:, : len(columns)]
    measured: FloatArray = expression.toarray().astype(np.float64)
    measured[totals.ravel() == 0] = np.nan
    return measured


def _split(table: "AnnData", keys: Keys) -> NDArray[np.object_]:
    """Split of every spot; spots of which nothing is recorded were not in training."""
    if keys.split not in table.obs:
        return np.full(table.n_obs, "test", dtype=object)
    split: NDArray[np.object_] = table.obs[keys.split].astype(str).to_numpy(dtype=object)
    return np.where(np.isin(split, list(SEEN)), split, "test")
