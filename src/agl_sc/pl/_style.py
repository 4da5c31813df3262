"""Colours and lettering that all figures share."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from agl_sc._sdata.table import near_matches

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5A5A5A"
"""Okabe and Ito's colours, which colour-blind readers tell apart."""
DIVERGING = "RdBu_r"
METRICS = {
    "pearson": "Pearson r",
    "pearson_beyond_depth": "Pearson r beyond depth",
    "spearman": "Spearman rho",
    "mse": "mean squared error",
}
"""What an axis calls the metrics whose own name is none."""
FONT = 8.0
SMALL = 7.0
_LONGEST = 60
"""Letters of a name that a figure shows."""


def label_axes(ax: Axes, *, x: str, y: str, colour: str = "black") -> None:
    """Label both axes, and take away the frame where there is no axis."""
    ax.set_xlabel(x, fontsize=FONT)
    ax.set_ylabel(y, fontsize=FONT, color=colour)
    ax.tick_params(labelsize=SMALL)
    ax.tick_params(axis="y", colors=colour)
    ax.spines[["top", "right"]].set_visible(False)


def literal(text: object) -> str:
    """A name as a figure spells it: shortened where it is very long, and no dollar of it begins mathematics."""
    name = str(text)
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 1]}…"
    return name.replace("$", r"\$") if mpl.rcParams["text.parse_math"] else name


def colours_of(cmap: str | Colormap) -> Colormap:
    """A colour map by its name, refused where there is none."""
    if isinstance(cmap, Colormap):
        return cmap
    if not isinstance(cmap, str):
        msg = f"cmap={cmap!r} is a {type(cmap).__name__}, neither a name nor a matplotlib Colormap; pass e.g. cmap='viridis'."
        raise TypeError(msg)
    if cmap not in mpl.colormaps:
        near = near_matches([cmap], mpl.colormaps)
        msg = f"cmap={cmap!r} is not a colour map of matplotlib{near or '; viridis and RdBu_r are two'}."
        raise ValueError(msg)
    return mpl.colormaps[cmap]


def legend_above(ax: Axes, handles: Sequence[Artist]) -> None:
    """Legend above the axes, where nothing is drawn."""
    ax.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(handles),
        frameon=False,
        fontsize=SMALL,
        columnspacing=1.2,
        handlelength=1.6,
    )


def draw_identity(ax: Axes, label: str) -> Line2D:
    """Line of equal x and y, whatever the limits."""
    line: Line2D = ax.axline((0, 0), slope=1, color=GREY, linestyle="--", linewidth=1, label=label, zorder=1)
    return line


def size_pt(ax: Axes) -> NDArray[np.float64]:
    """Width and height of the axes in points."""
    box, figure_in = ax.get_position(), ax.figure.canvas.figure.get_size_inches()
    size: NDArray[np.float64] = np.array([box.width, box.height]) * figure_in * 72
    return size
