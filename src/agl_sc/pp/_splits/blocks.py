"""Where spots lie: blocks of the plane, the buffer between sets, tiles that share pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from agl_sc._sdata.study import Study
from agl_sc.core.arguments import is_number
from agl_sc.core.arrays import BoolArray, FloatArray, StrArray

_STRONGER = (("train", ("validation", "test")), ("validation", ("test",)))


def check_microns(block_um: float, buffer_um: float) -> None:
    """Refuse what is no side of a block, or no buffer."""
    if not is_number(block_um) or not 0 < block_um < np.inf:
        msg = f"block_um={block_um!r} is not a positive number of microns; 500 is usual."
        raise ValueError(msg)
    if not is_number(buffer_um) or not 0 <= buffer_um < np.inf:
        msg = f"buffer_um={buffer_um!r} is not a number of microns from 0; 150 is usual."
        raise ValueError(msg)


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Spots in the plane of their image."""

    centres_um: FloatArray
    """Centres in microns as (x, y), (n_obs, 2); NaN where a spot has no position."""
    images: StrArray
    """Key of the image that a spot lies on, (n_obs,): distances mean something within one."""
    sections: StrArray
    """Section of every spot, (n_obs,)."""

    @property
    def known(self) -> BoolArray:
        """Spots with a position, (n_obs,)."""
        known: BoolArray = np.isfinite(self.centres_um.sum(axis=1))
        return known

    def blocks(self, block_um: float) -> StrArray:
        """Name of every spot's block in a square grid over its section, (n_obs,); any for spots without a position."""
        offset = pd.DataFrame(self.centres_um).groupby(self.sections).transform("min").to_numpy()
        grid = np.floor(np.nan_to_num((self.centres_um - offset) / block_um)).astype(int)
        return np.array([f"{name}/{y}/{x}" for name, (x, y) in zip(self.sections, grid, strict=True)])

    def with_buffer(self, assigned: NDArray[Any], buffer_um: float) -> StrArray:
        """Leave out spots too near to a set that outranks theirs: test over validation over train."""
        result = assigned.astype("<U10")
        for image in np.unique(self.images):
            inside = np.flatnonzero((self.images == image) & self.known)
            for weaker, stronger in _STRONGER:
                weak = inside[assigned[inside] == weaker]
                strong = inside[np.isin(assigned[inside], stronger)]
                if len(weak) and len(strong):
                    distance, _ = cKDTree(self.centres_um[strong]).query(self.centres_um[weak])
                    result[weak[distance < buffer_um]] = "unused"
        return result


def locate(study: Study) -> Positions:
    """Every spot of the table in microns on its image, or where it has none in its region."""
    centres_um = np.full((study.table.n_obs, 2), np.nan)
    images = np.full(study.table.n_obs, "", dtype=object)
    scales: dict[str, float] = {}
    for section in study.positioned:
        on = section.image_key or section.name
        if on not in scales:
            scales[on] = section.mpp()
        centres_um[section.rows] = section.centres * scales[on]
        images[section.rows] = on
    return Positions(centres_um, images.astype(str), study.section_names)


def shared_pixels(
    centres_um: FloatArray, images: NDArray[Any], assigned: NDArray[Any], *, tile_um: float
) -> dict[str, int]:
    """How many tiles of a set share pixels with tiles of the sets that it is to be kept from.

    Parameters
    ----------
    centres_um
        Centres of the tiles in microns as (x, y), (n_spots, 2); NaN for none.
    images
        Image of every tile, (n_spots,).
    assigned
        Set of every spot, (n_spots,).
    tile_um
        Side of a tile in microns. Two tiles share pixels when their centres are less than it apart in x and in y.

    Returns
    -------
    ``test``: test tiles that share pixels with a training or validation tile; ``validation``: validation tiles that share
    pixels with a training tile.
    """
    shared = {"test": 0, "validation": 0}
    known = np.isfinite(centres_um).all(axis=1)
    for image in np.unique(images):
        inside = np.flatnonzero((images == image) & known)
        for kept, others in (("test", ("train", "validation")), ("validation", ("train",))):
            tiles = centres_um[inside[assigned[inside] == kept]]
            against = centres_um[inside[np.isin(assigned[inside], others)]]
            if len(tiles) and len(against):
                distance, _ = cKDTree(against).query(tiles, p=np.inf)
                shared[kept] += int((distance < tile_um).sum())
    return shared
