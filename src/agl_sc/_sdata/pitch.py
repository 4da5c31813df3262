"""The distance of neighbouring spots from what tells it for certain: array positions, or a lattice that the spots left show."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.special import gammaln

from agl_sc.core.arrays import FloatArray, IntArray

HEXAGONAL = frozenset({"visium"})
"""Technologies whose spots lie on a hexagonal lattice; those of the others lie on a square one."""
_MOST_SPOTS = 2000
"""Spots whose neighbourhood is looked at; more tell no more."""
_REACH = 5.0
"""Pitches within which differences of positions are looked at: neither errors nor bends of a section add up there."""
_N_NEIGHBOURS = 30
_SAME_CLASS = 1.25
"""Differences up to this many shortest ones are steps to an adjacent spot; diagonal ones are 1.4 or 1.7 long."""
_MOST_OFF = 0.12
"""Mean distance of differences from the lattice along a step, in pitches; .25 of spots placed at random."""
_FAR_OFF, _MOST_FAR_OFF = 0.3, 0.05
"""Share of the differences that may lie further than this from the lattice."""
_MOST_UNEQUAL = 0.15
"""Relative difference of the two steps, and of their angle in radians from 60 or 90 degrees."""
_EVIDENCE_BITS = 12.0
"""A finer lattice has to be this unlikely (2 to the minus) to leave only spots of the coarser one."""
_PRECISION = 0.02
"""Relative error of the pitch that is allowed."""
_MOST_ARRAY = 10_000
"""Rows or columns of an array; more are pixels. Bins of 2 um have 3,350."""
_AGREES, _AGREES_PITCHES = 0.1, 0.25
"""Difference of a pair's distance from the one that its array positions tell: relative, or in pitches for near ones."""
_FEWEST_AGREE = 0.8
"""Share of the pairs for which it holds."""
_FAR_PAIRS = 0.25
"""Pairs count from this share of the longest distance on: errors of single positions weigh less there."""


def array_pitch_px(centres: FloatArray, array: FloatArray | IntArray, technology: str) -> float:
    """Pitch in pixels by which array positions are laid out on the image, whichever spots are left.

    Distances on the array are compared with those on the image over pairs of spots far apart, so that neither the turn or
    reflection of the array matters nor a few wrong positions.

    Parameters
    ----------
    centres
        Spot centres in pixels, (n_spots, 2).
    array
        Row and column of the array, (n_spots, 2). Of Visium as Space Ranger counts them: neighbours are (0, 2) and (1, 1)
        apart; of others (0, 1) and (1, 0).
    technology
        ``"visium"`` for a hexagonal array, anything else for a square one.

    Returns
    -------
    Pixels between neighbouring spots; NaN with fewer than two places, and where array and image disagree.
    """
    known = np.isfinite(centres).all(axis=1) & np.isfinite(array).all(axis=1)
    points, places = centres[known], np.asarray(array, dtype=float)[known]
    if len(points) < 2 or np.ptp(places, axis=0).max() > _MOST_ARRAY:
        return float("nan")
    if technology in HEXAGONAL:
        whole = np.round(places).astype(np.int64)
        if np.abs(places - whole).max() > 0 or len(np.unique(whole.sum(axis=1) % 2)) > 1:
            return float("nan")
        row_first = places * (np.sqrt(3) / 2, 0.5)
        column_first = places * (0.5, np.sqrt(3) / 2)
        candidates = [row_first, column_first]
    else:
        candidates = [places]
    found = (_common_ratio(points, candidate) for candidate in candidates)
    return next((ratio for ratio in found if np.isfinite(ratio)), float("nan"))


def _common_ratio(points: FloatArray, places: FloatArray) -> float:
    """Distance in ``points`` per distance in ``places`` on which nearly all pairs of spots agree; NaN where they do not."""
    n = len(points)
    order = np.random.default_rng(0).permutation(n)[:_MOST_SPOTS]
    shifts = range(1, min(len(order), 40))
    one = np.concatenate([order for _ in shifts])
    other = np.concatenate([np.roll(order, shift) for shift in shifts])
    on_array = np.linalg.norm(places[one] - places[other], axis=1)
    on_image = np.linalg.norm(points[one] - points[other], axis=1)
    far = on_array > _FAR_PAIRS * on_array.max()
    if not far.any() or on_array[on_array > 0].min() < 0.5:
        return float("nan")
    ratios = on_image[far] / on_array[far]
    ratio = float(np.median(ratios))
    if not ratio > 0:
        return float("nan")
    off = np.abs(on_image[far] / ratio - on_array[far])
    agree = off < np.maximum(_AGREES * on_array[far], _AGREES_PITCHES)
    return ratio if agree.mean() >= _FEWEST_AGREE else float("nan")


