"""Intervals of planted residuals: they cover what they promise, and say when they cannot."""

import numpy as np
import pytest

from agl_sc.core.arrays import FloatArray, IntArray
from agl_sc.core.evaluation.intervals import (
    LEVELS,
    Scale,
    choices_cover,
    covered_share,
    donor_quantiles,
    fewest,
    held_out_coverage,
    n_levels,
    section_quantiles,
    spot_quantiles,
)

AT_90 = LEVELS.index(0.9)


@pytest.mark.parametrize(("level", "n"), [(0.5, 1), (0.68, 3), (0.8, 4), (0.9, 9), (0.95, 19)])
def test_how_many_are_needed(level: float, n: int) -> None:
    assert fewest(level) == n
    assert n_levels(n) == LEVELS.index(level) + 1
    assert n_levels(n - 1) == LEVELS.index(level)


def test_scale_follows_the_prediction_and_has_a_floor() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(0, 2, (4000, 2))
    residuals = rng.normal(size=(4000, 2)) * np.column_stack([0.5 + predicted[:, 0], np.full(4000, 0.7)])
    scale = Scale.fitted(residuals, predicted)
    mean = np.sqrt(2 / np.pi)
    np.testing.assert_allclose(scale.slope, [mean, 0.0], atol=0.05)
    np.testing.assert_allclose(scale.at(np.ones((1, 2)))[0], [1.5 * mean, 0.7 * mean], atol=0.04)
    np.testing.assert_allclose(scale.at(np.full((1, 2), -9.0))[0, 0], 0.2 * np.abs(residuals[:, 0]).mean())
    constant = Scale.fitted(np.zeros((5, 1)), np.ones((5, 1)))
    np.testing.assert_allclose(constant.at(np.ones((1, 1))), 1.0)


def test_quantiles_of_a_new_donor_by_hand() -> None:
    scores, donors = np.arange(1.0, 10.0)[:, None], np.arange(9)
    found = donor_quantiles(scores, donors)[0]
    assert found.tolist() == [
        5.0,
        7.0,
        8.0,
        9.0,
    ]  # a weight of 1/10 each: .5, .68, .8, .9 are reached here, .95 nowhere
    twice = donor_quantiles(
        np.repeat(scores, [1, 2, 3, 1, 1, 1, 1, 1, 9], axis=0), np.repeat(donors, [1, 2, 3, 1, 1, 1, 1, 1, 9])
    )
    assert twice[0].tolist() == found.tolist()  # donors count the same
    assert donor_quantiles(scores[:2], donors[:2]).shape == (1, 1)


def test_quantiles_of_spots_by_hand() -> None:
    scores = np.arange(1.0, 20.0)[:, None]
    np.testing.assert_allclose(spot_quantiles(scores)[0], [10.0, 13.6, 16.0, 18.0, 19.0])
    assert spot_quantiles(scores[:8]).shape == (1, 3)
    assert spot_quantiles(np.empty((0, 2))).shape == (2, 0)


def residuals_of(rng: np.random.Generator, n_units: int, spread: float) -> tuple[FloatArray, IntArray]:
    """Of units whose spreads differ and whose means lie apart."""
    sizes = rng.integers(20, 60, n_units)
    units = np.repeat(np.arange(n_units), sizes)
    means, widths = rng.normal(size=n_units) * spread, rng.uniform(0.7, 1.3, n_units)
    return (means[units] + widths[units] * rng.normal(size=len(units)))[:, None], units


def test_nine_donors_cover_ninety_per_cent_of_a_tenth() -> None:
    rng, covered = np.random.default_rng(1), []
    for _ in range(400):
        residuals, donors = residuals_of(rng, 10, spread=1.0)
        out = donors == 9
        limit = donor_quantiles(np.abs(residuals[~out]), donors[~out])[0, AT_90]
        covered.append((np.abs(residuals[out]) <= limit).mean())
    assert np.mean(covered) > 0.9


def test_measured_spots_cover_the_others() -> None:
    rng = np.random.default_rng(2)
    for n in (9, 10, 25, 60):
        scores = np.abs(rng.standard_t(3, (400, n)))  # a gene per draw
        limits = spot_quantiles(scores.T)[:, AT_90]
        others = np.abs(rng.standard_t(3, (400, 2000)))
        assert (others <= limits[:, None]).mean() == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize("n", [9, 10, 50])
def test_choices_of_few_spots_cover_more_or_less(n: int) -> None:
    rng = np.random.default_rng(4)
    limits = spot_quantiles(rng.uniform(size=(n, 20_000)))[:, AT_90]  # scores for which the limit is the share covered
    np.testing.assert_allclose(choices_cover(n, 0.9), np.quantile(limits, [0.05, 0.95]), atol=0.02)


def test_sections_count_the_same_and_cover_each_other() -> None:
    rng = np.random.default_rng(3)
    residuals, sections = residuals_of(rng, 40, spread=0.0)
    assert section_quantiles(np.abs(residuals), sections).shape == (1, len(LEVELS))
    covered = held_out_coverage(residuals, np.zeros_like(residuals), sections)
    assert covered.shape == (40, len(LEVELS))
    np.testing.assert_allclose(covered.mean(axis=0), LEVELS, atol=0.02)
    few = np.repeat(np.arange(2), 500)
    np.testing.assert_array_equal(
        section_quantiles(np.arange(1.0, 1001.0)[:, None], few)[0], [500.0, 680.0, 800.0, 900.0, 950.0]
    )


def test_coverage_of_donors_is_of_the_levels_that_one_less_allows() -> None:
    residuals, donors = residuals_of(np.random.default_rng(4), 9, spread=1.0)
    covered = held_out_coverage(residuals, np.zeros_like(residuals), donors, are_donors=True)
    assert covered.shape == (9, AT_90)


def test_covered_share_with_and_without_the_level() -> None:
    measured = np.array([[1.0, 1.0], [2.0, 1.0], [6.0, 1.0]])
    predicted = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    bounds = predicted - 1.0, predicted + 1.0
    bounds[0][:, 1] = np.nan
    np.testing.assert_allclose(covered_share(measured, predicted, bounds, covers_level=True), [2 / 3, np.nan])
    np.testing.assert_allclose(covered_share(measured, predicted, bounds, covers_level=False), [2 / 3, np.nan])
    moved = measured + 10.0
    np.testing.assert_allclose(covered_share(moved, predicted, bounds, covers_level=True), [0.0, np.nan])
    np.testing.assert_allclose(covered_share(moved, predicted, bounds, covers_level=False), [2 / 3, np.nan])
