"""How far a spot lies from its nearest training spots, by how far these lie from theirs."""

from dataclasses import dataclass, replace

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_svd

from agl_sc.core.arrays import FloatArray, Floats, IntArray
from agl_sc.core.linear.predictability import MOST_SPOTS
from agl_sc.core.spots.thinned import thinned

N_NEIGHBOURS, _N_AXES = 10, 32
_LEAST_REACH = 1e-6
_ROWS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Training spots as points in the space of features.

    The ratio of a spot is its distance from the tenth nearest training spot over the mean of the same distance of these ten:
    the local outlier factor in its simplified form. Tissue is dense in places and sparse in others; an odd spot among odd
    ones has 1, and a spot in a gap has more, however near the middle it lies.

    References
    ----------
    Breunig, Kriegel, Ng and Sander, LOF: identifying density-based local outliers, SIGMOD 2000. Schubert, Zimek and
    Kriegel, Local outlier detection reconsidered, Data Mining and Knowledge Discovery 28, 2014.
    """

    middle: FloatArray
    """Mean point, (n_features,)."""
    directions: FloatArray
    """Leading directions around it, (n_axes, n_features)."""
    points: FloatArray
    """Training spots along them, (n_spots, n_axes)."""
    rest: FloatArray
    """Length of what of each lies off them, (n_spots,); two spots are taken to lie off in unlike directions."""
    reach: FloatArray
    """Distance of every training spot from its tenth nearest, (n_spots,)."""

    @classmethod
    def fitted(cls, features: Floats, sections: IntArray) -> "Neighbours":
        """Of some spots (n_spots, n_features) of several sections, of about 4,096 of them at most."""
        known = np.asarray(features[thinned(sections, MOST_SPOTS)], dtype=float)
        middle = known.mean(axis=0)
        n_axes = max(1, min(_N_AXES, len(known) - 1, known.shape[1]))
        _, _, directions = randomized_svd(known - middle, n_axes, random_state=0)
        points, rest = _along(known - middle, directions)
        found = cls(middle, directions, points, rest, np.ones(len(points)))
        distance, which = found._nearest(points, rest, n_nearest=min(N_NEIGHBOURS + 1, len(points)))
        distance[which == np.arange(len(points))[:, None]] = np.inf  # a spot is not its own neighbour
        reach = np.sort(distance, axis=1)[:, min(N_NEIGHBOURS, len(points) - 1) - 1]
        return replace(found, reach=np.maximum(reach, _LEAST_REACH * max(float(np.median(reach)), _LEAST_REACH)))

    def ratios(self, features: Floats) -> FloatArray:
        """1 of a spot as near to training spots as these are to each other, more of one that is not, (n_spots,)."""
        ratios = np.empty(len(features))
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            points, rest = _along(np.asarray(features[rows], dtype=float) - self.middle, self.directions)
            distance, which = self._nearest(points, rest, n_nearest=min(N_NEIGHBOURS, len(self.points)))
            ratios[rows] = distance.max(axis=1) / self.reach[which].mean(axis=1)
        return ratios

    def _nearest(self, points: FloatArray, rest: FloatArray, *, n_nearest: int) -> tuple[FloatArray, IntArray]:
        """Distances of the nearest training spots, and which they are, (n_spots, n_nearest) each."""
        none = np.zeros(len(self.points))
        search = NearestNeighbors(n_neighbors=n_nearest, algorithm="brute")
        search.fit(np.column_stack([self.points, none, self.rest]))
        distance, which = search.kneighbors(np.column_stack([points, rest, np.zeros(len(points))]))
        return distance, which


def _along(moved: FloatArray, directions: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coordinates along some directions, (n_spots, n_axes), and the length of the rest, (n_spots,)."""
    along = moved @ directions.T
    return along, np.sqrt(np.maximum((moved**2).sum(axis=1) - (along**2).sum(axis=1), 0.0))
