"""The one place that touches SpatialData: elements in as arrays, results out as slots."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agl_sc._sdata.geometry import HD, Bins, bin_side_um, check_mpp
from agl_sc._sdata.shapes import element_of, points_of
from agl_sc._sdata.table import near_matches, region_of
from agl_sc.core.arrays import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

Names = str | Sequence[str] | None

_SINGULAR = 1e9
"""Ratio of the two stretches of a transformation beyond which it leaves a line of the plane."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Section:
    """One region of the table with its image, as arrays."""

    name: str
    """Region: the key of the shapes or points element."""
    rows: IntArray
    """Rows of the table, (n_spots,)."""
    image_key: str
    """Key of the image element; empty without one."""
    levels: tuple[Any, ...]
    """Lazy dask arrays (3, y, x) uint8, finest first; none without an image."""
    centres: FloatArray
    """Spot centres in pixels of the finest level as (x, y), (n_spots, 2); NaN where the shape has none. Without an image
    in units of the coordinate system."""
    radius: float
    """Median spot radius in pixels of the finest level."""
    image_mpp: float | None
    """Microns per pixel of the finest level as the image's metadata state it."""
    technology: str | None
    """``"st"``, ``"visium"``, ``"visium_hd"`` or None."""
    bins: Bins | None = None
    """Of ``"visium_hd"``."""
    patch_px: int | None = None
    """Side of the patches that the finest level was put together from; None of a whole image."""

    def mpp(self, stated: float | None = None) -> float:
        """Microns per pixel of the finest level; ``stated`` by the user goes before metadata and spot pitch."""
        known = self.image_mpp if stated is None else stated
        return check_mpp(known, self.centres, self.technology, name=self.image_key or self.name, bins=self.bins)

    def n_outside(self) -> int:
        """Spots whose centre lies outside the image."""
        extent = self.levels[0].shape[:0:-1]
        return int(((self.centres < 0) | (self.centres > extent)).any(axis=1).sum())


def sections(
    sdata: "SpatialData",
    table: "AnnData",
    *,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    need_image: bool = True,
) -> list[Section]:
    """Every region of the table with the one image that shares a coordinate system with it.

    Parameters
    ----------
    sdata
        Holds images and shapes.
    table
        One of its tables.
    image_key
        Image elements to consider (all by default).
    shapes_key
        Regions to consider (all by default).
    coordinate_system
        Coordinate system that joins image and shapes; by default the one they share.
    need_image
        Refuse a region that no image belongs to. Otherwise it comes without levels, unless ``image_key`` is given.
    """
    need_image = need_image or image_key is not None
    regions = region_of(table)
    names = _subset(sorted(set(regions)), shapes_key, argument="shapes_key", what="the regions of the table")
    images = _subset(sorted(sdata.images), image_key, argument="image_key", what="the images of sdata")
    if not images and need_image:
        msg = "sdata has no image, and features come from one; read it with agl_sc.io or add it with sdata.images[...] = ...."
        raise KeyError(msg)
    instances = table.obs[table.uns["spatialdata_attrs"]["instance_key"]]
    found = []
    for name in names:
        rows = np.flatnonzero((regions == name).to_numpy())
        key, affine = _image_of(sdata, name, images=images, system=coordinate_system, is_needed=need_image)
        found.append(_section(sdata, name, key, affine=affine, instances=instances.iloc[rows], rows=rows))
    return found


def _section(
    sdata: "SpatialData", name: str, key: str, *, affine: FloatArray, instances: "pd.Series[Any]", rows: IntArray
) -> Section:
    metadata = sdata.attrs.get("agl_sc", {})
    points, radius, side = points_of(element_of(sdata, name), instances, name)
    scale = float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
    side_um = metadata.get("bin_um", {}).get(name, bin_side_um(name))
    technology = metadata.get("technology", {}).get(name, HD if side_um else None)
    return Section(
        name=name,
        rows=rows,
        image_key=key,
        levels=levels_of(sdata.images[key], key) if key else (),
        centres=points @ affine[:2, :2].T + affine[:2, 2],
        radius=radius * scale,
        image_mpp=metadata.get("image_mpp", {}).get(key),
        technology=technology,
        bins=Bins(side_um, side * scale if side else None) if technology == HD else None,
        patch_px=metadata.get("patch_px", {}).get(key),
    )


def positioned(sdata: "SpatialData", table: "AnnData") -> NDArray[np.bool_]:
    """Spots whose shape lies somewhere, (n_obs,)."""
    regions = region_of(table)
    instances = table.obs[table.uns["spatialdata_attrs"]["instance_key"]]
    known = np.zeros(table.n_obs, dtype=bool)
    for name, rows in regions.groupby(regions).indices.items():
        points, *_ = points_of(element_of(sdata, str(name)), instances.iloc[rows], str(name))
        known[rows] = np.isfinite(points).all(axis=1)
    return known


