"""Paired differences between methods, with their intervals."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from agl_sc._sdata.table import near_matches
from agl_sc.pl._finish import check_save, finish, one_axes
from agl_sc.pl._style import BLUE, METRICS, ORANGE, SMALL, label_axes, legend_above, literal

if TYPE_CHECKING:
    from agl_sc.tl._benchmark.result import Benchmark

_FAINT = "#9A9A9A"
_ROW_IN = 0.28
_COLUMNS = ("method", "reference", "metric", "unit", "n_units", "mean", "low", "high", "distinguishable")


def benchmark(
    benchmark: "Benchmark",
    *,
    metric: str = "pearson",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the paired difference of every method to its reference with its interval.

    Blue is above 0 and orange below; a difference that the benchmark does not call distinguishable from 0 is grey and
    hollow, whatever its mean. Of errors, such as ``"mse"``, less is better.

    Parameters
    ----------
    benchmark
        What ``agl_sc.tl.benchmark`` returned, or ``Benchmark.load``.
    metric
        Test metric to draw. One that was compared, such as ``"pearson"``.
    ax
        Axes to draw on; a new figure by default.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes of the differences, reference by reference, the largest on top. The label of a row names the method, the reference
    where there are several, and the units that the interval is over.

    Raises
    ------
    ValueError
        The metric was not compared, or nothing was.
    TypeError
        ``benchmark`` is not a Benchmark, or ``ax`` not an Axes.
    FileNotFoundError
        The folder of ``save`` does not exist.
    PermissionError
        ``save`` cannot be written.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> report = agl_sc.tl.benchmark(sdata, methods=["weighted_ridge", "ridge"], genes=20, metrics=["pearson"])
    >>> axes = agl_sc.pl.benchmark(report, save="differences.png")
    """
    path = check_save(save, show)
    rows = _rows(benchmark, metric)
    axes = one_axes(ax, height_in=1.1 + _ROW_IN * len(rows))
    handles = [
        _draw_rows(axes, rows, is_chosen, label=label, colour=colour)
        for label, colour, is_chosen in (
            ("above 0", BLUE, rows["distinguishable"] & (rows["mean"] > 0)),
            ("below 0", ORANGE, rows["distinguishable"] & (rows["mean"] <= 0)),
            ("not distinguishable from 0", _FAINT, ~rows["distinguishable"]),
        )
        if is_chosen.any()
    ]
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    references = sorted(set(rows["reference"]))
    minus = f"method minus {references[0]}" if len(references) == 1 else "first minus second"
    label_axes(axes, x=f"paired difference in {METRICS.get(metric, metric)}, {minus}", y="")
    axes.set_yticks(np.arange(len(rows)), _labels(rows, is_single=len(references) == 1), fontsize=SMALL)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=6)
    axes.spines["left"].set_visible(False)
    legend_above(axes, handles)
    finish(axes, is_new=ax is None, show=show, path=path)
    return axes


def _rows(benchmark: Any, metric: str) -> pd.DataFrame:
    """Differences in one metric, from the bottom: those to the commonest reference, and the largest, last."""
    differences = getattr(benchmark, "differences", None)
    if not isinstance(differences, pd.DataFrame) or not set(_COLUMNS) <= set(differences):
        msg = (
            f"benchmark is a {type(benchmark).__name__}, not an agl_sc.tl.Benchmark; make one with agl_sc.tl.benchmark."
        )
        raise TypeError(msg)
    known = sorted(set(differences["metric"]))
    if not isinstance(metric, str) or metric not in known:
        compared = (
            f"the metrics are {', '.join(known)}" if known else "nothing was, run agl_sc.tl.benchmark with two methods"
        )
        msg = f"metric={metric!r} was not compared: {compared}{near_matches([metric], known)}."
        raise ValueError(msg)
    rows = differences[(differences["metric"] == metric) & differences["mean"].notna()]
    if rows.empty:
        msg = f"metric={metric!r} is undefined in every pair of methods; compare them in folds with more spots."
        raise ValueError(msg)
    n_of_reference = rows.groupby("reference")["mean"].transform("size")
    order = rows.assign(n=n_of_reference).sort_values(["n", "reference", "mean"], kind="stable").index
    return rows.loc[order].reset_index(drop=True).astype({"distinguishable": bool})


def _draw_rows(ax: Axes, rows: pd.DataFrame, is_chosen: "pd.Series[bool]", *, label: str, colour: str) -> Line2D:
    """Means and intervals of some of the rows."""
    chosen = rows[is_chosen]
    ax.hlines(chosen.index, chosen["low"], chosen["high"], color=colour, linewidth=1.5)
    face = "white" if colour == _FAINT else colour
    (points,) = ax.plot(
        chosen["mean"],
        chosen.index,
        "o",
        color=colour,
        markerfacecolor=face,
        markersize=5,
        linestyle="none",
        label=label,
    )
    return points


def _labels(rows: pd.DataFrame, *, is_single: bool) -> list[str]:
    return [
        f"{literal(row.method)}{'' if is_single else f' vs {literal(row.reference)}'} ({row.n_units} {row.unit}{'s' * (row.n_units != 1)})"
        for row in rows.itertuples(index=False)
    ]
