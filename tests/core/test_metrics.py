"""Metrics per gene."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import mean_squared_error

from agl_sc.core import metrics

FloatArray = NDArray[np.float64]
Metric = Callable[[FloatArray, FloatArray], FloatArray]
N_SPOTS, N_GENES = 60, 5


@pytest.fixture
def pair() -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(0)
    measured = rng.poisson(1.0, (N_SPOTS, N_GENES)).astype(float)  # many ties
    return measured, np.round(measured + rng.normal(0, 1, measured.shape), 1)


def test_pearson_equals_scipy(pair: tuple[FloatArray, FloatArray]) -> None:
    expected = [stats.pearsonr(m, p).statistic for m, p in zip(*(values.T for values in pair), strict=True)]
    np.testing.assert_allclose(metrics.pearson(*pair), expected, rtol=1e-12)


def test_spearman_equals_scipy_with_ties(pair: tuple[FloatArray, FloatArray]) -> None:
    expected = [stats.spearmanr(m, p).statistic for m, p in zip(*(values.T for values in pair), strict=True)]
    np.testing.assert_allclose(metrics.spearman(*pair), expected, rtol=1e-12)


def test_mse_equals_sklearn(pair: tuple[FloatArray, FloatArray]) -> None:
    expected = mean_squared_error(*pair, multioutput="raw_values")
    np.testing.assert_allclose(metrics.mse(*pair), expected, rtol=1e-12)


def test_metrics_tell_genes_apart(pair: tuple[FloatArray, FloatArray]) -> None:
    measured, predicted = pair
    predicted[:, 1] = -measured[:, 1]
    assert metrics.pearson(measured, predicted)[1] == pytest.approx(-1)
    assert metrics.spearman(measured, predicted)[1] == pytest.approx(-1)
    assert (metrics.pearson(measured, predicted)[[0, 2, 3, 4]] > 0.4).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
@pytest.mark.parametrize("side", [0, 1], ids=["measured", "predicted"])
@pytest.mark.parametrize("metric", [metrics.pearson, metrics.spearman])
def test_constant_gene_has_no_correlation(
    pair: tuple[FloatArray, FloatArray], *, metric: Metric, side: int, value: float
) -> None:
    pair[side][:, 3] = value
    correlation = metric(*pair)
    assert np.isnan(correlation[3])
    assert np.isfinite(np.delete(correlation, 3)).all()


def test_mse_of_a_constant_gene_is_defined(pair: tuple[FloatArray, FloatArray]) -> None:
    measured, predicted = pair
    predicted[:, 3] = 0.0
    assert metrics.mse(measured, predicted)[3] == pytest.approx((measured[:, 3] ** 2).mean())


def test_nan_stays_in_its_gene(pair: tuple[FloatArray, FloatArray]) -> None:
    measured, predicted = pair
    predicted[0, 2] = np.nan
    for metric in (metrics.pearson, metrics.spearman, metrics.mse):
        assert np.isnan(metric(measured, predicted)).tolist() == [False, False, True, False, False]


def test_single_precision_and_integers_are_taken(pair: tuple[FloatArray, FloatArray]) -> None:
    measured, predicted = pair
    single = metrics.pearson(measured.astype(int), predicted.astype(np.float32))
    np.testing.assert_allclose(single, metrics.pearson(measured, predicted), atol=1e-6)


def test_arguments_are_not_changed(pair: tuple[FloatArray, FloatArray]) -> None:
    before = [values.copy() for values in pair]
    for metric in (metrics.pearson, metrics.spearman, metrics.mse):
        metric(*pair)
    for values, expected in zip(pair, before, strict=True):
        np.testing.assert_array_equal(values, expected)
