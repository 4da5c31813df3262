"""Spots whose tile shows glass alone, by the colour of the background."""

import numpy as np
from scipy import ndimage

from agl_sc._sdata.sections import Section
from agl_sc.core.arrays import BoolArray, UInt8Array
from agl_sc.core.tiles.reader import Boxes

NEAR = 20
"""Grey levels of each channel up to which a pixel has the colour of the background."""
_MOSTLY = 0.9
"""Share of such pixels from which on a tile is glass."""
_BRIGHT = 180
"""Grey levels of each channel from which on the background is glass, not the brightest tissue of a crop."""
_FEWEST_PX = 4
"""Side of a tile on the overview, below which it tells nothing."""


def glass_of(pixels: UInt8Array, background: UInt8Array) -> BoolArray | None:
    """Which pixels (3, y, x) look as the background does, (y, x); None where that is no glass."""
    if background.min() < _BRIGHT:
        return None
    away = np.maximum(pixels, background[:, None, None]) - np.minimum(pixels, background[:, None, None])
    glass: BoolArray = np.all(away <= NEAR, axis=0)
    return glass


def on_glass(section: Section, boxes: Boxes, glass: BoolArray | None) -> BoolArray:
    """Spots of a section whose tile is nearly all glass, (n_spots,); none where the overview tells nothing.

    Parameters
    ----------
    section
        Spots with a position, and the image.
    boxes
        Their tiles.
    glass
        Pixels of the coarsest level that look as glass does, (y, x).
    """
    nowhere = np.zeros(len(section.rows), dtype=bool)
    if glass is None:
        return nowhere
    ratio = np.array(glass.shape) / boxes.image.shape[1:]
    sides = np.round(boxes.side * ratio).astype(int)
    if sides.min() < _FEWEST_PX:
        return nowhere
    share = ndimage.uniform_filter(glass.astype(np.float32), sides.tolist(), mode="constant", cval=1.0)
    row, column = np.floor((boxes.origins + boxes.side / 2).T * ratio[:, None]).astype(int)
    inside = (row >= 0) & (row < glass.shape[0]) & (column >= 0) & (column < glass.shape[1])
    nowhere[inside] = share[row[inside], column[inside]] >= _MOSTLY
    return nowhere
