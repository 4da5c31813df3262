"""What training did: loss and score by epoch, the search for the cutoff, the weights of the genes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from agl_sc.core.arguments import is_whole
from agl_sc.core.arrays import FloatArray
from agl_sc.pl._finish import WIDTH_IN, check_save, finish, one_axes
from agl_sc.pl._style import BLUE, FONT, GREY, ORANGE, SMALL, label_axes, legend_above, literal, size_pt

if TYPE_CHECKING:
    from agl_sc.model import Model


_NEGLIGIBLE = 0.01
"""Genes of a lower weight are not worth a name."""
_PEARSON = "validation Pearson"
_BOTTOM = -0.04
"""Lower limit of the axis of weights."""
_STRIP_PT = 38.0
"""Width of the strip of target genes, enough for the word under it."""


def history(
    model: "Model",
    *,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw training loss and, below it, validation Pearson against epoch, with the epoch that was kept.

    Parameters
    ----------
    model
        A trained model.
    ax
        Two axes to draw on, for loss and Pearson; a new figure by default. On a single one the Pearson gets a second axis on
        the right.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes of the loss. That of the Pearson is the other one of the figure.

    Raises
    ------
    ValueError
        The model has no history.
        ``ax`` holds neither one axes nor two.
    TypeError
        ``model`` is not a model, or ``ax`` not an Axes.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> axes = agl_sc.pl.history(model, save="history.png")
    """
    path = check_save(save, show)
    frame = _frame(model, "history")
    if frame.empty:
        msg = f"The model (method {model.method!r}) has no history: it was not trained by epochs."
        raise ValueError(msg)
    is_scored = bool(frame["validation_pearson"].notna().any())
    axes = _history_axes(ax, n_panels=1 + is_scored)[: 1 + is_scored]
    lines = [_curve(axes[0], frame, x="epoch", y="loss", label="training loss", colour=BLUE)]
    if is_scored and len(axes) == 1:
        twin = _twin(axes[0], _PEARSON, ORANGE)
        lines.append(_curve(twin, frame, x="epoch", y="validation_pearson", label=_PEARSON, colour=ORANGE))
    elif is_scored:
        lines.append(_curve(axes[1], frame, x="epoch", y="validation_pearson", label=_PEARSON, colour=ORANGE))
    kept = f"kept: epoch {model.best_epoch}"
    marks = [_mark(each, model.best_epoch, kept) for each in axes]
    lines.append(marks[0])
    for each, label, colour in zip(axes, ("training loss", _PEARSON), (BLUE, ORANGE), strict=False):
        label_axes(each, x="epoch" if each is axes[-1] else "", y=label, colour=colour)
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].figure.canvas.figure.align_ylabels(axes)
    legend_above(axes[0], lines)
    finish(axes[0], is_new=ax is None, show=show, path=path)
    return axes[0]


def _history_axes(ax: Axes | Sequence[Axes] | None, *, n_panels: int) -> list[Axes]:
    """One axes, or two for loss and score, below each other in a new figure."""
    if ax is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(WIDTH_IN * 0.7, 1.2 + 1.5 * n_panels), layout="constrained")
        return list(figure.subplots(n_panels, 1, sharex=True, squeeze=False).ravel())
    given = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
    if len(given) not in (1, 2):
        msg = f"ax holds {len(given)} axes; pass one, or two for training loss and validation Pearson."
        raise ValueError(msg)
    return [one_axes(each, height_in=0) for each in given]


def cutoff(model: "Model", *, ax: Axes | None = None, show: bool | None = None, save: str | Path | None = None) -> Axes:
    """Draw the search for the cutoff, with the one that was chosen.

    A search along a path of cutoffs, or by a race of a few, is drawn as validation Pearson against the number k of
    auxiliary genes that a cutoff selects; a search by hypergradient as cutoff and validation Pearson against outer step.

    Parameters
    ----------
    model
        A trained model. Its method learns a cutoff.
    ax
        Axes to draw on; a new figure by default. A search by hypergradient adds a second axis on the right.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes of the validation Pearson (path) or of the cutoff (hypergradient).

    Raises
    ------
    ValueError
        The method of the model has no cutoff.
    TypeError
        ``model`` is not a model, or ``ax`` not an Axes.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> axes = agl_sc.pl.cutoff(model, save="cutoff.png")
    """
    path = check_save(save, show)
    trace = _frame(model, "cutoff_trace")
    if trace.empty or model.cutoff is None:
        msg = f"Method {model.method!r} has no cutoff to draw; method='dkgsb' learns one, with agl_sc.tl.train."
        raise ValueError(msg)
    axes = one_axes(ax, height_in=2.8)
    draw = {"gradient": _draw_steps, "race": _draw_race}.get(model.search or "path", _draw_path)
    legend_above(axes, draw(axes, trace, model.cutoff))
    finish(axes, is_new=ax is None, show=show, path=path)
    return axes


