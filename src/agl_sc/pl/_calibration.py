"""Measured against predicted expression."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.sections import Names
from agl_sc._sdata.table import get_table, region_of
from agl_sc.core.arrays import FloatArray
from agl_sc.pl._finish import WIDTH_IN, AxesGrid, axes_grid, check_save, finish
from agl_sc.pl._style import BLUE, FONT, ORANGE, SMALL, draw_identity, label_axes
from agl_sc.pl._tissue import MANY_SPOTS
from agl_sc.pl._values import (
    Expression,
    Prediction,
    check_genes,
    check_sections,
    expression_of,
    pearson_text,
    prediction_layer,
    units_of,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData


_N_BINS = 10
_FEWEST_PER_BIN = 5
_N_ABREAST = 3


def calibration(
    sdata: "SpatialData",
    genes: str | Sequence[str],
    *,
    sections: Names = None,
    prediction: Prediction = "model",
    table_key: str | None = None,
    layer: str | None = None,
    key_added: str = "agl",
    ax: Any = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> AxesGrid:
    """Draw measured against predicted expression of every gene, with the means over bins of equally many spots.

    Predictions are calibrated where the bins, means of measured over spots of similar prediction, lie on the identity
    line; the bins rise less steeply than it where predictions are too extreme, and more steeply where they are too timid.
    Test spots alone are drawn where there are any, and the title says which spots they are. The whiskers are standard
    errors of the means, as if neighbouring spots were independent.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections. Predictions are there already.
    genes
        Name or names of predicted genes.
    sections
        Name or names of the sections (regions of the table) to draw, in this order; all by default. They are pooled.
    prediction
        ``"model"`` for the predictions of one model, or ``"oof"`` for those out of fold that
        ``agl_sc.tl.cross_validate`` wrote, each by a model that had not seen the spot.
    table_key
        Table to use; the only one by default.
    layer
        Layer with raw counts; X by default. They are normalised as for training.
    key_added
        Prefix of all slots. Predictions are read from ``layers["agl"]``, or ``layers["agl_oof"]`` out of fold.
    ax
        Axes to draw on, a sequence of as many as genes; a new figure of at most journal width (7 in) by default.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes, (n_genes,).

    Raises
    ------
    KeyError
        There is no prediction of that name, or a gene, section, layer or table is not there.
    ValueError
        A gene was not predicted, nothing was selected, or the counts are not raw.
    TypeError
        An argument is of the wrong kind.
    FileNotFoundError
        The folder of ``save`` does not exist.
    PermissionError
        ``save`` cannot be written.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3)
    >>> model = agl_sc.tl.train(sdata)
    >>> agl_sc.pl.calibration(sdata, model.genes[:2], save="calibration.png")
    """
    path = check_save(save)
    table, keys = get_table(sdata, table_key), Keys(key_added)
    predictions = prediction_layer(table, keys, prediction)
    names = check_genes(table, genes, predictions)
    regions = region_of(table)
    rows = np.flatnonzero(regions.isin(check_sections(table, sections) or set(regions)).to_numpy())
    (values,) = expression_of(table, [rows], names, keys=keys, predictions=predictions, layer=layer)
    drawn = _new_axes(len(names)) if ax is None else axes_grid(ax, shape=(1, len(names)), what="genes")[0]
    for gene, (axes, name) in enumerate(zip(drawn, names, strict=True)):
        _draw_gene(axes, values, gene, name=name)
        label_axes(axes, x=f"predicted, {units_of(table, keys)}", y=f"measured, {units_of(table, keys)}")
    handles, _ = drawn[0].get_legend_handles_labels()
    if ax is None:
        figure = drawn[0].figure.canvas.figure
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL)
    else:
        drawn[0].legend(handles=handles, loc="best", fontsize=SMALL)
    finish(drawn[0], is_new=ax is None, show=show, path=path)
    return drawn


def _new_axes(n_genes: int) -> AxesGrid:
    """Axes in a new figure, three abreast."""
    import matplotlib.pyplot as plt

    n_columns = min(n_genes, _N_ABREAST)
    n_rows = -(-n_genes // n_columns)
    width_in = WIDTH_IN / max(n_columns, 2)
    figure = plt.figure(figsize=(width_in * n_columns, (width_in + 0.3) * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for ax in grid[n_genes:]:
        ax.remove()
    drawn: AxesGrid = grid[:n_genes]
    return drawn


def _draw_gene(ax: Axes, values: Expression, gene: int, *, name: str) -> None:
    """Spots, means of bins and the identity line."""
    spots, words = values.scored(gene)
    measured, predicted = values.measured[spots, gene], values.predicted[spots, gene]
    is_many = len(measured) > MANY_SPOTS
    ax.plot(
        predicted,
        measured,
        "o",
        color=BLUE,
        markersize=1 if is_many else 2.5,
        alpha=0.1 if is_many else 0.35,
        markeredgewidth=0,
        rasterized=is_many,
        label="spots",
    )
    draw_identity(ax, "identity")
    if len(measured):
        centres, means, errors = _bins(measured, predicted)
        label = "mean of a bin ± s.e."
        ax.errorbar(centres, means, errors, fmt="o-", color=ORANGE, markersize=4, linewidth=1.2, capsize=2, label=label)
    ax.set_title(f"{name}\n{pearson_text(measured, predicted)}, {len(measured):,} {words}", fontsize=FONT)


def _bins(measured: FloatArray, predicted: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean prediction, mean measurement and its standard error in bins of equally many spots, by prediction."""
    n_bins = max(1, min(_N_BINS, len(measured) // _FEWEST_PER_BIN))
    parts = np.array_split(np.argsort(predicted, kind="stable"), n_bins)
    errors = [measured[part].std(ddof=1) / len(part) ** 0.5 if len(part) > 1 else 0.0 for part in parts]
    centres, means = (np.array([side[part].mean() for part in parts]) for side in (predicted, measured))
    return centres, means, np.array(errors)
