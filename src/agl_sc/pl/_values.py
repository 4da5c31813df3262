"""What figures of predictions are made of: checked genes and sections, measured and predicted expression, and its spots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.sections import Names
from agl_sc._sdata.table import counts_of, near_matches, region_of
from agl_sc.core.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from anndata import AnnData

Prediction = Literal["model", "oof"]

SEEN = {"train": "training", "validation": "validation", "unused": "unused"}
"""Splits other than test, and what a title calls them."""
_UNITS = {"log1p_cp10k": "log1p(CP10k)", "log1p": "log1p(counts)"}


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """Expression of the chosen genes in some spots."""

    measured: FloatArray
    """(n_spots, n_genes), in the units of the prediction; NaN where nothing was measured."""
    predicted: FloatArray
    """(n_spots, n_genes), NaN where there is no prediction."""
    split: NDArray[np.object_]
    """(n_spots,), ``"test"`` or a key of ``SEEN``."""
    n_folds: int = 0
    """Folds in which the spots were test, of out-of-fold predictions; 0 of those of one model."""

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to compare predictions with."""
        return bool(np.isfinite(self.measured).any())

    @property
    def out_of_fold(self) -> str:
        """Words for spots that were all predicted by models that had not seen them."""
        return "out of fold" if self.n_folds == 1 else f"out of fold, {self.n_folds} folds"

    def scored(self, gene: int) -> tuple[BoolArray, str]:
        """Spots that a score of a gene is over, (n_spots,), and words for them: test spots where there are any."""
        known = np.isfinite(self.predicted[:, gene])
        if self.n_folds:
            return known, f"spots, {self.out_of_fold}"
        is_test = known & (self.split == "test")
        if is_test.any():
            return is_test, "test spots"
        seen = [word for name, word in SEEN.items() if (known & (self.split == name)).any()]
        return known, f"{' and '.join(seen)} spots"


def units_of(table: "AnnData", keys: Keys) -> str:
    """What an axis calls expression in the units of the prediction."""
    from agl_sc.pp._genes.targets_and_ranks import normalize_of

    normalize = normalize_of(table, keys)
    return _UNITS.get(normalize, normalize)


def pearson_text(measured: FloatArray, predicted: FloatArray) -> str:
    """Pearson correlation as a title gives it."""
    if len(measured) < 2 or np.ptp(measured) == 0 or np.ptp(predicted) == 0:
        return "r undefined"
    r = np.corrcoef(measured, predicted)[0, 1]
    return f"r = {round(float(r), 2) + 0.0:.2f}"


def prediction_layer(table: "AnnData", keys: Keys, prediction: Prediction) -> str:
    """Layer that holds predictions of one model, or out of fold; refused when it is not there."""
    if prediction not in get_args(Prediction):
        msg = f"prediction={prediction!r} is not one of {', '.join(map(repr, get_args(Prediction)))}."
        raise ValueError(msg)
    layer, source = {
        "model": (keys.layer, "agl_sc.tl.train or agl_sc.tl.predict"),
        "oof": (keys.oof, "agl_sc.tl.cross_validate"),
    }[prediction]
    if layer not in table.layers:
        msg = (
            f'There is no prediction layers["{layer}"] in the table; make one with {source}, '
            "or name another with key_added=."
        )
        raise KeyError(msg)
    if prediction == "oof" and keys.fold not in table.obs:
        msg = f'obs["{keys.fold}"] is missing, the fold in which a spot was test; run {source} again.'
        raise KeyError(msg)
    return layer


def check_genes(table: "AnnData", genes: str | Sequence[str], layer: str) -> list[str]:
    """Genes to draw, all of them predicted in a layer."""
    names = listed(genes, "genes")
    unknown = [name for name in names if name not in table.var_names]
    if unknown:
        msg = f"Gene {unknown[0]!r} is not in the table{near_matches(unknown, table.var_names)}."
        raise KeyError(msg)
    predictions = np.asarray(table.layers[layer])
    columns = table.var_names.get_indexer(names)
    is_missing = np.isnan(predictions[:, columns]).all(axis=0)
    if is_missing.any():
        missing = [name for name, is_so in zip(names, is_missing, strict=True) if is_so]
        available = table.var_names[~np.isnan(predictions).all(axis=0)]
        msg = (
            f'Gene {missing[0]!r} was not predicted: layers["{layer}"] holds predictions of {len(available)} '
            f"other genes{near_matches(missing, available)}."
        )
        raise ValueError(msg)
    return names


