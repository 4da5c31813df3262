"""Distances from the nearest training spots, by how far these lie from theirs: known answers."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from agl_sc.core.arrays import FloatArray
from agl_sc.core.evaluation.neighbours import N_NEIGHBOURS, Neighbours

N_SPOTS = 200


def fitted(points: FloatArray) -> Neighbours:
    return Neighbours.fitted(points, np.zeros(len(points), dtype=np.int64))


def plane(seed: int, n_spots: int = N_SPOTS) -> FloatArray:
    """Points of a plane in five dimensions."""
    return np.random.default_rng(seed).normal(size=(n_spots, 2)) @ np.eye(5)[:2]


def test_the_ratio_is_that_of_the_distances_of_tenth_neighbours() -> None:
    training, others = plane(0), plane(1, 30)
    reach = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(training).kneighbors()[0][:, -1]
    distance, which = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(training).kneighbors(others)
    np.testing.assert_allclose(fitted(training).ratios(others), distance[:, -1] / reach[which].mean(axis=1), rtol=1e-6)


def test_the_scale_and_the_origin_of_features_do_not_count() -> None:
    training, others = plane(0), plane(1, 30)
    moved = fitted(7.0 * training + 100.0).ratios(7.0 * others + 100.0)
    np.testing.assert_allclose(moved, fitted(training).ratios(others), rtol=1e-6)


def test_a_gap_between_two_tissues_is_far_and_a_sparse_place_is_not() -> None:
    rng = np.random.default_rng(0)
    dense = np.concatenate([rng.normal(size=(150, 5)) * 0.1 + each for each in (-3.0, 3.0)])
    sparse = rng.normal(size=(60, 5)) * 2.0 + 20.0
    known = fitted(np.concatenate([dense, sparse]))
    assert known.ratios(np.zeros((1, 5)))[0] > 10
    assert np.median(known.ratios(rng.normal(size=(60, 5)) * 2.0 + 20.0)) < 1.5


def test_what_lies_off_all_directions_is_far() -> None:
    training = np.random.default_rng(0).normal(size=(N_SPOTS, 60)) * np.repeat([1.0, 0.01], [30, 30])
    known = fitted(training)
    off = training[:20].copy()
    off[:, 30:] += 3.0
    assert known.directions.shape == (32, 60)
    assert known.ratios(off).min() > 2 * known.ratios(training[:20]).max()


@pytest.mark.parametrize("n_spots", [2, 5, 10, 11])
def test_few_spots_have_as_many_neighbours_as_there_are(n_spots: int) -> None:
    training = plane(0, n_spots)
    ratios = fitted(training).ratios(plane(1, 8))
    assert np.isfinite(ratios).all()
    assert (ratios > 0).all()


def test_spots_that_are_all_the_same_are_near_and_others_far() -> None:
    known = fitted(np.ones((20, 5)))
    assert (known.reach > 0).all()
    assert known.ratios(np.zeros((1, 5)))[0] > 1e3


def test_many_spots_are_thinned() -> None:
    assert len(fitted(plane(0, 6000)).points) == pytest.approx(4096, abs=1)