def lattice_pitch_px(centres: FloatArray, technology: str) -> float:
    """Pitch of the coarsest lattice that the spots left lie on, or NaN where they are too few or too odd to tell.

    Spots of a lattice from which some were dropped, by whatever has nothing to do with the lattice, still differ by its
    steps: the differences between near spots tell the steps, whatever the gaps. A lattice counts as found only if nearly all
    differences lie on it, and if it would be most unlikely (2^-12) that spots of a finer one happen to leave just these.

    Parameters
    ----------
    centres
        Spot centres in pixels, (n_spots, 2); rows with NaN are left out.
    technology
        ``"visium"`` for a hexagonal lattice, anything else for a square one.

    Returns
    -------
    Pixels between neighbouring spots, to 2 %; NaN if unknown. Spots left out by a rule of the lattice itself, such as every
    second row *and* column, leave a complete lattice that is coarser, and its pitch is what is returned.
    """
    points = np.asarray(centres, dtype=float)[np.isfinite(centres).all(axis=1)]
    if len(points) < 2:
        return float("nan")
    tree = cKDTree(points)
    looked_at = np.random.default_rng(0).permutation(len(points))[:_MOST_SPOTS]
    n_neighbours = min(_N_NEIGHBOURS, len(points) - 1)
    distances, neighbours = tree.query(points[looked_at], k=n_neighbours + 1)
    near = _Near(
        points=points,
        one=np.repeat(looked_at, n_neighbours),
        other=neighbours[:, 1:].ravel(),
        length=distances[:, 1:].ravel(),
    )
    if not near.length.min() > 0:
        return float("nan")
    n_fold = 6 if technology in HEXAGONAL else 4
    nearest = np.sort(distances[:, 1])
    guesses = dict.fromkeys(float(np.quantile(nearest, share)) for share in (0.5, 0.1, 0.02, 0.0))
    found = (_checked_pitch(near, guess, n_fold) for guess in sorted(guesses, reverse=True))
    return next((pitch for pitch in found if np.isfinite(pitch)), float("nan"))


@dataclass(frozen=True, slots=True, eq=False)
class _Near:
    """Pairs of spots near each other."""

    points: FloatArray
    """All spots, (n_spots, 2)."""
    one: IntArray
    """Spot from which a difference is taken, (n_pairs,)."""
    other: IntArray
    """Spot to which it is taken."""
    length: FloatArray
    """Its length in pixels."""

    def within(self, length: float) -> NDArray[np.bool_]:
        """Pairs up to a length apart."""
        chosen: NDArray[np.bool_] = self.length <= length
        return chosen

    def differences(self, chosen: NDArray[np.bool_]) -> FloatArray:
        """(n_chosen, 2)."""
        return self.points[self.other[chosen]] - self.points[self.one[chosen]]


def _checked_pitch(near: _Near, guess: float, n_fold: int) -> float:
    """Pitch of the lattice whose adjacent spots are about ``guess`` apart; NaN where the spots do not lie on it for certain."""
    steps = _steps(near, guess, n_fold)
    if steps is None:
        return float("nan")
    pitch = float(np.linalg.norm(steps, axis=1).mean())
    chosen = near.within(_REACH * pitch)
    if not near.within(_SAME_CLASS * pitch).any():  # no two spots are adjacent: a lattice finer than need be
        return float("nan")
    places = near.differences(chosen) @ np.linalg.inv(steps)
    off: FloatArray = places - np.round(places)
    far_off = (np.linalg.norm(off @ steps, axis=1) > _FAR_OFF * pitch).mean()
    if np.abs(off).mean(axis=0).max() > _MOST_OFF or far_off > _MOST_FAR_OFF:
        return float("nan")
    groups = _groups(near, chosen, steps)
    certain = groups.relative_error(off) < _PRECISION / 4 and groups.evidence(n_fold) >= _EVIDENCE_BITS
    return pitch if certain else float("nan")


