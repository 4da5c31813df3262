"""Directions of features: as few as do, orthogonal, and of a length at which settings mean the same."""

import numpy as np
import pytest

from agl_sc.core.linear import directions as module
from agl_sc.core.linear.choose_by_validation import ALPHAS
from agl_sc.core.linear.closed_form import ridge_basis, shrinkage_of
from agl_sc.core.linear.directions import directions
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots

N_SPOTS, N_FEATURES, N_TARGETS = 120, 30, 3


def spots(*, n_shown: int, seed: int = 0) -> Spots:
    """Targets that follow ``n_shown`` directions alike, which have much more spread in the features than the others."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(N_FEATURES, N_FEATURES)))[0]
    along = rng.normal(size=(N_SPOTS, N_FEATURES))
    along -= along.mean(axis=0)
    spread = np.linspace(1.5, 1, N_FEATURES) * np.where(np.arange(N_FEATURES) < n_shown, 20, 1)
    features = (along * spread) @ turn.T
    targets = along[:, :n_shown] @ rng.normal(size=(n_shown, N_TARGETS)) / np.sqrt(n_shown)
    targets += 0.05 * rng.normal(size=targets.shape)
    targets -= targets.mean(axis=0)
    return Spots(features.astype(np.float32), Expression.from_dense(targets), np.zeros(N_SPOTS, dtype=np.int64))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WIDTHS", (4, 8, 16))


@pytest.mark.parametrize(("n_shown", "width"), [(2, 4), (7, 8), (12, 16), (30, 16)])
def test_as_few_as_predict_the_targets_as_well(n_shown: int, width: int) -> None:
    found = directions(spots(n_shown=n_shown), N_TARGETS)
    assert found is not None
    assert found.shape == (N_FEATURES, width)
    assert found.dtype == np.float32


def test_they_are_the_leading_principal_directions() -> None:
    some = spots(n_shown=2)
    found = directions(some, N_TARGETS)
    assert found is not None
    length = np.sqrt(4 / N_FEATURES)
    np.testing.assert_allclose(found.T @ found, length**2 * np.eye(4), atol=1e-5)
    expected = np.linalg.svd(some.features, full_matrices=False)[2][:4]
    np.testing.assert_allclose(np.abs(expected @ found), length * np.eye(4), atol=1e-3)


def test_penalties_mean_the_same() -> None:
    """By the number of directions, at their length, what by the number of features at length 1."""
    some = spots(n_shown=30)
    turn = np.linalg.svd(some.features, full_matrices=False)[2].T
    width = 20
    few = Spots((some.features @ turn[:, :width]).astype(np.float32), some.expression, some.sections)
    scaled = Spots((few.features * np.sqrt(width / N_FEATURES)).astype(np.float32), few.expression, few.sections)
    for alpha in ALPHAS:
        expected = shrinkage_of(ridge_basis(few.features, few.expression), N_FEATURES * alpha)
        found = shrinkage_of(ridge_basis(scaled.features, scaled.expression), width * alpha)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_no_more_spots_than_features_give_the_same_span() -> None:
    """Where the kernel of the spots is decomposed."""
    some = spots(n_shown=2)
    rows = np.arange(25)
    part = Spots(some.features[rows], some.expression.of_spots(rows), some.sections[rows])
    found = directions(part, N_TARGETS)
    assert found is not None
    expected = np.linalg.svd(part.features, full_matrices=False)[2][: found.shape[1]]
    np.testing.assert_allclose(np.linalg.svd(expected @ found)[1], np.sqrt(found.shape[1] / N_FEATURES), atol=1e-3)


def test_few_features_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WIDTHS", (N_FEATURES, 2 * N_FEATURES))
    assert directions(spots(n_shown=2), N_TARGETS) is None
    monkeypatch.setattr(module, "WIDTHS", (2, 2 * N_FEATURES))
    assert directions(spots(n_shown=30), N_TARGETS) is None  # two would cost, and the next number is of all
