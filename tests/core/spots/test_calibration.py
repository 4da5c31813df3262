"""Calibration from sums over blocks of spots, against least squares and against the same of whole arrays."""

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from tests.core.spots.dense_calibration import calibrate as of_whole_arrays

from agl_sc.core.spots.calibration import CalibrationSums

FloatArray = NDArray[np.float64]


@pytest.fixture
def values() -> FloatArray:
    return np.random.default_rng(0).normal(5.0, 2.0, (12, 4))


def calibrate(
    predicted: FloatArray, measured: FloatArray, *, shrinkage: float = 1.0, n_rows: int = 7
) -> tuple[FloatArray, FloatArray]:
    """In blocks of spots."""
    sums = CalibrationSums(predicted.shape[1])
    for start in range(0, len(predicted), n_rows):
        rows = slice(start, start + n_rows)
        sums.add(predicted[rows], scipy.sparse.csr_matrix(measured[rows]))
    return sums.line(shrinkage)


def test_calibration_is_the_least_squares_line_of_every_gene(values: FloatArray) -> None:
    measured = values * [0.5, 2.0, 1.0, 3.0] + np.random.default_rng(1).normal(3.0, 1.0, values.shape)
    slope, intercept = calibrate(values, measured)
    for gene in range(4):
        expected = np.polyfit(values[:, gene], measured[:, gene], 1)
        assert expected[0] > 0
        np.testing.assert_allclose([slope[gene], intercept[gene]], expected, rtol=1e-9)


def test_calibration_never_turns_a_prediction_round(values: FloatArray) -> None:
    measured = values * [1.0, -1.0, 1.0, 1.0]
    slope, intercept = calibrate(values, measured)
    np.testing.assert_allclose(slope, [1, 0, 1, 1])
    assert intercept[1] == pytest.approx(measured[:, 1].mean())


@pytest.mark.parametrize("n_spots", [12, 100, 333])
@pytest.mark.parametrize("constant", [0.0, 0.1, 0.3, 1e6 + 0.1])  # most are not the mean of their copies
def test_constant_prediction_becomes_the_mean(constant: float, n_spots: int) -> None:
    measured = np.random.default_rng(0).normal(5.0, 2.0, (n_spots, 4))
    predicted = measured.copy()
    predicted[:, 0] = constant
    slope, intercept = calibrate(predicted, measured)
    assert slope[0] == 0
    assert intercept[0] == pytest.approx(measured[:, 0].mean())
    np.testing.assert_allclose((slope * predicted + intercept)[:, 1:], measured[:, 1:])


def test_constant_measurement_is_met(values: FloatArray) -> None:
    slope, intercept = calibrate(values, np.full_like(values, 2.5))
    np.testing.assert_allclose(slope * values + intercept, 2.5)


def test_shrunk_slopes_keep_the_mean() -> None:
    rng = np.random.default_rng(2)
    predicted = rng.normal(size=(60, 4))
    measured = predicted + rng.normal(size=(60, 4)) + 3
    slope, intercept = calibrate(predicted, measured, shrinkage=0.5)
    np.testing.assert_allclose(slope, calibrate(predicted, measured)[0] / 2)
    np.testing.assert_allclose((slope * predicted + intercept).mean(axis=0), measured.mean(axis=0))


@pytest.mark.parametrize("n_rows", [1, 7, 1000])
@pytest.mark.parametrize("level", [0.0, 1e4])
def test_blocks_give_what_whole_arrays_give(level: float, n_rows: int) -> None:
    """Far from zero too, and with genes that are silent in most spots."""
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(200, 5)) + level
    predicted[0] += 50  # sums are of differences to this spot
    measured = rng.poisson(np.exp(predicted - level - 2 - 50 * (np.arange(200) == 0)[:, None])).astype(float)
    expected = of_whole_arrays(predicted, measured, shrinkage=0.7)
    found = calibrate(predicted, measured, shrinkage=0.7, n_rows=n_rows)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-7, atol=1e-9)
