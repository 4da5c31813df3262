"""What every figure begins and ends with: checked arguments, an axes to draw on, showing and saving."""

import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from numpy.typing import NDArray

from agl_sc._paths import replacing
from agl_sc.core.arguments import check_flag

AxesGrid = NDArray[np.object_]

WIDTH_IN = 7.0
"""Width of a two-column journal page."""
_DPI = 200


def check_save(save: str | Path | None, show: bool | None = None) -> Path | None:  # noqa: FBT001 -- as functions have it
    """Path to save to, refused here rather than after the drawing when it cannot be written; and ``show``, where it says nothing."""
    if show is not None:
        check_flag("show", show)
    if save is None:
        return None
    if not isinstance(save, str | Path):
        msg = f"save={save!r} is a {type(save).__name__}, not a path; pass e.g. save='figure.png'."
        raise TypeError(msg)
    path = Path(save)
    if path.is_dir():
        msg = f"save='{path}' is a folder; name a file in it, e.g. '{path / 'figure.png'}'."
        raise ValueError(msg)
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in formats:
        msg = f"save='{path}' ends in {path.suffix!r}, not in one of {', '.join(sorted(formats))}."
        raise ValueError(msg)
    if not path.parent.is_dir():
        msg = f"The folder '{path.parent}' of save='{path}' does not exist; create it first."
        raise FileNotFoundError(msg)
    if not all(os.access(each, os.W_OK) for each in (path, path.parent) if each.exists()):
        msg = f"save='{path}' cannot be written; choose a file or folder with write permission."
        raise PermissionError(msg)
    return path


def one_axes(ax: Axes | None, *, height_in: float, width_in: float = WIDTH_IN * 0.7) -> Axes:
    """The axes to draw on, made in a new figure when there is none."""
    if ax is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(width_in, height_in), layout="constrained")
        return figure.add_subplot()
    _check_axes(ax)
    return ax


def axes_grid(ax: Any, *, shape: tuple[int, int], what: str = "gene and section, panel") -> AxesGrid:
    """The user's axes as an array of the shape that is needed; one row may also come as a flat sequence.

    Parameters
    ----------
    ax
        What the user gave.
    shape
        Rows and columns that are needed.
    what
        What the rows and columns are.
    """
    grid: AxesGrid = np.atleast_2d(np.asarray(ax, dtype=object))
    if grid.shape != shape:
        msg = f"ax holds axes of shape {grid.shape}, but {shape} ({what}) are needed."
        raise ValueError(msg)
    for entry in grid.ravel():
        _check_axes(entry)
    return grid


def _check_axes(ax: Any) -> None:
    if not isinstance(ax, Axes):
        msg = f"ax is a {type(ax).__name__}, not a matplotlib Axes; make one with matplotlib.pyplot.subplots()."
        raise TypeError(msg)


def finish(ax: Axes, *, is_new: bool, show: bool | None, path: Path | None) -> None:
    """Save and show the figure of an axes.

    Parameters
    ----------
    ax
        Any axes of the figure.
    is_new
        The figure was made here; a figure of the user's is shown only on request, for it may not be complete.
    show
        Whether to show; None means in interactive sessions, such as notebooks.
    path
        File to save to, from :func:`check_save`.
    """
    if path is not None:
        with replacing(_with_ending(path)) as fresh:
            ax.figure.canvas.figure.savefig(fresh, dpi=_DPI, bbox_inches="tight")
    if (mpl.is_interactive() and is_new) if show is None else show:
        import matplotlib.pyplot as plt

        plt.show()


def _with_ending(path: Path) -> Path:
    """The file that matplotlib makes of a name without ending."""
    return path if path.suffix else path.with_name(f"{path.name.rstrip('.')}.{mpl.rcParams['savefig.format']}")
