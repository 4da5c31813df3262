"""Paired differences between methods, with intervals over what is independent."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from agl_sc.core.arrays import FloatArray

COLUMNS = ("method", "reference", "metric", "unit", "n_units", "mean", "low", "high", "distinguishable")
LEVEL = 0.95
"""Of the intervals."""
FEWEST_UNITS = 3
"""With fewer, a bootstrap over them says nothing."""
_N_DRAWS = 10_000
_CELL = ["unit", "fold", "section", "gene"]


def paired_differences(
    results: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, unit: str, seed: int = 0
) -> pd.DataFrame:
    """Mean difference of a method to another on the same genes and spots, with a percentile bootstrap interval over units.

    Values are averaged over seeds first, then subtracted gene by gene, then averaged within a unit; where one side is
    undefined the pair is left out. With fewer than 3 units the interval is over genes, and ``unit`` says so: it is then
    one of these units alone, and too narrow, for genes are correlated.

    Parameters
    ----------
    results
        method, unit, fold, seed, section, gene, metric, value; ``unit`` is the independent unit that a row belongs to.
    pairs
        Method and what it is compared with.
    unit
        What the units are: ``"patient"``, ``"section"``, ``"fold"`` or ``"gene"``.
    seed
        Seed of the draws.

    Returns
    -------
    One row per pair and metric: method, reference, metric, unit, n_units, mean, low, high, and distinguishable, whether the
    interval leaves zero out; never of an interval over genes.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    means = results.groupby(["metric", *_CELL, "method"], sort=False)["value"].mean().unstack("method")
    rows = []
    for method, reference in pairs:
        for metric in dict.fromkeys(results["metric"]):
            of_metric = means.loc[metric]
            difference = (of_metric[method] - of_metric[reference]).dropna()
            over, values = unit, difference.groupby("unit").mean()
            if 0 < len(values) < FEWEST_UNITS:
                over, values = "gene", difference.groupby("gene").mean()
            low, high = bootstrap_interval(values.to_numpy(), seed=seed)
            told = over != "gene" and (low > 0 or high < 0)
            rows.append((method, reference, metric, over, len(values), values.mean(), low, high, told))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def bootstrap_interval(values: FloatArray, *, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean of independent values, (n,); NaN of fewer than two.

    Parameters
    ----------
    values
        One per unit, (n,).
    seed
        Seed of the draws.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).choice(values, (_N_DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
