"""Regions of a table with their images, as arrays: where every spot lies, and on what."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agl_sc._sdata.channels import rgb_places, to_bytes
from agl_sc._sdata.geometry import HD, Bins, bin_side_um, check_mpp
from agl_sc._sdata.records import AddressRecord
from agl_sc._sdata.shapes import element_of, points_of
from agl_sc._sdata.table import near_matches, region_of, section_of
from agl_sc.core.arguments import label_of
from agl_sc.core.arrays import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Names = str | Sequence[str] | None
Scales = float | Mapping[str, float] | None
"""Microns per pixel of all images, or by section, region or image."""

_SINGULAR = 1e9
"""Ratio of the two stretches of a transformation beyond which it leaves a line of the plane."""

_RESAMPLED = 1e-3
"""Change of scale from which on an image is another than the reader's."""
_TELLING = 8
"""Spots from which on their array positions tell a hexagonal grid."""

_MOST = 0.5
"""Share of the spots of a region that lie on its image, where several share a coordinate system with it."""
_OPAQUE = 255
_OTHER_IMAGE = "name the H&E with image_key=, or make an image of red, green and blue alone, as Image2DModel.parse(image.sel(c=[...])) does"

REGIONS = "the regions of the table"

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
    array: IntArray | None = None
    """Row and column of every spot in the array of its technology, (n_spots, 2), where the table has them."""
    stated_mpp: float | None = None
    """Microns per pixel of the finest level as the user states it, now or earlier; goes before the metadata."""
    to_image: FloatArray | None = None
    """Matrix (3, 3) from the element's own (x, y) to where ``centres`` are."""

    def placed(self, points: FloatArray) -> FloatArray:
        """Points of the element (n, 2), moved to where ``centres`` are."""
        matrix = np.eye(3) if self.to_image is None else self.to_image
        moved: FloatArray = points @ matrix[:2, :2].T + matrix[:2, 2]
        return moved

    def mpp(self, stated: float | None = None) -> float:
        """Microns per pixel of the finest level; what is ``stated`` goes before metadata and spot pitch."""
        known = next((mpp for mpp in (stated, self.stated_mpp, self.image_mpp) if mpp is not None), None)
        name = self.image_key or self.name
        return check_mpp(known, self.centres, self.technology, name=name, bins=self.bins, array=self.array)

    def take(self, chosen: NDArray[Any], name: str) -> "Section":
        """Some of the spots under a name of their own."""
        array = None if self.array is None else self.array[chosen]
        return replace(self, name=name, rows=self.rows[chosen], centres=self.centres[chosen], array=array)

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
    image_mpp: Scales = None,
    remembered: AddressRecord | None = None,
    need_image: bool = True,
    one_image: bool = True,
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
    image_mpp
        Microns per pixel as the user states it.
    remembered
        Image of every region where several fit, and scales that were stated, of an earlier step; what is said now goes first.
    need_image
        Refuse a region that no image belongs to. Otherwise it comes without levels, unless ``image_key`` is given.
    one_image
        Refuse a region that several images belong to. Otherwise it comes without levels too.
    """
    need_image, one_image = need_image or image_key is not None, one_image or image_key is not None
    regions = region_of(table)
    names = subset(sorted(set(regions)), shapes_key, argument="shapes_key", what=REGIONS)
    images = subset(sorted(sdata.images), image_key, argument="image_key", what="the images of sdata")
    if not images and need_image:
        msg = "sdata has no image, and features come from one; read it with agl_sc.io or add it with sdata.images[...] = ...."
        raise KeyError(msg)
    instances = table.obs[table.uns["spatialdata_attrs"]["instance_key"]]
    array, section_names, earlier = array_positions(table), section_of(table), remembered or AddressRecord()
    if isinstance(image_mpp, Mapping):
        image_mpp = {label_of(key): mpp for key, mpp in image_mpp.items()}
    _check_scales(image_mpp, {*regions, *section_names, *sdata.images})
    found = []
    for name in names:
        rows = np.flatnonzero((regions == name).to_numpy())
        preferred = None if image_key is not None else earlier.image_key.get(name)
        spots = points_of(element_of(sdata, name), instances.iloc[rows], name)
        key, affine = _image_of(
            sdata,
            name,
            points=spots[0],
            images=images,
            system=coordinate_system,
            preferred=preferred,
            refused=(need_image, one_image),
        )
        section = _section(sdata, name, key, affine=affine, spots=spots, rows=rows)
        technology = section.technology or _technology_of(array, rows)
        stated = _stated(image_mpp, name, *sorted(set(section_names.iloc[rows])), key)
        if stated is None and section.levels and earlier.image_px.get(name) == list(section.levels[0].shape[1:]):
            stated = earlier.image_mpp.get(name)
        own = None if array is None else array[rows]
        found.append(replace(section, technology=technology, array=own, stated_mpp=stated))
    return found


def _check_scales(image_mpp: Scales, known: set[str]) -> None:
    """Refuse a mapping of scales that names something unknown."""
    if not isinstance(image_mpp, Mapping):
        return
    for name in image_mpp:
        if name not in known:
            listed = ", ".join(sorted(known))
            msg = f"image_mpp= names {name!r}, which is neither a section, a region nor an image; they are {listed}{near_matches([str(name)], known)}."
            raise KeyError(msg)


def _stated(image_mpp: Scales, *names: str) -> float | None:
    """The scale that is stated for the first of some names that has one."""
    if not isinstance(image_mpp, Mapping):
        return image_mpp
    return next((image_mpp[name] for name in names if name in image_mpp), None)


def array_positions(table: "AnnData") -> IntArray | None:
    """Row and column of every spot in the array of its technology, (n_obs, 2); None where the table has none."""
    columns = ["array_row", "array_col"]
    if not set(columns) <= set(table.obs.columns):
        return None
    values = table.obs[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    whole = np.isfinite(values).all() and bool((values == np.round(values)).all())
    return values.astype(np.int64) if whole else None


def _technology_of(array: IntArray | None, rows: IntArray) -> str | None:
    """Visium, where rows and columns of the array are even together or odd together, as on its hexagonal grid alone."""
    if array is None or len(rows) < _TELLING:
        return None
    odd = array[rows] % 2
    is_hexagonal = bool((odd[:, 0] == odd[:, 1]).all()) and len(np.unique(odd[:, 0])) == 2
    return "visium" if is_hexagonal else None


def _section(
    sdata: "SpatialData",
    name: str,
    key: str,
    *,
    affine: FloatArray,
    spots: tuple[FloatArray, float, float | None],
    rows: IntArray,
) -> Section:
    metadata = sdata.attrs.get("agl_sc", {})
    own_image = (
        f"{name}_image"  # as the readers call it, in a coordinate system whose unit was its pixel when it was read
    )
    points, radius, side = spots
    scale = float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
    side_um = metadata.get("bin_um", {}).get(name, bin_side_um(name))
    technology = metadata.get("technology", {}).get(name, HD if side_um else None)
    image_mpp = metadata.get("image_mpp", {}).get(key or own_image)
    if image_mpp is not None and key in ("", own_image):
        image_mpp = image_mpp / scale if abs(scale - 1) > _RESAMPLED else image_mpp
    return Section(
        name=name,
        rows=rows,
        image_key=key,
        levels=levels_of(sdata.images[key], key) if key else (),
        centres=points @ affine[:2, :2].T + affine[:2, 2],
        radius=radius * scale,
        image_mpp=image_mpp,
        technology=technology,
        bins=Bins(side_um, side * scale if side else None) if technology == HD else None,
        patch_px=metadata.get("patch_px", {}).get(key),
        to_image=affine,
    )


def in_regions(table: "AnnData", shapes_key: Names) -> BoolArray:
    """Spots of the regions that are asked for, all by default, (n_obs,)."""
    regions = region_of(table).to_numpy(dtype=str)
    wanted: BoolArray = np.isin(regions, subset(sorted(set(regions)), shapes_key, argument="shapes_key", what=REGIONS))
    return wanted


def subset(available: list[str], wanted: Names, *, argument: str, what: str) -> list[str]:
    """Names that are wanted, all by default, refused where one is not available."""
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
    sdata: "SpatialData",
    name: str,
    *,
    points: FloatArray,
    images: list[str],
    system: str | None,
    preferred: str | None,
    refused: tuple[bool, bool],
) -> tuple[str, FloatArray]:
    """The image of a region, and the matrix (3, 3) from the shapes to its pixels; without image to the coordinate system.

    ``refused`` says whether it is refused that there is none, and that there are several.
    """
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
    if len(candidates) > 1 and preferred in candidates:
        candidates = {str(preferred): candidates[str(preferred)]}
    if len(candidates) > 1:  # such as fields of view, or sections side by side, that share one system
        under = {key: affines for key, affines in candidates.items() if _is_under(sdata.images[key], points, affines)}
        candidates = under or candidates
    none_refused, several_refused = refused
    if own and len(candidates) != 1 and not (several_refused if candidates else none_refused):
        return "", _affine(shapes[own[0]], name, own[0])
    return _only_image(candidates, name=name, systems=sorted(shapes), system=system)


def _is_under(image: Any, points: FloatArray, affines: Mapping[str, FloatArray]) -> bool:
    """Whether at least half of some points lie on an image, by the first of the matrices to its pixels."""
    matrix = next(iter(affines.values()))
    placed = points @ matrix[:2, :2].T + matrix[:2, 2]
    finest = _arrays(image)[0]
    inside = ((placed >= 0) & (placed <= (finest.sizes["x"], finest.sizes["y"]))).all(axis=1)
    return bool(inside.mean() >= _MOST)


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


def _arrays(image: Any) -> list[Any]:
    """Of an image element, finest first."""
    from xarray import DataTree

    levels: list[Any] = list(dict(image).values()) if isinstance(image, DataTree) else []
    return [next(iter(level.values())) for level in levels] or [image]


def levels_of(image: Any, key: str) -> tuple[Any, ...]:
    """Lazy arrays (3, y, x) uint8 of an image element, finest first; another kind of image is refused.

    Channels are brought into the order that their names tell. A fourth one that is opaque everywhere, by the coarsest level,
    is left out.
    """
    arrays = _arrays(image)
    finest = arrays[0]
    if tuple(finest.dims) != ("c", "y", "x") or finest.sizes["c"] not in (3, 4):
        msg = f"Image {key!r} has dimensions {dict(finest.sizes)}, not 3 channels (c, y, x) as H&E has; {_OTHER_IMAGE}."
        raise ValueError(msg)
    if finest.dtype != np.uint8:
        msg = f"Image {key!r} is {finest.dtype}, not uint8; convert it first: {to_bytes(finest, key, is_tree=finest is not image)}."
        raise ValueError(msg)
    rgb = rgb_places(finest, key)
    spare = [place for place in range(finest.sizes["c"]) if place not in rgb]
    if spare and not bool((arrays[-1].data[spare] == _OPAQUE).all()):
        msg = f"Image {key!r} has 4 channels (c, y, x), one of which is not a colour and not opaque everywhere; {_OTHER_IMAGE}."
        raise ValueError(msg)
    colours = slice(3) if rgb == [0, 1, 2] else rgb
    return tuple(array.data[colours] for array in arrays)