def _steps(near: _Near, guess: float, n_fold: int) -> FloatArray | None:
    """The two steps of a lattice (2, 2), fitted to differences ever longer; None where they are no square or hexagon."""
    adjacent = near.differences((near.length > guess / _SAME_CLASS) & near.within(guess * _SAME_CLASS))
    if not len(adjacent):
        return None
    angle = np.arctan2(adjacent[:, 1], adjacent[:, 0])
    tilt = np.angle(np.exp(1j * n_fold * angle).mean()) / n_fold
    turn = tilt + np.array([0.0, 2 * np.pi / n_fold])
    steps: FloatArray = guess * np.column_stack([np.cos(turn), np.sin(turn)])
    for reach in (_SAME_CLASS, 2.2, 3.2, _REACH, _REACH):
        differences = near.differences(near.within((reach + 0.5) * float(np.linalg.norm(steps, axis=1).mean())))
        places = np.round(differences @ np.linalg.inv(steps))
        # cut off by place rather than by length, which jitter makes shorter for some and longer for others
        is_near = np.linalg.norm(places @ steps, axis=1) <= reach * np.linalg.norm(steps, axis=1).mean()
        differences, places = differences[is_near], places[is_near]
        if np.linalg.matrix_rank(places) < 2:
            if reach == _REACH:
                return None
            continue
        steps = np.linalg.lstsq(places, differences, rcond=None)[0]
        lengths = np.linalg.norm(steps, axis=1)
        cosine = steps[0] @ steps[1] / lengths.prod()
        is_even = abs(lengths[0] / lengths[1] - 1) <= _MOST_UNEQUAL
        if not is_even or abs(np.arccos(np.clip(cosine, -1, 1)) - 2 * np.pi / n_fold) > _MOST_UNEQUAL:
            return None
    return steps


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Spots that hang together through differences, on the lattice found."""

    places: FloatArray
    """Column and row of every spot, not rounded, (n_spots, 2); meaningful within a group."""
    of_spot: IntArray
    """Group of every spot."""

    def relative_error(self, off: FloatArray) -> float:
        """Standard error of the pitch by the scatter ``off`` of differences about the lattice, (n_differences, 2)."""
        sizes = np.bincount(self.of_spot)
        means = np.column_stack([np.bincount(self.of_spot, weights=axis) / sizes for axis in self.places.T])
        lever = ((self.places - means[self.of_spot]) ** 2).sum(axis=0).min()
        n_free = 2 * (len(self.places) - len(sizes)) - 4
        scatter = (
            (off**2).mean() / 2 * 2 * len(self.places) / max(n_free, 1)
        )  # a difference has the scatter of two spots
        return float(np.sqrt(scatter / lever)) if lever > 0 and n_free > 0 else float("inf")

    def evidence(self, n_fold: int) -> float:
        """How unlikely it is, in bits, that spots taken at random from a finer lattice all lie on the one found.

        The next finer lattice of the same kind has 2 (square) or 3 (hexagonal) places per place. Of each group, with F places
        of the finer and C of the coarser lattice in the parallelogram around it, all n spots lie on the coarser one in
        C(C, n) of C(F, n) cases.
        """
        n_spots = np.bincount(self.of_spot)
        low, high = np.full((len(n_spots), 2), np.inf), np.full((len(n_spots), 2), -np.inf)
        np.minimum.at(low, self.of_spot, self.places)
        np.maximum.at(high, self.of_spot, self.places)
        sides = np.round(high - low) + 1
        coarse = np.maximum(sides.prod(axis=1), n_spots)
        between = (sides - 1).prod(axis=1) * (1 if n_fold == 4 else 2)
        bits = _log_choose(coarse + between, n_spots) - _log_choose(coarse, n_spots)
        return float(bits.sum() / np.log(2))


def _groups(near: _Near, chosen: NDArray[np.bool_], steps: FloatArray) -> _Groups:
    used, index = np.unique(np.concatenate([near.one[chosen], near.other[chosen]]), return_inverse=True)
    one, other = np.split(index, 2)
    graph = coo_matrix((np.ones(len(one)), (one, other)), shape=(len(used), len(used)))
    _, of_spot = connected_components(graph, directed=False)
    return _Groups(near.points[used] @ np.linalg.inv(steps), of_spot)


def _log_choose(n: FloatArray, k: FloatArray | IntArray) -> FloatArray:
    chosen: FloatArray = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return chosen
