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

ORIENTATIONS = (1, 2, 4, 8)
"""As it is; and upside down; and by quarter turns; and all of these mirrored."""
MapsOf = Literal["none", "wider", "all"]
WIDER = (2, 4, 8)
"""Fields of view beside the tile's, in sides of it, that predict best on HER2ST; 16 adds nothing."""


@dataclass(frozen=True, slots=True)
class Views:
    """What goes into the features of a spot."""

    context: Sequence[float] = ()
    """Fields of view in sides of the tile, each seen at as many times its mpp."""
    neighbors: int = 0
    """Rings of neighbouring spots whose mean features are added."""
    orientations: int = 1
    """Ways of laying every tile that are averaged over."""
    stages: bool = False
    """Mean and spread of the feature maps of every stage of the encoder, beside its own features."""
    maps: MapsOf | None = "none"
    """Which fields of view are means over maps of the tissue: none, those wider than the tile, or all; what suits the
    encoder if None."""

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

    def plain(self) -> dict[str, Any]:
        """As :class:`FeatureRecord` holds them."""
        factors = " ".join(f"{factor:g}" for factor in self.context)
        return {
            "context": factors,
            "neighbors": int(self.neighbors),
            "orientations": int(self.orientations),
            "stages": bool(self.stages),
            "maps": self.maps,
        }

    @classmethod
    def of(cls, features: FeatureRecord) -> "Views":
        """The views of the features that a record describes."""
        factors = tuple(float(factor) for factor in features.context.split())
        return cls(factors, features.neighbors, features.orientations, features.stages, cast("MapsOf", features.maps))


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