def check_sections(table: "AnnData", sections: Names, shapes_key: Names = None) -> list[str] | None:
    """Regions to draw; None means what the boundary finds."""
    if sections is None:
        return None if shapes_key is None else listed(shapes_key, "shapes_key")
    names = listed(sections, "sections")
    known = sorted(set(region_of(table))) if shapes_key is None else listed(shapes_key, "shapes_key")
    unknown = [name for name in names if name not in known]
    if unknown:
        near = near_matches(unknown, known)
        msg = f"Section {unknown[0]!r} is not among the regions of the table: {', '.join(known)}{near}."
        raise KeyError(msg)
    return names


def listed(names: Iterable[Any], argument: str) -> list[str]:
    """Names as a list without repeats."""
    items = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if not items:
        msg = f"{argument} is empty; name at least one."
        raise ValueError(msg)
    strange = [name for name in items if not isinstance(name, str)]
    if strange:
        msg = f"{argument} holds {strange[0]!r}, a {type(strange[0]).__name__}; pass names."
        raise TypeError(msg)
    return list(dict.fromkeys(items))


def expression_of(
    table: "AnnData",
    rows: Sequence[NDArray[np.int64]],
    genes: list[str],
    *,
    keys: Keys,
    predictions: str,
    layer: str | None,
    may_lack_counts: bool = False,
) -> list[Expression]:
    """Expression of genes in several sets of spots.

    Parameters
    ----------
    table
        The table.
    rows
        Rows of every set.
    genes
        Names of the genes.
    keys
        Names of the slots.
    predictions
        Layer of the predictions, from :func:`prediction_layer`.
    layer
        Layer with raw counts; X by default.
    may_lack_counts
        Whether a table without X is of spots where nothing was measured, rather than refused.
    """
    columns = table.var_names.get_indexer(genes)
    if may_lack_counts and layer is None and table.X is None:
        measured = np.full((table.n_obs, len(genes)), np.nan)
    else:
        measured = _measured(table, columns, keys=keys, layer=layer)
    predicted = np.asarray(table.layers[predictions])
    split = _split(table, keys)
    found = []
    for chosen in rows:
        values = predicted[np.ix_(chosen, columns)].astype(np.float64)
        is_known = np.isfinite(values).any(axis=1)
        folds = table.obs[keys.fold].to_numpy()[chosen[is_known]] if predictions == keys.oof else []
        found.append(Expression(measured[chosen], values, split[chosen], n_folds=len(set(folds))))
    return found


def _measured(table: "AnnData", columns: NDArray[np.int64], *, keys: Keys, layer: str | None) -> FloatArray:
    """Normalised expression of some genes in all spots, (n_spots, n_genes); the others enter as one, for the totals."""
    from agl_sc.core.spots.genes import normalize_counts
    from agl_sc.pp._genes.targets_and_ranks import normalize_of

    counts = counts_of(table, layer)
    chosen = counts[:, columns]
    others = counts.sum(axis=1) - chosen.sum(axis=1)
    reduced = scipy.sparse.csr_matrix(scipy.sparse.hstack([chosen, others]))
    expression = normalize_counts(reduced, normalize_of(table, keys))[:, : len(columns)]
    measured: FloatArray = expression.toarray().astype(np.float64)
    return measured


def _split(table: "AnnData", keys: Keys) -> NDArray[np.object_]:
    """Split of every spot; spots of which nothing is recorded were not in training."""
    if keys.split not in table.obs:
        return np.full(table.n_obs, "test", dtype=object)
    split: NDArray[np.object_] = table.obs[keys.split].astype(str).to_numpy(dtype=object)
    return np.where(np.isin(split, list(SEEN)), split, "test")
