"""Physical scale: spot pitch of the named technologies and the microns per pixel that follow from it."""

import logging
import re
from dataclasses import dataclass
from numbers import Real

import numpy as np
from scipy.spatial import cKDTree

from agl_sc._sdata.pitch import array_pitch_px, lattice_pitch_px
from agl_sc.core.arrays import FloatArray, IntArray

logger = logging.getLogger(__name__)

PITCH_UM = {"st": 200.0, "visium": 100.0}
"""Centre-to-centre distance of neighbouring spots."""
HD = "visium_hd"
"""Technology whose spots are the square bins of a grid without gaps; the name of the region tells their side."""
_NEIGHBOURS = {"st": 4, "visium": 6, HD: 4}
_ADJACENT = 1.2
"""Neighbours beyond this many median distances are diagonal ones; within 0.4 % of a lattice fitted to HER2ST."""
_TOLERANCE = 0.05
_SAME_PITCH = 0.02
"""Relative difference up to which the distances of adjacent spots count as the pitch that array or lattice tell."""
_DIAMETER = {"st": 0.5, "visium": 0.55}
"""Of a spot, in pitches."""
_DIAMETER_TOLERANCE = 0.4
"""Relative; Space Ranger states .65 rather than .55 pitches, and up to .70 in real files."""
_CLOSER = 0.5
"""Share of the pitch below which the distance of spots is not that of the technology."""
_FEWEST_NEAR = 20
"""Spots from which on their place in the image tells something."""
_OVERLAP = 1.02
"""Spots wider than this many pitches are refused."""
_MPP_RANGE = (0.05, 50.0)
"""Microns per pixel: an oil immersion lens has .1, a low-resolution image of Visium up to 30."""
_NAMES = {
    "st": "st", "legacyst": "st", "spatialtranscriptomics": "st", "legacyspatialtranscriptomics": "st",
    "visium": "visium", "10xvisium": "visium", "10xgenomicsvisium": "visium",
    "visiumhd": HD, "10xvisiumhd": HD, "10xgenomicsvisiumhd": HD,
}  # fmt: skip
"""Technology by its usual names, in lower case without spaces, dashes and underscores."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Square bins of Visium HD."""

    side_um: float | None
    """Side in microns; None if nobody says."""
    side_px: float | None
    """Side in pixels of the image; None if the shapes are no squares."""


def bin_side_um(name: str) -> float | None:
    """Side of bins in microns from a name such as spatialdata-io gives them, ``"sample_square_008um"``; None without."""
    found = re.search(r"square_(\d{3})um", name)
    return float(found[1]) if found else None


def technology_named(value: object) -> str | None:
    """``"st"``, ``"visium"`` or ``"visium_hd"`` by any of its usual names, such as ``"10x Visium"``; None for another."""
    return _NAMES.get(re.sub(r"[\s_-]+", "", value).lower()) if isinstance(value, str) else None


def spot_pitch_px(centres: FloatArray, technology: str) -> float:
    """Centre-to-centre distance of neighbouring spots, robust to jitter and to holes in the grid.

    Parameters
    ----------
    centres
        Spot centres, (n_spots, 2), in pixels; rows with NaN are left out.
    technology
        ``"st"``, ``"visium_hd"`` (square grids) or ``"visium"`` (hexagonal grid).

    Returns
    -------
    Median distance, in pixels, to those of the 4 (square) or 6 (hexagonal) nearest neighbours that are adjacent: a spot
    at an edge also has diagonal ones among them, 1.4 to 1.7 pitches away. NaN with fewer than two spots. Where many spots
    were dropped, this is too large: :func:`known_pitch_px` knows.
    """
    if technology not in _NEIGHBOURS:
        msg = f"technology={technology!r} is unknown; use one of {sorted(_NEIGHBOURS)}, or None and pass image_mpp."
        raise ValueError(msg)
    known = centres[np.isfinite(centres).all(axis=1)]
    n_neighbours = min(_NEIGHBOURS[technology], len(known) - 1)
    if n_neighbours < 1:
        return float("nan")
    distances, _ = cKDTree(known).query(known, k=n_neighbours + 1)
    distances = distances[:, 1:]
    return float(np.median(distances[distances <= _ADJACENT * np.median(distances)]))


def known_pitch_px(centres: FloatArray, technology: str, *, array: FloatArray | IntArray | None = None) -> float:
    """Centre-to-centre distance of neighbouring spots, whichever spots are left, or NaN where it cannot be known.

    Parameters
    ----------
    centres
        Spot centres in pixels, (n_spots, 2).
    technology
        As in :func:`spot_pitch_px`.
    array
        Row and column of the spots on their array, (n_spots, 2), as Space Ranger counts them; None if unknown.

    Returns
    -------
    Pixels: the median distance of adjacent spots where array positions, or else the lattice that the spots show, agree with
    it to 2 %; else what these tell. NaN where neither tells anything.
    """
    return _pitch(centres, technology, array)[0]


