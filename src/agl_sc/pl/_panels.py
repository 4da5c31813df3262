"""Panels of measured and predicted expression: titles, colour scales and their arrangement on the page."""

import logging
import textwrap
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap, Normalize
from numpy.typing import NDArray

from agl_sc._boundary import Section
from agl_sc.pl._finish import WIDTH_IN, AxesGrid
from agl_sc.pl._tissue import FloatArray, View, draw_scale_bar, draw_spots, draw_view

logger = logging.getLogger(__name__)

SEEN = {"train": "training", "validation": "validation", "unused": "unused"}
"""Splits other than test, and what a title calls them."""
_DIFFERENCE = "predicted - measured"
_DIVERGING = "RdBu_r"
_PERCENTILES = (1, 99)


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """Expression of the chosen genes in one section."""

    section: Section
    """Where the spots are."""
    view: View
    """What is shown of it."""
    measured: FloatArray
    """(n_spots, n_genes), in the units of the prediction."""
    predicted: FloatArray
    """(n_spots, n_genes), NaN where there is no prediction."""
    split: NDArray[np.object_]
    """(n_spots,), ``"test"`` or a key of ``SEEN``."""


@dataclass(frozen=True, slots=True, eq=False)
class Style:
    """How expression is drawn."""

    cmap: Colormap
    """Colours of measured and predicted expression."""
    units: str
    """What the colour bar calls the values."""
    size: float
    """Factor on the true size of the spots."""
    image_alpha: float
    """Opacity of the H&E."""


@dataclass(frozen=True, slots=True)
class _Lettering:
    """Text that fits a panel."""

    panel_in: float
    """Width of a panel in inches."""

    @property
    def fontsize(self) -> float:
        return 7.0 if self.panel_in < 2 else 8.0

    def fold(self, lines: list[str]) -> str:
        """Lines of text, each broken to the width of the panel; 0.57 em is the mean width of a letter."""
        n_letters = max(12, int(self.panel_in * 72 / (0.57 * self.fontsize)))
        return "\n".join(textwrap.fill(line, n_letters) for line in lines)


def draw_grid(
    values: list[Expression], genes: list[str], *, n_panels: int, style: Style, grid: AxesGrid | None
) -> AxesGrid:
    """Draw every gene in every section.

    Parameters
    ----------
    values
        One entry per section.
    genes
        Names of the genes, in the order of the columns of ``values``.
    n_panels
        2 for measured and predicted, 3 for the difference as well.
    style
        Colours and sizes.
    grid
        Axes to draw on, (n_genes * n_sections, n_panels); None makes a new figure.

    Returns
    -------
    The axes.
    """
    if grid is None:
        lettering = _Lettering(_panel_in(len(genes), len(values), n_panels))
    else:
        lettering = _Lettering(_narrowest_in(grid))
    titles = [
        [lettering.fold(lines) for lines in _titles(section, gene, name)]
        for gene, name in enumerate(genes)
        for section in values
    ]
    if grid is None:
        n_lines = 1 + max(title.count("\n") for row in titles for title in row[:n_panels])
        grid = _new_grid(values, len(genes), n_panels, lettering=lettering, n_lines=n_lines)
    for row, row_titles in zip(grid, titles, strict=True):
        for ax, title in zip(row, row_titles[:n_panels], strict=True):
            ax.set_title(title, fontsize=lettering.fontsize)
    for gene in range(len(genes)):
        block = grid[gene * len(values) : (gene + 1) * len(values)]
        _draw_tissue(block, values, style=style, lettering=lettering)
        _draw_expression(block[:, :2], values, gene, style=style, lettering=lettering)
        if n_panels > 2:
            _draw_difference(block[:, 2:], values, gene, style=style, lettering=lettering)
    return grid


def _panel_in(n_genes: int, n_sections: int, n_panels: int) -> float:
    """Width of a panel in a new figure: four abreast on the page where there is much to draw."""
    is_many = n_genes > 1 or n_sections > 2
    return WIDTH_IN / (4 if n_panels == 2 and is_many else n_panels)


def _narrowest_in(grid: AxesGrid) -> float:
    return min(float(ax.get_position().width * ax.figure.canvas.figure.get_size_inches()[0]) for ax in grid.ravel())


