"""Opening images lazily, and the multiscale element every reader writes."""

import contextlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from PIL.ExifTags import Base
from PIL.Image import Exif
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, set_transformation
from xarray import DataArray, Dataset, DataTree

from agl_sc.core.arguments import path_of
from agl_sc.io._readable import COMPLETE, readable, refuse_beyond_memory, refuse_turned
from agl_sc.io._tiff import CHUNK_PX, LazyPixels, count_levels, open_tiff, stamp, without_alpha

_SMALLEST_LEVEL_PX = 1024
_META = np.empty((0, 0, 0), np.uint8)
_MEND = "convert it to 8-bit RGB first, e.g. PIL.Image.open(path).convert('RGB').save('rgb.png')"
_MEND_ALPHA = (
    "convert it on a white ground first, e.g. rgba = PIL.Image.open(path); "
    "PIL.Image.alpha_composite(PIL.Image.new('RGBA', rgba.size, 'white'), rgba).convert('RGB').save('rgb.png')"
)
_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# Pillow's Image.open refuses images beyond a global pixel limit ("decompression bomb"), which nearly every slide
# exceeds. Its per-format classes read the same header without that check, so the user's global limit stays as it is.
_PILLOW_CLASSES: dict[bytes, type[ImageFile]] = {b"\xff\xd8\xff": JpegImageFile, b"\x89PNG": PngImageFile}
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}
_TAIL = 2**20

Image = NDArray[np.uint8] | da.Array

_from_array: Callable[..., da.Array] = da.from_array
_rechunk: Callable[..., da.Array] = da.rechunk
_map_blocks: Callable[..., da.Array] = da.map_blocks


def open_image(path: Path | str) -> da.Array:
    """Open a JPEG, PNG or TIFF file as a lazy array; only its header is read, unless it has an alpha channel.

    Parameters
    ----------
    path
        File holding a 3-channel 8-bit image; the largest image of a TIFF file is taken, or the one whose name or number,
        counted from 0, stands behind the path, as in ``"slide.ome.tif#H&E"``. A fourth channel is dropped if it is opaque
        everywhere.

    Returns
    -------
    Image, (c, y, x), uint8, chunks of (3, 512, 512).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not JPEG, PNG or TIFF, or damaged; a TIFF file has several images that are the largest, and none was named;
        the image is not 3-channel uint8, is marked to be turned, or does not fit into memory.
    """
    path, name = split_name(path)
    magic = _magic(path)
    if magic in _TIFF_MAGIC:
        return open_tiff(path, name)
    if name:
        msg = f"'{path}' is no TIFF, so it holds one image and none named {name!r}; give the path without '#{name}'."
        raise ValueError(msg)
    for prefix in _PILLOW_CLASSES:
        if magic.startswith(prefix):
            return _open_pillow(path, prefix)
    msg = f"'{path}' is not a JPEG, PNG or TIFF image (it starts with {magic!r}); convert it to one of these."
    raise ValueError(msg)


def split_name(path: Path | str) -> tuple[Path, str]:
    """A file, and the name of an image in it that stands behind ``#``; a file whose own name has that sign goes first."""
    whole = path_of("image", path)
    file, sign, name = str(whole).rpartition("#")
    return (Path(file), name) if sign and not whole.exists() and Path(file).is_file() else (whole, "")


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF by its first bytes."""
    return _magic(path) in _TIFF_MAGIC


def _magic(path: Path) -> bytes:
    if not path.is_file():
        msg = f"The image file '{path}' does not exist."
        raise FileNotFoundError(msg)
    with readable(path, kind=" as an image"), path.open("rb") as file:
        return file.read(4)


def open_levels(path: Path | str) -> list[da.Array]:
    """Open an image with the coarser levels that its file holds, down to a longest side below 1,024 px.

    Parameters
    ----------
    path
        File as :func:`open_image` takes it.

    Returns
    -------
    Images (3, y, x), uint8, lazy, finest first; the finest alone where the file is no pyramid.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        As :func:`open_image`.
    """
    levels = [open_image(path)]
    path, name = split_name(path)
    n_levels = count_levels(path, name) if is_tiff(path) else 1
    for level in range(1, n_levels):
        if max(levels[-1].shape) < _SMALLEST_LEVEL_PX:
            break
        levels.append(open_tiff(path, name, level))
    return levels


def check_image(image: Any, *, name: str) -> None:
    """Refuse what is not a 3-channel uint8 image.

    Parameters
    ----------
    image
        Array with ``shape`` and ``dtype``, expected (c, y, x).
    name
        What the message calls the image.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        msg = (
            f"The image of {name!r} has shape {tuple(image.shape)} (c, y, x) and dtype {image.dtype}, "
            "but must have 3 channels of uint8; convert it to 8-bit RGB first."
        )
        raise ValueError(msg)


