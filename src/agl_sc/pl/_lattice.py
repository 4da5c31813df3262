"""Spots that are the cells of a lattice, such as the bins of Visium HD, as places in an array that is drawn as an image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_N_PROBES = 1000
"""Spots whose neighbours tell the two steps of the lattice."""
_PARALLEL, _ACROSS = 0.9, 0.4
"""Cosines of the angle to the first step, beyond and below which a displacement is one of the first or second step."""
_FIRST_REACH = 10.0
"""Steps from the middle within which the steps of the probes number the spots without fault."""
_GROWTH = 4.0
"""By how much a fit within a reach extends it."""
_OFF_CENTRE = 0.25
"""A spot farther than this many steps from its place is on no lattice."""
_FILLED = 0.75
"""Share of its cell that a spot fills at least, a disc that touches its neighbours 0.79."""


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """Places of the spots of a section in an array of cells."""

    places: IntArray
    """Row and column of every spot that has a position, (n_known, 2), from 0."""
    known: NDArray[np.bool_]
    """Spots that have a position, (n_spots,)."""
    matrix: FloatArray
    """From (column, row) to pixels (x, y), affine, (3, 3)."""

    def image(self, values: FloatArray) -> FloatArray:
        """Values of the spots, (n_spots,), in their cells, (n_rows, n_columns); NaN in cells without a spot."""
        cells = np.full(self.places.max(axis=0) + 1, np.nan)
        cells[tuple(self.places.T)] = values[self.known]
        return cells


def lattice_of(centres: FloatArray, radius: float) -> Lattice | None:
    """Lattice of parallelograms on which spots lie one per cell and fill them, or None.

    Parameters
    ----------
    centres
        Spot centres in pixels, (n_spots, 2), as (x, y); NaN where there is none.
    radius
        Radius of a disc of the area of a spot, in pixels.
    """
    known = np.isfinite(centres).all(axis=1)
    points = centres[known]
    steps = _steps(points)
    if steps is None or np.pi * radius**2 < _FILLED * abs(np.linalg.det(steps)):
        return None
    matrix = _fit(points, steps)
    exact = (points - matrix[2]) @ np.linalg.inv(matrix[:2])
    numbers = np.round(exact).astype(np.int64)
    first = numbers.min(axis=0)
    n_rows, n_columns = (int(n) for n in numbers.max(axis=0) - first + 1)
    is_off = np.abs(exact - numbers).max() > _OFF_CENTRE
    if (
        is_off
        or len(np.unique((numbers - first) @ [n_columns, 1])) < len(points)
        or _is_sparse(n_rows * n_columns, points)
    ):
        return None
    origin = first @ matrix[:2] + matrix[2]
    to_pixels = np.vstack([np.column_stack([matrix[1], matrix[0], origin]), [0, 0, 1]])
    return Lattice(numbers - first, known, to_pixels)


def _is_sparse(n_cells: int, points: FloatArray) -> bool:
    """More than a hundred cells per spot: an array would be mostly empty."""
    return n_cells > 100 * len(points)


def _steps(points: FloatArray) -> FloatArray | None:
    """First and second step of the lattice in pixels, as rows; None where neighbours show no two."""
    if len(points) < 9:
        return None
    probes = points[np.linspace(0, len(points) - 1, min(_N_PROBES, len(points)), dtype=int)]
    distances, neighbours = cKDTree(points).query(probes, k=9)
    if distances[:, 1].min() <= 0:
        return None
    moves = points[neighbours[:, 1:]] - probes[:, None]
    first = _median_step(moves[:, 0], moves[0, 0])
    cosines = np.abs(moves @ first) / (distances[:, 1:] * np.linalg.norm(first))
    is_across = cosines < _ACROSS
    if not is_across.any():
        return None
    nearest = np.argmax(is_across, axis=1)
    across = moves[np.arange(len(moves)), nearest][is_across.any(axis=1)]
    return np.stack([first, _median_step(across, across[0])])


def _median_step(moves: FloatArray, like: FloatArray) -> FloatArray:
    """Median over the moves that run along ``like``, either way."""
    along = moves @ like
    lengths = np.linalg.norm(moves, axis=1) * np.linalg.norm(like)
    is_parallel = np.abs(along) > _PARALLEL * lengths
    step: FloatArray = np.median(moves[is_parallel] * np.sign(along[is_parallel])[:, None], axis=0)
    return step


def _fit(points: FloatArray, steps: FloatArray) -> FloatArray:
    """Least-squares steps and origin, (3, 2), fitted in ever wider reach, for a small fault of a step adds up."""
    middle = points[np.argmin(np.linalg.norm(points - np.median(points, axis=0), axis=1))]
    distances = np.linalg.norm(points - middle, axis=1)
    matrix = np.vstack([steps, middle])
    reach = _FIRST_REACH * float(np.linalg.norm(steps, axis=1).max())
    while True:
        near = points[distances <= reach]
        numbers = np.round((near - matrix[2]) @ np.linalg.inv(matrix[:2]))
        design = np.column_stack([numbers, np.ones(len(near))])
        if np.linalg.matrix_rank(design) == 3:
            matrix = np.linalg.lstsq(design, near)[0]
        if len(near) == len(points):
            return matrix
        reach *= _GROWTH
