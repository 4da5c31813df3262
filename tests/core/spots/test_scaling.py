"""Centring, scaling and calibration."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_sc.core.spots.scaling import (
    CLIP,
    center_per_section,
    centred_rows,
    depth_weights,
    held_out_slope,
    scale_features,
    scaled_rows,
    section_means,
    spread,
    spread_about,
)

FloatArray = NDArray[np.float64]


@pytest.fixture
def values() -> FloatArray:
    return np.random.default_rng(0).normal(5.0, 2.0, (12, 4))


CODES = np.array([0, 1, 2] * 4)


def test_every_section_has_mean_0_and_keeps_its_differences(values: FloatArray) -> None:
    centred = center_per_section(values, CODES)
    for code in range(3):
        inside = np.equal(CODES, code)
        np.testing.assert_allclose(centred[inside].mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(np.diff(centred[inside], axis=0), np.diff(values[inside], axis=0))


def test_shift_of_a_section_does_not_matter(values: FloatArray) -> None:
    shifted = values + np.array([0.0, 100.0, -7.0])[CODES][:, None]
    np.testing.assert_allclose(center_per_section(shifted, CODES), center_per_section(values, CODES), atol=1e-12)


def test_centring_does_not_change_its_argument(values: FloatArray) -> None:
    before = values.copy()
    center_per_section(values, CODES)
    np.testing.assert_array_equal(values, before)


def test_rows_with_nan_stay_nan_and_do_not_count(values: FloatArray) -> None:
    values[[0, 4]] = np.nan
    centred = center_per_section(values, CODES)
    known = ~np.isin(np.arange(12), [0, 4])
    assert np.isnan(centred[~known]).all()
    np.testing.assert_allclose(centred[known], center_per_section(values[known], CODES[known]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_with_one_undefined_value_is_nan_as_a_whole(values: FloatArray, value: float) -> None:
    values[4, 2] = value
    centred = center_per_section(values, CODES)
    assert np.isnan(centred[4]).all()
    known = np.arange(12) != 4
    np.testing.assert_allclose(centred[known], center_per_section(values[known], CODES[known]))


def test_section_of_nothing_but_nan(values: FloatArray) -> None:
    values[CODES == 1] = np.nan
    centred = center_per_section(values, CODES)
    assert np.isnan(centred[CODES == 1]).all()
    assert np.isfinite(centred[CODES != 1]).all()


def test_section_of_one_spot_is_0() -> None:
    assert center_per_section(np.array([[3.0, 4.0]]), np.array([7])).tolist() == [[0.0, 0.0]]


def test_spread_is_the_standard_deviation_and_1_where_constant(values: FloatArray) -> None:
    values[:, 2] = 0.1
    expected = np.std(values, axis=0)
    expected[2] = 1.0
    np.testing.assert_allclose(spread(values), expected)


def test_features_are_divided_and_clipped() -> None:
    scaled = scale_features(np.array([[1.0, -8.0], [-2.0, 80.0], [np.nan, 0.0]]), np.array([2.0, 4.0]))
    np.testing.assert_array_equal(scaled, [[0.5, -2.0], [-1.0, CLIP], [np.nan, 0.0]])
    assert CLIP == 3


def test_depth_weights_are_roots_with_mean_one_in_every_section() -> None:
    library, sections = np.array([4.0, 16.0, 100.0, 900.0, 100.0]), np.array([7, 7, 2, 2, 2])
    weights = depth_weights(library, sections)
    np.testing.assert_allclose(weights[:2], [2 / 3, 4 / 3])
    np.testing.assert_allclose(weights[2:], np.array([10, 30, 10]) / (50 / 3))


def test_held_out_slope_is_that_of_all_genes_within_sections() -> None:
    rng = np.random.default_rng(0)
    codes = np.repeat([3, 8], 200)
    predicted = rng.normal(size=(400, 5))
    measured = 0.4 * predicted + 0.1 * rng.normal(size=(400, 5)) + 10 * codes[:, None]
    assert held_out_slope(predicted, measured, codes) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(("factor", "expected"), [(2.0, 1.0), (-1.0, 0.0), (0.0, 1.0)])
def test_held_out_slope_neither_stretches_nor_turns(factor: float, expected: float) -> None:
    """Nor is it defined of predictions that do not vary."""
    measured = np.random.default_rng(1).normal(size=(50, 3))
    predicted = np.zeros_like(measured) if factor == 0 else measured / factor
    assert held_out_slope(predicted, measured, np.zeros(50, dtype=np.int64)) == expected


@pytest.mark.parametrize("n_rows", [1, 7, 64, 1000])
def test_means_in_blocks_of_rows_are_those_of_all_rows_to_the_last_bit(n_rows: int) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(300, 5)) * 10.0 ** rng.integers(-3, 4, size=5) + 100).astype(np.float32)
    values[[4, 200], [1, 2]] = np.nan, np.inf
    codes = rng.integers(0, 3, size=300)
    codes[codes == 1] = 3  # no spot of section 1
    means = section_means(values, codes, n_rows=n_rows)
    assert (means[1] == 0).all()
    np.testing.assert_array_equal(centred_rows(values, means[codes]), center_per_section(values, codes))


@pytest.mark.parametrize("n_rows", [64, 5, 1])
def test_scaling_row_by_row_is_that_of_all_at_once(
    values: FloatArray, n_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agl_sc.core.spots.scaling.rows_at_once", lambda n_columns: n_rows)
    values[3, 1] = np.nan
    means, rows = section_means(values, CODES), np.array([0, 1, 4, 5, 8])
    centred = center_per_section(values, CODES)
    scale = spread_about(values, means, CODES, rows=rows)
    np.testing.assert_allclose(scale, spread(centred[rows]))
    scaled = scaled_rows(values, means, CODES, scale=scale)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, scale_features(centred, scale), rtol=1e-6)


def test_spots_of_no_section_do_not_count_in_means(values: FloatArray) -> None:
    codes = np.where(np.arange(12) < 6, CODES, -1)
    np.testing.assert_allclose(section_means(values, codes), section_means(values[:6], CODES[:6]))