def _subset(available: list[str], wanted: Names, *, argument: str, what: str) -> list[str]:
    if wanted is None:
        return available
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in chosen if name not in available]
    if unknown:
        msg = f"{argument}={unknown[0]!r} is not among {what}: {', '.join(available) or 'none'}{near_matches(unknown, available)}."
        raise KeyError(msg)
    return chosen


def _affine(transformation: Any, name: str, system: str) -> FloatArray:
    """Matrix (3, 3) from an element's own (x, y) to a coordinate system."""
    plane: FloatArray = np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=float)
    if _leaves_plane(transformation):
        fault = "mixes z with x and y"
    elif not np.isfinite(plane).all():
        fault = "has entries that are not finite"
    elif np.linalg.cond(plane[:2, :2]) > _SINGULAR:
        fault = "is singular"
    else:
        return plane
    msg = (
        f"The transformation of {name!r} to {system!r} {fault} ({plane[:2].tolist()}), but spots need one of the plane that "
        "can be undone; set another with spatialdata.transformations.set_transformation, or name another coordinate_system=."
    )
    raise ValueError(msg)


def _leaves_plane(transformation: Any) -> bool:
    try:
        matrix = transformation.to_affine_matrix(("x", "y", "z"), ("x", "y", "z"))
    except ValueError:  # spatialdata's, for one that makes a z out of x and y alone
        return True
    return bool(matrix[:2, 2].any() or matrix[2, :2].any())


def _image_of(
    sdata: "SpatialData", name: str, *, images: list[str], system: str | None, is_needed: bool
) -> tuple[str, FloatArray]:
    """The image of a region, and the matrix (3, 3) from the shapes to its pixels; without image to the coordinate system."""
    from spatialdata.transformations import get_transformation

    shapes = get_transformation(element_of(sdata, name), get_all=True)
    own = [s for s in shapes if system in (None, s)]
    candidates: dict[str, dict[str, FloatArray]] = {}
    for key in images:
        image = get_transformation(sdata.images[key], get_all=True)
        shared = [s for s in own if s in image]
        if shared:
            candidates[key] = {
                s: np.linalg.inv(_affine(image[s], key, s)) @ _affine(shapes[s], name, s) for s in shared
            }
    if own and not candidates and not is_needed:
        return "", _affine(shapes[own[0]], name, own[0])
    return _only_image(candidates, name=name, systems=sorted(shapes), system=system)


def _only_image(
    candidates: dict[str, dict[str, FloatArray]], *, name: str, systems: list[str], system: str | None
) -> tuple[str, FloatArray]:
    """The one image among the candidates, and the matrix on which all shared coordinate systems agree."""
    if not candidates:
        asked = f" named {system!r}" if system else ""
        msg = (
            f"No image shares a coordinate system{asked} with {name!r}, whose systems are {', '.join(systems)}; "
            "set a transformation with spatialdata.transformations.set_transformation."
        )
        raise ValueError(msg)
    if len(candidates) > 1:
        msg = f"{name!r} shares a coordinate system with several images ({', '.join(candidates)}); name one with image_key=."
        raise ValueError(msg)
    (key, affines), *_ = candidates.items()
    first, *others = affines.values()
    if not all(np.allclose(first, other, rtol=1e-4, atol=1e-2) for other in others):
        msg = f"{name!r} and {key!r} share several coordinate systems that disagree ({', '.join(affines)}); name one with coordinate_system=."
        raise ValueError(msg)
    return key, first


def levels_of(image: Any, key: str) -> tuple[Any, ...]:
    """Lazy arrays (3, y, x) uint8 of an image element, finest first; another kind of image is refused."""
    from xarray import DataTree

    levels: list[Any] = list(dict(image).values()) if isinstance(image, DataTree) else []
    arrays = [next(iter(level.values())) for level in levels] or [image]
    finest = arrays[0]
    if finest.dtype != np.uint8:
        msg = (
            f"Image {key!r} is {finest.dtype}, not uint8; convert it first, e.g. (image / image.max() * 255).astype('uint8') "
            "for a linear image."
        )
        raise ValueError(msg)
    if tuple(finest.dims) != ("c", "y", "x") or finest.sizes["c"] != 3:
        msg = f"Image {key!r} has dimensions {dict(finest.sizes)}, not 3 channels (c, y, x); keep red, green and blue."
        raise ValueError(msg)
    return tuple(array.data for array in arrays)
