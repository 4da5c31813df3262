"""Slides in TIFF files, read lazily by tile or strip."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import tifffile
import zarr

from agl_sc.core.arrays import UInt8Array
from agl_sc.io._readable import readable, refuse_beyond_memory, refuse_turned

logger = logging.getLogger(__name__)

CHUNK_PX = 512
_META = np.empty((0, 0, 0), np.uint8)
_MEND = "convert it to 8-bit RGB first, e.g. tifffile.imwrite('rgb.tif', pixels, photometric='rgb', tile=(512, 512))"
_MEND_COLOURS = "convert it to 8-bit RGB first, e.g. PIL.Image.open(path).convert('RGB').save('rgb.tif')"
_CONVERTIBLE = ("SEPARATED", "PALETTE")
"""Colours of printers, and by number, which Pillow makes RGB of."""
_MEND_STORED = (
    "without the mark: for page in tifffile.TiffFile(path, mode='r+').pages: page.tags['Orientation'].overwrite(1)"
)
_COLOURS = ("RGB", "YCBCR", "MINISBLACK")

_from_array: Callable[..., da.Array] = da.from_array
_rechunk: Callable[..., da.Array] = da.rechunk


def open_tiff(path: Path, name: str = "", level: int = 0) -> da.Array:
    """Open the largest image of a TIFF file as a lazy array; only headers are read, unless there is an alpha channel.

    Parameters
    ----------
    path
        The file.
    name
        Of the image to take instead, or its number, counted from 0.
    level
        Of the image's pyramid; 0 is the finest.

    Returns
    -------
    Image, (3, y, x), uint8, chunks of (3, 512, 512).

    Raises
    ------
    ValueError
        The file is damaged; there is no image of that name, or several are the largest; it is not 8-bit RGB; a strip of it
        does not fit into memory.
    """
    source, is_tiled = _header(path, name, level)
    n_channels = source.shape[0]
    # A strip spans the width of the slide: read bands of rows, and cut them afterwards.
    image = _from_array(source, chunks=(n_channels, CHUNK_PX, CHUNK_PX if is_tiled else -1), fancy=False, meta=_META)
    if n_channels == 4:
        sizes = dict(zip("CYX", source.shape, strict=True))
        shape = tuple(sizes["C" if axis == "S" else axis] for axis in source.axes)
        found = f"The image '{path}' has axes {source.axes}, shape {shape} and dtype uint8 with transparent pixels"
        image = without_alpha(image, f"{found}, not 3 channels of uint8; {_MEND}.")
    return _rechunk(image, (3, CHUNK_PX, CHUNK_PX))


def series_of(path: Path, name: str = "") -> int:
    """Number of the image of a TIFF file that :func:`open_tiff` takes, among its series."""
    return _chosen(path, name).series


def count_levels(path: Path, name: str = "") -> int:
    """Levels of the pyramid of an image of a TIFF file, chosen as :func:`open_tiff` does."""
    chosen = _chosen(path, name)
    with readable(path, kind=" as a TIFF"), tifffile.TiffFile(path) as tiff:
        return len(tiff.series[chosen.series].levels)


def without_alpha(image: da.Array, refusal: str) -> da.Array:
    """Drop the fourth channel of an image, all of which is read to see that it is opaque."""
    if not bool((image[3] == 255).all()):
        raise ValueError(refusal)
    opaque: da.Array = image[:3]
    return opaque


def _header(path: Path, name: str, level: int) -> "tuple[_TiffImage, bool]":
    """The image, and whether it is in tiles rather than strips."""
    chosen = _chosen(path, name)
    with readable(path, kind=" as a TIFF"), tifffile.TiffFile(path) as tiff:
        found = tiff.series[chosen.series].levels[level]
        n_before = len(chosen.place)
        axes, shape, dtype, page = found.axes[n_before:], found.shape[n_before:], found.dtype, found.keyframe
        colours, n_images, is_tiled = tifffile.PHOTOMETRIC(page.photometric).name, len(tiff.series), page.is_tiled
        segment = (page.tilelength, page.tilewidth) if is_tiled else (page.rowsperstrip, page.imagewidth)
        segments = [(part.dataoffsets, part.databytecounts) if part else ((), ()) for part in found.pages]
        n_segments, orientation = math.prod(page.chunked), page.tags.valueof("Orientation")
        end = max((sum(piece) for part in segments for piece in zip(*part, strict=True)), default=0)
    _refuse_cut(path, end, [len(offsets) for offsets, _ in segments], n_segments=n_segments)
    refuse_turned(path, orientation, as_stored=_MEND_STORED)
    channel = next((axis for axis in "SC" if axis in axes), "")
    n_channels = shape[axes.index(channel)] if channel else 0
    is_rgb = n_channels == 3 or (n_channels == 4 and colours == "RGB")
    if sorted(axes) != sorted(f"YX{channel}") or not is_rgb or dtype != np.uint8 or colours not in _COLOURS:
        mend = _MEND_COLOURS if dtype == np.uint8 and colours in _CONVERTIBLE else _MEND
        msg = f"The image '{path}' has axes {axes}, shape {shape} and dtype {dtype} ({colours}), not 3 channels of uint8; {mend}."
        raise ValueError(msg)
    sizes = dict(zip(axes, shape, strict=True))
    height, width = sizes["Y"], sizes["X"]
    rows, columns = min(segment[0], height), min(segment[1], width)
    mend = "save it in tiles first, e.g. with tile=(512, 512) of tifffile.imwrite"
    refuse_beyond_memory(path, 2 * rows * columns * n_channels, what=f"a strip of {columns:,} x {rows:,} px", mend=mend)
    if n_images > 1 and level == 0 and not name:
        logger.info("'%s' holds %d images: took the largest, of %d x %d px", path, n_images, width, height)
    return _TiffImage(
        path=path.resolve(),
        stamp=stamp(path),
        axes=axes,
        shape=(n_channels, height, width),
        series=chosen.series,
        place=chosen.place,
        level=level,
    ), is_tiled


@dataclass(frozen=True, slots=True)
class _Stored:
    """An image of a file."""

    series: int
    """Series that it is in."""
    place: tuple[int, ...]
    """Its place in the series, where that is a stack of images of one size."""
    name: str
    """As the file states it; empty where it does not."""
    n_px: int
    """Width times height."""
    has_colours: bool
    """Whether it has three channels or four; a mask has one."""


def _stored(number: int, series: Any) -> list[_Stored]:
    """Images of a series: one, or those of a stack in colour."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    has_colours = sizes.get("S", sizes.get("C", 1)) in (3, 4)
    is_stack = has_colours and len(sizes) == 4 and series.axes[0] not in "YXSC"
    places = [(place,) for place in range(series.shape[0])] if is_stack else [()]
    n_px = sizes.get("Y", 0) * sizes.get("X", 0)
    return [_Stored(number, place, series.name.strip(), n_px, has_colours) for place in places]


