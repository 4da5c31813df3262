"""Where on a slide there is tissue: squidpy's trainable segmentation, and what a slide may show beside tissue and glass."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from agl_sc.core.arrays import BoolArray, Float32Array, FloatArray, UInt8Array

TISSUE, DARK = 1, 2
"""Labels of a mask: tissue, and tissue so dense that it is folded or covered; 0 is everything else."""
WORK_UM = 8.0
"""Microns per pixel at which tissue is told from glass: adipocytes still have membranes there."""
_MOST_PX = 1_000_000
_FEWEST_PX = 200
"""On the shorter side, below which a small image is looked at more closely."""
_LARGEST_SIGMA = 4.0
"""Of the filters in pixels; squidpy's 16 would take a rim of 100 um of glass along."""
_WINDOW = 5
"""Side in pixels of the windows in which an image is called flat or not."""
_FLAT = 2.0
"""Spread within windows, in those of the glass, up to which pixels are as flat as glass."""
_LEAST_FLAT = 2.0
"""Grey levels up to which they are so on any slide."""
_BLACK = 50
_INK = 25
"""Grey levels by which blue or green ink is greener than red; tissue stained with H&E is redder."""
_BRIGHT = 150
_CORNER = 0.01
"""Side of the corners that squidpy learns glass from, in sides of the image."""
_PADDING = 0.03
_SMALLEST_MM2 = 0.02
_DARK_RATIO = 2.0
"""Optical density of a fold, in that of the tissue around; two layers have twice."""
_FULL = 0.98
_WHITE = 255
_SHARE = 1 / 3
"""Of tissue on the images that squidpy is given, as on those that its settings were tried on."""
_LARGEST_CELL_MM2 = 0.05
"""Area of white, or of what is as flat as glass, beyond which it is no inside of a fat cell."""

_coarsen: Callable[..., da.Array] = da.coarsen


@dataclass(frozen=True, slots=True, eq=False)
class Tissue:
    """A mask of a slide."""

    labels: NDArray[np.uint8]
    """1 on tissue, 2 on tissue that is dark, 0 elsewhere, (y, x)."""
    factor: tuple[float, float]
    """Pixels of the finest level per pixel of the mask, (y, x)."""

    def shares(self, centres_px: FloatArray, radius_px: float) -> Float32Array:
        """Shares of tissue, dark or not, and of dark tissue around places.

        Parameters
        ----------
        centres_px
            (x, y) in pixels of the finest level, (n, 2).
        radius_px
            Half the side of the square that counts, in the same pixels.

        Returns
        -------
        (n, 2), from 0 to 1; beyond the image there is none.
        """
        sides = [max(1, round(2 * radius_px / factor)) for factor in self.factor]
        rows, columns = (np.floor(centres_px[:, axis] / self.factor[1 - axis]).astype(int) for axis in (1, 0))
        inside = (rows >= 0) & (rows < self.labels.shape[0]) & (columns >= 0) & (columns < self.labels.shape[1])
        shares = np.zeros((len(centres_px), 2), np.float32)
        for column, kind in enumerate((self.labels > 0, self.labels == DARK)):
            mean = ndimage.uniform_filter(kind.astype(np.float32), sides, mode="constant")
            shares[inside, column] = mean[rows[inside], columns[inside]]
        return shares.clip(0, 1)