def rgb_from_array(pixels: Any, *, name: str) -> Image:
    """Bring an image held in memory, as scanpy and squidpy keep it, to (c, y, x) uint8.

    Parameters
    ----------
    pixels
        (y, x, c) or (c, y, x), an axis of length 1 aside, as squidpy has one for z: uint8, or floats in [0, 1] as matplotlib and scanpy read PNG files. A fourth channel
        is dropped if it is opaque everywhere. A dask array must be uint8 with 3 channels and stays lazy.
    name
        What the message calls the image.

    Returns
    -------
    Image, (3, y, x), uint8; shares memory with ``pixels`` where nothing had to be converted.
    """
    if not isinstance(pixels, np.ndarray | da.Array):
        msg = f"The image of {name!r} is a {type(pixels).__name__}; give a path, a numpy array or a dask array."
        raise TypeError(msg)
    if pixels.ndim == 4:
        pixels = pixels.squeeze()
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        pixels = pixels.transpose(2, 0, 1)
    if isinstance(pixels, np.ndarray):
        pixels = _drop_opaque_alpha(_to_uint8(pixels))
    check_image(pixels, name=name)
    image: Image = pixels
    return image


def _to_uint8(pixels: NDArray[Any]) -> NDArray[Any]:
    """Undo the division by 255 of readers that return floats; everything else stays as it is."""
    if np.issubdtype(pixels.dtype, np.floating) and pixels.size and pixels.min() >= 0 and pixels.max() <= 1:
        rounded: NDArray[np.uint8] = np.rint(pixels * 255).astype(np.uint8)
        return rounded
    return pixels