def check_mpp(
    image_mpp: float | None,
    centres: FloatArray,
    technology: str | None,
    *,
    name: str,
    bins: Bins | None = None,
    array: FloatArray | IntArray | None = None,
    diameter_px: float | None = None,
    argument: str = "image_mpp",
) -> float:
    """Microns per pixel of an image, from what is stated and from the spot pitch, refusing contradictions.

    The pitch is never guessed from the spots that are left of a section: where neither array positions nor a lattice tell
    it, what is stated is believed, and a section for which nothing is stated is refused.

    Parameters
    ----------
    image_mpp
        Microns per pixel as stated by the user or the image metadata; None if nobody says.
    centres
        Spot centres in pixels of the image, (n_spots, 2).
    technology
        ``"st"``, ``"visium"``, ``"visium_hd"`` or None.
    name
        What the message calls the image.
    bins
        The bins of ``"visium_hd"``; their side is the pitch.
    array
        Row and column of the spots on their array, (n_spots, 2); None if unknown.
    diameter_px
        Diameter of the spots in pixels of the image as their file states it; None if it does not.
    argument
        What the caller's argument for microns per pixel is called.

    Returns
    -------
    Microns per pixel.

    Raises
    ------
    ValueError
        Nothing is known; the value is not positive, outside 0.05 to 50, or disagrees with the spot pitch by more than 5 %;
        spots are wider than their pitch.
    """
    _check_stated(image_mpp, name=name, argument=argument)
    pitch_um = (bins.side_um if bins else None) if technology == HD else PITCH_UM.get(technology or "")
    if technology is None or (technology == HD and pitch_um is None):
        if image_mpp is None:
            raise ValueError(_unknown(name, technology, argument))
        return float(image_mpp)
    if bins and bins.side_px:
        by_array = float("nan") if array is None else array_pitch_px(centres, array, technology)
        pitch = _side_px(bins.side_px, by_array, name=name)
    else:
        pitch, has_array = _pitch(centres, technology, array)
        if np.isnan(pitch) and image_mpp is not None and pitch_um:
            _refuse_closer(centres, technology, pitch_px=pitch_um / image_mpp, name=name, argument=argument)
        if diameter_px is not None and technology in _DIAMETER:
            stated_px = float("nan") if image_mpp is None or not pitch_um else pitch_um / image_mpp
            spots = _SpotSize(diameter_px, technology, spot_pitch_px(centres, technology), name)
            pitch = spots.trusted_pitch(pitch, has_array=has_array, stated_px=stated_px, argument=argument)
    from_pitch = pitch_um / pitch if pitch_um and pitch > 0 else float("nan")
    if image_mpp is None:
        return _derived(from_pitch, centres, name=name, argument=argument)
    if abs(from_pitch / image_mpp - 1) > _TOLERANCE:
        msg = (
            f"{argument}={image_mpp:.4g} of {name!r} contradicts the {technology} spot pitch of {pitch_um:g} um "
            f"({pitch:.1f} px, that is {from_pitch:.4g} um/px); correct {argument}, or the technology."
        )
        raise ValueError(msg)
    return float(image_mpp)


def _pitch(centres: FloatArray, technology: str, array: FloatArray | IntArray | None) -> tuple[float, bool]:
    """Pitch as :func:`known_pitch_px`, and whether array positions tell it."""
    simple = spot_pitch_px(centres, technology)
    told = float("nan") if array is None else array_pitch_px(centres, array, technology)
    has_array = bool(np.isfinite(told))
    if not has_array:
        told = lattice_pitch_px(centres, technology)
    return (simple if abs(simple / told - 1) <= _SAME_PITCH else told), has_array


def _check_stated(image_mpp: float | None, *, name: str, argument: str) -> None:
    if image_mpp is None:
        return
    if not is_positive_number(image_mpp):
        msg = f"{argument}={image_mpp!r} of {name!r} is not a positive number of microns per pixel."
        raise ValueError(msg)
    if not _MPP_RANGE[0] <= image_mpp <= _MPP_RANGE[1]:
        msg = (
            f"{argument}={image_mpp:.4g} of {name!r} is outside {_MPP_RANGE[0]:g} to {_MPP_RANGE[1]:g} microns per pixel, where "
            "images of tissue lie; give the side of one pixel in microns."
        )
        raise ValueError(msg)


def _refuse_closer(centres: FloatArray, technology: str, *, pitch_px: float, name: str, argument: str) -> None:
    """Refuse spots much closer to each other than their pitch, as cells and bins are: some that were dropped leave others farther apart."""
    nearest = spot_pitch_px(centres, technology)
    if nearest < _CLOSER * pitch_px:
        msg = (
            f"The spots of {name!r} are {nearest:.4g} px apart, where those of {technology} would be {pitch_px:.4g} px by {argument}; correct {argument}, or "
            "the technology."
        )
        raise ValueError(msg)


