"""Panels of measured and predicted expression: titles, colour scales and their arrangement on the page."""

import logging
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, ListedColormap, Normalize

from agl_sc._sdata.sections import Section
from agl_sc.core.arguments import is_number
from agl_sc.core.arrays import FloatArray
from agl_sc.pl._arrange import Lettering, abreast, lettering_of, montage_of, new_rows, new_table
from agl_sc.pl._finish import WIDTH_IN, AxesGrid
from agl_sc.pl._style import DIVERGING, literal
from agl_sc.pl._tissue import View, draw_scale_bar, draw_spots, draw_view
from agl_sc.pl._values import SEEN, Comparison, pearson_text

logger = logging.getLogger(__name__)

_DIFFERENCE = "predicted - measured"
_UNMEASURED = "nothing measured"
_PERCENTILES = (1, 99)
_ROUNDING = 1e-5
"""Residuals of single-precision expression that vary no more are rounding."""
_REACH_SD = 3.0
"""Half the scale of standardised residuals."""
_FEW_SPOTS = 1000
"""Beyond, outlines of spots would be all that one sees."""


Scale = Literal["shared", "own"]
Panel = Literal["image", "measured", "predicted", "difference"]


def panels_of(*, image: bool, difference: bool) -> tuple[Panel, ...]:
    """What a row of panels shows."""
    first: tuple[Panel, ...] = ("image",) if image else ()
    last: tuple[Panel, ...] = ("difference",) if difference else ()
    return (*first, "measured", "predicted", *last)


