"""Levels of sections from their mean features, and when these say anything."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from agl_sc.core.linear.levels import MARGIN, PENALTIES, best_penalty, fit_levels, held_out_error

FloatArray = NDArray[np.float64]


def planted(n_sections: int, seed: int = 0, *, tied: bool) -> tuple[FloatArray, FloatArray]:
    """Sections whose expression follows three of five directions in which they differ, or nothing of these."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_sections, 5))
    features = directions @ rng.normal(size=(5, 60)) + 0.3 * rng.normal(size=(n_sections, 60))
    causes = directions[:, :3] if tied else rng.normal(size=(n_sections, 3))
    return features, causes @ rng.normal(size=(3, 20)) + 0.5 * rng.normal(size=(n_sections, 20))


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_it_is_ridge(penalty: float) -> None:
    features, expression = planted(9, tied=True)
    centred = features - features.mean(axis=0)
    alpha = penalty * (centred**2).sum() / 9
    oracle = Ridge(alpha).fit(features, expression)
    levels, new = fit_levels(features, expression, penalty), planted(4, 1, tied=True)[0]
    expected = oracle.predict(new) - expression.mean(axis=0)
    np.testing.assert_allclose([levels.shift(row) for row in new], expected, atol=1e-8)


def test_a_section_like_the_mean_is_at_the_mean() -> None:
    features, expression = planted(9, tied=True)
    levels = fit_levels(features, expression, 1.0)
    np.testing.assert_allclose(levels.shift(features.mean(axis=0)), 0, atol=1e-12)


def test_levels_that_follow_morphology_are_found_and_others_are_not() -> None:
    tied = [held_out_error(*planted(12, seed, tied=True), np.arange(12)) for seed in range(20)]
    free = [held_out_error(*planted(12, seed, tied=False), np.arange(12)) for seed in range(20)]
    assert np.mean(np.array(tied) < MARGIN) > 0.9
    assert np.mean(np.array(free) < MARGIN) < 0.1


def test_sections_of_a_patient_are_held_out_together() -> None:
    """Each patient's two sections are the same, at a level that follows nothing: only a look at the other one tells it."""
    features, expression = (np.repeat(each, 2, axis=0) for each in planted(8, tied=False))
    assert held_out_error(features, expression, np.arange(16)) < 0.1
    assert held_out_error(features, expression, np.repeat(np.arange(8), 2)) > MARGIN


def test_the_penalty_is_chosen_by_held_out_units() -> None:
    features, expression = planted(12, tied=False)
    assert best_penalty(features, expression, np.arange(12)) > PENALTIES[0]
    exact = features[:, :4] * 100
    assert best_penalty(exact, exact @ np.ones((4, 2)), np.arange(12)) == PENALTIES[0]


def test_levels_that_do_not_differ_say_nothing() -> None:
    features, _ = planted(8, tied=True)
    assert np.isnan(held_out_error(features, np.ones((8, 3)), np.arange(8)))
    same = fit_levels(np.ones((8, 3)), np.ones((8, 2)), 1.0)
    np.testing.assert_array_equal(same.shift(np.full(3, 5.0)), 0)
