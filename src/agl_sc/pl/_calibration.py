"""Measured against predicted expression."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from agl_sc._sdata.predictions import Prediction
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arrays import FloatArray
from agl_sc.pl._finish import WIDTH_IN, AxesGrid, axes_grid, check_save, finish
from agl_sc.pl._style import BLUE, FONT, ORANGE, SMALL, draw_identity, label_axes, literal
from agl_sc.pl._tissue import MANY_SPOTS
from agl_sc.pl._values import Comparison, check_genes, expression_of, pearson_text, units_of
from agl_sc.tl._model.belongs import chosen_sections

if TYPE_CHECKING:
    from spatialdata import SpatialData


_N_BINS = 10
_FEWEST_PER_BIN = 5
_N_ABREAST = 3


def calibration(  # noqa: PLR0913  one argument per thing that a user may want to name
    sdata: "SpatialData",
    genes: str | Sequence[str],
    *,
    sections: Names = None,
    prediction: Prediction = "model",
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
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
        Name or names of the sections to use; all by default. They are pooled.
    prediction
        ``"model"`` for the predictions of one model, or ``"oof"`` for those out of fold that
        ``agl_sc.tl.cross_validate`` wrote, each by a model that had not seen the spot.
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
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> axes = agl_sc.pl.calibration(sdata, model.genes[:2], save="calibration.png")
    """
    path = check_save(save, show)
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    study = Study.of(sdata, address, key_added)
    names = check_genes(study, genes, prediction)
    rows = np.concatenate([rows for _, rows in chosen_sections(study, sections)])
    (values,) = expression_of(study, [np.sort(rows)], names, prediction=prediction)
    drawn = _new_axes(len(names)) if ax is None else axes_grid(ax, shape=(1, len(names)), what="genes")[0]
    for gene, (axes, name) in enumerate(zip(drawn, names, strict=True)):
        _draw_gene(axes, values, gene, name=name)
        label_axes(axes, x=f"predicted, {units_of(study)}", y=f"measured, {units_of(study)}")
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


def _draw_gene(ax: Axes, values: Comparison, gene: int, *, name: str) -> None:
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
    ax.set_title(f"{literal(name)}\n{pearson_text(measured, predicted)}, {len(measured):,} {words}", fontsize=FONT)


def _bins(measured: FloatArray, predicted: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean prediction, mean measurement and its standard error in bins of equally many spots, by prediction."""
    n_bins = max(1, min(_N_BINS, len(measured) // _FEWEST_PER_BIN))
    parts = np.array_split(np.argsort(predicted, kind="stable"), n_bins)
    errors = [measured[part].std(ddof=1) / len(part) ** 0.5 if len(part) > 1 else 0.0 for part in parts]
    centres, means = (np.array([side[part].mean() for part in parts]) for side in (predicted, measured))
    return centres, means, np.array(errors)
