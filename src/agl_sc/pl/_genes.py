"""A test metric of every gene beside what could be expected of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from agl_sc._sdata.predictions import Prediction, predicted_of
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import is_whole
from agl_sc.core.arrays import BoolArray, FloatArray
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.pl._finish import check_save, finish, one_axes
from agl_sc.pl._style import BLUE, METRICS, SMALL, draw_identity, label_axes, legend_above, literal, size_pt
from agl_sc.pl._values import units_of
from agl_sc.pp._splits.split import assigned_in
from agl_sc.tl._evaluate import evaluate_study
from agl_sc.tl._model.belongs import chosen_sections, metric_column, oof_method

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Against = Literal["mean", "noise_ceiling"]

_N_NAMED_BARS = 40
"""Bars of more genes are too narrow for names."""
_N_NARROW_BARS = 100
"""More bars have no room for gaps."""


def gene_metrics(  # noqa: PLR0913  one argument per thing that a user may want to name
    sdata: "SpatialData",
    *,
    metric: str = "pearson",
    against: Against | None = "mean",
    prediction: Prediction = "model",
    sections: Names = None,
    n_names: int = 10,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    layer: str | None = None,
    key_added: str = "agl",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw a test metric of every gene against its mean expression or its noise ceiling, or as sorted bars.

    Against mean expression, a metric that only rises with it shows how far abundance, and so noise of counting, explains
    what can be predicted. Against the noise ceiling, the correlation that a perfect model would reach given that noise,
    a gene on the identity line is predicted as well as its counts allow.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections. ``agl_sc.tl.evaluate`` has run.
    metric
        Test metric to draw. One that ``agl_sc.tl.evaluate`` wrote, such as ``"pearson"``, ``"spearman"`` or ``"mse"``.
    against
        ``"mean"`` for mean expression over the test spots, ``"noise_ceiling"`` (of ``"pearson"``), or None for bars from
        the largest to the smallest.
    prediction
        ``"model"`` for the predictions of one model, or ``"oof"`` for those out of fold that
        ``agl_sc.tl.cross_validate`` wrote, each by a model that had not seen the spot.
    sections
        Name or names of the sections to use; all by default. With some, or out of fold, the metric is computed here.
    n_names
        Number of genes to name. They are those of the largest metric, as far as names cover neither names nor points; bars
        of up to 40 genes are all named.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    image_mpp
        Microns per pixel of the full image, a number or a mapping by section; from metadata or spot pitch by default.
    layer
        Layer with raw counts; X by default. Only mean expression is made of them.
    key_added
        Prefix of all slots.
    ax
        Axes to draw on; a new figure by default.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes of the metric.

    Raises
    ------
    KeyError
        The metric or the noise ceiling has not been computed, or a table or layer is not there.
    ValueError
        No gene has the metric, no spot is test, ``against`` is unknown or does not fit the metric, or ``n_names`` is negative.
    TypeError
        ``sdata`` is not a SpatialData, or ``ax`` not an Axes.
    FileNotFoundError
        The folder of ``save`` does not exist.
    PermissionError
        ``save`` cannot be written.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> scores = agl_sc.tl.evaluate(sdata, metrics=["pearson"])
    >>> axes = agl_sc.pl.gene_metrics(sdata, save="genes.png")
    """
    path = check_save(save, show)
    _check_against(metric, against, n_names)
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    study = Study.of(sdata, address, key_added)
    of = _Scores(study, prediction, sections)
    values = of.column(metric)
    other = _other(of, against, index=values.index)
    axes = one_axes(ax, height_in=3.0)
    name = of.words(METRICS.get(metric, metric)) + (f", {units_of(study)} squared" if metric == "mse" else "")
    if other is None:
        _draw_bars(axes, values, name=name, n_names=n_names)
    else:
        units = f"mean expression in test spots, {units_of(study)}"
        _draw_points(
            axes, other, values, x_name=units if against == "mean" else "noise ceiling of Pearson r", y_name=name
        )
        if against == "noise_ceiling":
            legend_above(axes, [draw_identity(axes, "noise ceiling reached")])
        name_points(axes, other, values, n_names=n_names)
    finish(axes, is_new=ax is None, show=show, path=path)
    return axes


def _check_against(metric: str, against: str | None, n_names: int) -> None:
    if not is_whole(n_names) or n_names < 0:
        msg = f"n_names={n_names!r} is negative or no whole number; pass 0 for no names."
        raise ValueError(msg)
    if against is not None and against not in get_args(Against):
        msg = f"against={against!r} is not one of {', '.join(map(repr, get_args(Against)))}, or None for sorted bars."
        raise ValueError(msg)
    if against == "noise_ceiling" and metric != "pearson":
        msg = f"The noise ceiling is of Pearson correlation, not of metric={metric!r}; pass metric='pearson'."
        raise ValueError(msg)


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """Where the metrics of genes come from."""

    study: Study
    """The study that holds predictions."""
    prediction: Prediction
    """Whether they are those of one model, or out of fold."""
    sections: Names
    """Sections of which they are the mean; all by default."""

    def column(self, metric: str) -> "pd.Series[float]":
        """Values of the genes that have any: as ``evaluate`` wrote them, or of some sections computed here."""
        name = metric_column(self.study.keys, metric, self.prediction)
        if self.sections is None:
            return _column(self.study.table, name)
        table = evaluate_study(
            self.study, prediction=self.prediction, sections=self.sections, metrics=[metric], write=False
        )
        return table.groupby("gene")[metric].mean().dropna()

    def words(self, metric: str) -> str:
        """What an axis calls a metric of them."""
        if self.prediction == "model":
            return f"test {metric}"
        method = oof_method(self.study)
        return f"out-of-fold {metric}" + (f" of {method}" if method else "")

    @property
    def rows(self) -> BoolArray:
        """Spots that they are over, (n_obs,)."""
        study, inside = self.study, np.zeros(self.study.table.n_obs, dtype=bool)
        for _, rows in chosen_sections(study, self.sections):
            inside[rows] = True
        if self.prediction == "oof":
            inside &= np.isfinite(predicted_of(study, "oof").values).any(axis=1)
        else:
            inside &= assigned_in(study) == "test"
        return inside