def find_tissue(levels: Sequence[da.Array], mpp: float, *, name: str) -> Tissue:
    """Tell tissue from glass, ink and the black that scanners put around.

    Tissue is what squidpy's trainable segmentation (``detect_tissue``, method ``"weka"``) takes for it, whose example of glass
    are the corners of the slide; less what hangs together with the glass and is as flat: a smear of stain, a rim. Unlike a
    threshold on brightness, this keeps adipose tissue, whose cells are as bright as glass within membranes.

    Parameters
    ----------
    levels
        Images (3, y, x) uint8, finest first.
    mpp
        Microns per pixel of the finest.
    name
        Section, as messages call it.

    Raises
    ------
    ValueError
        There is no tissue, or nothing but tissue.
    """
    pixels, factor = _overview(levels, mpp)
    um = mpp * math.sqrt(factor[0] * factor[1])
    covered, white = _covered(pixels), _never_scanned(pixels, um)
    clean = _painted(pixels, covered | white)
    found = _tissue_or_glass(clean, um) & ~covered & ~white
    n_tissue, n_seen = int(found.sum()), int((~covered).sum())
    if n_tissue * um**2 < _SMALLEST_MM2 * 1e6:
        msg = (
            f"No tissue was found on {name!r} ({n_tissue * um**2 / 1e6:.2g} mm2); if there is, pass tissue= a mask of it, an array (y, x) "
            "of truth values that covers the image."
        )
        raise ValueError(msg)
    if n_tissue > _FULL * n_seen:
        msg = (
            f"All of {name!r} was taken for tissue ({n_tissue / n_seen:.1%}), so nothing tells glass; if it is a crop within tissue, "
            "pass tissue=numpy.ones((1, 1), dtype=bool)."
        )
        raise ValueError(msg)
    return Tissue(np.where(found & _dark(pixels, found), DARK, found.astype(np.uint8)).astype(np.uint8), factor)


def given_tissue(mask: Any, size_px: tuple[int, int], *, name: str) -> Tissue:
    """Somebody else's mask, (y, x), stretched over an image of ``size_px`` (y, x)."""
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype.kind not in "biu" or 0 in array.shape:
        msg = f"tissue= of {name!r} is {array.dtype} of shape {array.shape}; pass an array (y, x) of truth values or labels that covers the image."
        raise ValueError(msg)
    if not array.any():
        msg = f"tissue= of {name!r} is empty, so there is no spot to place; pass a mask that is True on tissue."
        raise ValueError(msg)
    factor = (size_px[0] / array.shape[0], size_px[1] / array.shape[1])
    return Tissue((array != 0).astype(np.uint8), factor)


