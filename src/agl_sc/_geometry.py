"""Physical scale: spot pitch of the named technologies and the microns per pixel that follow from it."""

from numbers import Real

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

FloatArray = NDArray[np.float64]

PITCH_UM = {"st": 200.0, "visium": 100.0}
"""Centre-to-centre distance of neighbouring spots."""
_NEIGHBOURS = {"st": 4, "visium": 6}
_ADJACENT = 1.2
"""Neighbours beyond this many median distances are diagonal ones; within 0.4 % of a lattice fitted to HER2ST."""
_TOLERANCE = 0.05


def spot_pitch_px(centres: FloatArray, technology: str) -> float:
    """Centre-to-centre distance of neighbouring spots, robust to jitter and to holes in the grid.

    Parameters
    ----------
    centres
        Spot centres, (n_spots, 2), in pixels; rows with NaN are left out.
    technology
        ``"st"`` (square grid) or ``"visium"`` (hexagonal grid).

    Returns
    -------
    Median distance, in pixels, to those of the 4 (square) or 6 (hexagonal) nearest neighbours that are adjacent: a spot
    at an edge also has diagonal ones among them, 1.4 to 1.7 pitches away. NaN with fewer than two spots.
    """
    if technology not in PITCH_UM:
        msg = f"technology={technology!r} is unknown; use one of {sorted(PITCH_UM)}, or None and pass image_mpp."
        raise ValueError(msg)
    known = centres[np.isfinite(centres).all(axis=1)]
    n_neighbours = min(_NEIGHBOURS[technology], len(known) - 1)
    if n_neighbours < 1:
        return float("nan")
    distances, _ = cKDTree(known).query(known, k=n_neighbours + 1)
    distances = distances[:, 1:]
    return float(np.median(distances[distances <= _ADJACENT * np.median(distances)]))


def check_mpp(image_mpp: float | None, centres: FloatArray, technology: str | None, *, name: str) -> float:
    """Microns per pixel of an image, from what is stated and from the spot pitch, refusing contradictions.

    Parameters
    ----------
    image_mpp
        Microns per pixel as stated by the user or the image metadata; None if nobody says.
    centres
        Spot centres in pixels of the image, (n_spots, 2).
    technology
        ``"st"``, ``"visium"`` or None.
    name
        What the message calls the image.

    Returns
    -------
    Microns per pixel.

    Raises
    ------
    ValueError
        Nothing is known, the value is not positive, or it disagrees with the spot pitch by more than 5 %.
    """
    if image_mpp is not None and not _is_positive_number(image_mpp):
        msg = f"image_mpp={image_mpp!r} of {name!r} is not a positive number of microns per pixel."
        raise ValueError(msg)
    if technology is None:
        if image_mpp is None:
            msg = (
                f"The microns per pixel of {name!r} are unknown; pass image_mpp= (microns per pixel of the full image), "
                f"or name the technology when reading ({', '.join(sorted(PITCH_UM))}) so that the spot pitch tells."
            )
            raise ValueError(msg)
        return float(image_mpp)
    pitch = spot_pitch_px(centres, technology)
    from_pitch = PITCH_UM[technology] / pitch if pitch > 0 else float("nan")
    if image_mpp is None:
        if not np.isfinite(from_pitch):
            msg = f"{name!r} has fewer than two distinct spots, too few to derive microns per pixel; pass image_mpp=."
            raise ValueError(msg)
        return from_pitch
    if abs(from_pitch / image_mpp - 1) > _TOLERANCE:
        msg = (
            f"image_mpp={image_mpp:.4g} of {name!r} contradicts the {technology} spot pitch of {PITCH_UM[technology]:g} um "
            f"({pitch:.1f} px, that is {from_pitch:.4g} um/px); correct image_mpp, or the technology."
        )
        raise ValueError(msg)
    return float(image_mpp)


def _is_positive_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < float("inf")
