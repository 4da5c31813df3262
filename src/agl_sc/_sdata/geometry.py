"""Physical scale: spot pitch of the named technologies and the microns per pixel that follow from it."""

import re
from dataclasses import dataclass
from numbers import Real

import numpy as np
from scipy.spatial import cKDTree

from agl_sc.core.arrays import FloatArray

PITCH_UM = {"st": 200.0, "visium": 100.0}
"""Centre-to-centre distance of neighbouring spots."""
HD = "visium_hd"
"""Technology whose spots are the square bins of a grid without gaps; the name of the region tells their side."""
_NEIGHBOURS = {"st": 4, "visium": 6, HD: 4}
_ADJACENT = 1.2
"""Neighbours beyond this many median distances are diagonal ones; within 0.4 % of a lattice fitted to HER2ST."""
_TOLERANCE = 0.05


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
    at an edge also has diagonal ones among them, 1.4 to 1.7 pitches away. NaN with fewer than two spots.
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


def check_mpp(
    image_mpp: float | None, centres: FloatArray, technology: str | None, *, name: str, bins: Bins | None = None
) -> float:
    """Microns per pixel of an image, from what is stated and from the spot pitch, refusing contradictions.

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

    Returns
    -------
    Microns per pixel.

    Raises
    ------
    ValueError
        Nothing is known, the value is not positive, or it disagrees with the spot pitch by more than 5 %.
    """
    if image_mpp is not None and not is_positive_number(image_mpp):
        msg = f"image_mpp={image_mpp!r} of {name!r} is not a positive number of microns per pixel."
        raise ValueError(msg)
    pitch_um = (bins.side_um if bins else None) if technology == HD else PITCH_UM.get(technology or "")
    if technology is None or (technology == HD and pitch_um is None):
        if image_mpp is None:
            raise ValueError(_unknown(name, technology))
        return float(image_mpp)
    pitch = bins.side_px if bins and bins.side_px else spot_pitch_px(centres, technology)
    from_pitch = pitch_um / pitch if pitch_um and pitch > 0 else float("nan")
    if image_mpp is None:
        if not np.isfinite(from_pitch):
            msg = f"{name!r} has fewer than two distinct spots, too few to derive microns per pixel; pass image_mpp=."
            raise ValueError(msg)
        return from_pitch
    if abs(from_pitch / image_mpp - 1) > _TOLERANCE:
        msg = (
            f"image_mpp={image_mpp:.4g} of {name!r} contradicts the {technology} spot pitch of {pitch_um:g} um "
            f"({pitch:.1f} px, that is {from_pitch:.4g} um/px); correct image_mpp, or the technology."
        )
        raise ValueError(msg)
    return float(image_mpp)


def _unknown(name: str, technology: str | None) -> str:
    mend = (
        "name the region after its bins, such as 'square_008um',"
        if technology == HD
        else f"name the technology when reading ({', '.join(sorted(PITCH_UM))})"
    )
    return (
        f"The microns per pixel of {name!r} are unknown; pass image_mpp= (microns per pixel of the full image), "
        f"or {mend} so that the spot pitch tells."
    )


def is_positive_number(value: object) -> bool:
    """Whether something is a finite number above zero, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < float("inf")
