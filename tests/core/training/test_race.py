"""A race of cutoffs, the hyper-gradient step on the cutoff, and the Pearson that judges them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from agl_sc.core.spots.spots import section_pearson
from agl_sc.core.training.race import race_search

FloatArray = NDArray[np.float64]


def test_section_pearson_averages_within_sections() -> None:
    rng = np.random.default_rng(0)
    measured, codes = rng.normal(size=(30, 3)), np.repeat([5, 7], [10, 20])
    predicted = measured + rng.normal(size=(30, 3)) + 50 * (codes == 7)[:, None]
    expected = [
        np.mean([stats.pearsonr(measured[codes == c, j], predicted[codes == c, j]).statistic for c in (5, 7)])
        for j in range(3)
    ]
    np.testing.assert_allclose(section_pearson(measured, predicted, codes), expected)


def test_section_pearson_leaves_out_sections_without_variance() -> None:
    rng = np.random.default_rng(0)
    measured, codes = rng.normal(size=(30, 3)), np.repeat([0, 1], 15)
    predicted = measured + rng.normal(size=(30, 3))
    measured[codes == 0, 1] = 0.0
    measured[:, 2] = 0.0
    correlation = section_pearson(measured, predicted, codes)
    assert correlation[1] == pytest.approx(stats.pearsonr(measured[15:, 1], predicted[15:, 1]).statistic)
    assert np.isnan(correlation[2])
    assert np.isfinite(correlation[:2]).all()


def test_race_keeps_the_better_half_and_doubles_the_epochs() -> None:
    asked: list[tuple[float, int]] = []

    def train(cutoff: float, n_epochs: int) -> float:
        asked.append((cutoff, n_epochs))
        return -abs(cutoff - 0.35)

    cutoff, trace = race_search(train, cutoffs=(0.1, 0.3, 0.5, 0.9), first_rung=3)
    assert cutoff == 0.3
    assert asked == [(0.1, 3), (0.3, 3), (0.5, 3), (0.9, 3), (0.3, 6), (0.5, 6), (0.2, 6), (0.4, 6)]
    assert list(trace["step"]) == [0, 0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        pytest.param(0.0, 0.1, id="the smallest"),
        pytest.param(0.22, 0.2, id="towards the smaller neighbour"),
        pytest.param(0.39, 0.4, id="towards the larger neighbour"),
        pytest.param(0.72, 0.7, id="between the two last"),
        pytest.param(1.0, 0.9, id="the largest"),
    ],
)
def test_race_looks_between_the_winner_and_its_neighbours(best: float, expected: float) -> None:
    cutoff, _ = race_search(lambda cutoff, n_epochs: -abs(cutoff - best), cutoffs=(0.1, 0.3, 0.5, 0.9))
    assert cutoff == pytest.approx(expected)


def test_race_of_equals_takes_the_fewest_genes() -> None:
    assert race_search(lambda cutoff, n_epochs: 0.5)[0] == 0.02


def test_race_of_one_has_a_winner() -> None:
    assert race_search(lambda cutoff, n_epochs: 0.5, cutoffs=(0.7,))[0] == 0.7