def gene_weights(
    model: "Model",
    *,
    n_names: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the learned weight of every gene against its prior rank, target genes in a strip of their own.

    Parameters
    ----------
    model
        A trained model.
    n_names
        Number of genes to name. They are the auxiliary genes of the largest weight, the better prior rank first among
        equals; fewer when names would overlap, and none of a weight below 0.01.
    ax
        Axes to draw on; a new figure by default.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes of the weights. The label of its x axis counts the auxiliary genes with a weight of at least 0.5.

    Raises
    ------
    ValueError
        ``n_names`` is negative.
    TypeError
        ``model`` is not a model, or ``ax`` not an Axes.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> axes = agl_sc.pl.gene_weights(model, n_names=5, save="weights.png")
    """
    path = check_save(save, show)
    if not is_whole(n_names) or n_names < 0:
        msg = f"n_names={n_names!r} is negative or no whole number; pass 0 for no names."
        raise ValueError(msg)
    _check_model(model, "weights")
    axes = one_axes(ax, height_in=3.2)
    weights = np.asarray(model.weights, dtype=np.float64)
    auxiliary = weights[model.n_targets :]
    span = max(len(auxiliary), 2)
    width_pt, _ = size_pt(axes)
    fraction = max(_STRIP_PT / width_pt, 0.1)
    strip = -fraction / (1 - fraction) * span, -0.02 * span
    _draw_weights(axes, weights[: model.n_targets], auxiliary, strip=strip)
    axes.set_xlim(strip[0] - 0.01 * span, span * 1.01)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick < span])
    n_selected = int((auxiliary >= 0.5).sum())
    counts = f"({n_selected:,} of {len(auxiliary):,} auxiliary genes have weight ≥ 0.5)"
    label_axes(axes, x=f"prior rank\n{counts}", y="weight")
    _name_genes(axes, model.genes[model.n_targets :], auxiliary, n_names=n_names)
    finish(axes, is_new=ax is None, show=show, path=path)
    return axes


def _check_model(model: Any, attribute: str) -> None:
    if not hasattr(model, attribute):
        msg = f"model is a {type(model).__name__}, not an agl_sc.Model; train one with agl_sc.tl.train."
        raise TypeError(msg)


def _frame(model: Any, attribute: str) -> pd.DataFrame:
    _check_model(model, attribute)
    frame: pd.DataFrame = getattr(model, attribute)
    return frame


def _curve(ax: Axes, frame: pd.DataFrame, *, x: str, y: str, label: str, colour: str) -> Line2D:
    """One column against another, over the rows that have it; points are marked while they are few."""
    known = frame[[x, y]].dropna()
    marker = "o" if len(known) <= 50 else ""
    (line,) = ax.plot(known[x], known[y], color=colour, label=label, marker=marker, markersize=3, linewidth=1.2)
    return line


def _mark(ax: Axes, x: float, label: str) -> Line2D:
    return ax.axvline(x, color=GREY, linestyle="--", linewidth=1, label=label, zorder=1)


def _twin(ax: Axes, label: str, colour: str) -> Axes:
    twin = ax.twinx()
    twin.set_ylabel(label, color=colour, fontsize=FONT)
    twin.tick_params(axis="y", colors=colour, labelsize=SMALL)
    twin.spines["top"].set_visible(False)
    return twin


def _draw_path(ax: Axes, trace: pd.DataFrame, chosen: float) -> list[Line2D]:
    k = int(trace["k"].iloc[int((trace["cutoff"] - chosen).abs().to_numpy().argmin())])
    curve = _curve(ax, trace.sort_values("k"), x="k", y="validation_pearson", label=_PEARSON, colour=BLUE)
    label_axes(ax, x="auxiliary genes selected, k", y=_PEARSON)
    return [curve, _mark(ax, k, f"chosen: k = {k:,} (cutoff {chosen:.3g})")]


def _draw_race(ax: Axes, trace: pd.DataFrame, chosen: float) -> list[Line2D]:
    last = trace["step"].max()
    lines = []
    for rung in range(int(last) + 1):
        rows = trace[trace["step"] == rung].sort_values("k")
        curve = _curve(ax, rows, x="k", y="validation_pearson", label=f"rung {rung + 1}", colour=BLUE)
        curve.set(marker="o", markersize=3, alpha=0.3 + 0.7 * (rung + 1) / (last + 1))
        lines.append(curve)
    label_axes(ax, x="auxiliary genes selected, k", y=_PEARSON)
    k = int(trace["k"].iloc[int((trace["cutoff"] - chosen).abs().to_numpy().argmin())])
    return [*lines, _mark(ax, k, f"chosen: k = {k:,} (cutoff {chosen:.3g})")]


def _draw_steps(ax: Axes, trace: pd.DataFrame, chosen: float) -> list[Line2D]:
    lines = [_curve(ax, trace, x="step", y="cutoff", label="cutoff", colour=BLUE)]
    if trace["validation_pearson"].notna().any():
        twin = _twin(ax, _PEARSON, ORANGE)
        lines.append(_curve(twin, trace, x="step", y="validation_pearson", label=_PEARSON, colour=ORANGE))
    label = f"chosen: cutoff {chosen:.3g}"
    lines.append(ax.axhline(chosen, color=GREY, linestyle="--", linewidth=1, label=label, zorder=1))
    label_axes(ax, x="outer step", y="cutoff", colour=BLUE)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return lines


def _draw_weights(ax: Axes, targets: FloatArray, auxiliary: FloatArray, *, strip: tuple[float, float]) -> None:
    ax.add_patch(Rectangle((strip[0], _BOTTOM), strip[1] - strip[0], 1 - 2 * _BOTTOM, color="0.93", lw=0, zorder=0))
    inset = 0.1 * (strip[1] - strip[0])
    places = np.linspace(strip[0] + inset, strip[1] - inset, len(targets))
    style: dict[str, Any] = {"linestyle": "none", "clip_on": False, "rasterized": len(auxiliary) > 20_000}
    ax.plot(places, targets, marker="D", markersize=2.5, color=ORANGE, label="target genes", **style)
    ax.plot(
        np.arange(len(auxiliary)), auxiliary, marker="o", markersize=2.5, color=BLUE, label="auxiliary genes", **style
    )
    ax.annotate(
        f"{len(targets)}\ntargets",
        (sum(strip) / 2, 0),
        xycoords=ax.get_xaxis_transform(),
        xytext=(0, -5),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=SMALL,
        color=ORANGE,
    )


def _name_genes(ax: Axes, genes: Sequence[str], weights: FloatArray, *, n_names: int) -> None:
    """Name the leading genes in a band above weight 1, side by side in order of rank, each with a line to its point."""
    width_pt, height_pt = size_pt(ax)
    low, high = ax.get_xlim()
    step = 1.3 * SMALL / width_pt * (high - low)
    n_fit = int((high - 0) / step)
    leading = np.argsort(-weights, kind="stable")[: min(n_names, n_fit)]
    leading = np.sort(leading[weights[leading] >= _NEGLIGIBLE])
    longest_pt = max((len(literal(genes[i])) for i in leading), default=0) * 0.58 * SMALL
    band = min((longest_pt + 20) / height_pt, 0.6) if len(leading) else 0.03
    top = 1 + band / (1 - band) * (1 - _BOTTOM)
    ax.set_ylim(_BOTTOM, top)
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.spines["left"].set_bounds(_BOTTOM, 1)
    ax.yaxis.label.set_y((0.5 - _BOTTOM) / (top - _BOTTOM))
    for i, place in zip(leading, _spread(leading.astype(float), step, high), strict=True):
        ax.annotate(
            literal(genes[i]),
            (i, weights[i]),
            xytext=(place, 1 + 16 / height_pt * (top - _BOTTOM)),
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=SMALL,
            arrowprops={
                "arrowstyle": "-",
                "color": "0.6",
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0.5, 0),
            },
        )


def _spread(places: FloatArray, step: float, high: float) -> FloatArray:
    """Positions at least ``step`` apart and at most ``high``, in the same order, as little moved to the right as that takes."""
    offsets = step * np.arange(len(places))
    moved = np.maximum.accumulate(places - offsets) + offsets
    spread: FloatArray = np.minimum(moved, high - offsets[::-1])
    return spread
