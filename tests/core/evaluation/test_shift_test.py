"""P-values hold among autocorrelated fields, where a t test does not."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import false_discovery_control, norm, pearsonr, ttest_1samp

from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.shift_test import (
    combined_p_values,
    false_discovery_rate,
    shift_p_values,
    shift_z_p_values,
)

FloatArray = NDArray[np.float64]


def grid(side: int) -> NDArray[np.int64]:
    return np.indices((side, side)).reshape(2, -1).T


def tissue(side: int) -> Lattice:
    """An ellipse with a hole."""
    cells = grid(side)
    y, x = (cells.T - side / 2 + 0.5) / (side / 2)
    return Lattice(cells[(x**2 + (1.2 * y) ** 2 < 1) & ((x - 0.2) ** 2 + y**2 > 0.02)], hexagonal=False)


def fields(lattice: Lattice, n: int, *, width: float, seed: int) -> FloatArray:
    """Independent smooth fields, cut out of larger ones."""
    rng, margin = np.random.default_rng(seed), 4 * int(width + 1)
    shape = tuple(lattice.cells.max(axis=0) + 1 + 2 * margin)
    drawn = (gaussian_filter(rng.normal(size=shape), width)[margin:, margin:] for _ in range(n))
    return np.column_stack([field[tuple(lattice.cells.T)] for field in drawn])


@pytest.mark.parametrize(
    ("lattice", "width"),
    [
        pytest.param(tissue(22), 1.0, id="tissue"),
        pytest.param(tissue(22), 2.0, id="tissue, smoother"),
        pytest.param(Lattice(grid(20), hexagonal=False), 1.5, id="full square"),
        pytest.param(Lattice(tissue(24).cells, hexagonal=True), 1.5, id="hexagonal"),
    ],
)
def test_unrelated_smooth_fields_are_seldom_significant(lattice: Lattice, width: float) -> None:
    measured, predicted = (fields(lattice, 300, width=width, seed=seed) for seed in (0, 1))
    naive = [pearsonr(m, p, alternative="greater").pvalue for m, p in zip(measured.T, predicted.T, strict=True)]
    assert np.mean(np.array(naive) < 0.05) > 0.2
    assert np.mean(shift_p_values(measured, predicted, lattice) <= 0.05) < 0.1


def test_among_exchangeable_spots_p_values_are_uniform() -> None:
    rng, lattice = np.random.default_rng(0), Lattice(grid(12), hexagonal=False)
    p_values = shift_p_values(rng.normal(size=(144, 1500)), rng.normal(size=(144, 1500)), lattice)
    assert ttest_1samp(p_values, 0.5 + 0.5 / 144).pvalue > 0.01
    for level in (0.05, 0.25, 0.5):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 1500) + 1 / 144)


def test_a_full_square_is_compared_with_every_shift_by_definition() -> None:
    rng, side = np.random.default_rng(0), 6
    measured, predicted = rng.normal(size=(36, 2)), rng.normal(size=(36, 2))
    shifted = [
        np.roll(predicted.reshape(side, side, 2), (dy, dx), axis=(0, 1)).reshape(-1, 2)
        for dy in range(side)
        for dx in range(side)
    ]
    expected = [
        np.mean([np.corrcoef(measured[:, gene], moved[:, gene])[0, 1] >= np.corrcoef(measured[:, gene], predicted[:, gene])[0, 1] - 1e-9 for moved in shifted])
        for gene in range(2)
    ]  # fmt: skip
    np.testing.assert_allclose(shift_p_values(measured, predicted, Lattice(grid(side), hexagonal=False)), expected)


def test_a_planted_signal_is_found_among_smooth_fields() -> None:
    lattice = tissue(22)
    measured, predicted = (fields(lattice, 40, width=1.0, seed=seed) for seed in (0, 1))
    predicted[:, :20] = 0.7 * measured[:, :20] + 0.7 * predicted[:, :20]
    rate = false_discovery_rate(shift_p_values(measured, predicted, lattice))
    assert (rate[:20] < 0.05).mean() > 0.8
    assert (rate[20:] < 0.05).mean() <= 0.1
    opposite = shift_p_values(measured[:, :20], -measured[:, :20], lattice)
    assert (opposite > 0.95).all()


def test_fifty_genes_of_a_section_take_less_than_a_second() -> None:
    lattice = tissue(22)
    measured, predicted = (fields(lattice, 50, width=1.0, seed=seed) for seed in (0, 1))
    start = time.process_time()
    shift_p_values(measured, predicted, lattice)
    assert time.process_time() - start < 1


def test_too_few_shifts_give_no_p_value() -> None:
    values = np.random.default_rng(0).normal(size=(16, 2))
    assert np.isnan(shift_p_values(values, values, Lattice(grid(4), hexagonal=False))).all()


def test_false_discovery_rate_is_scipys_over_the_genes_that_have_a_p_value() -> None:
    p_values = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    rate = false_discovery_rate(p_values)
    assert np.isnan(rate[1])
    np.testing.assert_allclose(rate[[0, 2, 3, 4]], false_discovery_control(p_values[[0, 2, 3, 4]]))
    assert np.isnan(false_discovery_rate(np.full(3, np.nan))).all()


def test_p_values_of_sections_are_combined_by_twice_their_mean() -> None:
    p_values = np.array([[0.01, 0.2, np.nan, 0.8], [0.03, np.nan, np.nan, 0.9]])
    np.testing.assert_allclose(combined_p_values(p_values), [0.04, 0.2, np.nan, 1.0])


@pytest.mark.parametrize("width", [1.0, 2.0])
@pytest.mark.parametrize("hexagonal", [False, True])
def test_by_variance_it_comes_out_as_by_counting(width: float, hexagonal: bool) -> None:
    lattice = Lattice(tissue(22).cells, hexagonal=hexagonal)
    measured, predicted = (fields(lattice, 200, width=width, seed=seed) for seed in (0, 1))
    counted, normal = (f(measured, predicted, lattice) for f in (shift_p_values, shift_z_p_values))
    assert np.abs(counted - normal).mean() < 0.04
    assert np.mean(normal <= 0.05) < 0.1


def test_by_variance_a_full_square_by_definition() -> None:
    rng, side = np.random.default_rng(0), 6
    measured, predicted = rng.normal(size=(36, 1)), rng.normal(size=(36, 1))
    image = predicted.reshape(side, side)
    shifted = [np.roll(image, (dy, dx), axis=(0, 1)).ravel() for dy in range(side) for dx in range(side)]
    null = np.array([pearsonr(measured[:, 0], moved).statistic for moved in shifted])
    expected = norm.sf(null[0] / np.sqrt((null**2).mean()))
    found = shift_z_p_values(measured, predicted, Lattice(grid(side), hexagonal=False))
    np.testing.assert_allclose(found, [expected])


def test_by_variance_constants_and_few_spots_have_none() -> None:
    lattice = Lattice(grid(3), hexagonal=False)
    values = np.random.default_rng(0).normal(size=(9, 2))
    values[:, 1] = 1.0
    assert np.isnan(shift_z_p_values(values, values, lattice)).tolist() == [False, True]
    assert np.isnan(shift_z_p_values(values[:5], values[:5], lattice.take(np.arange(5)))).all()
