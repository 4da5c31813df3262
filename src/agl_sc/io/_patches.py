"""A slide put together again, lazily, from square patches of it that an HDF5 file holds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from agl_sc._sdata.geometry import is_positive_number
from agl_sc.core.arrays import FloatArray, IntArray
from agl_sc.io._layout import refuse_duplicates
from agl_sc.io._readable import readable
from agl_sc.io._tiff import CHUNK_PX, LazyPixels

DOWNLOAD_AGAIN = "the download may have stopped half-way: delete the file and download it again."
"""What mends a file of HEST-1k."""
PATCH_UM = 112.0
"""Side of a patch of HEST-1k where its file does not tell: 224 pixels of 0.5 um."""
_WHITE = 255
_META = np.empty((0, 0, 0), np.uint8)
_from_array: Callable[..., da.Array] = da.from_array


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """What the patch file of a sample says, pixels excepted."""

    path: Path
    """The file."""
    barcodes: list[str]
    """Spot of every patch."""
    side_px: int
    """Side of every patch in pixels."""
    corners: FloatArray | None
    """Top left corner of every patch as (x, y) in pixels of the slide, (n_patches, 2); None in files of early releases."""
    slide_side_px: float | None
    """Side of a patch in pixels of the slide, before it was scaled; None in files of early releases."""

    def mpp(self, slide_mpp: float) -> float:
        """Microns per pixel of the patches on a slide of ``slide_mpp``."""
        side_um = PATCH_UM if self.slide_side_px is None else self.slide_side_px * slide_mpp
        return side_um / self.side_px


def open_patches(path: Path) -> Patches:
    """Read all of a patch file but its pixels.

    Parameters
    ----------
    path
        HDF5 file with ``img`` (n, side, side, 3) uint8, ``barcode`` (n, 1) and, but in early releases, ``coords`` (n, 2).

    Raises
    ------
    KeyError
        The file has no ``img`` or no ``barcode``.
    ValueError
        The file is incomplete, its patches are not square 3-channel uint8, or their numbers differ.
    """
    with readable(path, mend=DOWNLOAD_AGAIN), h5py.File(path) as file:
        missing = [name for name in ("img", "barcode") if name not in file]
        there = ", ".join(map(repr, file)) or "nothing"
    if missing:
        msg = f"'{path}' has no {missing[0]!r}; it has {there}, so it is no patch file of HEST-1k."
        raise KeyError(msg)
    with readable(path, mend=DOWNLOAD_AGAIN), h5py.File(path) as file:
        shape, dtype = file["img"].shape, file["img"].dtype
        barcodes = [_text(value) for value in np.asarray(file["barcode"]).ravel()]
        corners = np.asarray(file["coords"], dtype=float) if "coords" in file else None
        slide_side_px = _attribute(file, "patch_size_src")
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or dtype != np.uint8:
        msg = f"The patches of '{path}' have shape {shape} and dtype {dtype}; they must be (n, side, side, 3) of uint8."
        raise ValueError(msg)
    if shape[0] != len(barcodes) or (corners is not None and corners.shape != (shape[0], 2)):
        msg = f"'{path}' has {shape[0]} patches and {len(barcodes)} barcodes; their numbers must agree, so download the file again."
        raise ValueError(msg)
    if not all(is_positive_number(side) for side in (shape[1], PATCH_UM if slide_side_px is None else slide_side_px)):
        msg = f"The patches of '{path}' are {shape[1]} px wide, {slide_side_px} px on the slide; both must be above zero, so download the file again."
        raise ValueError(msg)
    refuse_duplicates(barcodes, f"barcodes of '{path}'")
    return Patches(path, barcodes, int(shape[1]), corners, slide_side_px)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _attribute(file: Any, name: str) -> float | None:
    """Attribute of the coordinates, the pixels or the file; releases differ in where it is."""
    for holder in (file.get("coords"), file["img"], file):
        if holder is not None and name in holder.attrs:
            return float(np.asarray(holder.attrs[name]).ravel()[0])
    return None


def slide_of(patches: Patches, rows: IntArray, centres_px: FloatArray) -> tuple[da.Array, FloatArray]:
    """The part of a slide that patches show, white where there is none.

    Where patches overlap, a pixel is taken from the one whose centre is nearest.

    Parameters
    ----------
    patches
        The file.
    rows
        Patches to take, (n_spots,).
    centres_px
        Where their centres are as (x, y), in pixels of the patches from any origin, (n_spots, 2).

    Returns
    -------
    Image (3, y, x), uint8, lazy; and the centres (n_spots, 2) in its pixels. A patch lies on whole pixels, up to half of one
    beside where it was.
    """
    corners = np.rint(centres_px - patches.side_px / 2).astype(np.int64)
    offset = corners.min(axis=0)
    corners -= offset
    width, height = corners.max(axis=0) + patches.side_px
    stat = patches.path.stat()
    source = _PatchedSlide(
        path=patches.path.resolve(),
        stamp=(stat.st_mtime_ns, stat.st_size),
        shape=(3, int(height), int(width)),
        side_px=patches.side_px,
        rows=rows,
        corners=corners,
    )
    image = _from_array(source, chunks=(3, CHUNK_PX, CHUNK_PX), fancy=False, meta=_META)
    return image, corners.astype(np.float64) + patches.side_px / 2


@dataclass(frozen=True, slots=True, eq=False)
class _PatchedSlide(LazyPixels):
    """What dask slices: only the patches that a chunk touches are read."""

    path: Path
    """The file; opened for every chunk, so that no handle stays open and the array can travel to other machines."""
    stamp: tuple[int, int]
    """Modification time and size of the file: a replaced file is another image."""
    shape: tuple[int, int, int]
    """(3, y, x)."""
    side_px: int
    """Side of a patch in pixels."""
    rows: IntArray
    """Patches of the file, (n,)."""
    corners: IntArray
    """Their top left corners as (x, y), (n, 2)."""

    def __getitem__(self, index: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        channels, down, across = index
        y, x = (np.arange(length)[part] for length, part in zip(self.shape[1:], (down, across), strict=True))
        block = np.full((len(y), len(x), 3), _WHITE, dtype=np.uint8)
        nearest = np.full(block.shape[:2], np.inf)
        low, high = self.corners, self.corners + self.side_px
        touching = (low[:, 0] <= x[-1]) & (high[:, 0] > x[0]) & (low[:, 1] <= y[-1]) & (high[:, 1] > y[0])
        with readable(self.path, mend=DOWNLOAD_AGAIN), h5py.File(self.path) as file:
            for patch in np.flatnonzero(touching):
                inside_x, inside_y = (
                    np.flatnonzero((line >= low[patch, axis]) & (line < high[patch, axis]))
                    for axis, line in enumerate((x, y))
                )
                window = np.ix_(inside_y, inside_x)
                at_x, at_y = x[inside_x] - low[patch, 0], y[inside_y] - low[patch, 1]
                middle = (self.side_px - 1) / 2
                distance = (at_y[:, None] - middle) ** 2 + (at_x[None, :] - middle) ** 2
                closer = distance < nearest[window]
                pixels = file["img"][self.rows[patch]][np.ix_(at_y, at_x)]
                block[window] = np.where(closer[..., None], pixels, block[window])
                nearest[window] = np.where(closer, distance, nearest[window])
        return np.ascontiguousarray(block.transpose(2, 0, 1)[channels])
