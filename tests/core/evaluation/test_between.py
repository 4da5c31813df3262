"""Levels of sections: Pearson over their means."""

import numpy as np
from scipy.stats import pearsonr

from agl_sc.core.evaluation.between import pearson_between


def test_it_is_pearson_over_sections() -> None:
    measured, predicted = np.random.default_rng(0).normal(size=(2, 5, 3))
    measured[:, 2] = 1.0
    found = pearson_between(measured, predicted)
    expected = [pearsonr(measured[:, gene], predicted[:, gene])[0] for gene in range(2)]
    np.testing.assert_allclose(found[:2], expected)
    assert np.isnan(found[2])


def test_it_is_undefined_with_fewer_than_three_sections() -> None:
    values = np.random.default_rng(0).normal(size=(2, 4))
    assert np.isnan(pearson_between(values, values)).all()


def test_the_mean_of_the_others_correlates_by_minus_one() -> None:
    """Whoever holds a section out and predicts the mean of the others predicts the less the more there was."""
    measured = np.random.default_rng(0).normal(size=(6, 4))
    of_others = (measured.sum(axis=0) - measured) / 5
    np.testing.assert_allclose(pearson_between(measured, of_others), -1)
