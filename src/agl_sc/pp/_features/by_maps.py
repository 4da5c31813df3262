"""Which fields of view are means over maps of the tissue, and where they lie."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from agl_sc._sdata.sections import Section
from agl_sc.core.encoders.dense import Fields
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.encoders.maps import Maps, maps_of
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.tiles import TileSpec, boxes_of

logger = logging.getLogger(__name__)


def chosen_views(views: Views, network: Encoder, sections: Sequence[Section]) -> tuple[Views, Maps | None]:
    """Views of which it is settled what is seen by maps, and the encoder's maps where something is.

    It depends on the encoder alone, not on how many spots there are: the same for every section that a model ever sees. A
    convolutional network that sees nothing far away has wider fields of view by maps; any other goes by tiles unless it is
    asked for.

    Raises
    ------
    ValueError
        Maps are asked for and the encoder has none, or the image is made of patches.
    """
    if views.maps == "none" or (views.maps != "all" and not views.context):
        return replace(views, maps="none"), None
    maps, patched = maps_of(network), [section.image_key for section in sections if section.patch_px is not None]
    if views.maps is None:
        by_maps = maps is not None and maps.local and not patched
        if not by_maps and maps is not None and not patched:
            logger.info(
                "%s sees the whole of a tile at once: fields of view are tiles; maps='wider' is faster.", network.name
            )
        return replace(views, maps="wider" if by_maps else "none"), maps if by_maps else None
    if maps is None:
        msg = f"maps={views.maps!r} needs an encoder whose features are means over maps, and {network.name!r} has none; pass maps='none'."
        raise ValueError(msg)
    if patched:
        msg = f"maps={views.maps!r} needs a whole image, and {patched[0]!r} is made of patches; pass maps='none'."
        raise ValueError(msg)
    return views, maps


def fields_of(section: Section, spec: TileSpec, network: Encoder) -> Fields:
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
    )
