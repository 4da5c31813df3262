"""A section as a picture: H&E, spots at their true size and a scale bar, in pixels of the finest level."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Colormap, Normalize
from numpy.typing import NDArray

from agl_sc._boundary import Section

FloatArray = NDArray[np.float64]

_VIEW_PX = 1000
"""Pixels wanted along the longer side of what is shown."""
_MANY_SPOTS = 20_000
"""Beyond this, spots become pixels in vector formats."""
_BARS_UM = [step * 10.0**power for power in range(-1, 5) for step in (1, 2, 5)]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The part of a section that is shown."""

    pixels: NDArray[np.uint8]
    """H&E, (y, x, 3)."""
    extent: tuple[float, float, float, float]
    """Left, right, bottom and top edge of ``pixels``."""
    low: FloatArray
    """Left and top limit of the axes."""
    high: FloatArray
    """Right and bottom limit of the axes."""

    @property
    def height_per_width(self) -> float:
        width, height = self.high - self.low
        return float(height / width)


def view_of(section: Section, *, size: float) -> View:
    """Crop a section to its spots.

    Parameters
    ----------
    section
        The section; its image is read at the coarsest level that still has 1,000 px along the crop.
    size
        Factor on the spot radius. The crop leaves one spot diameter around the centres.

    Raises
    ------
    ValueError
        No spot lies near the image.
    """
    margin = 2 * section.radius * max(size, 1.0)
    low, high = np.nanmin(section.centres, axis=0) - margin, np.nanmax(section.centres, axis=0) + margin
    level = _level(section.levels, float((high - low).max()))
    level_px = np.array(level.shape[:0:-1])
    scale = np.array(section.levels[0].shape[:0:-1]) / level_px
    first = np.clip(np.floor(low / scale), 0, level_px).astype(int)
    last = np.clip(np.ceil(high / scale), 0, level_px).astype(int)
    if (last <= first).any():
        msg = (
            f"No spot of section {section.name!r} lies on its image {section.image_key!r}; "
            "mend the transformation that joins them, or name the right one with image_key= or coordinate_system=."
        )
        raise ValueError(msg)
    pixels = np.asarray(level[:, first[1] : last[1], first[0] : last[0]]).transpose(1, 2, 0)
    (left, top), (right, bottom) = first * scale, last * scale
    return View(pixels, (float(left), float(right), float(bottom), float(top)), low, high)


def _level(levels: tuple[Any, ...], longest_px: float) -> Any:
    full = levels[0].shape[2]
    return next((level for level in reversed(levels) if longest_px * level.shape[2] / full >= _VIEW_PX), levels[0])


def draw_view(ax: Axes, view: View, *, image_alpha: float) -> None:
    """Draw the H&E, y downwards, without ticks."""
    ax.imshow(view.pixels, extent=view.extent, alpha=image_alpha, aspect="equal", zorder=0)
    ax.set(xlim=(view.low[0], view.high[0]), ylim=(view.high[1], view.low[1]), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_spots(
    ax: Axes, section: Section, values: FloatArray, *, size: float, cmap: Colormap, norm: Normalize, edge: str = "none"
) -> None:
    """Draw the spots of a section as discs; those with NaN are left out."""
    widths = np.full(len(values), 2 * section.radius * size)
    spots = EllipseCollection(
        widths,
        widths,
        np.zeros(len(values)),
        units="xy",
        offsets=section.centres,
        offset_transform=ax.transData,
        linewidths=0 if edge == "none" else 0.25,
        edgecolors=edge,
    )
    spots.set(array=np.ma.masked_invalid(values), cmap=cmap, norm=norm, rasterized=len(values) > _MANY_SPOTS)
    ax.add_collection(spots, autolim=False)


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
