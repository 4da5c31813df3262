"""Sections with the boxes of their tiles."""

import logging
from dataclasses import replace

import numpy as np

from agl_sc._sdata.geometry import lie_near_origin
from agl_sc._sdata.sections import Section
from agl_sc.core.tiles.reader import Boxes
from agl_sc.pp._features.glass import on_glass
from agl_sc.pp._features.tiles import TileSpec, boxes_of, overview

_SMALLER = 0.3
"""Side of Space Ranger's lowres image as a share of that of its hires image; microns per pixel of a scan are fewer."""

logger = logging.getLogger(__name__)

Placed = list[tuple[Section, Boxes]]


def place_section(section: Section, spec: TileSpec, image_mpp: float | None = None) -> tuple[Section, Boxes]:
    """A section reduced to the spots with a position, its scale resolved, and its boxes; tells of padded tiles and of glass."""
    section, boxes, n_nowhere = placed_quietly(section, spec, image_mpp)
    if n_nowhere:
        logger.warning(
            "%d spots of %s have no position and get no features. Fix their shapes, or drop them from the table.",
            n_nowhere,
            section.name,
        )
    n_outside = section.n_outside()
    if n_outside:
        logger.warning(
            "%d of %d spots of %s lie outside the image; check its transformation, or name another coordinate_system=.",
            n_outside,
            len(section.rows),
            section.name,
        )
    if lie_near_origin(section.centres, section.levels[0].shape[:0:-1], _SMALLER):
        logger.warning(
            "All %d spots of %s lie in the first %.0f %% of the image along both sides, as where they are in microns, or in pixels of a smaller image, and "
            "nothing aligns them. Look at agl_sc.pl.tiles.",
            *(len(section.rows), section.name, 100 * _SMALLER),
        )
    n_padded = int(boxes.padded.sum())
    if n_padded:
        logger.warning(
            "%d of %d tiles of %s reach beyond the image and are padded with its background.",
            n_padded,
            len(section.rows),
            section.name,
        )
    n_glass = int(on_glass(section, boxes, overview(section).glass).sum())
    if n_glass:
        logger.warning(
            "%d of %d spots of %s lie on glass: 9 tenths of their tile or more have the colour of the background, and what is predicted "
            "there means nothing. Drop them from the table.",
            n_glass,
            len(section.rows),
            section.name,
        )
    return section, boxes


def placed_quietly(section: Section, spec: TileSpec, image_mpp: float | None) -> tuple[Section, Boxes, int]:
    """The same without a word, and the number of spots without a position."""
    known = np.asarray(np.isfinite(section.centres).all(axis=1))
    image_mpp = section.mpp(image_mpp)
    section = replace(section.take(known, section.name), image_mpp=image_mpp)
    return section, boxes_of(section, spec, image_mpp), int((~known).sum())
