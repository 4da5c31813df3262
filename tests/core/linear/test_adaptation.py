"""A planted shift, slope and residual are found again; where there is none, nothing changes."""

from typing import Any

import numpy as np
import pytest

from agl_sc.core.arrays import FloatArray
from agl_sc.core.linear.adaptation import Adaptation, MeasuredSpots, Shrinkage, adapted_to, fitted


def planted(
    n_spots: int,
    *,
    shift: float = 0.0,
    slope: float = 1.0,
    residual: float = 0.0,
    noise: float = 0.3,
    n_genes: int = 60,
) -> tuple[MeasuredSpots, FloatArray]:
    """Spots whose expression differs from a prediction in a known way, and expression without noise."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(n_spots, 8))
    predicted = basis @ rng.normal(size=(8, n_genes)) / 3
    truth = shift * rng.choice([-1, 1], n_genes) + slope * predicted + residual * basis @ rng.normal(size=(8, n_genes))
    return MeasuredSpots(truth + noise * rng.normal(size=truth.shape), predicted, basis), truth


def error(found: Adaptation, spots: MeasuredSpots, truth: FloatArray) -> float:
    return float(((found(spots.predicted, spots.basis) - truth) ** 2).mean())


@pytest.mark.parametrize(
    ("difference", "parts"),
    [({"shift": 1.0}, {"shift"}), ({"slope": 0.3}, {"slope"}), ({"residual": 0.5}, {"residual"})],
    ids=["shift", "slope", "residual"],
)
def test_what_is_planted_is_found(difference: dict[str, float], parts: set[str]) -> None:
    changes: dict[str, Any] = dict(difference)
    spots, truth = planted(80, **changes)
    found = adapted_to(spots.take(np.arange(40)))
    held, kept = spots.take(np.arange(40, 80)), truth[40:]
    plain = float(((held.predicted - kept) ** 2).mean())
    assert error(found, held, kept) < 0.3 * plain
    assert parts <= {name for name in ("shift", "slope", "residual") if getattr(found.shrinkage, name) is not None}
    assert 0 < found.saved < 1


def test_where_nothing_differs_nothing_changes() -> None:
    spots, _ = planted(30, noise=1.0)
    found = adapted_to(spots)
    assert found.shrinkage == Shrinkage()
    assert found.saved == 0
    np.testing.assert_array_equal(found(spots.predicted, spots.basis), spots.predicted)


def test_the_residual_is_not_tried_unasked() -> None:
    spots, _ = planted(40, residual=0.5)
    found = adapted_to(spots, residual=False)
    assert found.shrinkage.residual is None
    assert not found.weights.any()


def test_no_shrinkage_is_least_squares() -> None:
    spots, _ = planted(50, shift=1.0, slope=0.5)
    found = fitted(spots, Shrinkage(0.0, 0.0, None))
    for gene in range(3):
        slope, shift = np.polyfit(spots.predicted[:, gene], spots.measured[:, gene], 1)
        np.testing.assert_allclose([found.slope[gene], found.shift[gene]], [slope, shift])


def test_ridge_on_the_residual_is_ridge() -> None:
    spots, _ = planted(20, residual=0.5)
    found = fitted(spots, Shrinkage(None, None, 0.7))
    basis = spots.basis - spots.basis.mean(axis=0)
    rest = spots.measured - spots.predicted
    penalty = 0.7 * (basis**2).sum() / len(basis)
    expected = np.linalg.solve(basis.T @ basis + penalty * np.eye(8), basis.T @ (rest - rest.mean(axis=0)))
    np.testing.assert_allclose(found.weights, expected)


def test_many_spots_are_believed_more_than_few() -> None:
    spots, _ = planted(100, shift=1.0, noise=0.0)
    few, many = (fitted(spots.take(np.arange(n)), Shrinkage(20.0)) for n in (5, 100))
    np.testing.assert_allclose(np.abs(few.shift), 5 / 25)
    np.testing.assert_allclose(np.abs(many.shift), 100 / 120)


def test_slopes_are_never_negative_and_flat_genes_stay() -> None:
    spots, _ = planted(40, slope=-1.0)
    spots.predicted[:, 0] = 2.0
    spots.measured[:, 1] = 0.0
    found = fitted(spots, Shrinkage(0.0, 0.0))
    assert (found.slope >= 0).all()
    assert found.slope[0] == 1
    assert np.isfinite(adapted_to(spots)(spots.predicted, spots.basis)).all()
