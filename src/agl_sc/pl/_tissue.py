"""A section as a picture: H&E, spots at their true size and a scale bar, in pixels of the finest level."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from agl_sc._sdata.geometry import HD
from agl_sc._sdata.sections import Section
from agl_sc.core.arguments import is_number
from agl_sc.core.arrays import FloatArray
from agl_sc.pl._lattice import Cells, cells_of

_VIEW_PX = 1000
"""Pixels wanted along the longer side of what is shown."""
MANY_SPOTS = 20_000
"""Beyond this, spots become pixels in vector formats, and those that tile a lattice are drawn as one image."""
logger = logging.getLogger(__name__)
_BARS_UM = [step * 10.0**power for power in range(-1, 5) for step in (1, 2, 5)]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The part of a section that is shown."""

    pixels: NDArray[np.uint8]
    """H&E, (y, x, 3); empty without an image."""
    extent: tuple[float, float, float, float]
    """Left, right, bottom and top edge of ``pixels``."""
    low: FloatArray
    """Left and top limit of the axes."""
    high: FloatArray
    """Right and bottom limit of the axes."""
    cells: Cells | None = None
    """Of the bins of Visium HD, and of very many spots that tile a square lattice."""

    @property
    def height_per_width(self) -> float:
        width, height = self.high - self.low
        return float(height / width)


def check_style(size: float | None, image_alpha: float) -> None:
    """Refuse a size of spots or an opacity of the H&E that cannot be."""
    if not (size is None or (is_number(size) and 0 < size < np.inf)):
        msg = f"size={size!r} is not a positive factor on the spot size, nor None for spots that touch."
        raise ValueError(msg)
    if not (is_number(image_alpha) and 0 <= image_alpha <= 1):
        msg = f"image_alpha={image_alpha!r} is not between 0 (white) and 1 (opaque)."
        raise ValueError(msg)


def diameter_px(section: Section, size: float | None) -> float:
    """Diameter that the spots of a section are drawn with: ``size`` times their own, or, by default, so that they touch."""
    own = 2 * section.radius
    if size is not None:
        return own * size
    points = section.centres[np.isfinite(section.centres).all(axis=1)]
    if len(points) < 2:
        return own
    pitch = float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))
    return max(own, pitch)


def view_of(section: Section, *, size: float | None, margin_px: float = 0.0) -> View:
    """Crop a section to its spots.

    Parameters
    ----------
    section
        The section; its image is read at the coarsest level that still has 1,000 px along the crop.
    size
        Factor on the spot radius; None for spots that touch. The crop leaves one spot diameter around the centres.
    margin_px
        What it leaves at least.

    Raises
    ------
    ValueError
        No spot lies near the image, or none has a position.
    """
    if not np.isfinite(section.centres).all(axis=1).any():
        msg = f"No spot of section {section.name!r} has a position; fix its shapes, or leave it out with sections=."
        raise ValueError(msg)
    margin = max(diameter_px(section, size), 2 * section.radius, margin_px)
    low, high = np.nanmin(section.centres, axis=0) - margin, np.nanmax(section.centres, axis=0) + margin
    is_tiled = section.technology == HD or len(section.centres) > MANY_SPOTS
    cells = cells_of(section.centres, section.radius) if is_tiled else None
    if not section.levels:
        logger.warning("Section %r has no image: its spots are drawn alone.", section.name)
        return View(
            np.empty((0, 0, 3), np.uint8),
            (float(low[0]), float(high[0]), float(high[1]), float(low[1])),
            low,
            high,
            cells,
        )
    pixels, extent = _crop(section, low, high)
    return View(pixels, extent, low, high, cells)