def _overview(levels: Sequence[da.Array], mpp: float) -> tuple[UInt8Array, tuple[float, float]]:
    """The slide at about 8 um per pixel, (y, x, 3), and pixels of the finest level per pixel, (y, x)."""
    height, width = levels[0].shape[1:]
    target = max(WORK_UM / mpp, math.sqrt(height * width / _MOST_PX))
    target = max(1.0, min(target, min(height, width) / _FEWEST_PX))
    factors = [height / level.shape[1] for level in levels]
    index = max(i for i, factor in enumerate(factors) if i == 0 or factor <= 1.01 * target)
    level: Any = levels[index]
    by = max(1, round(target / factors[index]))
    if by > 1:
        side = by * max(1, 1024 // by)
        level = _coarsen(np.mean, level.rechunk((3, side, side)), {1: by, 2: by}, trim_excess=True)
    pixels = np.ascontiguousarray(np.rint(np.asarray(level.compute())).astype(np.uint8).transpose(1, 2, 0))
    finest = levels[index].shape[1:]
    return pixels, (by * height / finest[0], by * width / finest[1])


def _covered(pixels: UInt8Array) -> BoolArray:
    """Ink of a marker, and black that reaches the edge of the image."""
    red, green = pixels[..., 0].astype(np.int16), pixels[..., 1].astype(np.int16)
    ink = green - red > _INK
    black = _at_edge(pixels.max(axis=2) < _BLACK)
    opened: BoolArray = ndimage.binary_opening(ink, iterations=1) | black
    return np.asarray(ndimage.binary_dilation(opened, iterations=2)) if opened.any() else opened


def _at_edge(found: BoolArray) -> BoolArray:
    """Of what is found, the parts that reach the edge of the image."""
    parts, _ = ndimage.label(found)
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return np.isin(parts, edge[edge > 0])


def _never_scanned(pixels: UInt8Array, um: float) -> BoolArray:
    """White that fills an image up, where a scanner left glass out or a picture was put into a frame; white glass as well."""
    white = np.pad((pixels == _WHITE).all(axis=2), 2, mode="edge")  # so that a strip of one pixel counts
    white = ndimage.binary_opening(white, structure=np.ones((3, 3)))[2:-2, 2:-2]
    if not white.any():
        return np.asarray(white)
    return np.asarray(ndimage.binary_dilation(_beyond_cells(white, um) | _at_edge(white), iterations=2))


def _beyond_cells(found: BoolArray, um: float) -> BoolArray:
    """Of what is found, the parts that are larger than any fat cell."""
    parts, _ = ndimage.label(found)
    is_large = np.bincount(parts.ravel()) * um**2 > _LARGEST_CELL_MM2 * 1e6
    is_large[0] = False
    large: BoolArray = is_large[parts]
    return large


def _flatness(pixels: UInt8Array) -> FloatArray:
    """Spread of the grey levels in the window around every pixel, (y, x)."""
    values = pixels.astype(np.float64)
    mean = ndimage.uniform_filter(values, (_WINDOW, _WINDOW, 0))
    variance = ndimage.uniform_filter(values**2, (_WINDOW, _WINDOW, 0)) - mean**2
    spread: FloatArray = np.sqrt(variance.clip(0).mean(axis=2))
    return spread


def _glassy(pixels: UInt8Array) -> BoolArray:
    """Flat and bright, as glass is, (y, x)."""
    glassy: BoolArray = (_flatness(pixels) < 3 * _LEAST_FLAT) & (pixels.mean(axis=2) > _BRIGHT)
    return glassy


def _painted(pixels: UInt8Array, covered: BoolArray) -> UInt8Array:
    """The same with glass where something covers it."""
    if not covered.any():
        return pixels
    clean = pixels.copy()
    clean[covered] = _glass_colour(pixels, ~covered)
    return clean


def _glass_colour(pixels: UInt8Array, among: BoolArray) -> UInt8Array:
    """Of the flat and bright pixels; white where there are none."""
    glass = among & _glassy(pixels)
    return np.median(pixels[glass], axis=0).astype(np.uint8) if glass.any() else np.full(3, 255, np.uint8)


def _tissue_or_glass(clean: UInt8Array, um: float) -> BoolArray:
    """Tissue, (y, x), of an image without ink and black."""
    other = ~_glassy(clean)
    found = np.zeros(other.shape, dtype=bool)
    if int(other.sum()) * um**2 < _SMALLEST_MM2 * 1e6:
        return found
    box = _around(other)
    found[box] = _of_part(clean[box], um)
    return found


def _around(found: BoolArray) -> tuple[slice, slice]:
    """What is found with glass around it, of which it is :data:`_SHARE`, so that no more glass is learned from on larger slides."""
    down, across = (np.flatnonzero(found.any(axis=axis)) for axis in (1, 0))
    height, width = (int(line[-1] - line[0]) + 1 for line in (down, across))
    missing = int(found.sum()) / _SHARE - height * width  # = 4 margin^2 + 2 (height + width) margin
    margin = (math.sqrt((height + width) ** 2 + 4 * max(0.0, missing)) - height - width) / 4
    whole = math.ceil(max(margin, 2 * _WINDOW, _PADDING * max(found.shape)))
    top, left = (max(0, int(line[0]) - whole) for line in (down, across))
    return slice(top, int(down[-1]) + 1 + whole), slice(left, int(across[-1]) + 1 + whole)


def _of_part(clean: UInt8Array, um: float) -> BoolArray:
    """Tissue of an image of which it is a good part."""
    corners = _glassy_corners(clean)
    margin = 0 if any(corners) else math.ceil(_PADDING * max(clean.shape[:2]))
    if margin:  # glass is put around, so that there is an example of it
        colour = _glass_colour(clean, np.ones(clean.shape[:2], dtype=bool))
        padded = np.empty((clean.shape[0] + 2 * margin, clean.shape[1] + 2 * margin, 3), np.uint8)
        padded[:] = colour
        padded[margin:-margin, margin:-margin] = clean
        clean, corners = padded, (True, True, True, True)
    found = _segmented(clean, corners, um)
    found = _without_flat(clean, found, um)
    return found[margin:-margin, margin:-margin] if margin else found


def _glassy_corners(pixels: UInt8Array) -> tuple[bool, bool, bool, bool]:
    """Whether the corners show glass: (top left, bottom left, top right, bottom right)."""
    flat = _glassy(pixels)
    height, width = (max(1, int(_CORNER * side)) for side in flat.shape)
    blocks = (flat[:height, :width], flat[-height:, :width], flat[:height, -width:], flat[-height:, -width:])
    top_left, bottom_left, top_right, bottom_right = (bool(block.mean() > 0.9) for block in blocks)
    return top_left, bottom_left, top_right, bottom_right


def _segmented(pixels: UInt8Array, corners: tuple[bool, bool, bool, bool], um: float) -> BoolArray:
    """Tissue by squidpy."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    with _quiet():
        from squidpy.experimental.im import BackgroundDetectionParams, WekaParams, detect_tissue

        image = Image2DModel.parse(pixels.transpose(2, 0, 1), dims=("c", "y", "x"))
        names = ("ymin_xmin_is_bg", "ymax_xmin_is_bg", "ymin_xmax_is_bg", "ymax_xmax_is_bg")
        background = BackgroundDetectionParams(**dict(zip(names, corners, strict=True)), corner_size_pct=_CORNER)
        smallest = _SMALLEST_MM2 * 1e6 / um**2 / (pixels.shape[0] * pixels.shape[1])
        found = detect_tissue(
            SpatialData(images={"slide": image}),
            "slide",
            method="weka",
            method_params=WekaParams(sigma_max=_LARGEST_SIGMA),
            background_detection_params=background,
            min_specimen_area_frac=smallest,
            n_samples=10_000,  # None would drop the smaller of two specimens
            auto_max_pixels=2 * _MOST_PX,
            inplace=False,
        )
    return np.asarray(found) > 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of squidpy, which tells its steps, and dask's bar of progress, which it prints."""
    from spatialdata._logging import logger

    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=SyntaxWarning, module="docrep")
            warnings.simplefilter("ignore", FutureWarning)  # how squidpy calls scikit-image and scikit-learn
            yield
    finally:
        logger.setLevel(before)