def _side_px(side_px: float, by_array: float, *, name: str) -> float:
    """Side of bins in pixels, which array positions must not contradict."""
    if abs(side_px / by_array - 1) > _TOLERANCE:
        msg = (
            f"The bins of {name!r} are {side_px:.4g} px wide, but {by_array:.4g} px apart by their array positions; centres or "
            "diameters are in other pixels than those of the image: correct the scale factors."
        )
        raise ValueError(msg)
    return side_px


@dataclass(frozen=True, slots=True)
class _SpotSize:
    """How wide the spots of an image are said to be, which a wrong pitch or scale gives away."""

    diameter_px: float
    """In pixels of the image."""
    technology: str
    """Tells how wide they should be."""
    adjacent_px: float
    """Median distance of the nearest spots that are left: the pitch, or more."""
    name: str
    """What the message calls the image."""

    def trusted_pitch(self, pitch: float, *, has_array: bool, stated_px: float, argument: str) -> float:
        """The pitch, or NaN for one of a lattice that the spot size denies where it bears out what is stated."""
        known = pitch if np.isfinite(pitch) else stated_px
        narrowest = np.fmin(known, self.adjacent_px)
        if self.diameter_px > _OVERLAP * narrowest:
            msg = (
                f"The spots of {self.name!r} are {self.diameter_px:.4g} px wide, but {narrowest:.4g} px apart; spots do not overlap, so "
                f"correct their diameter (spot_diameter_fullres), the scale of the positions, or {argument}, and take sections apart."
            )
            raise ValueError(msg)
        if not self._is_odd(known):
            return pitch
        if np.isfinite(pitch) and not has_array:
            if np.isnan(stated_px):
                msg = (
                    f"The spots of {self.name!r} are {self.diameter_px:.4g} px wide and {pitch:.4g} px apart, {self.diameter_px / pitch:.2g} of their "
                    f"pitch where those of {self.technology} are {_DIAMETER[self.technology]:g}, so either is wrong; correct "
                    f"spot_diameter_fullres, or pass {argument}=."
                )
                raise ValueError(msg)
            if not self._is_odd(stated_px):
                return float("nan")
        logger.warning(
            "%s: spots are said to be %.4g px wide, %.2g of their pitch, where those of %s are %g",
            *(self.name, self.diameter_px, self.diameter_px / known, self.technology, _DIAMETER[self.technology]),
        )
        return pitch

    def _is_odd(self, pitch: float) -> bool:
        return abs(self.diameter_px / pitch / _DIAMETER[self.technology] - 1) > _DIAMETER_TOLERANCE


def _derived(from_pitch: float, centres: FloatArray, *, name: str, argument: str) -> float:
    """Microns per pixel by the pitch alone, refused where it is unknown or impossible."""
    known = centres[np.isfinite(centres).all(axis=1)]
    if np.isnan(from_pitch) and len(np.unique(known, axis=0)) < 2:
        msg = f"{name!r} has fewer than two distinct spots, too few to derive microns per pixel; pass {argument}=."
        raise ValueError(msg)
    if np.isnan(from_pitch):
        msg = (
            f"The {len(known)} spots of {name!r} are too few or too scattered to show their lattice, so nothing tells the spot "
            f"pitch; pass {argument}= (microns per pixel)."
        )
        raise ValueError(msg)
    if not _MPP_RANGE[0] <= from_pitch <= _MPP_RANGE[1]:
        msg = (
            f"By their pitch the spots of {name!r} give {from_pitch:.4g} microns per pixel, outside {_MPP_RANGE[0]:g} to "
            f"{_MPP_RANGE[1]:g}, where images of tissue lie; correct the scale of the positions, or the technology."
        )
        raise ValueError(msg)
    return from_pitch


def _unknown(name: str, technology: str | None, argument: str) -> str:
    mend = (
        "name the region after its bins, such as 'square_008um',"
        if technology == HD
        else f"name the technology when reading ({', '.join(sorted(PITCH_UM))})"
    )
    return (
        f"The microns per pixel of {name!r} are unknown; pass {argument}= (microns per pixel of the full image), "
        f"or {mend} so that the spot pitch tells."
    )


def lie_near_origin(centres: FloatArray, size_px: tuple[int, int], share: float) -> bool:
    """Whether all of some spots lie within a share of the width and height of an image, as where they are in coarser pixels, or microns."""
    return len(centres) >= _FEWEST_NEAR and bool((centres <= np.array(size_px) * share).all())


def is_positive_number(value: object) -> bool:
    """Whether something is a finite number above zero, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < float("inf")
