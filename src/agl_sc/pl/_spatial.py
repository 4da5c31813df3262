"""Measured beside predicted expression on tissue."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.colors import Colormap

from agl_sc._sdata.predictions import Prediction
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import check_flag, is_whole
from agl_sc.pl._beyond import beyond_of, hatch
from agl_sc.pl._finish import AxesGrid, axes_grid, check_save, finish
from agl_sc.pl._panels import Scale, Shown, Style, check_scale, draw_grid, draw_residuals, draw_unmeasured, panels_of
from agl_sc.pl._style import DIVERGING, colours_of
from agl_sc.pl._tissue import check_style, view_of
from agl_sc.pl._values import check_genes, expression_of, parts_of, units_of

if TYPE_CHECKING:
    from spatialdata import SpatialData


def spatial_pred(  # noqa: PLR0913  one argument per thing that a user may want to name
    sdata: "SpatialData",
    genes: str | Sequence[str],
    *,
    sections: Names = None,
    prediction: Prediction = "model",
    difference: bool = False,
    image_panel: bool = False,
    scale: Scale = "shared",
    vmin: float | None = None,
    vmax: float | None = None,
    ncols: int | None = None,
    hatch_beyond: bool = False,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    layer: str | None = None,
    key_added: str = "agl",
    cmap: str | Colormap = "viridis",
    image_alpha: float = 0.6,
    size: float | None = None,
    ax: Any = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> AxesGrid:
    """Draw measured beside predicted expression over the H&E of every section.

    A gene has one colour scale: the limits are the 1st and 99th percentile of its measured and predicted values
    together, over all sections drawn, so that measured, predicted and sections can be compared by eye. Predictions are
    calibrated for the smallest squared error and vary less than measurements, often so much less that they look
    uniform on a shared scale; ``scale="own"`` gives measured and predicted each its own, to compare patterns. The title of
    a predicted panel gives the Pearson correlation with the measured values over the spots of that section, and says
    when those spots were in training or validation. In a section that mixes test spots with others, the correlation
    is over the test spots alone; the others are drawn and counted in the title. A section without an image is drawn as
    spots alone, at their positions in their coordinate system, and the log says so. Where nothing was measured, the H&E of a
    section is drawn once, and the predictions of all genes beside it, each with a scale of its own.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections. Predictions are those that
        ``agl_sc.tl.train`` or ``agl_sc.tl.predict`` wrote.
    genes
        Name or names of predicted genes.
    sections
        Name or names of the sections to use; all by default. They are drawn in this order.
    prediction
        ``"model"`` for the predictions of one model, or ``"oof"`` for those out of fold that
        ``agl_sc.tl.cross_validate`` wrote, each by a model that had not seen the spot.
    difference
        Add a panel with predicted minus measured, on a diverging scale that is symmetric about 0 and reaches the
        99th percentile of the absolute difference.
    image_panel
        Begin every row with a panel of the H&E alone, at full strength.
    scale
        ``"shared"`` for one colour scale of measured and predicted, ``"own"`` for one of each.
    vmin
        Lower limit of the scales, in the units of the layer; the 1st percentile by default.
    vmax
        Upper limit of the scales; the 99th percentile by default.
    ncols
        Genes abreast in a new figure, their sections below each other; by default genes are below each other and sections
        abreast where that leaves few places blank. Where nothing was measured, panels abreast.
    hatch_beyond
        Hatch predicted spots that lie beyond the tissue the model was trained on (``obs["agl_distance"]`` above .99), and count them.
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
        Layer with raw counts; X by default. They are normalised as for training, by default to
        log1p of counts per 10,000.
    key_added
        Prefix of all slots. Predictions are read from ``layers["agl"]``, or ``layers["agl_oof"]`` out of fold.
    cmap
        Colour map of the spots.
    image_alpha
        Opacity of the H&E, from 0 (white) to 1.
    size
        Factor on the true size of the spots, 1 for the size they have; by default they fill the pitch, so that neighbours
        touch. Bins of Visium HD, and more than 20,000 spots that tile a square lattice, are drawn as the squares they are.
    ax
        Axes to draw on, as an array of the shape that is returned, best from a figure with ``layout="constrained"``,
        which makes room for the titles; a new figure of at most journal width (7 in) by default.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes, (n_genes * n_sections, 2), a column more with ``image_panel`` and with ``difference`` each: gene by gene the
    sections, and in a row H&E, measured, predicted and difference. Where nothing was measured, (n_sections, 1 + n_genes).

    Raises
    ------
    KeyError
        There is no prediction of that name, or a gene, section, layer or table is not there; distances are to be hatched and are not known.
    ValueError
        A gene was not predicted, nothing was selected, the counts are not raw, or an argument is out of range.
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
    >>> axes = agl_sc.pl.spatial_pred(sdata, model.genes[:2], sections="section_1", save="predicted.png")
    """
    path = check_save(save, show)
    check_flag("difference", difference)
    check_flag("image_panel", image_panel)
    check_flag("hatch_beyond", hatch_beyond)
    colours = colours_of(cmap)
    check_style(size, image_alpha)
    limits = check_scale(scale, vmin, vmax)
    if ncols is not None and not (is_whole(ncols) and ncols > 0):
        msg = f"ncols={ncols!r} is not a positive whole number of genes abreast, nor None for the usual."
        raise ValueError(msg)
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    study = Study.of(sdata, address, key_added)
    beyond = beyond_of(study) if hatch_beyond else None
    names, shown = _shown(
        study, genes, prediction=prediction, sections=sections, size=size, may_lack_counts=not difference
    )
    style = Style(colours, units_of(study), size, image_alpha, scale, limits)
    if difference or any(each.expression.is_measured for each in shown):
        columns = panels_of(image=image_panel, difference=difference)
        grid = None if ax is None else axes_grid(ax, shape=(len(names) * len(shown), len(columns)))
        drawn = draw_grid(shown, names, columns=columns, style=style, grid=grid, n_abreast=ncols)
        predicted = drawn[:, [columns.index("predicted")]]
    else:
        grid = None if ax is None else axes_grid(ax, shape=(len(shown), 1 + len(names)), what="section, H&E and genes")
        drawn = draw_unmeasured(shown, names, style=style, grid=grid, n_abreast=ncols)
        predicted = drawn[:, 1:]
    if beyond is not None:
        for number, row in enumerate(predicted):
            section = shown[number % len(shown)].section
            for panel in row:
                hatch(panel, section, beyond[section.rows], size=size)
    finish(drawn[0, 0], is_new=ax is None, show=show, path=path)
    return drawn


def residual_map(  # noqa: PLR0913  one argument per thing that a user may want to name
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
    cmap: str | Colormap = DIVERGING,
    image_alpha: float = 0.6,
    size: float | None = None,
    ax: Any = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> AxesGrid:
    """Draw the standardised residuals of predictions over the H&E of every section: where a model errs.

    A residual is predicted minus measured expression. It is divided by the standard deviation of the residuals of its
    gene over all sections drawn, and not centred, so that a section that is predicted too high or too low shows. The
    colours reach from -3 to 3 standard deviations. Neighbouring spots of one colour are structure that the model missed;
    noise has none. As in :func:`spatial_pred`, numbers are over test spots where a section has any, and a title says
    when they are over others.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections. Predictions are there already.
    genes
        Name or names of predicted genes.
    sections
        Name or names of the sections to use; all by default. They are drawn in this order.
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
    cmap
        Colour map of the spots. Best a diverging one.
    image_alpha
        Opacity of the H&E, from 0 (white) to 1.
    size
        Factor on the true size of the spots, 1 for the size they have; by default they fill the pitch, so that neighbours
        touch. Bins of Visium HD, and more than 20,000 spots that tile a square lattice, are drawn as the squares they are.
    ax
        Axes to draw on, as an array of the shape that is returned; a new figure of at most journal width (7 in) by default.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes, (n_genes, n_sections). The label on the left of a row gives its standard deviation, in the units of the layer. In a
    new figure of one section the genes stand side by side.

    Raises
    ------
    KeyError
        There is no prediction of that name, or a gene, section, layer or table is not there.
    ValueError
        A gene was not predicted, nothing was selected, the counts are not raw, or an argument is out of range.
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
    >>> axes = agl_sc.pl.residual_map(sdata, model.genes[0], sections="section_1", save="residuals.png")
    """
    path = check_save(save, show)
    colours = colours_of(cmap)
    check_style(size, image_alpha)
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    study = Study.of(sdata, address, key_added)
    names, shown = _shown(study, genes, prediction=prediction, sections=sections, size=size)
    grid = None if ax is None else axes_grid(ax, shape=(len(names), len(shown)), what="gene, section")
    style = Style(colours, units_of(study), size, image_alpha)
    drawn = draw_residuals(shown, names, style=style, grid=grid)
    finish(drawn[0, 0], is_new=ax is None, show=show, path=path)
    return drawn


def _shown(
    study: Study,
    genes: str | Sequence[str],
    *,
    prediction: Prediction,
    sections: Names,
    size: float | None,
    may_lack_counts: bool = False,
) -> tuple[list[str], list[Shown]]:
    """Genes and sections to draw, the sections with their image where they have one."""
    names = check_genes(study, genes, prediction)
    chosen = parts_of(study, sections)
    rows = [each.rows for each in chosen]
    values = expression_of(study, rows, names, prediction=prediction, may_lack_counts=may_lack_counts)
    return names, [Shown(each, view_of(each, size=size), part) for each, part in zip(chosen, values, strict=True)]
