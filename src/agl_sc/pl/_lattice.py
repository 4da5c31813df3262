"""Spots that are the cells of a square lattice, such as the bins of Visium HD, as an image with its affine placement."""

from dataclasses import dataclass

import numpy as np

from agl_sc.core.arrays import FloatArray
from agl_sc.core.evaluation import lattice

_OFF_CENTRE = 0.25
"""Spots farther than this many steps from their place are not drawn as cells."""
_FILLED = 0.75
"""Share of its cell that a spot fills at least; a disc that touches its neighbours fills 0.79."""
_MOST_EMPTY = 100
"""Cells per spot beyond which an image would be mostly holes."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Spots of a section as cells of an image."""

    lattice: lattice.Lattice
    """Row and column of every spot."""
    matrix: FloatArray
    """From (column, row) of a cell to its centre in pixels (x, y), affine, (3, 3)."""

    def image(self, values: FloatArray) -> FloatArray:
        """Values of the spots, (n_spots,), in their cells, (n_rows, n_columns); NaN in cells without a spot."""
        cells = self.lattice.cells
        image = np.full(cells.max(axis=0) + 1, np.nan)
        known = self.lattice.known
        image[tuple(cells[known].T)] = values[known]
        return image


def cells_of(centres: FloatArray, radius: float) -> Cells | None:
    """Cells of spots that lie one in each on a square lattice, turned and sheared as it may be, and fill them; or None.

    Parameters
    ----------
    centres
        Spot centres in pixels, (n_spots, 2), as (x, y); NaN where there is none.
    radius
        Radius of a disc of the area of a spot, in pixels.
    """
    points = centres[np.isfinite(centres).all(axis=1)]
    if len(np.unique(points @ [1, 1j])) < len(points):
        return None
    found = lattice.Lattice.fitted(centres)
    if found is None or found.hexagonal or np.prod(found.cells.max(axis=0) + 1.0) > _MOST_EMPTY * len(points):
        return None
    design = np.column_stack([found.cells[found.known][:, ::-1], np.ones(len(points))])
    placed = np.linalg.lstsq(design, points)[0]
    off = (points - design @ placed) @ np.linalg.inv(placed[:2])
    if np.abs(off).max() > _OFF_CENTRE or np.pi * radius**2 < _FILLED * abs(np.linalg.det(placed[:2])):
        return None
    return Cells(found, np.vstack([placed.T, [0, 0, 1]]))
