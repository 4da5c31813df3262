"""Paired differences and their intervals."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from agl_sc.core.evaluation.differences import COLUMNS, bootstrap_interval, paired_differences


def results_of(
    shift: float, *, n_units: int = 6, n_seeds: int = 2, noise: float = 0.0, metric: str = "pearson"
) -> pd.DataFrame:
    """Method b is better than a by ``shift``, and by more in later units; genes and units have levels of their own."""
    rng = np.random.default_rng(0)
    rows = []
    for unit in range(n_units):
        for gene in range(5):
            level = rng.normal()
            better = shift + 0.01 * unit + noise * rng.normal()
            for seed in range(n_seeds):
                between = 0.1 * (seed - (n_seeds - 1) / 2)
                rows += [("a", seed, unit, gene, level + between), ("b", seed, unit, gene, level + better - between)]
    frame = pd.DataFrame(rows, columns=["method", "seed", "section", "gene", "value"])
    return frame.assign(unit=frame["section"], fold=frame["section"], metric=metric)


def test_known_difference() -> None:
    table = paired_differences(results_of(0.2), [("b", "a"), ("a", "b")], unit="section")
    assert tuple(table.columns) == COLUMNS
    assert table["mean"].tolist() == pytest.approx([0.225, -0.225])
    assert table["n_units"].tolist() == [6, 6]
    assert table["unit"].tolist() == ["section", "section"]
    assert table["distinguishable"].tolist() == [True, True]
    assert 0.2 < table["low"][0] < 0.225 < table["high"][0] < 0.25
    assert table["high"][1] < 0


def test_nothing_between_equals() -> None:
    table = paired_differences(results_of(-0.025, noise=0.3), [("b", "a")], unit="section")
    assert table["low"][0] < 0 < table["high"][0]
    assert not table["distinguishable"][0]


def test_seeds_are_averaged_before_anything() -> None:
    """A method that draws nothing has one seed, and the other's are not counted as units."""
    results = results_of(0.2)
    once = results[(results["method"] == "b") | (results["seed"] == 0)]
    table = paired_differences(once, [("b", "a")], unit="section")
    assert table["n_units"].tolist() == [6]
    assert table["mean"].tolist() == pytest.approx([0.225 + 0.05])


def test_a_unit_counts_once_however_many_genes_it_has() -> None:
    results = results_of(0.0)
    few = results[(results["unit"] > 0) | (results["gene"] == 0)]
    assert paired_differences(few, [("b", "a")], unit="section")["mean"].tolist() == pytest.approx([0.025])


def test_undefined_on_one_side_leaves_the_pair_out() -> None:
    results = results_of(0.2)
    results.loc[(results["method"] == "a") & (results["unit"] == 5), "value"] = np.nan
    table = paired_differences(results, [("b", "a")], unit="section")
    assert table["n_units"].tolist() == [5]
    assert table["mean"].tolist() == pytest.approx([0.22])


def test_undefined_altogether() -> None:
    results = results_of(0.2)
    results.loc[results["method"] == "a", "value"] = np.nan
    table = paired_differences(results, [("b", "a")], unit="section")
    assert table[["n_units", "unit"]].to_numpy().tolist() == [[0, "section"]]
    assert table[["mean", "low", "high"]].isna().all(axis=None)
    assert not table["distinguishable"][0]


@pytest.mark.parametrize(("n_units", "unit", "n"), [(1, "gene", 5), (2, "gene", 5), (3, "section", 3)])
def test_few_units_are_replaced_by_genes_and_it_says_so(n_units: int, unit: str, n: int) -> None:
    table = paired_differences(results_of(0.2, n_units=n_units), [("b", "a")], unit="section")
    assert table[["unit", "n_units"]].to_numpy().tolist() == [[unit, n]]


def test_every_metric_has_a_row() -> None:
    both = pd.concat([results_of(0.2), results_of(-0.3, metric="mse")])
    table = paired_differences(both, [("b", "a")], unit="section")
    assert table["metric"].tolist() == ["pearson", "mse"]
    assert table["mean"].tolist() == pytest.approx([0.225, -0.275])


def test_interval_equals_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=12)
    reference = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((reference.low, reference.high), abs=0.03)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


@pytest.mark.parametrize("values", [[], [1.0]], ids=["none", "one"])
def test_interval_of_fewer_than_two(values: list[float]) -> None:
    assert np.isnan(bootstrap_interval(np.array(values))).all()
