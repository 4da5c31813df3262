"""Slides that LazySlide opened and tiled."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from skimage.draw import polygon2mask

from agl_sc.core.arrays import BoolArray
from agl_sc.io._layout import check_section_names, name_after, patients_of, refuse_duplicates
from agl_sc.io._scale import FileScale, agreed_mpp
from agl_sc.io._slide import LaidSlide, Slide, assemble_slides, open_slide
from agl_sc.io._tissue import WORK_UM, Tissue

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

_polygon2mask: Callable[..., BoolArray] = polygon2mask


def from_wsidata(
    wsi: Any,
    *,
    tile_key: str = "tiles",
    tissue_key: str = "tissues",
    name: str | None = None,
    patient: str | None = None,
) -> "SpatialData":
    """Take slide, tiles and tissue that LazySlide made, as a section whose spots are the tiles.

    The tiles' features, if LazySlide computed some, are taken by :func:`agl_sc.pp.use_features`; otherwise
    :func:`agl_sc.tl.predict` reads the slide from its file.

    Parameters
    ----------
    wsi
        ``wsidata.WSIData``, as ``wsidata.open_wsi`` gives it.
    tile_key
        Shapes that ``lazyslide.pp.tile_tissues`` made.
    tissue_key
        Shapes that ``lazyslide.pp.find_tissues`` made; where there are none, there is no mask.
    name
        Name of the section. None takes the file's name up to its first dot.
    patient
        Person or animal the slide is from. None takes it as its own patient.

    Returns
    -------
    The multiscale image ``S_image`` of the section ``S``, its labels ``S_tissue``, a circle ``S`` in each tile, named by the tile's
    id, and the table ``table`` without genes, as :func:`read_slide` gives them; ``obs["tissue_id"]`` is LazySlide's.

    Raises
    ------
    KeyError
        There are no such tiles.
    TypeError
        ``wsi`` is something else; ``patient`` is no name.
    ValueError
        Microns per pixel are unknown or cannot be true; the tiles' ids repeat.

    Examples
    --------
    Tiles as ``lazyslide.pp.tile_tissues(wsi, 112, mpp=0.5)`` makes them:

    >>> import agl_sc
    >>> import numpy as np, tifffile, wsidata
    >>> tifffile.imwrite("slide.tif", np.full((480, 640, 3), 240, dtype=np.uint8), photometric="rgb", tile=(256, 256))
    >>> wsi = wsidata.open_wsi("slide.tif", store=None)
    >>> wsi.set_mpp(0.5)
    >>> spec = wsidata.TileSpec(height=112, width=112, stride_height=112, stride_width=112, mpp=0.5)
    >>> wsidata.io.add_tiles(wsi, "tiles", np.array([[0, 0], [112, 0]]), spec, [0, 0])
    >>> agl_sc.io.from_wsidata(wsi)["table"].shape
    (2, 0)
    """
    reader, properties = getattr(wsi, "reader", None), getattr(wsi, "properties", None)
    if reader is None or properties is None or not hasattr(wsi, "shapes"):
        msg = f"wsi is a {type(wsi).__name__}, not a wsidata.WSIData; open the slide with wsidata.open_wsi, or read it with agl_sc.io.read_slide."
        raise TypeError(msg)
    if tile_key not in wsi.shapes:
        msg = f"tile_key={tile_key!r} is not among the shapes of wsi ({', '.join(wsi.shapes) or 'none'}); run lazyslide.pp.tile_tissues first."
        raise KeyError(msg)
    path = Path(reader.file)
    section = name_after(path.name.split(".")[0]) if name is None else name
    check_section_names([section])
    patients = patients_of(patient, [section])
    levels, _ = open_slide(path)
    slide = Slide(section, levels, _mpp(properties, path, section))
    tiles = wsi.shapes[tile_key]
    ids = tiles.get("tile_id", tiles.index)
    spots = [str(each) for each in ids]
    refuse_duplicates(spots, f"ids of the tiles {tile_key!r}")
    corners = tiles.bounds.to_numpy(dtype=float)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    tissue = _mask(wsi.shapes[tissue_key], slide) if tissue_key in wsi.shapes else None
    radius = float(np.median(corners[:, 2:] - corners[:, :2])) / 2
    laid = LaidSlide(
        slide=slide,
        tissue=tissue,
        spots=spots,
        centres_px=centres,
        radius_px=radius,
        shares=None if tissue is None else tissue.shares(centres, radius),
    )
    sdata = assemble_slides([laid], patients)
    if "tissue_id" in tiles:
        sdata["table"].obs["tissue_id"] = tiles["tissue_id"].to_numpy()
    logger.info("%s: %d tiles of LazySlide", section, len(spots))
    return sdata


def _mpp(properties: Any, path: Path, section: str) -> float:
    """As LazySlide has it, from the file or from its user."""
    if properties.mpp is None:
        msg = f"LazySlide does not know the microns per pixel of '{path}'; tell it with wsi.set_mpp(0.5), and tile the slide again."
        raise ValueError(msg)
    mpp = float(properties.mpp)
    fault = FileScale(mpp, mpp, "LazySlide", _magnification(properties.magnification)).fault()
    if fault is not None:
        msg = f"'{path}' {fault}; correct it with wsi.set_mpp(0.5), and tile the slide again."
        raise ValueError(msg)
    return agreed_mpp(mpp, None, path, name=section, on_conflict="stated")


def _magnification(value: Any) -> float | None:
    """As a number, which some readers give as text; None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number > 0 else None


def _mask(tissues: Any, slide: Slide) -> Tissue:
    """Polygons in pixels of the finest level as a mask at about 8 um per pixel."""
    height, width = slide.levels[0].shape[1:]
    by = max(1.0, WORK_UM / slide.image_mpp)
    shape = math.ceil(height / by), math.ceil(width / by)
    factor = height / shape[0], width / shape[1]
    mask: BoolArray = np.zeros(shape, dtype=bool)
    for polygon in shapely.get_parts(np.asarray(tissues.geometry)):
        mask |= _inside(polygon.exterior, shape, factor)
        for hole in polygon.interiors:
            mask &= ~_inside(hole, shape, factor)
    return Tissue(mask.astype(np.uint8), factor)


def _inside(ring: Any, shape: tuple[int, int], factor: tuple[float, float]) -> BoolArray:
    corners = np.asarray(ring.coords)[:, 1::-1] / factor - 0.5  # rows and columns, at the centres of pixels
    return _polygon2mask(shape, corners)