def check_scale(scale: str, vmin: float | None, vmax: float | None) -> tuple[float | None, float | None]:
    """Limits of the scales of colours; refused where they are none."""
    if scale not in ("shared", "own"):
        msg = f"scale={scale!r} is not one of 'shared', 'own'."
        raise ValueError(msg)
    for name, value in (("vmin", vmin), ("vmax", vmax)):
        if value is not None and not (is_number(value) and np.isfinite(value)):
            msg = f"{name}={value!r} is not a number in the units of the layer, nor None for a percentile."
            raise ValueError(msg)
    if vmin is not None and vmax is not None and vmin >= vmax:
        msg = f"vmin={vmin} is not below vmax={vmax}; give a smaller vmin= or a larger vmax=."
        raise ValueError(msg)
    return vmin, vmax


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One section as it is drawn."""

    section: Section
    """Where the spots are."""
    view: View
    """What is shown of it."""
    expression: Comparison
    """Comparison of the chosen genes in its spots."""


@dataclass(frozen=True, slots=True, eq=False)
class Style:
    """How expression is drawn."""

    cmap: Colormap
    """Colours of measured and predicted expression."""
    units: str
    """What the colour bar calls the values."""
    size: float | None
    """Factor on the true size of the spots; None for spots that touch."""
    image_alpha: float
    """Opacity of the H&E."""
    scale: Scale = "shared"
    """Whether measured and predicted have one scale of colours."""
    limits: tuple[float | None, float | None] = (None, None)
    """Of the scales of expression; None for percentiles."""


def draw_grid(
    shown: list[Shown],
    genes: list[str],
    *,
    columns: tuple[Panel, ...],
    style: Style,
    grid: AxesGrid | None,
    n_abreast: int | None = None,
) -> AxesGrid:
    """Draw every gene in every section.

    Parameters
    ----------
    shown
        One entry per section.
    genes
        Names of the genes, in the order of the columns of the expression.
    columns
        Panels of a row, as :func:`panels_of` names them.
    style
        Colours and sizes.
    grid
        Axes to draw on, (n_genes * n_sections, n_panels); None makes a new figure.
    n_abreast
        Genes beside each other in a new figure.

    Returns
    -------
    The axes.
    """
    is_joint = style.scale == "shared"
    montage = montage_of(len(genes), len(shown), len(columns), is_joint=is_joint, genes_abreast=n_abreast)
    lettering = lettering_of(grid, montage.panel_in)
    titles = [
        [lettering.fold(lines) for column, lines in _titles(section, gene, name).items() if column in columns]
        for gene, name in enumerate(genes)
        for section in shown
    ]
    if grid is None:
        grid = montage.new(_ratios(shown), len(genes), lettering=lettering, n_lines=_n_lines(titles))
    _set_titles(grid, titles, lettering)
    for gene in range(len(genes)):
        block = grid[gene * len(shown) : (gene + 1) * len(shown)]
        for row, section in zip(block, shown, strict=True):
            _draw_tissue(row, section, style=style, lettering=lettering)
        first = columns.index("measured")
        if first:
            _draw_image(block[:, :first], lettering=lettering)
        _draw_expression(block[:, first : first + 2], shown, gene, style=style, lettering=lettering)
        if "difference" in columns:
            _draw_difference(block[:, first + 2 :], shown, gene, style=style, lettering=lettering)
    return grid


def draw_unmeasured(
    shown: list[Shown], genes: list[str], *, style: Style, grid: AxesGrid | None, n_abreast: int | None = None
) -> AxesGrid:
    """Draw the H&E of every section once, and beside it every gene that is predicted where nothing was measured.

    Parameters
    ----------
    shown
        One entry per section.
    genes
        Names of the genes, in the order of the columns of the expression.
    style
        Colours and sizes.
    grid
        Axes to draw on, (n_sections, 1 + n_genes); None makes a new figure.
    n_abreast
        Panels beside each other in a new figure.

    Returns
    -------
    The axes.
    """
    n_places = 1 + len(genes)
    n_columns = min(n_abreast or abreast(n_places), n_places)
    lettering = lettering_of(grid, WIDTH_IN / max(n_columns, 2))
    titles = [[lettering.fold(lines) for lines in _unmeasured_titles(section, genes)] for section in shown]
    if grid is None:
        grid = new_rows(_ratios(shown), n_columns, n_places, lettering=lettering, n_lines=_n_lines(titles))
    _set_titles(grid, titles, lettering)
    for row, section in zip(grid, shown, strict=True):
        _draw_tissue(row, section, style=style, lettering=lettering)
        _draw_image(row[None, :1], lettering=lettering)
    for gene in range(len(genes)):
        parts = [section.expression.predicted[:, gene] for section in shown]
        pooled = np.concatenate(parts)
        norm = _robust_norm(pooled, style.limits) if np.isfinite(pooled).any() else Normalize(0, 1)
        for row, section, part in zip(grid[:, gene + 1 :], shown, parts, strict=True):
            _draw_spots(row[0], section, part, style=style, cmap=style.cmap, norm=norm)
            _colour_bar(row[None, :1], style.units, pooled, cmap=style.cmap, norm=norm, lettering=lettering)
    return grid


def draw_residuals(shown: list[Shown], genes: list[str], *, style: Style, grid: AxesGrid | None) -> AxesGrid:
    """Draw the standardised residuals of every gene in every section.

    Parameters
    ----------
    shown
        One entry per section.
    genes
        Names of the genes, in the order of the columns of the expression.
    style
        Sizes, and the units of the standard deviation.
    grid
        Axes to draw on, (n_genes, n_sections); None makes a new figure.

    Returns
    -------
    The axes.
    """
    n_abreast = len(shown) if len(shown) > 1 else abreast(len(genes))
    lettering = lettering_of(grid, WIDTH_IN / max(n_abreast, 2))
    deviations = [_deviation(shown, gene) for gene in range(len(genes))]
    titles = [
        [lettering.fold(_residual_title(section, gene, name, deviation=deviation)) for section in shown]
        for gene, (name, deviation) in enumerate(zip(genes, deviations, strict=True))
    ]
    if grid is None:
        shape = len(genes), len(shown)
        grid = new_table(max(_ratios(shown)), shape, lettering=lettering, n_lines=_n_lines(titles))
    _set_titles(grid, titles, lettering)
    cmap, norm = style.cmap, Normalize(-_REACH_SD, _REACH_SD)
    drawn = []
    for gene, (row, deviation) in enumerate(zip(grid, deviations, strict=True)):
        label = [literal(genes[gene]), f"1 SD = {deviation:.2g} {style.units}"]
        row[0].set_ylabel("\n".join(label), fontsize=lettering.fontsize)
        for ax, section in zip(row, shown, strict=True):
            _draw_tissue(np.array([ax]), section, style=style, lettering=lettering)
            residuals = _residuals(section, gene) / deviation
            _draw_spots(ax, section, residuals, style=style, cmap=cmap, norm=norm, edge="0.4")
            drawn.append(residuals)
    _colour_bar(grid, f"({_DIFFERENCE}) / SD", np.concatenate(drawn), cmap=cmap, norm=norm, lettering=lettering)
    return grid


def _ratios(shown: list[Shown]) -> list[float]:
    return [section.view.height_per_width for section in shown]


def _n_lines(titles: list[list[str]]) -> int:
    return 1 + max(title.count("\n") for row in titles for title in row)


def _set_titles(grid: AxesGrid, titles: list[list[str]], lettering: Lettering) -> None:
    for row, row_titles in zip(grid, titles, strict=True):
        for ax, title in zip(row, row_titles, strict=True):
            ax.set_title(title, fontsize=lettering.fontsize)


def _titles(shown: Shown, gene: int, name: str) -> dict[Panel, list[str]]:
    """Lines of the titles of the panels of one gene in one section."""
    section, name = literal(shown.section.name), literal(name)
    n_spots = f"{len(shown.section.rows):,} spots"
    return {
        "image": [f"{section} · H&E"],
        "measured": [f"{section} · measured {name}", n_spots]
        if shown.expression.is_measured
        else [f"{section} · H&E", f"{n_spots}, {_UNMEASURED}"],
        "predicted": [f"{section} · predicted {name}", *_agreement(shown.expression, gene)],
        "difference": [f"{section} · {_DIFFERENCE} {name}"],
    }


def _unmeasured_titles(shown: Shown, genes: list[str]) -> list[list[str]]:
    """Lines of the titles of the H&E and of every gene."""
    section, expression = literal(shown.section.name), shown.expression
    predicted = [
        [f"{section} · predicted {literal(name)}", *_agreement(expression, gene)] for gene, name in enumerate(genes)
    ]
    return [[f"{section} · H&E", f"{len(shown.section.rows):,} spots, {_UNMEASURED}"], *predicted]


def _agreement(expression: Comparison, gene: int) -> list[str]:
    """Pearson correlation in words that say which spots it is over."""
    known = np.isfinite(expression.predicted[:, gene])
    if not known.any():
        return ["no prediction"]
    if not expression.is_measured:
        return expression.held_out_text(gene)
    spots, words = expression.scored(gene)
    score = pearson_text(expression.measured[spots, gene], expression.predicted[spots, gene])
    if expression.n_folds:
        return [f"{score} ({expression.out_of_fold})"]
    if words != "test spots":
        return [f"{score} ({words})"]
    counts = {word: int(((expression.split == name) & known).sum()) for name, word in SEEN.items()}
    seen = [f"{count} {word}" for word, count in counts.items() if count]
    return [f"{score} over {spots.sum()} test spots", f"also drawn: {', '.join(seen)}"] if seen else [score]


def _residual_title(shown: Shown, gene: int, name: str, *, deviation: float) -> list[str]:
    residuals = _residuals(shown, gene)[shown.expression.scored(gene)[0]]
    bias = [f"mean {round(float(residuals.mean()) / deviation, 2) + 0.0:+.2f} SD"] if residuals.size else []
    return [f"{literal(shown.section.name)} · {literal(name)}", *bias, *_agreement(shown.expression, gene)]


def _residuals(shown: Shown, gene: int) -> FloatArray:
    residuals: FloatArray = shown.expression.predicted[:, gene] - shown.expression.measured[:, gene]
    return residuals


def _deviation(shown: list[Shown], gene: int) -> float:
    """Standard deviation of the residuals of a gene over the scored spots of all sections; 1 where there is none."""
    parts = [_residuals(section, gene)[section.expression.scored(gene)[0]] for section in shown]
    deviation = float(np.concatenate(parts).std())
    return deviation if deviation > _ROUNDING else 1.0


def _draw_tissue(row: AxesGrid, shown: Shown, *, style: Style, lettering: Lettering) -> None:
    """H&E in every panel of a section, and a scale bar under the first."""
    for ax in row:
        draw_view(ax, shown.view, image_alpha=style.image_alpha)
    try:
        mpp = shown.section.mpp()
    except ValueError as error:
        logger.info("No scale bar for section %r: %s", shown.section.name, error)
    else:
        draw_scale_bar(row[0], shown.view, mpp=mpp, fontsize=lettering.fontsize - 1)


def _draw_spots(
    ax: Axes, shown: Shown, values: FloatArray, *, style: Style, cmap: Colormap, norm: Normalize, edge: str = "none"
) -> None:
    cells = shown.view.cells
    edge = edge if len(values) <= _FEW_SPOTS else "none"
    draw_spots(ax, shown.section, values, size=style.size, cmap=cmap, norm=norm, edge=edge, cells=cells)


def _draw_image(panels: AxesGrid, *, lettering: Lettering) -> None:
    """H&E alone, with an empty colour bar below, for panels of one row to have one height."""
    for image in (image for ax in panels.ravel() for image in ax.images):
        image.set_alpha(1.0)
    cmap = ListedColormap(["none"])
    bar = _colour_bar(panels, " ", np.zeros(1), cmap=cmap, norm=Normalize(0, 1), lettering=lettering)
    bar.set_ticks([0.5], labels=[" "])
    bar.ax.tick_params(length=0)


def _draw_expression(panels: AxesGrid, shown: list[Shown], gene: int, *, style: Style, lettering: Lettering) -> None:
    """Spots of the measured and predicted panels of one gene, on one colour scale or on their own."""
    pairs = [(each.expression.measured[:, gene], each.expression.predicted[:, gene]) for each in shown]
    for columns in [slice(0, 1), slice(1, 2)] if style.scale == "own" else [slice(0, 2)]:
        pooled = np.concatenate([part for pair in pairs for part in pair[columns]])
        if not np.isfinite(pooled).any():
            continue
        norm = _robust_norm(pooled, style.limits)
        for row, section, pair in zip(panels, shown, pairs, strict=True):
            for ax, part in zip(row[columns], pair[columns], strict=True):
                _draw_spots(ax, section, part, style=style, cmap=style.cmap, norm=norm)
        _colour_bar(panels[:, columns], style.units, pooled, cmap=style.cmap, norm=norm, lettering=lettering)


def _draw_difference(panels: AxesGrid, shown: list[Shown], gene: int, *, style: Style, lettering: Lettering) -> None:
    """Spots of the difference panels of one gene, on a scale symmetric about 0."""
    parts = [_residuals(section, gene) for section in shown]
    pooled = np.concatenate(parts)
    known = np.abs(pooled[np.isfinite(pooled)])
    reach = (float(np.percentile(known, _PERCENTILES[1])) if known.size else 0.0) or 1.0
    cmap, norm = mpl.colormaps[DIVERGING], Normalize(-reach, reach)
    for (ax,), section, part in zip(panels, shown, parts, strict=True):
        _draw_spots(ax, section, part, style=style, cmap=cmap, norm=norm, edge="0.4")
    _colour_bar(panels, _DIFFERENCE, pooled, cmap=cmap, norm=norm, lettering=lettering)


def _robust_norm(values: FloatArray, limits: tuple[float | None, float | None]) -> Normalize:
    low, high = np.nanpercentile(values, _PERCENTILES)
    if low == high:  # a rare gene is 0 in more than 99 % of the spots
        low, high = np.nanmin(values), np.nanmax(values)
    low, high = (found if stated is None else stated for found, stated in zip((low, high), limits, strict=True))
    return Normalize(float(low), float(high) if high > low else float(low) + 1)


def _colour_bar(
    panels: AxesGrid, label: str, values: FloatArray, *, cmap: Colormap, norm: Normalize, lettering: Lettering
) -> Colorbar:
    """Colour bar under panels of one scale; a pointed end says that values lie beyond."""
    mappable = ScalarMappable(norm, cmap)
    low, high = mappable.get_clim()
    is_below, is_above = bool((values < low).any()), bool((values > high).any())
    extend = "both" if is_below and is_above else "min" if is_below else "max" if is_above else "neither"
    n_abreast = len({round(float(ax.get_position().x0), 3) for ax in panels.ravel()})
    bar: Colorbar = panels[0, 0].figure.colorbar(
        mappable,
        ax=list(panels.ravel()),
        location="bottom",
        shrink=1.0 / n_abreast if n_abreast > 1 else 0.8,
        aspect=20,
        extend=extend,
    )
    bar.set_label(label, fontsize=lettering.fontsize)
    bar.ax.tick_params(labelsize=lettering.fontsize - 1, length=2)
    bar.outline.set_visible(False)
    return bar
