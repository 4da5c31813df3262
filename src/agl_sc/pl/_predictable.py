"""Which genes the H&E of a tissue shows, beside what their counts allow."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from agl_sc._sdata.records import PredictableRecord, remembered
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import is_whole
from agl_sc.pl._finish import check_save, finish, one_axes
from agl_sc.pl._genes import name_points
from agl_sc.pl._style import BLUE, GREY, SMALL, draw_identity, label_axes, legend_above
from agl_sc.tl._predictable import SIGNIFICANT

if TYPE_CHECKING:
    from spatialdata import SpatialData

_MANY_POINTS = 2000
"""Beyond this, points become pixels in vector formats."""


def predictable_genes(
    sdata: "SpatialData",
    *,
    n_names: int = 10,
    table_key: str | None = None,
    key_added: str = "agl",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw how well every gene is predicted from H&E, held out, against its noise ceiling.

    A point is a gene. On the line of identity a gene is predicted as well as its counts allow; far below it there is
    something that the H&E does not show to this encoder. Genes that are shown (false discovery rate below .05) are blue.
    Genes without a noise ceiling, whose halves of counts do not correlate, are counted below the figure and not drawn.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections. ``agl_sc.tl.predictable_genes`` has run.
    n_names
        Number of genes to name. They are those of the largest correlation, as far as names cover neither names nor points.
    table_key
        Table to use; the only one by default.
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
    Axes of the correlation.

    Raises
    ------
    KeyError
        ``agl_sc.tl.predictable_genes`` has not run, or a table is not there.
    ValueError
        ``n_names`` is negative, or no gene has a noise ceiling.
    FileNotFoundError
        The folder of ``save`` does not exist.
    PermissionError
        ``save`` cannot be written.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> genes = agl_sc.tl.predictable_genes(sdata)
    >>> axes = agl_sc.pl.predictable_genes(sdata, save="predictable.png")
    """
    path = check_save(save, show)
    if not is_whole(n_names) or n_names < 0:
        msg = f"n_names={n_names!r} is negative or no whole number; pass 0 for no names."
        raise ValueError(msg)
    study = Study.of(sdata, Address(table_key=table_key), key_added)
    genes = _scores(study)
    drawn = genes.loc[np.isfinite(genes[["pearson", "noise_ceiling"]].to_numpy()).all(axis=1)]
    if drawn.empty:
        msg = f'No gene has both var["{study.keys.predictable("pearson")}"] and a noise ceiling: their counts are too few to tell.'
        raise ValueError(msg)
    axes = one_axes(ax, height_in=4.2)
    _draw(axes, drawn, n_without=int(genes["pearson"].notna().sum()) - len(drawn), held_out=_words(study))
    name_points(axes, drawn["noise_ceiling"], drawn["pearson"], n_names=n_names)
    finish(axes, is_new=ax is None, show=show, path=path)
    return axes


def _scores(study: Study) -> pd.DataFrame:
    """Scores of all genes of the table."""
    var, keys = study.table.var, study.keys
    columns = {name: keys.predictable(name) for name in ("pearson", "noise_ceiling", "q_value")}
    missing = [column for column in columns.values() if column not in var]
    if missing:
        msg = f'var["{missing[0]}"] is missing; run agl_sc.tl.predictable_genes(sdata) first.'
        raise KeyError(msg)
    return pd.DataFrame({name: var[column].to_numpy(dtype=float) for name, column in columns.items()}, index=var.index)


def _words(study: Study) -> str:
    found = remembered(study.table, study.keys, PredictableRecord)
    return str(found.values.get("words", "")) if found else ""


def _draw(ax: Axes, genes: pd.DataFrame, *, n_without: int, held_out: str) -> None:
    shown = ((genes["q_value"] < SIGNIFICANT) & (genes["pearson"] > 0)).to_numpy()
    handles = []
    for inside, colour, text in ((~shown, GREY, "not told from chance"), (shown, BLUE, "shown by the H&E")):
        points = genes[inside]
        handles += ax.plot(
            points["noise_ceiling"].to_numpy(),
            points["pearson"].to_numpy(),
            "o",
            color=colour,
            markersize=2.5,
            alpha=0.4,
            markeredgewidth=0,
            rasterized=len(genes) > _MANY_POINTS,
            label=f"{text} ({inside.sum():,})",
        )
    ax.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    top = float(genes["noise_ceiling"].max()) * 1.05
    ax.set(xlim=(0, top), ylim=(min(float(genes["pearson"].min()) * 1.1, -0.05), float(genes["pearson"].max()) * 1.2))
    line = draw_identity(ax, "noise ceiling reached")
    label_axes(ax, x="noise ceiling of Pearson r", y="held-out Pearson r")
    notes = [held_out, f"{n_without:,} genes without a ceiling are not drawn" if n_without else ""]
    ax.text(
        1.0,
        -0.17,
        "\n".join(note for note in notes if note),
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=SMALL,
    )
    legend_above(ax, [*handles, line])
