"""What a spot's features are made of beside its own tile: wider fields of view and neighbouring spots."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, cast, get_args

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from agl_sc._sdata.records import FeatureRecord
from agl_sc.core.arguments import check_flag
from agl_sc.core.arrays import Float32Array
from agl_sc.core.encoders.maps import HALO_PX, WIDER_HALO_PX

ORIENTATIONS = (1, 2, 4, 8)
"""As it is; and upside down; and by quarter turns; and all of these mirrored."""
MapsOf = Literal["none", "wider", "all"]
WIDER = (2, 4, 8)
"""Fields of view beside the tile's, in sides of it, that predict best; 16 too is better on HER2ST by .003 and worse on the mouse brain by .014."""


@dataclass(frozen=True, slots=True)
class Views:
    """What goes into the features of a spot."""

    context: Sequence[float] = ()
    """Fields of view in sides of the tile, each seen at as many times its mpp."""
    neighbors: int = 0
    """Rings of neighbouring spots whose mean features are added."""
    orientations: int = 1
    """Ways of laying every field of view that are averaged over; of the tiles themselves see :attr:`of_tiles`."""
    stages: bool = False
    """Mean and spread of the feature maps of every stage of the encoder, beside its own features."""
    maps: MapsOf | None = "none"
    """Which fields of view are means over maps of the tissue: none, those wider than the tile, or all; what suits the
    encoder if None."""
    halo_px: int = WIDER_HALO_PX
    """Border of the windows of wider fields by maps that is there for the sake of the rest alone, of networks that see nothing far away."""

    @property
    def of_tiles(self) -> int:
        """Ways of laying the tiles themselves: half beside maps, of which wider fields predict more; all in older features of both."""
        is_old = self.maps == "wider" and self.halo_px != WIDER_HALO_PX
        return self.orientations if self.maps == "none" or is_old else max(1, self.orientations // 2)

    @property
    def n_views(self) -> int:
        """Fields of view, the neighbours' one of them."""
        return 1 + len(self.context) + (self.neighbors > 0)

    def __post_init__(self) -> None:
        check_flag("stages", self.stages)
        factors = self.context
        if isinstance(factors, str | Real) or not all(isinstance(f, Real) and 1 < f < np.inf for f in factors):
            msg = f"context={factors!r} is not a sequence of factors above 1; pass e.g. (2,) or (2, 4)."
            raise ValueError(msg)
        if not isinstance(self.neighbors, Integral) or self.neighbors < 0:
            msg = f"neighbors={self.neighbors!r} is not a number of rings; pass 0 for none, 1 for the adjacent spots."
            raise ValueError(msg)
        if not isinstance(self.orientations, Integral) or self.orientations not in ORIENTATIONS:
            msg = f"orientations={self.orientations!r} is not one of {', '.join(map(str, ORIENTATIONS))} ways of laying a tile; 2 is usual."
            raise ValueError(msg)
        if self.maps is not None and self.maps not in get_args(MapsOf):
            msg = f"maps={self.maps!r} is not one of {', '.join(map(repr, get_args(MapsOf)))}; leave it out for what suits the encoder."
            raise ValueError(msg)
        if self.halo_px not in (HALO_PX, WIDER_HALO_PX):
            msg = f"halo_px={self.halo_px!r} is not {HALO_PX} or {WIDER_HALO_PX}, as agl_sc.pp.embed records it; run it again."
            raise ValueError(msg)

    def plain(self) -> dict[str, Any]:
        """As :class:`FeatureRecord` holds them."""
        factors = " ".join(f"{factor:g}" for factor in self.context)
        is_recorded = self.maps != "none" and self.halo_px == WIDER_HALO_PX
        return {
            "context": factors,
            "neighbors": int(self.neighbors),
            "orientations": int(self.orientations),
            "stages": bool(self.stages),
            "maps": self.maps,
            "halo_px": WIDER_HALO_PX if is_recorded else None,
        }

    @classmethod
    def of(cls, features: FeatureRecord) -> "Views":
        """The views of the features that a record describes."""
        factors = tuple(float(factor) for factor in features.context.split())
        maps, halo_px = cast("MapsOf", features.maps), features.halo_px or HALO_PX
        return cls(factors, features.neighbors, features.orientations, features.stages, maps, halo_px)


def ring_means(features: Float32Array, centres: NDArray[np.float64], n_rings: int) -> Float32Array:
    """Mean features of the spots around every spot of a section.

    Parameters
    ----------
    features
        Of the section's spots, (n_spots, n_features).
    centres
        Their centres, (n_spots, 2).
    n_rings
        Spots within this and a half times the median distance to the nearest one count: on a square lattice 8 for one
        ring, on a hexagonal one 6.

    Returns
    -------
    (n_spots, n_features); a spot with no neighbour keeps its own features.
    """
    if len(centres) < 2:
        return features.copy()
    tree = cKDTree(centres)
    nearest = tree.query(centres, k=2)[0][:, 1]
    pairs = tree.query_pairs((n_rings + 0.5) * float(np.median(nearest)), output_type="ndarray")
    ones = np.ones(2 * len(pairs), dtype=np.float32)
    both = (np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]]))
    adjacent = scipy.sparse.csr_matrix((ones, both), shape=(len(centres), len(centres)))
    count = np.asarray(adjacent.sum(axis=1))
    means: Float32Array = np.where(count > 0, (adjacent @ features) / np.maximum(count, 1), features)
    return means.astype(np.float32)