def _drop_opaque_alpha(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.ndim == 3 and pixels.shape[0] == 4 and pixels.dtype == np.uint8 and (pixels[3] == 255).all():
        return pixels[:3]
    return pixels


def image_element(image: Image, *, name: str, coarser: Sequence[da.Array] = ()) -> Any:
    """Multiscale image element of a section, halved until its longest side is below 1,024 px; lazy on every level.

    What is halved is computed from level 0 whenever it is read, so a file's own coarser levels take its place. It has the
    pixels that spatialdata would give it, by whole numbers and seven times as fast.

    Parameters
    ----------
    image
        Level 0, (c, y, x), uint8, 3 channels.
    name
        Section; also the coordinate system, whose unit is the level-0 pixel.
    coarser
        Levels that the file holds, finest first.

    Returns
    -------
    ``DataTree`` that spatialdata accepts as an image.
    """
    check_image(image, name=name)
    chunks = (3, CHUNK_PX, CHUNK_PX)
    # Naming an in-memory array by its content would hash all of it; a random name is enough here.
    if coarser and isinstance(image, da.Array):  # opened from a file, in chunks of its own tiles
        return _pyramid([image, *coarser], name)
    lazy = _rechunk(image, chunks) if isinstance(image, da.Array) else _from_array(image, chunks=chunks, name=False)
    levels = [lazy]
    while max(levels[-1].shape[1:]) >= _SMALLEST_LEVEL_PX and min(levels[-1].shape[1:]) > 1:
        levels.append(_halved(levels[-1]))
    return _pyramid(levels, name)


def _halved(level: da.Array) -> da.Array:
    """Means of squares of four pixels, rounded down; of an odd number of rows or columns the first is left out."""
    top, left = (n % 2 for n in level.shape[1:])
    whole = _rechunk(level[:, top:, left:], (3, 2 * CHUNK_PX, 2 * CHUNK_PX))
    sizes = (3, *(tuple(n // 2 for n in sizes) for sizes in whole.chunks[1:]))
    halved: da.Array = _map_blocks(_means_of_four, whole, chunks=sizes, dtype=np.uint8, meta=_META)
    return halved


def _means_of_four(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows = pixels[:, ::2].astype(np.uint16) + pixels[:, 1::2]
    means: NDArray[np.uint8] = ((rows[:, :, ::2] + rows[:, :, 1::2]) >> 2).astype(np.uint8)
    return means


def _pyramid(levels: Sequence[da.Array], name: str) -> DataTree:
    """What :class:`Image2DModel` would parse, of levels that are there."""
    height, width = levels[0].shape[1:]
    tree = {}
    for index, level in enumerate(levels):
        centres = {
            axis: (np.arange(n) + 0.5) * (whole / n)
            for axis, n, whole in zip("yx", level.shape[1:], (height, width), strict=True)
        }
        pixels = DataArray(level, dims=("c", "y", "x"), coords={"c": ["r", "g", "b"], **centres})
        tree[f"scale{index}"] = Dataset({"image": pixels})
    element = DataTree.from_dict(tree)
    set_transformation(element, {name: Identity()}, set_all=True)
    Image2DModel().validate(element)
    return element


@dataclass(frozen=True, slots=True)
class _PillowImage(LazyPixels):
    """What dask slices: pixels of a JPEG or PNG file, decoded when first asked for."""

    path: Path
    """The file."""
    prefix: bytes
    """First bytes, which name the format."""
    stamp: tuple[int, int]
    """Modification time and size of the file: a replaced file is another image."""
    shape: tuple[int, int, int]
    """(c, y, x), with three channels or four."""

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        # A copy, so that a chunk kept by somebody does not keep the whole slide.
        return np.array(_last_decoded.get(self).transpose(2, 0, 1)[index], order="C")

    def decode(self) -> NDArray[np.uint8]:
        _refuse_bomb(self.path, self.shape)
        with readable(self.path, kind=" as an image"), _PILLOW_CLASSES[self.prefix](str(self.path)) as image:
            return np.asarray(image)


class _LastDecoded:
    """Keeps the last decoded image, so that the chunks of one slide share one decoding.

    JPEG and PNG cannot be decoded in part. Chunks wait for one another under the lock rather than decode twice.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._source: _PillowImage | None = None
        self._pixels: NDArray[np.uint8] | None = None

    def get(self, source: _PillowImage) -> NDArray[np.uint8]:
        with self._lock:
            if self._pixels is None or self._source != source:
                self._source, self._pixels = None, None  # make room before decoding the next
                self._pixels = source.decode()
                self._source = source
            return self._pixels


_last_decoded = _LastDecoded()


def _open_pillow(path: Path, prefix: bytes) -> da.Array:
    with readable(path, kind=" as an image"), _PILLOW_CLASSES[prefix](str(path)) as image:
        mode, (width, height), rawmode = image.mode, image.size, _rawmode(image)
        orientation = _orientation(image)
    _refuse_cut(path, prefix)
    refuse_turned(path, orientation, as_stored="PIL.Image.open(path).save('stored.png', exif=b'')")
    if mode not in ("RGB", "RGBA") or "16" in rawmode:  # Pillow would quietly drop the low byte of 16-bit RGB
        found = f"{rawmode} (16 bit)" if "16" in rawmode else mode
        msg = f"The image '{path}' has mode {found}, not 8-bit RGB; {_MEND}."
        raise ValueError(msg)
    shape = (len(mode), height, width)
    _refuse_bomb(path, shape)
    source = _PillowImage(path.resolve(), prefix, stamp(path), shape)
    pixels = _from_array(source, chunks=(len(mode), CHUNK_PX, CHUNK_PX), fancy=False, meta=_META)
    if mode == "RGB":
        return pixels
    msg = f"The image '{path}' has mode RGBA with transparent pixels, not 8-bit RGB; {_MEND_ALPHA}."
    return without_alpha(pixels, msg)


def _refuse_cut(path: Path, prefix: bytes) -> None:
    """Look for the mark that ends every JPEG and PNG file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        is_whole = _ENDS[prefix] in file.read()
    if not is_whole:
        msg = f"'{path}' ends before its pixels do (after {size} bytes); {COMPLETE}"
        raise ValueError(msg)


def _refuse_bomb(path: Path, shape: tuple[int, int, int]) -> None:
    n_channels, height, width = shape
    # Pillow holds 4 bytes a pixel, and hands over as many as there are channels, twice while it joins them.
    needed = (4 + 2 * n_channels) * height * width
    mend = "save it as a TIFF in tiles, of which only parts are decoded, or work on a machine with more memory"
    refuse_beyond_memory(path, needed, what=f"the {width:,} x {height:,} px", mend=mend)


def _orientation(image: ImageFile) -> object:
    """How EXIF in the header asks viewers to turn the image; ``getexif`` would decode a PNG to look behind its pixels."""
    exif = Exif()
    with contextlib.suppress(SyntaxError, ValueError, struct.error):  # damaged metadata say nothing
        exif.load(image.info.get("exif", b""))
        return exif.get(Base.Orientation)
    return None


def _rawmode(image: ImageFile) -> str:
    args = image.tile[0][3] if image.tile else ""  # by its place: it has no name before Pillow 11
    return str(args if isinstance(args, str) else args[0] if args else "")
