"""Metrics per gene."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import mean_squared_error, r2_score

from agl_sc.core.evaluation import metrics

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
    for metric in metrics.METRICS.values():
        assert np.isnan(metric(measured, predicted)).tolist() == [False, False, True, False, False]


def test_single_precision_and_integers_are_taken(pair: tuple[FloatArray, FloatArray]) -> None:
    measured, predicted = pair
    single = metrics.pearson(measured.astype(int), predicted.astype(np.float32))
    np.testing.assert_allclose(single, metrics.pearson(measured, predicted), atol=1e-6)


def test_arguments_are_not_changed(pair: tuple[FloatArray, FloatArray]) -> None:
    before = [values.copy() for values in pair]
    for metric in metrics.METRICS.values():
        metric(*pair)
    for values, expected in zip(pair, before, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_r2_equals_sklearn(pair: tuple[FloatArray, FloatArray]) -> None:
    np.testing.assert_allclose(metrics.r2(*pair), r2_score(*pair, multioutput="raw_values"), rtol=1e-12)


def test_concordance_is_pearson_times_the_bias_correction(pair: tuple[FloatArray, FloatArray]) -> None:
    """Lin 1989: C_b = 2 / (v + 1 / v + u^2) with v the ratio of deviations and u the shift in units of their geometric mean."""
    measured, predicted = pair
    v = measured.std(axis=0) / predicted.std(axis=0)
    u = (measured.mean(axis=0) - predicted.mean(axis=0)) / np.sqrt(measured.std(axis=0) * predicted.std(axis=0))
    expected = metrics.pearson(measured, predicted) * 2 / (v + 1 / v + u**2)
    np.testing.assert_allclose(metrics.concordance(measured, predicted), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.concordance(measured, measured), 1)


def test_variance_ratio_tells_how_much_was_smoothed_away(pair: tuple[FloatArray, FloatArray]) -> None:
    measured, _ = pair
    np.testing.assert_allclose(metrics.variance_ratio(measured, 0.5 * measured + 3), 0.25)
    np.testing.assert_array_equal(metrics.variance_ratio(measured, np.ones_like(measured)), 0)


def test_gene_structure_is_the_correlation_of_correlations(pair: tuple[FloatArray, FloatArray]) -> None:
    both = [np.asarray(np.corrcoef(side, rowvar=False)) for side in pair]
    rows = [[np.delete(row, gene) for gene, row in enumerate(matrix)] for matrix in both]
    expected = [stats.pearsonr(m, p).statistic for m, p in zip(*rows, strict=True)]
    np.testing.assert_allclose(metrics.gene_structure(*pair), expected, rtol=1e-10)
    above = np.triu_indices(N_GENES, k=1)
    overall = stats.pearsonr(both[0][above], both[1][above]).statistic
    assert metrics.overall_gene_structure(*pair) == pytest.approx(overall, rel=1e-10)


def test_gene_structure_sees_what_a_metric_gene_by_gene_does_not() -> None:
    """Genes predicted with noise of their own, or with noise that ties other genes together: same Pearson, other structure."""
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 12)) + 0.3 * rng.normal(size=(400, 12))
    alone, tied = rng.normal(size=(400, 12)), rng.normal(size=(400, 2)) @ rng.normal(size=(2, 12))
    pair = [measured + measured.std(axis=0) * noise / noise.std(axis=0) for noise in (alone, tied)]
    pearson = [metrics.pearson(measured, predicted).mean() for predicted in pair]
    structure = [metrics.overall_gene_structure(measured, predicted) for predicted in pair]
    assert pearson[0] == pytest.approx(pearson[1], abs=0.03)
    assert structure[0] > structure[1] + 0.1


def test_a_constant_gene_is_left_out_of_the_structure_of_the_others(pair: tuple[FloatArray, FloatArray]) -> None:
    measured, predicted = pair
    expected = metrics.overall_gene_structure(np.delete(measured, 2, axis=1), np.delete(predicted, 2, axis=1))
    predicted[:, 2] = 1.0
    assert metrics.overall_gene_structure(measured, predicted) == pytest.approx(expected)
    assert np.isnan(metrics.gene_structure(measured, predicted)).tolist() == [False, False, True, False, False]
    predicted[0, 2] = np.nan
    assert metrics.overall_gene_structure(measured, predicted) == pytest.approx(expected)


NAN, ZERO, VALUE = "nan", "0", "value"
RULES = {
    #                  measured constant, predicted constant, measured NaN, predicted inf
    "pearson": (NAN, NAN, NAN, NAN),
    "spearman": (NAN, NAN, NAN, NAN),
    "mse": (VALUE, VALUE, NAN, NAN),
    "r2": (NAN, VALUE, NAN, NAN),
    "concordance": (NAN, NAN, NAN, NAN),
    "variance_ratio": (NAN, ZERO, NAN, NAN),
    "gene_structure": (NAN, NAN, NAN, NAN),
}


@pytest.mark.parametrize("fault", [0, 1, 2, 3], ids=["measured constant", "predicted constant", "NaN", "infinite"])
@pytest.mark.parametrize("name", metrics.METRICS)
def test_what_is_undefined_is_nan_in_its_gene_alone(
    pair: tuple[FloatArray, FloatArray], *, name: str, fault: int
) -> None:
    measured, predicted = pair
    expected = np.delete(metrics.METRICS[name](measured, predicted), 3)
    (measured if fault in (0, 2) else predicted)[:, 3] = {0: 0.7, 1: 0.7, 2: np.nan, 3: np.inf}[fault]
    values = metrics.METRICS[name](measured, predicted)
    kind = NAN if np.isnan(values[3]) else ZERO if abs(values[3]) < 1e-15 else VALUE
    assert kind == RULES[name][fault]
    if name != "gene_structure":
        np.testing.assert_allclose(np.delete(values, 3), expected)


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (10, 0)], ids=["no spot", "one spot", "no gene"])
@pytest.mark.parametrize("name", sorted(set(metrics.METRICS) - {"mse"}))
def test_too_little_to_compare_is_nan_without_a_warning(name: str, shape: tuple[int, int]) -> None:
    values = metrics.METRICS[name](np.ones(shape), np.ones(shape))
    assert values.shape == shape[1:]
    assert np.isnan(values).all()
    assert np.isnan(metrics.overall_gene_structure(np.ones(shape), np.ones(shape)))


def test_two_genes_have_no_structure(pair: tuple[FloatArray, FloatArray]) -> None:
    two = pair[0][:, :2], pair[1][:, :2]
    assert np.isnan(metrics.gene_structure(*two)).all()
    assert np.isnan(metrics.overall_gene_structure(*two))


@pytest.mark.parametrize("name", metrics.METRICS)
def test_other_spots_or_genes_are_refused(pair: tuple[FloatArray, FloatArray], *, name: str) -> None:
    with pytest.raises(ValueError, match=r"measured is \(60, 5\) and predicted \(59, 5\); both must be"):
        metrics.METRICS[name](pair[0], pair[1][1:])


def test_the_best_genes_and_their_mean() -> None:
    values = np.array([0.2, np.nan, 0.9, 0.2, 0.5])
    names, mean = metrics.top_genes(values, list("abcde"), 3)
    assert names == ["c", "e", "a"]
    assert mean == pytest.approx(1.6 / 3)
    assert metrics.top_genes(values, list("abcde"), 10)[0] == ["c", "e", "a", "d"]
    names, mean = metrics.top_genes(values[1:2], ["b"], 1)
    assert names == []
    assert np.isnan(mean)
    with pytest.raises(ValueError, match="k=0 is not a positive number of genes; 10 is usual"):
        metrics.top_genes(values, list("abcde"), 0)