def _chosen(path: Path, name: str) -> _Stored:
    """The image of that name or number, or else the one with the most pixels, a mask of the same size aside."""
    with readable(path, kind=" as a TIFF"), tifffile.TiffFile(path) as tiff:
        images = [image for number, series in enumerate(tiff.series) for image in _stored(number, series)]
        if not images:
            msg = "it holds no image"
            raise ValueError(msg)
    most = max((image.n_px, image.has_colours) for image in images)
    found = [
        i for i, image in enumerate(images) if (image.name == name if name else (image.n_px, image.has_colours) == most)
    ]
    if name and not found:
        found = [i for i in range(len(images)) if str(i) == name]
    if len(found) == 1:
        return images[found[0]]
    shown = found or range(len(images))
    listed = ", ".join(f"{i} ({images[i].name})" if images[i].name else str(i) for i in shown)
    fault = f"{len(found) or 'no'} images {f'named {name!r}' if name else 'that are the largest'}"
    msg = f"'{path}' has {fault}; it has {listed}: name one by its number behind the path, as in '{path}#{shown[0]}'."
    raise ValueError(msg)


def _refuse_cut(path: Path, end: int, found: list[int], *, n_segments: int) -> None:
    there = path.stat().st_size
    if end > there:
        msg = f"'{path}' ends before its pixels do ({there} of {end} bytes); is the file complete?"
        raise ValueError(msg)
    if any(n != n_segments for n in found):
        msg = f"'{path}' has {min(found)} of {n_segments} tiles or strips of an image; is the file complete?"
        raise ValueError(msg)


def stamp(path: Path) -> tuple[int, int]:
    """Modification time and size of a file."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


class LazyPixels:
    """What every image has that dask slices: three axes of uint8."""

    __slots__ = ()

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        return np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        return 3


@dataclass(frozen=True, slots=True)
class _TiffImage(LazyPixels):
    """What dask slices: pixels of a TIFF file, of which only the tiles or strips in question are decoded."""

    path: Path
    """The file; opened for every chunk, so that no handle stays open and the array can travel to other machines."""
    stamp: tuple[int, int]
    """Modification time and size of the file: a replaced file is another image."""
    axes: str
    """Order of the axes in the file: Y, X and either S or C, in tifffile's letters."""
    shape: tuple[int, int, int]
    """(c, y, x), with three channels or four."""
    series: int
    """Which series of the file."""
    place: tuple[int, ...]
    """Which image of the series, where that is a stack."""
    level: int
    """Level of the image's pyramid; 0 is the finest."""

    def __getitem__(self, index: tuple[slice, slice, slice]) -> UInt8Array:
        order = [self.axes.index(axis) for axis in ("S" if "S" in self.axes else "C", "Y", "X")]
        native = dict(zip(order, index, strict=True))
        with readable(self.path, kind=" as a TIFF"):
            pixels = self._read(tuple(native[axis] for axis in range(3)))
        return np.ascontiguousarray(np.transpose(pixels, order))

    def _read(self, part: tuple[Any, ...]) -> UInt8Array:
        with tifffile.TiffFile(self.path) as tiff, tiff.series[self.series].aszarr(level=self.level) as store:
            return np.asarray(zarr.open_array(store, mode="r")[(*self.place, *part)])
