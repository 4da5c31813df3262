"""The lattice that spots lie on, found from their centres: row and column of every spot, and who is next to whom."""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from agl_sc.core.arrays import FloatArray, IntArray

_FEWEST_SPOTS = 6
_ADJACENT = 1.25
"""Neighbours within this many median distances to the nearest spot; diagonal ones are 1.4 or 1.7 away."""
_FIRST_REACH = 3
"""Cells around the middle that the first fit rests on."""
_MOST_OFF = 0.15
"""Mean distance from the lattice in pitches, along either step: up to .06 in HER2ST, .25 of spots placed at random."""
_SQUARE = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])
_HEXAGONAL = (
    np.array([(0, 1), (0, -1), (1, 0), (1, -1), (-1, 0), (-1, -1)]),
    np.array([(0, 1), (0, -1), (1, 0), (1, 1), (-1, 0), (-1, 1)]),
)
"""Steps (row, column) to the neighbours from even and from odd rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """Where the spots of one section lie on its square or hexagonal lattice."""

    cells: IntArray
    """Row and column of every spot, from 0, (n_spots, 2); -1 for a spot without a position."""
    hexagonal: bool
    """Odd rows then lie half a column further."""

    @classmethod
    def fitted(cls, centres: FloatArray) -> "Lattice | None":
        """Lattice of the spots of one section, turned, sheared or jittered as it may be; None where they lie on none.

        The distances to nearest neighbours say which kind it is and its two steps; from the middle outwards, ever more
        spots are rounded to cells and the steps fitted to them by least squares, so that no error adds up.

        Parameters
        ----------
        centres
            As (x, y) in any unit, (n_spots, 2); NaN for a spot without a position. Of the whole section, rather than of
            the few spots that are evaluated: neighbours have to be among them.
        """
        known = np.isfinite(centres).all(axis=1)
        found = _steps(centres[known]) if known.sum() >= _FEWEST_SPOTS else None
        if found is None:
            return None
        steps, hexagonal = found
        places = _places(centres[known], steps)
        rounded = np.round(places).astype(np.int64)
        off = np.abs(places - rounded).mean(axis=0).max()
        if off > _MOST_OFF or len(np.unique(rounded, axis=0)) < len(rounded):
            return None
        column, row = rounded.T
        row = row - row.min()
        if hexagonal:
            column = column + row // 2
        cells = np.full((len(centres), 2), -1)
        cells[known] = np.column_stack([row, column - column.min()])
        return cls(cells, hexagonal)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Spots with a position, (n_spots,)."""
        known: NDArray[np.bool_] = self.cells[:, 0] >= 0
        return known

    def take(self, rows: NDArray[np.bool_] | IntArray) -> "Lattice":
        """The same lattice with some of the spots, in the order of ``rows``."""
        return replace(self, cells=self.cells[rows])

    def raster(self, values: FloatArray) -> tuple[FloatArray, tuple[IntArray, IntArray]]:
        """Values (n_spots, n) of spots with a position as images (n, n_rows, n_columns), NaN in holes, and the spots' pixels.

        In a hexagonal lattice odd rows are moved by half a column; an image starts with an even row.
        """
        row, column = (self.cells - [self.cells[:, 0].min() // 2 * 2, self.cells[:, 1].min()]).T
        images = np.full((values.shape[1], row.max() + 1, column.max() + 1), np.nan)
        images[:, row, column] = values.T
        return images, (row, column)

    def graph(self) -> scipy.sparse.csr_matrix:
        """Weights 1 / (number of neighbours) of the up to 4 or 6 adjacent spots, (n_spots, n_spots), for spots with a position."""
        padded = self.cells + 1
        index = np.full(padded.max(axis=0) + 2, -1)
        index[tuple(padded.T)] = np.arange(len(padded))
        steps = np.broadcast_to(_SQUARE, (len(padded), 4, 2))
        if self.hexagonal:
            steps = np.where((self.cells[:, 0] % 2 == 1)[:, None, None], _HEXAGONAL[1], _HEXAGONAL[0])
        neighbour = index[tuple(np.moveaxis(padded[:, None] + steps, -1, 0))]
        spot, _ = np.nonzero(neighbour >= 0)
        weights = 1 / np.bincount(spot, minlength=len(padded))[spot]
        return scipy.sparse.csr_matrix((weights, (spot, neighbour[neighbour >= 0])), shape=(len(padded), len(padded)))


def _steps(points: FloatArray) -> tuple[FloatArray, bool] | None:
    """Steps to the next column and to the next row as (x, y), (2, 2), and whether they enclose 60 rather than 90 degrees."""
    tree = cKDTree(points)
    nearest = float(np.median(tree.query(points, k=2)[0][:, 1]))
    pairs = tree.query_pairs(_ADJACENT * nearest, output_type="ndarray")
    if nearest == 0 or len(pairs) == 0:
        return None
    one_way = points[pairs[:, 1]] - points[pairs[:, 0]]
    both_ways = np.concatenate([one_way, -one_way])
    angle = np.arctan2(both_ways[:, 1], both_ways[:, 0])
    order = {n_fold: np.exp(1j * n_fold * angle).mean() for n_fold in (4, 6)}
    n_fold = 4 if abs(order[4]) > abs(order[6]) else 6
    tilt = np.angle(order[n_fold]) / n_fold
    sector = np.round((angle - tilt) / (2 * np.pi / n_fold)).astype(int) % n_fold
    if not {0, 1} <= set(sector):
        return None
    return np.stack([both_ways[sector == number].mean(axis=0) for number in (0, 1)]), n_fold == 6


def _places(points: FloatArray, steps: FloatArray) -> FloatArray:
    """Column and row of every point, not rounded, (n_points, 2)."""
    origin = points[np.argmin(((points - np.median(points, axis=0)) ** 2).sum(axis=1))]
    places: FloatArray = (points - origin) @ np.linalg.inv(steps)
    reach, fitted_all = _FIRST_REACH, False
    while not fitted_all:
        near = np.abs(places).max(axis=1) <= reach
        design = np.column_stack([np.round(places[near]), np.ones(near.sum())])
        if np.linalg.matrix_rank(design) == 3:
            solution = np.linalg.lstsq(design, points[near], rcond=None)[0]
            places = (points - solution[2]) @ np.linalg.inv(solution[:2])
        reach, fitted_all = 2 * reach, bool(near.all())
    return places
