"""Slides in OME-Zarr (OME-NGFF), read lazily by chunk, level by level."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr

from agl_sc.io._readable import readable
from agl_sc.io._scale import FileScale, scale_of_units
from agl_sc.io._tiff import without_alpha

logger = logging.getLogger(__name__)

_SMALLEST_LEVEL_PX = 1024
_NO_AXES = "tczyx"
"""Of versions before .3, which do not name them."""
_MEND = "save it as 8-bit RGB first, e.g. by ome_zarr.writer.write_image(pixels, group, axes='cyx')"


def is_ome_zarr(path: Path) -> bool:
    """Whether a folder is an image in OME-Zarr, alone or in the layout of bioformats2raw; a SpatialData store is none."""
    try:
        group = _group(path)
    except ValueError:  # damaged: whoever reads it says so
        return False
    return group is not None and ("multiscales" in _said(group) or "bioformats2raw.layout" in _said(group))


def open_ome_zarr(path: Path) -> tuple[list[da.Array], FileScale | None]:
    """Open the largest image of an OME-Zarr.

    Parameters
    ----------
    path
        Folder of an image, or one that holds images: of bioformats2raw, of SpatialData.

    Returns
    -------
    Levels (3, y, x) uint8, lazy, finest first, down to a longest side below 1,024 px; and the scale that the metadata state, None
    where they state no unit of length.

    Raises
    ------
    ValueError
        The folder holds no image in OME-Zarr, or several that are the largest; it is damaged; the image is not 8-bit RGB.
    """
    found = [image for image in _images(path) if image.is_colour]
    if not found:
        msg = f"'{path}' is a folder, not a slide, and no OME-Zarr with an image in colour; give the file of the slide, or the folder with the multiscales."
        raise ValueError(msg)
    most = max(image.n_px for image in found)
    largest = [image for image in found if image.n_px == most]
    if len(largest) > 1:
        listed = ", ".join(f"'{image.path}'" for image in largest)
        msg = f"'{path}' has {len(largest)} images that are the largest ({listed}); give one of these folders."
        raise ValueError(msg)
    (image,) = largest
    if len(found) > 1:
        logger.info("'%s' holds %d images: took the largest, '%s'", path, len(found), image.path)
    return image.levels(), image.scale


@dataclass(frozen=True, slots=True, eq=False)
class _NgffImage:
    """An image of one or more levels, as its metadata state it."""

    path: Path
    """Its folder."""
    axes: tuple[str, ...]
    """Their names, in order."""
    arrays: "Sequence[zarr.Array[Any]]"
    """Levels, finest first."""
    scale: FileScale | None
    """The side of a pixel, where the axes have units of length."""

    @property
    def n_px(self) -> int:
        """Of the finest level."""
        return math.prod(self._size(axis) for axis in "yx")

    @property
    def is_colour(self) -> bool:
        """Whether there are three channels or four."""
        return self._size("c") in (3, 4)

    def levels(self) -> list[da.Array]:
        """(3, y, x)."""
        return [self._level(array) for array in self.arrays]

    def _size(self, axis: str) -> int:
        return int(self.arrays[0].shape[self.axes.index(axis)]) if axis in self.axes else 1

    def _level(self, array: "zarr.Array[Any]") -> da.Array:
        """The array as it is, where it lies so: its chunks are read without dask then."""
        others = [size for axis, size in zip(self.axes, array.shape, strict=True) if axis not in "cyx"]
        if max(others, default=1) > 1 or array.dtype != np.uint8:
            raise ValueError(self._refusal(array))
        pixels: Any = da.from_zarr(array)  # type: ignore[no-untyped-call]
        kept = [axis for axis in self.axes if axis in "cyx"]
        if others:
            pixels = pixels[tuple(slice(None) if axis in "cyx" else 0 for axis in self.axes)]
        if kept != list("cyx"):
            pixels = pixels.transpose([kept.index(axis) for axis in "cyx"])
        return without_alpha(pixels, self._refusal(array, " with transparent pixels")) if len(pixels) == 4 else pixels

    def _refusal(self, array: "zarr.Array[Any]", besides: str = "") -> str:
        return (
            f"The image '{self.path}' has axes {', '.join(self.axes)}, shape {array.shape} and dtype {array.dtype}{besides}, "
            f"not 3 channels of uint8; {_MEND}."
        )


def _images(path: Path) -> Iterator[_NgffImage]:
    """Of the folder itself, or of those in it, and in ``images`` in it."""
    root = _group(path)
    if root is None:
        return
    folders = [path] if "multiscales" in _said(root) else sorted([*path.glob("*"), *path.glob("images/*")])
    for folder in folders:
        group = _group(folder)
        if group is None or "multiscales" not in _said(group):
            continue
        with readable(folder, kind=" as OME-Zarr"):
            image = _parsed(folder, group, _said(group)["multiscales"][0])
        yield image


def _parsed(path: Path, group: zarr.Group, multiscale: Mapping[str, Any]) -> _NgffImage:
    stated: Sequence[Any] = multiscale.get("axes", _NO_AXES)
    axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in stated]
    names = tuple(str(axis["name"]).lower() for axis in axes)
    arrays = [_array(group, str(entry["path"]), names) for entry in multiscale["datasets"]]
    n_coarse = sum(max(array.shape) < _SMALLEST_LEVEL_PX for array in arrays)
    sides = np.ones(len(axes))
    for place in (multiscale["datasets"][0], multiscale):
        for step in place.get("coordinateTransformations", []):
            if step.get("type") == "scale" and "output" not in step:  # SpatialData's lead to its own systems
                sides = sides * np.asarray(step["scale"], dtype=float)
    pixel = {name: (float(side), axis.get("unit")) for name, side, axis in zip(names, sides, axes, strict=True)}
    scale = scale_of_units(pixel["x"], pixel["y"], source="units of OME-Zarr's axes")
    return _NgffImage(path, names, arrays[: max(1, len(arrays) - max(0, n_coarse - 1))], scale)


def _array(group: zarr.Group, name: str, axes: tuple[str, ...]) -> "zarr.Array[Any]":
    found = group[name]
    if not isinstance(found, zarr.Array) or found.ndim != len(axes):
        msg = f"its level {name!r} is no array with axes {', '.join(axes)}"
        raise ValueError(msg)
    return found


def _group(path: Path) -> zarr.Group | None:
    if not path.is_dir():
        return None
    with readable(path, kind=" as OME-Zarr"):
        try:
            return zarr.open_group(path, mode="r")
        except FileNotFoundError:
            return None


def _said(group: zarr.Group) -> Mapping[str, Any]:
    """What a group says of images: under ``ome`` from version .5 on."""
    said: Any = group.attrs.asdict()
    found: Mapping[str, Any] = said.get("ome", said)
    return found
