"""Paired differences between methods, with their intervals."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from agl_sc._sdata.table import near_matches
from agl_sc.pl._finish import WIDTH_IN, check_save, finish, one_axes
from agl_sc.pl._style import BLUE, METRICS, ORANGE, SMALL, label_axes, legend_above, literal
from agl_sc.tl._benchmark.report import caveats, label, of_depth
from agl_sc.tl._benchmark.result import summary_of

if TYPE_CHECKING:
    from agl_sc.tl._benchmark.result import Benchmark

_FAINT = "#9A9A9A"
_ROW_IN = 0.28
_LINE_IN = 0.15
_LETTERS = 110
"""Letters of a line of caveats."""
_COLUMNS = ("method", "reference", "metric", "unit", "n_units", "mean", "low", "high", "distinguishable")


def benchmark(
    benchmark: "Benchmark",
    *,
    metric: str = "pearson",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the paired difference of every method to its reference with its interval, and the scores themselves beside it.

    Blue is above 0 and orange below; a difference that the benchmark does not call distinguishable from 0 is grey and
    hollow, whatever its mean. Of errors, such as ``"mse"``, less is better. What the intervals cannot tell, for want of
    units or of patients, stands below, as in the report, and so does the depth model with its score: no competitor, and so far
    from all others that their differences could not be read beside it. It has a row where nothing else was compared.

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
    where there are several, and the units that the interval is over; to the right of it stands the score of the method, the
    mean over folds of the mean over sections and genes, after that of the reference.

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
    results = benchmark.results[benchmark.results["metric"] == metric]
    scores = summary_of(results)[metric]
    said = [*caveats(rows, benchmark.provenance["data"]), *_of_depth(results, scores)]
    lines = [line for sentence in said for line in textwrap.wrap(sentence, _LETTERS)]
    axes = one_axes(ax, height_in=1.1 + _ROW_IN * len(rows) + _LINE_IN * len(lines), width_in=WIDTH_IN)
    handles = [
        _draw_rows(axes, rows, is_chosen, name=name, colour=colour)
        for name, colour, is_chosen in (
            ("above 0", BLUE, rows["distinguishable"] & (rows["mean"] > 0)),
            ("below 0", ORANGE, rows["distinguishable"] & (rows["mean"] <= 0)),
            ("not distinguishable from 0", _FAINT, ~rows["distinguishable"]),
        )
        if is_chosen.any()
    ]
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    references = sorted(set(rows["reference"]))
    minus = f"method minus {literal(label(references[0]))}" if len(references) == 1 else "first minus second"
    difference = f"paired difference in {METRICS.get(metric, metric)}, {minus}"
    label_axes(axes, x="\n".join([difference, *lines]), y="")
    _write_scores(axes, rows, scores, is_single=len(references) == 1)
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
    sees_no_pixels = (rows["method"] == "depth") | (rows["reference"] == "depth")
    rows = rows if sees_no_pixels.all() else rows[~sees_no_pixels]
    n_of_reference = rows.groupby("reference")["mean"].transform("size")
    order = rows.assign(n=n_of_reference).sort_values(["n", "reference", "mean"], kind="stable").index
    return rows.loc[order].reset_index(drop=True).astype({"distinguishable": bool})


def _of_depth(results: pd.DataFrame, scores: "pd.Series[float]") -> Iterator[str]:
    """What the depth model is, and its score."""
    for sentence in of_depth(results):
        score = scores.reindex([label("depth")]).iloc[0]
        is_model = sentence.startswith(label("depth")) and np.isfinite(score)
        yield f"{sentence} Its score is {score:.3f}." if is_model else sentence


def _draw_rows(ax: Axes, rows: pd.DataFrame, is_chosen: "pd.Series[bool]", *, name: str, colour: str) -> Line2D:
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
        label=name,
    )
    return points


def _labels(rows: pd.DataFrame, *, is_single: bool) -> list[str]:
    names = []
    for row in rows.to_dict("records"):
        against = "" if is_single else f" vs {literal(label(row['reference']))}"
        units = f"{row['n_units']} {row['unit']}{'s' * (row['n_units'] != 1)}"
        names.append(f"{literal(label(row['method']))}{against} ({units})")
    return names


def _write_scores(ax: Axes, rows: pd.DataFrame, scores: "pd.Series[float]", *, is_single: bool) -> None:
    """The score of every row's method, to the right; that of its reference before it, or once on top."""
    of = {name: f"{scores[label(name)]:.3f}" for name in {*rows["method"], *rows["reference"]}}
    texts = [
        of[row.method] if is_single else f"{of[row.reference]} → {of[row.method]}"
        for row in rows.itertuples(index=False)
    ]
    head = (
        f"score\n({literal(label(rows['reference'].iloc[0]))}: {of[rows['reference'].iloc[0]]})"
        if is_single
        else "score"
    )
    for height, text in [*enumerate(texts), (len(rows) - 0.35, head)]:
        ax.annotate(
            text,
            (1, height),
            xycoords=ax.get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="bottom" if text is head else "center",
            fontsize=SMALL,
            annotation_clip=False,
        )