def _without_flat(pixels: UInt8Array, found: BoolArray, um: float) -> BoolArray:
    """Tissue less what is as flat as glass and either reached from it without crossing anything, or larger than cells are."""
    at_edge = np.ones_like(found)
    at_edge[1:-1, 1:-1] = False
    glass = ~found | (at_edge & _glassy(pixels))
    if not glass.any():
        return found
    spread = _flatness(pixels)
    flat = spread < max(_FLAT * float(np.median(spread[glass])), _LEAST_FLAT)
    reached = ndimage.binary_propagation(glass, mask=glass | flat) | _beyond_cells(flat, um)
    kept = ndimage.binary_opening(found & ~reached, iterations=2)
    closed: BoolArray = ndimage.binary_closing(np.pad(kept, 9), iterations=3)[9:-9, 9:-9]
    return closed


def _dark(pixels: UInt8Array, found: BoolArray) -> BoolArray:
    """Twice as dense as the tissue around, in patches."""
    density = -np.log((pixels.astype(np.float32) + 1) / 256).mean(axis=2)
    usual = float(np.median(density[found]))
    spread = 1.4826 * float(np.median(np.abs(density[found] - usual)))
    smooth = ndimage.uniform_filter(density, _WINDOW)
    dark: BoolArray = ndimage.binary_opening(smooth > max(_DARK_RATIO * usual, usual + 4 * spread), iterations=1)
    return dark
