"""Rows and columns are found again, whatever was done to the plane."""

import numpy as np
import pytest
from numpy.typing import NDArray
from squidpy.gr.neighbors import GridBuilder

from agl_sc.core.evaluation.lattice import Lattice

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def square(n_rows: int, n_columns: int) -> IntArray:
    return np.indices((n_rows, n_columns)).reshape(2, -1).T


def centres_of(cells: IntArray, *, hexagonal: bool) -> FloatArray:
    """As (x, y), 1 apart."""
    row, column = cells.T
    if not hexagonal:
        return np.column_stack([column, row]).astype(float)
    return np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2])


def turned(centres: FloatArray, degrees: float) -> FloatArray:
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray(centres @ matrix)


@pytest.mark.parametrize("hexagonal", [False, True], ids=["square", "hexagonal"])
@pytest.mark.parametrize(
    ("degrees", "stretch", "jitter"),
    [(0, 1.0, 0.0), (7, 1.0, 0.0), (-13, 1.05, 0.0), (2, 1.0, 0.08), (0, 1.02, 0.08)],
    ids=["plain", "turned", "turned and stretched", "turned and jittered", "stretched and jittered"],
)
def test_rows_and_columns_are_recovered(*, hexagonal: bool, degrees: float, stretch: float, jitter: float) -> None:
    rng = np.random.default_rng(0)
    cells = square(40, 50)
    cells = cells[rng.random(len(cells)) < 0.8]
    centres = turned(centres_of(cells, hexagonal=hexagonal), degrees) * [1, stretch] * 137.0 + [5000.0, 300.0]
    lattice = Lattice.fitted(centres + 137.0 * jitter * rng.uniform(-1, 1, centres.shape))
    assert lattice is not None
    assert lattice.hexagonal == hexagonal
    np.testing.assert_array_equal(lattice.cells - lattice.cells.min(axis=0), cells - cells.min(axis=0))


def test_spots_without_a_position_keep_their_row() -> None:
    centres = centres_of(square(5, 6), hexagonal=False)
    centres[[0, 17]] = np.nan
    lattice = Lattice.fitted(centres)
    assert lattice is not None
    assert np.flatnonzero(~lattice.known).tolist() == [0, 17]
    np.testing.assert_array_equal(lattice.cells[lattice.known], square(5, 6)[lattice.known])
    assert (lattice.cells[[0, 17]] == -1).all()


@pytest.mark.parametrize(
    "centres",
    [
        pytest.param(np.random.default_rng(0).random((300, 2)), id="at random"),
        pytest.param(np.repeat(centres_of(square(4, 4), hexagonal=False), 2, axis=0), id="two spots in a place"),
        pytest.param(np.column_stack([np.arange(30.0), np.zeros(30)]), id="a line"),
        pytest.param(centres_of(square(1, 5), hexagonal=False), id="too few"),
        pytest.param(np.full((20, 2), np.nan), id="no positions"),
        pytest.param(np.zeros((20, 2)), id="one place"),
    ],
)
def test_spots_on_no_lattice_have_none(centres: FloatArray) -> None:
    assert Lattice.fitted(centres) is None


@pytest.mark.parametrize("first_row", [0, 1])
@pytest.mark.parametrize("hexagonal", [False, True], ids=["square", "hexagonal"])
def test_the_graph_is_squidpys(*, hexagonal: bool, first_row: int) -> None:
    cells = square(20, 20)
    cells = cells[(cells[:, 0] >= first_row) & (np.random.default_rng(0).random(400) < 0.9)]
    centres = centres_of(cells, hexagonal=hexagonal)
    lattice = Lattice.fitted(centres)
    assert lattice is not None
    adjacent, _ = GridBuilder(n_neighs=6 if hexagonal else 4).build(centres)
    graph = lattice.graph()
    np.testing.assert_array_equal(graph.toarray() > 0, adjacent.toarray() > 0)
    sums = np.asarray(graph.sum(axis=1)).ravel()
    np.testing.assert_allclose(sums[np.diff(graph.indptr) > 0], 1)


def test_a_raster_holds_every_spot_and_nan_in_holes() -> None:
    cells = np.delete(square(6, 5), [7, 22], axis=0)
    lattice = Lattice(cells + np.array([3, 2]), hexagonal=False)
    images, pixels = lattice.raster(np.column_stack([np.arange(28.0), -np.arange(28.0)]))
    assert images.shape == (2, 7, 5)  # from an even row on
    np.testing.assert_array_equal(images[0][pixels], np.arange(28))
    np.testing.assert_array_equal(images[1][pixels], -np.arange(28))
    assert np.isnan(images).sum() == 2 * (5 + 2)