def _crop(
    section: Section, low: FloatArray, high: FloatArray
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """Pixels of the image between two corners, and the edges of what they cover."""
    level = _level(section.levels, float((high - low).max()))
    level_px = np.array(level.shape[:0:-1])
    scale = np.array(section.levels[0].shape[:0:-1]) / level_px
    first = np.clip(np.floor(low / scale), 0, level_px).astype(int)
    last = np.clip(np.ceil(high / scale), 0, level_px).astype(int)
    if (last <= first).any():
        msg = (
            f"No spot of section {section.name!r} lies on its image {section.image_key!r}; "
            "fix the transformation that joins them, or name the right one with image_key= or coordinate_system=."
        )
        raise ValueError(msg)
    pixels = np.asarray(level[:, first[1] : last[1], first[0] : last[0]]).transpose(1, 2, 0)
    (left, top), (right, bottom) = first * scale, last * scale
    return pixels, (float(left), float(right), float(bottom), float(top))


def _level(levels: tuple[Any, ...], longest_px: float) -> Any:
    full = levels[0].shape[2]
    return next((level for level in reversed(levels) if longest_px * level.shape[2] / full >= _VIEW_PX), levels[0])


def draw_view(ax: Axes, view: View, *, image_alpha: float) -> None:
    """Draw the H&E, y downwards, without ticks; without an image only the frame is set."""
    if view.pixels.size:
        ax.imshow(view.pixels, extent=view.extent, alpha=image_alpha, zorder=0)
    ax.set_aspect("equal")
    ax.set(xlim=(view.low[0], view.high[0]), ylim=(view.high[1], view.low[1]), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_spots(
    ax: Axes,
    section: Section,
    values: FloatArray,
    *,
    size: float | None,
    cmap: Colormap,
    norm: Normalize,
    edge: str = "none",
    edge_pt: float = 0.25,
    cells: Cells | None = None,
) -> None:
    """Draw the spots of a section as discs, or as cells of a lattice; those with NaN are left out."""
    if cells is not None:
        ax.add_image(_image(ax, cells, values, cmap=cmap, norm=norm))
        return
    spots = add_discs(
        ax, section.centres, diameter_px(section, size), linewidths=0 if edge == "none" else edge_pt, edgecolors=edge
    )
    spots.set(array=np.ma.masked_invalid(values), cmap=cmap, norm=norm)


def add_discs(ax: Axes, centres: FloatArray, diameter: float, **style: Any) -> EllipseCollection:
    """Add discs of a diameter in pixels around centres (x, y), (n, 2), which do not change the limits; many are rasterised."""
    widths = np.full(len(centres), diameter)
    discs = EllipseCollection(
        widths, widths, np.zeros(len(centres)), units="xy", offsets=centres, offset_transform=ax.transData, **style
    )
    discs.set_rasterized(len(centres) > MANY_SPOTS)
    ax.add_collection(discs, autolim=False)
    return discs


def _image(ax: Axes, cells: Cells, values: FloatArray, *, cmap: Colormap, norm: Normalize) -> AxesImage:
    """One image whose pixels are the cells, placed by their own affine matrix."""
    array = np.ma.masked_invalid(cells.image(values))
    n_rows, n_columns = array.shape
    image = AxesImage(
        ax,
        cmap=cmap,
        norm=norm,
        interpolation="nearest",
        origin="lower",
        extent=(-0.5, n_columns - 0.5, -0.5, n_rows - 0.5),
        zorder=1,
    )
    image.set_data(array)
    image.set_transform(Affine2D(cells.matrix) + ax.transData)
    image.set_clip_path(ax.patch)
    return image


def draw_scale_bar(ax: Axes, view: View, *, mpp: float, fontsize: float) -> None:
    """Draw a bar of a round length, at most a quarter of the width, under the left corner of the picture."""
    width_px = float(view.high[0] - view.low[0])
    longest_um = width_px * mpp / 4
    length_um = max((length for length in _BARS_UM if length <= longest_um), default=_BARS_UM[0])
    left = float(view.low[0])
    right = left + length_um / mpp
    under = ax.get_xaxis_transform()
    ax.plot(
        [left, right],
        [-0.03, -0.03],
        color="black",
        linewidth=1.5,
        solid_capstyle="butt",
        transform=under,
        clip_on=False,
    )
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    ax.annotate(
        label, (right, -0.03), xycoords=under, xytext=(3, 0), textcoords="offset points", va="center", fontsize=fontsize
    )
