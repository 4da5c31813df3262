"""Pearson given depth: against regression by hand, and what a prediction of depth alone gets."""

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from agl_sc.core.evaluation.beyond_depth import pearson_beyond_depth
from agl_sc.core.evaluation.metrics import pearson

FloatArray = NDArray[np.float64]
N_SPOTS = 60


def spots(seed: int = 0) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Measured and predicted genes that depth drives in part, and total counts."""
    rng = np.random.default_rng(seed)
    library = np.exp(rng.normal(8, 0.7, N_SPOTS)).round()
    depth = np.log(library)[:, None]
    signal = rng.normal(size=(N_SPOTS, 4))
    measured = depth * [2.0, 1.0, 0.0, -1.0] + signal + rng.normal(size=(N_SPOTS, 4))
    predicted = depth * [1.0, 1.0, 1.0, 1.0] + signal + 5
    return measured, predicted, library


def test_it_is_the_partial_correlation_of_three_plain_ones() -> None:
    measured, predicted, library = spots()
    depth = np.log(library)
    for gene, found in enumerate(pearson_beyond_depth(measured, predicted, library)):
        r = [scipy.stats.pearsonr(*pair).statistic for pair in (
            (measured[:, gene], predicted[:, gene]), (measured[:, gene], depth), (predicted[:, gene], depth)
        )]  # fmt: skip
        assert found == pytest.approx((r[0] - r[1] * r[2]) / np.sqrt((1 - r[1] ** 2) * (1 - r[2] ** 2)))


def test_a_prediction_of_depth_and_noise_has_a_pearson_and_none_beyond() -> None:
    rng = np.random.default_rng(1)
    library = np.exp(rng.normal(8, 0.7, 4000))
    measured = np.log(library)[:, None] + rng.normal(size=(4000, 1))
    predicted = np.log(library)[:, None] + 0.1 * rng.normal(size=(4000, 1))
    assert pearson(measured, predicted)[0] > 0.5
    assert abs(pearson_beyond_depth(measured, predicted, library)[0]) < 0.05


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_what_depth_explains_completely_is_undefined(kind: type) -> None:
    measured, predicted, library = spots()
    predicted[:, 1] = 1e-3 * np.log(library) + 4
    measured[:, 2] = 7.0
    found = pearson_beyond_depth(measured.astype(kind), predicted.astype(kind), library)
    assert np.isnan(found).tolist() == [False, True, True, False]


def test_where_total_counts_are_all_equal_it_is_pearson() -> None:
    measured, predicted, _ = spots()
    np.testing.assert_allclose(
        pearson_beyond_depth(measured, predicted, np.full(N_SPOTS, 1e4)), pearson(measured, predicted)
    )


def test_units_of_either_side_and_of_depth_do_not_matter() -> None:
    measured, predicted, library = spots()
    found = pearson_beyond_depth(3 * measured - 4, 0.01 * predicted + 9, 10 * library)
    np.testing.assert_allclose(found, pearson_beyond_depth(measured, predicted, library))
