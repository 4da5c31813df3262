"""Slides that OpenSlide opens, read lazily by tile, level by level."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

from agl_sc.core.arrays import UInt8Array
from agl_sc.io._readable import COMPLETE
from agl_sc.io._tiff import CHUNK_PX, LazyPixels, stamp

if TYPE_CHECKING:
    from openslide import OpenSlide

_META = np.empty((0, 0, 0), np.uint8)
_MOST_OPEN = 16
_GENERIC = "generic-tiff"
"""A TIFF of no vendor, which tifffile reads as well, strips and other orders of axes included."""
_DICOM = ".dcm"
_MIRAX = ".mrxs"
_SUFFIXES = frozenset({".czi", _DICOM, _MIRAX, ".vms", ".vmu"})
"""Of slides that are no TIFF files."""
_from_array: Callable[..., da.Array] = da.from_array


def has_openslide() -> bool:
    """Whether the extra ``slides`` is installed."""
    try:
        import openslide  # noqa: F401
    except ImportError:  # also of the package without the library under it
        return False
    return True


def vendor_of(path: Path) -> str | None:
    """Whose format a slide is, as OpenSlide tells; None where it is none of its own, or OpenSlide is not installed."""
    if not has_openslide():
        return None
    from openslide import OpenSlide

    found = OpenSlide.detect_format(str(path))
    return None if found in (None, _GENERIC) else str(found)


def refuse_unopened(path: Path) -> None:
    """Say what is missing of a file that OpenSlide did not take for a slide, though the ending of its name tells that it is one."""
    kind = path.suffix.lower()
    if kind == _MIRAX and has_openslide():
        msg = f"'{path}' is only the preview of a slide, whose pixels are in the folder '{path.with_suffix('').name}' beside it; put that there, with all its files."
        raise ValueError(msg)
    if kind in _SUFFIXES and not has_openslide():
        msg = f"'{path}' is opened by OpenSlide, which is not installed; pip install 'agl-sc[slides]'."
        raise ValueError(msg)


def series_in(folder: Path) -> Path | None:
    """A file of the DICOM slide that a folder holds; None where it holds none.

    Raises
    ------
    ValueError
        It holds several, or OpenSlide is not installed.
    """
    named = sorted(file for file in folder.iterdir() if file.suffix.lower() == _DICOM)
    for file in named[:1]:
        refuse_unopened(file)
    series = {slide_properties(file)["dicom.SeriesInstanceUID"]: file for file in named if vendor_of(file) == "dicom"}
    if len(series) > 1:
        msg = f"'{folder}' holds {len(series)} DICOM series; give a file of the one to read, such as '{next(iter(series.values()))}'."
        raise ValueError(msg)
    return next(iter(series.values()), None)


def open_slide_levels(path: Path) -> list[da.Array]:
    """Levels of a slide, finest first, as lazy arrays (3, y, x) uint8; only headers are read.

    Chunks are whole tiles of the file, so that a tile is decoded once. What the scanner left out is white.
    """
    with _slide(path, stamp(path)) as slide:
        properties, sizes, factors = dict(slide.properties), slide.level_dimensions, slide.level_downsamples
    levels = []
    for level, ((width, height), factor) in enumerate(zip(sizes, factors, strict=True)):
        source = _SlideLevel(path.resolve(), stamp(path), level, (3, height, width), float(factor))
        chunks = (3, *(_chunk_px(properties, level, side) for side in ("height", "width")))
        levels.append(_from_array(source, chunks=chunks, fancy=False, meta=_META))
    return levels


def slide_properties(path: Path) -> Mapping[str, str]:
    """What OpenSlide says of a slide."""
    with _slide(path, stamp(path)) as slide:
        return dict(slide.properties)


def _chunk_px(properties: Mapping[str, str], level: int, side: str) -> int:
    """The multiple of a tile's side next to that of other images' chunks."""
    tile = int(properties.get(f"openslide.level[{level}].tile-{side}", 0))
    return tile * max(1, round(CHUNK_PX / tile)) if 0 < tile <= 4 * CHUNK_PX else CHUNK_PX


@contextmanager
def _slide(path: Path, of: tuple[int, int]) -> "Iterator[OpenSlide]":
    """An open slide, and what OpenSlide says of a damaged one as a sentence."""
    from openslide import OpenSlideError

    try:
        yield _opened(str(path), of, os.getpid())
    except OpenSlideError as error:
        _opened.cache_clear()  # a handle that failed once fails ever after
        msg = f"'{path}' cannot be read as a slide ({' '.join(str(error).split())}); {COMPLETE}"
        raise ValueError(msg) from error


@lru_cache(maxsize=_MOST_OPEN)
def _opened(path: str, _stamp: tuple[int, int], _process: int) -> "OpenSlide":
    """A handle, of this process alone: threads may share one, but not a process and what it forks."""
    from openslide import OpenSlide

    return OpenSlide(path)


@dataclass(frozen=True, slots=True)
class _SlideLevel(LazyPixels):
    """What dask slices: pixels of a level, of which only the tiles in question are decoded."""

    path: Path
    """The file; opened when first asked for, so that the array can travel to other processes."""
    stamp: tuple[int, int]
    """Modification time and size of the file: a replaced file is another image."""
    level: int
    """Of the pyramid; 0 is the finest."""
    shape: tuple[int, int, int]
    """(3, y, x)."""
    factor: float
    """Pixels of the finest level per pixel."""

    def __getitem__(self, index: tuple[slice, slice, slice]) -> UInt8Array:
        channels, *sides = index
        (top, bottom, down), (left, right, across) = (
            part.indices(length) for part, length in zip(sides, self.shape[1:], strict=True)
        )
        pixels = self._read(left, top, (max(0, right - left), max(0, bottom - top)))
        return np.ascontiguousarray(pixels[::down, ::across].transpose(2, 0, 1)[channels])

    def _read(self, left: int, top: int, size: tuple[int, int]) -> UInt8Array:
        if 0 in size:
            return np.empty((size[1], size[0], 3), np.uint8)
        origin = (round(left * self.factor), round(top * self.factor))
        with _slide(self.path, self.stamp) as slide:
            pixels = np.asarray(slide.read_region(origin, self.level, size))
        if (pixels[..., 3] == 255).all():
            return pixels[..., :3]
        alpha = pixels[..., 3:].astype(np.uint16)
        return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
