"""Levels of whole sections, predicted out of fold: over all folds together, as a fold may hold one section alone."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from agl_sc.core.evaluation.between import FEWEST_SECTIONS, pearson_between
from agl_sc.core.evaluation.section_metrics import BETWEEN
from agl_sc.pp._splits.folds import Fold
from agl_sc.tl._benchmark.runs import Runs
from agl_sc.tl._evaluate import Measured

logger = logging.getLogger(__name__)


def pearson_between_sections(
    of: Measured, *, names: "pd.Index[str]", folds: Sequence[Fold], runs: Runs
) -> pd.DataFrame:
    """Pearson over sections of the pseudobulk of every gene: method, seed, gene, value; tells the mean of every method.

    Parameters
    ----------
    of
        What was measured.
    names
        Of the genes of the table.
    folds
        Sets of the spots.
    runs
        What was predicted.
    """
    frames = []
    for method, seed in dict.fromkeys((method, seed) for _, method, seed in runs):
        parts = [_sums(of, names, folds[number], runs=runs, key=(number, method, seed)) for number in range(len(folds))]
        sums = pd.concat(parts).groupby(["gene", "section"]).sum()
        means = sums[["measured", "predicted"]].div(sums["n_spots"], axis=0)
        values = {
            gene: pearson_between(each[["measured"]].to_numpy(), each[["predicted"]].to_numpy())[0]
            for gene, each in means.groupby(level="gene")
        }
        frames.append(
            pd.DataFrame({"gene": list(values), "value": list(values.values())}).assign(method=method, seed=seed)
        )
    between = pd.concat(frames, ignore_index=True)
    _tell(between)
    return between


def _sums(of: Measured, names: "pd.Index[str]", fold: Fold, *, runs: Runs, key: tuple[int, str, int]) -> pd.DataFrame:
    """Of every gene in every section of the test spots of a fold: the sums of what was measured and predicted, and spots."""
    outcome, rows = runs[key], np.flatnonzero(fold.assigned == "test")
    known = np.isfinite(outcome.predicted).all(axis=1)
    columns, frames = names.get_indexer(pd.Index(outcome.genes)), []
    for section in np.unique(of.sections[rows[known]]):
        inside = known & (of.sections[rows] == section)
        measured = np.asarray(of.of(rows[inside], columns).sum(axis=0), dtype=float).ravel()
        sums = {"measured": measured, "predicted": outcome.predicted[inside].sum(axis=0, dtype=float)}
        frames.append(pd.DataFrame({"gene": outcome.genes, "section": section, **sums, "n_spots": int(inside.sum())}))
    return pd.concat(frames)


def _tell(between: pd.DataFrame) -> None:
    if between["value"].isna().all():
        logger.info("Levels of sections cannot be compared: it takes %d sections.", FEWEST_SECTIONS)
        return
    means = between.groupby("method", sort=False)["value"].mean()
    listed = ", ".join(f"{method} {value:.2f}" for method, value in means.items())
    logger.info("Between the levels (pseudobulk) of sections, mean Pearson over genes: %s.", listed)


def with_between(results: pd.DataFrame, between: pd.DataFrame) -> pd.DataFrame:
    """Results in which the metric between sections, where it was asked for, has its value in every row of a gene."""
    is_between = results["metric"] == BETWEEN
    if not is_between.any():
        return results
    keys = ["method", "seed", "gene"]
    found = results.loc[is_between, keys].merge(between, on=keys, how="left", validate="many_to_one")["value"]
    filled = results.copy()
    filled.loc[is_between, "value"] = found.to_numpy()
    return filled
