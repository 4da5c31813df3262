"""Hatches over predicted spots that lie beyond the tissue a model was trained on."""

import numpy as np
from matplotlib.axes import Axes

from agl_sc._sdata.sections import Section
from agl_sc._sdata.study import Study
from agl_sc.core.arrays import BoolArray
from agl_sc.core.evaluation.domain import BEYOND
from agl_sc.pl._tissue import add_discs, diameter_px

_HATCH = "//////"
_GREY, _LINE_PT = "0.25", 0.4


def beyond_of(study: Study) -> BoolArray:
    """Spots that lie beyond the training tissue, (n_obs,).

    Raises
    ------
    KeyError
        Nothing is known of distances.
    """
    column = study.keys.distance
    if column not in study.table.obs:
        msg = f'obs["{column}"], the distance from the training tissue, is missing; run agl_sc.tl.predict with a model that knows it, or pass hatch_beyond=False.'
        raise KeyError(msg)
    beyond: BoolArray = study.table.obs[column].to_numpy(dtype=float) > BEYOND
    return beyond


def hatch(ax: Axes, section: Section, beyond: BoolArray, *, size: float | None) -> None:
    """Hatch some spots of a section, and say how many they are.

    Parameters
    ----------
    ax
        A panel of predictions.
    section
        Its spots.
    beyond
        Which of them, (n_spots,).
    size
        Factor on the true size of the spots; None for spots that touch.
    """
    chosen = np.flatnonzero(beyond & np.isfinite(section.centres).all(axis=1))
    if not len(chosen):
        return
    style = {
        "facecolors": "none",
        "edgecolors": _GREY,
        "linewidths": _LINE_PT,
        "hatch": _HATCH,
        "zorder": 3,
        "gid": "beyond",
    }
    add_discs(ax, section.centres[chosen], diameter_px(section, size), **style)
    ax.text(
        0.01,
        0.99,
        f"hatched: {len(chosen):,} of {len(beyond):,} spots\nbeyond the training tissue",
        transform=ax.transAxes,
        ha="left",
        va="top",
        fontsize=5,
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        zorder=4,
    )
