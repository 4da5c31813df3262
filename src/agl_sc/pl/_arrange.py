"""How panels are arranged on the page: as few blank places as can be, and letters that fit a panel."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import FigureBase, SubFigure

from agl_sc.pl._finish import WIDTH_IN, AxesGrid

_BAR_IN = 0.5
"""Height of a colour bar with its label."""
_USUAL_ABREAST = 4


@dataclass(frozen=True, slots=True)
class Lettering:
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

    def row_in(self, ratio: float, n_lines: int) -> float:
        """Height of a row of panels of a ratio of height to width, with titles, scale bar and space."""
        return 0.95 * self.panel_in * ratio + (1.3 * n_lines + 2.5) * self.fontsize / 72


@dataclass(frozen=True, slots=True)
class Montage:
    """Blocks of panels, one per gene, in a new figure."""

    genes_abreast: int
    """Blocks beside each other."""
    sections_abreast: int
    """Sections beside each other in a block."""
    n_panels: int
    """Panels of a section."""
    is_small: bool
    """Whether a panel takes a quarter of the page at most, because there is much to draw."""

    @property
    def panel_in(self) -> float:
        n_abreast = self.n_panels * self.genes_abreast * self.sections_abreast
        return WIDTH_IN / max(_USUAL_ABREAST if self.is_small else 0, n_abreast)

    def new(self, ratios: Sequence[float], n_genes: int, *, lettering: Lettering, n_lines: int) -> AxesGrid:
        """Axes in a new figure, (n_genes * n_sections, n_panels).

        Parameters
        ----------
        ratios
            Height of every section for its width.
        n_genes
            Number of blocks.
        lettering
            Of the panels.
        n_lines
            Lines of the longest title.
        """
        step = self.sections_abreast
        rows = [max(ratios[start : start + step]) for start in range(0, len(ratios), step)]
        height_in = sum(lettering.row_in(ratio, n_lines) for ratio in rows) + _BAR_IN
        width_in = self.panel_in * self.n_panels * step
        blocks = _subfigures(-(-n_genes // self.genes_abreast), self.genes_abreast, (width_in, height_in))
        n_places = len(ratios) * self.n_panels
        return np.concatenate(
            [
                _places(block, rows, n_columns=self.n_panels * step, n_places=n_places).reshape(
                    len(ratios), self.n_panels
                )
                for block in blocks[:n_genes]
            ]
        )


def montage_of(n_genes: int, n_sections: int, n_panels: int, *, is_joint: bool, genes_abreast: int | None) -> Montage:
    """The arrangement of genes and sections that leaves fewest places blank.

    Parameters
    ----------
    n_genes
        Number of genes.
    n_sections
        Number of sections.
    n_panels
        Panels of a section.
    is_joint
        Whether all panels of a gene have one scale of colours, so that sections may stand beside each other.
    genes_abreast
        Genes beside each other; None for the usual.
    """
    is_small = n_panels == 2 and (n_genes > 1 or n_sections > 1)
    if genes_abreast is not None:
        return Montage(min(n_genes, genes_abreast), 1, n_panels, is_small)
    if n_panels != 2:
        return Montage(1, 1, n_panels, is_small)
    if n_sections > 1 and is_joint:
        return Montage(1, 3 if n_sections == 3 else 2, n_panels, is_small)
    return Montage(1 if n_genes in (1, 3) else 2, 1, n_panels, is_small)


def abreast(n: int) -> int:
    """Panels beside each other, of ``n``: at most five, in rows with as few blank places as can be."""
    return n if n <= _USUAL_ABREAST else min((4, 5, 3), key=lambda step: -n % step)


def new_rows(ratios: Sequence[float], n_columns: int, n_places: int, *, lettering: Lettering, n_lines: int) -> AxesGrid:
    """Axes in a new figure, (n_sections, n_places): of every section its places in rows.

    Parameters
    ----------
    ratios
        Height of every section for its width.
    n_columns
        Places beside each other.
    n_places
        Places of a section.
    lettering
        Of the panels.
    n_lines
        Lines of the longest title.
    """
    n_rows = -(-n_places // n_columns)
    heights_in = [(lettering.row_in(ratio, n_lines) + _BAR_IN) * n_rows for ratio in ratios]
    size_in = lettering.panel_in * n_columns, sum(heights_in) / len(ratios)
    blocks = _subfigures(len(ratios), 1, size_in, heights=heights_in)
    return np.stack([_places(block, [1.0] * n_rows, n_columns=n_columns, n_places=n_places) for block in blocks])


def new_table(ratio: float, shape: tuple[int, int], *, lettering: Lettering, n_lines: int) -> AxesGrid:
    """Axes in a new figure, as a table that shares one colour bar; those of a single column wrap into rows.

    Parameters
    ----------
    ratio
        Height of the highest panel for its width.
    shape
        Genes and sections.
    lettering
        Of the panels.
    n_lines
        Lines of the longest title.
    """
    import matplotlib.pyplot as plt

    n_columns = abreast(shape[0]) if shape[1] == 1 else shape[1]
    n_places = shape[0] * shape[1]
    n_rows = -(-n_places // n_columns)
    size_in = lettering.panel_in * n_columns, lettering.row_in(ratio, n_lines) * n_rows + _BAR_IN
    figure = plt.figure(figsize=size_in, layout="constrained")
    return _places(figure, [1.0] * n_rows, n_columns=n_columns, n_places=n_places).reshape(shape)


def lettering_of(grid: AxesGrid | None, panel_in: float) -> Lettering:
    """Text that fits the panels of a new figure, or the narrowest of the user's axes."""
    if grid is None:
        return Lettering(panel_in)
    return Lettering(
        min(float(ax.get_position().width * ax.figure.canvas.figure.get_size_inches()[0]) for ax in grid.ravel())
    )


def _subfigures(
    n_rows: int, n_columns: int, block_in: tuple[float, float], *, heights: list[float] | None = None
) -> list[SubFigure]:
    """Parts of a new figure, each of the given size."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(block_in[0] * n_columns, block_in[1] * n_rows), layout="constrained")
    return list(figure.subfigures(n_rows, n_columns, squeeze=False, height_ratios=heights).ravel())


def _places(figure: FigureBase, rows: Sequence[float], *, n_columns: int, n_places: int) -> AxesGrid:
    """Axes row by row, those beyond the number of places taken away."""
    axes: AxesGrid = figure.subplots(len(rows), n_columns, squeeze=False, height_ratios=list(rows)).ravel()
    for ax in axes[n_places:]:
        ax.remove()
    return axes[:n_places]
