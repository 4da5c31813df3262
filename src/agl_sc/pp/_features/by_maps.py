"""Which fields of view are means over maps of the tissue, and where they lie."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from agl_sc._sdata.sections import Section
from agl_sc.core.encoders.dense import Fields
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.encoders.maps import Maps, maps_of
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.tiles import TileSpec, boxes_of

logger = logging.getLogger(__name__)
_MOST = 0.5
_OVERLAPPING, _CROWDED = 1.0, 0.25
"""Shares of a tile: where spots lie nearer than the first, tiles beside wider fields go by maps; tiles alone, which are no more passes
until there, and are what fine-tuning trains on, where they lie nearer than the second, as bins of Visium HD."""


def chosen_views(
    views: Views, network: Encoder, sections: Sequence[Section], *, spec: TileSpec
) -> tuple[Views, Maps | None]:
    """Views of which it is settled what is seen by maps, and the encoder's maps where something is.

    It depends on the encoder and on how close spots lie, not on how many there are; it is recorded, and the same for every
    section that a model ever sees. A convolutional network that sees nothing far away has wider fields of view by maps, and
    the tiles too where they overlap, tiles alone where they do by far; any other goes by tiles unless it is asked for.

    Raises
    ------
    ValueError
        Maps are asked for and the encoder has none, or the image is made of patches.
    """
    share = _OVERLAPPING if views.context else _CROWDED
    overlap = views.maps is None and _lie_near(sections, spec, share=share)
    if views.maps == "none" or (views.maps != "all" and not views.context and not overlap):
        return replace(views, maps="none"), None
    maps, patched = maps_of(network), [section.image_key for section in sections if section.patch_px is not None]
    if views.maps is None:
        if patched or maps is None or not maps.local:
            _tell_tiles(network, maps, patched=bool(patched))
            return replace(views, maps="none"), None
        return replace(views, maps="all" if overlap else "wider"), maps
    if maps is None:
        msg = f"maps={views.maps!r} needs an encoder whose features are means over maps, and {network.name!r} has none; pass maps='none'."
        raise ValueError(msg)
    if patched:
        msg = f"maps={views.maps!r} needs a whole image, and {patched[0]!r} is made of patches; pass maps='none'."
        raise ValueError(msg)
    return views, maps


def _tell_tiles(network: Encoder, maps: Maps | None, *, patched: bool) -> None:
    """Say why fields of view are not seen by maps."""
    if patched:
        return
    why = "has no maps whose means are its features" if maps is None else "sees the whole of a tile at once"
    mend = "" if maps is None else "; maps='wider' is faster"
    logger.info("%s %s: fields of view are tiles%s.", network.name, why, mend)


def _lie_near(sections: Sequence[Section], spec: TileSpec, *, share: float) -> bool:
    """Whether most spots lie nearer to the next one than a share of the side of a tile."""
    nearer = [np.zeros(0, dtype=bool)]
    for section in sections:
        known = section.centres[np.isfinite(section.centres).all(axis=1)]
        if len(known) > 1 and section.levels:
            image_mpp = section.mpp(section.image_mpp)
            side = spec.tile_px * (image_mpp if spec.mpp == "image" else float(spec.mpp)) / image_mpp
            nearer.append(cKDTree(known).query(known, k=2)[0][:, 1] < share * side)
    found = np.concatenate(nearer)
    return bool(len(found)) and bool(found.mean() > _MOST)


def fields_of(section: Section, spec: TileSpec, network: Encoder, *, wider: bool) -> Fields:
    """Fields of view of a section's spots, of the extent of tiles and on the level that tiles are read from."""
    image_mpp = section.mpp(section.image_mpp)
    boxes = boxes_of(section, spec, image_mpp, may_exceed=True)
    scale = np.array(section.levels[0].shape[1:]) / boxes.image.shape[1:]
    ratio = boxes.mpp / (image_mpp * float(np.sqrt(scale.prod())))
    return Fields(
        image=boxes.image,
        centres=section.centres[:, ::-1] / scale,
        side=spec.tile_px * ratio,
        ratio=ratio * spec.tile_px / (network.input_px or spec.tile_px),
        background=boxes.background,
        overview_digest=boxes.overview_digest,
        name=boxes.name,
        wider=wider,
    )