def _column(table: "AnnData", name: str) -> "pd.Series[float]":
    """Values of the genes that have any."""
    if name not in table.var:
        msg = f'var["{name}"] is missing; run agl_sc.tl.evaluate(sdata), which writes the test metrics of every gene.'
        raise KeyError(msg)
    values: pd.Series[float] = pd.to_numeric(table.var[name]).dropna()
    if values.empty:
        msg = f'var["{name}"] is NaN for all genes; predict genes that vary over the test spots, and run agl_sc.tl.evaluate again.'
        raise ValueError(msg)
    return values


def _other(of: _Scores, against: Against | None, *, index: pd.Index) -> "pd.Series[float] | None":
    """What the metric is drawn against, of the same genes; None for bars."""
    if against is None:
        return None
    if against == "noise_ceiling":
        return of.column(against).reindex(index)
    study, rows = of.study, of.rows
    if not rows.any():
        msg = f'obs["{study.keys.split}"] has no test spot to average over; pass against=None for sorted bars.'
        raise ValueError(msg)
    expression = normalize_counts(study.counts[rows], study.normalize)[:, study.table.var_names.get_indexer(index)]
    return pd.Series(np.asarray(expression.mean(axis=0), dtype=np.float64).ravel(), index=index)


def _draw_bars(ax: Axes, values: "pd.Series[float]", *, name: str, n_names: int) -> None:
    """Bars from the largest to the smallest, named while they are wide enough."""
    ordered = values.sort_values(ascending=False, kind="stable")
    width = 0.8 if len(ordered) <= _N_NARROW_BARS else 1.0
    ax.bar(np.arange(1, len(ordered) + 1), ordered.to_numpy(), color=BLUE, width=width, linewidth=0)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set_xlim(0.4, len(ordered) + 0.6)
    middle = float(ordered.median())
    label_axes(ax, x=f"{len(ordered):,} genes by {name.removeprefix('test ')} (median {middle:.2g})", y=name)
    if len(ordered) > _N_NAMED_BARS:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=2))
        leading = "\n".join(f"{literal(gene)} {value:.2f}" for gene, value in ordered.iloc[:n_names].items())
        ax.text(1.02, 1.0, leading, transform=ax.transAxes, va="top", fontsize=SMALL)
        return
    ax.set_xticks(
        np.arange(1, len(ordered) + 1), [literal(gene) for gene in ordered.index], rotation=90, fontsize=SMALL
    )
    ax.tick_params(axis="x", length=0)


def _draw_points(ax: Axes, x: "pd.Series[float]", y: "pd.Series[float]", *, x_name: str, y_name: str) -> None:
    ax.plot(x.to_numpy(), y.to_numpy(), "o", color=BLUE, markersize=3, alpha=0.7, markeredgewidth=0, label="genes")
    ax.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    ax.margins(0.08)
    label_axes(ax, x=x_name, y=y_name)


def name_points(ax: Axes, x: "pd.Series[float]", y: "pd.Series[float]", *, n_names: int) -> None:
    """Name the genes of largest ``y`` beside, above or below their points, wherever that covers no other name or point."""
    size = size_pt(ax)
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    points = (np.column_stack([x, y]) - low) / (high - low) * size
    taken: list[Bbox] = []
    for gene in y.dropna().sort_values(ascending=False, kind="stable").index[:n_names]:
        point = points[y.index.get_loc(gene)]
        fitting = (
            box for box in _places(point, str(gene)) if _fits(box, taken, size=size) and not _covers(box, points)
        )
        box = next(fitting, None)
        if box is None:
            continue
        taken.append(box)
        ax.annotate(
            literal(gene),
            (x[gene], y[gene]),
            xytext=tuple(np.array([box.x0, (box.y0 + box.y1) / 2]) - point),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
        )


def _places(point: FloatArray, name: str) -> Iterator[Bbox]:
    """Boxes for a name right, left, above and below of a point, in points; 0.62 em is the mean width of a capital."""
    width, height = 0.62 * SMALL * len(name), 1.3 * SMALL
    for across, up in ((4, -height / 2), (-4 - width, -height / 2), (-width / 2, 3), (-width / 2, -3 - height)):
        yield Bbox.from_bounds(point[0] + across, point[1] + up, width, height)


def _covers(box: Bbox, points: FloatArray) -> bool:
    return bool(((points >= np.array(box.min) - 1) & (points <= np.array(box.max) + 1)).all(axis=1).any())


def _fits(box: Bbox, taken: list[Bbox], *, size: FloatArray) -> bool:
    is_inside = bool((np.array(box.min) >= 0).all() and (np.array(box.max) <= size).all())
    return is_inside and not any(box.overlaps(other) for other in taken)