def _new_grid(
    values: list[Expression], n_genes: int, n_panels: int, *, lettering: _Lettering, n_lines: int
) -> AxesGrid:
    """Axes in a new figure: a block per gene, two blocks abreast where they fit, with a row per section."""
    import matplotlib.pyplot as plt

    n_abreast = 2 if n_panels == 2 and n_genes > 1 else 1
    n_rows = -(-n_genes // n_abreast)
    ratios = [section.view.height_per_width for section in values]
    text_in = (1.3 * n_lines + 3) * lettering.fontsize / 72  # titles, scale bar and space
    height_in = sum(lettering.panel_in * ratio + text_in for ratio in ratios) + 0.6
    size_in = (lettering.panel_in * n_panels * n_abreast, height_in * n_rows)
    blocks = plt.figure(figsize=size_in, layout="constrained").subfigures(n_rows, n_abreast, squeeze=False)
    return np.concatenate(
        [
            block.subplots(len(values), n_panels, squeeze=False, height_ratios=ratios)
            for block in blocks.ravel()[:n_genes]
        ]
    )


def _titles(values: Expression, gene: int, name: str) -> list[list[str]]:
    """Lines of the titles of the panels of one gene in one section."""
    section = values.section.name
    measured, predicted = values.measured[:, gene], values.predicted[:, gene]
    return [
        [f"{section} · measured {name}", f"{len(measured)} spots"],
        [f"{section} · predicted {name}", *_agreement(measured, predicted, values.split)],
        [f"{section} · {_DIFFERENCE} {name}"],
    ]


def _agreement(measured: FloatArray, predicted: FloatArray, split: NDArray[np.object_]) -> list[str]:
    """Pearson correlation in words that say which spots it is over."""
    known = np.isfinite(predicted)
    if not known.any():
        return ["no prediction"]
    counts = {word: int(((split == name) & known).sum()) for name, word in SEEN.items()}
    seen = [f"{count} {word}" for word, count in counts.items() if count]
    is_test = known & (split == "test")
    if not is_test.any():
        words = " and ".join(word for word, count in counts.items() if count)
        return [f"{_pearson(measured[known], predicted[known])} ({words} spots)"]
    score = _pearson(measured[is_test], predicted[is_test])
    return [f"{score} over {is_test.sum()} test spots", f"also drawn: {', '.join(seen)}"] if seen else [score]


def _pearson(measured: FloatArray, predicted: FloatArray) -> str:
    if len(measured) < 2 or np.ptp(measured) == 0 or np.ptp(predicted) == 0:
        return "r undefined"
    r = np.corrcoef(measured, predicted)[0, 1]
    return f"r = {round(float(r), 2) + 0.0:.2f}"


def _draw_tissue(block: AxesGrid, values: list[Expression], *, style: Style, lettering: _Lettering) -> None:
    """H&E in every panel, and a scale bar under the first of a section."""
    for row, section in zip(block, values, strict=True):
        for ax in row:
            draw_view(ax, section.view, image_alpha=style.image_alpha)
        try:
            mpp = section.section.mpp()
        except ValueError as error:
            logger.info("No scale bar for section %r: %s", section.section.name, error)
        else:
            draw_scale_bar(row[0], section.view, mpp=mpp, fontsize=lettering.fontsize - 1)


def _draw_expression(
    panels: AxesGrid, values: list[Expression], gene: int, *, style: Style, lettering: _Lettering
) -> None:
    """Spots of the measured and predicted panels of one gene, on one colour scale."""
    pairs = [(section.measured[:, gene], section.predicted[:, gene]) for section in values]
    pooled = np.concatenate([part for pair in pairs for part in pair])
    norm = _robust_norm(pooled)
    for row, section, pair in zip(panels, values, pairs, strict=True):
        for ax, part in zip(row, pair, strict=True):
            draw_spots(ax, section.section, part, size=style.size, cmap=style.cmap, norm=norm)
    _colour_bar(panels, style.units, pooled, lettering=lettering)


def _draw_difference(
    panels: AxesGrid, values: list[Expression], gene: int, *, style: Style, lettering: _Lettering
) -> None:
    """Spots of the difference panels of one gene, on a scale symmetric about 0."""
    parts = [section.predicted[:, gene] - section.measured[:, gene] for section in values]
    pooled = np.concatenate(parts)
    known = np.abs(pooled[np.isfinite(pooled)])
    reach = (float(np.percentile(known, _PERCENTILES[1])) if known.size else 0.0) or 1.0
    cmap, norm = mpl.colormaps[_DIVERGING], Normalize(-reach, reach)
    for (ax,), section, part in zip(panels, values, parts, strict=True):
        draw_spots(ax, section.section, part, size=style.size, cmap=cmap, norm=norm, edge="0.4")
    _colour_bar(panels, _DIFFERENCE, pooled, lettering=lettering)


def _robust_norm(values: FloatArray) -> Normalize:
    low, high = np.nanpercentile(values, _PERCENTILES)
    if low == high:  # a rare gene is 0 in more than 99 % of the spots
        low, high = np.nanmin(values), np.nanmax(values)
    return Normalize(float(low), float(high) if high > low else float(low) + 1)


def _colour_bar(panels: AxesGrid, label: str, values: FloatArray, *, lettering: _Lettering) -> None:
    """Colour bar under the panels of one gene; a pointed end says that values lie beyond."""
    mappable = panels[0, 0].collections[-1]
    is_below, is_above = (values < mappable.norm.vmin).any(), (values > mappable.norm.vmax).any()
    extend = "both" if is_below and is_above else "min" if is_below else "max" if is_above else "neither"
    n_panels = panels.shape[1]
    bar = panels[0, 0].figure.colorbar(
        mappable,
        ax=list(panels.ravel()),
        location="bottom",
        shrink=1.0 / n_panels if n_panels > 1 else 0.8,
        aspect=20,
        extend=extend,
    )
    bar.set_label(label, fontsize=lettering.fontsize)
    bar.ax.tick_params(labelsize=lettering.fontsize - 1, length=2)
    bar.outline.set_visible(False)
