"""Measured beside predicted expression on tissue."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap
from numpy.typing import NDArray

from agl_sc import _boundary
from agl_sc._boundary import Names, Section
from agl_sc._keys import Keys
from agl_sc.pl._finish import AxesGrid, axes_grid, check_save, finish
from agl_sc.pl._panels import SEEN, Expression, Style, draw_grid
from agl_sc.pl._tissue import view_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from agl_sc.pp._genes import Normalize

_UNITS = {"log1p_cp10k": "log1p(CP10k)", "log1p": "log1p(counts)"}


def spatial_pred(  # noqa: PLR0913  one argument per thing that a user may want to name
    sdata: "SpatialData",
    genes: str | Sequence[str],
    *,
    sections: Names = None,
    difference: bool = False,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    key_added: str = "agl",
    cmap: str | Colormap = "viridis",
    image_alpha: float = 0.6,
    size: float = 1.0,
    ax: Any = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> AxesGrid:
    """Draw measured beside predicted expression over the H&E of every section.

    A gene has one colour scale: the limits are the 1st and 99th percentile of its measured and predicted values
    together, over all sections drawn, so that measured, predicted and sections can be compared by eye. The title of
    a predicted panel gives the Pearson correlation with the measured values over the spots of that section, and says
    when those spots were in training or validation. In a section that mixes test spots with others, the correlation
    is over the test spots alone; the others are drawn and counted in the title.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections. Predictions are those that
        ``agl_sc.tl.train`` or ``agl_sc.tl.predict`` wrote.
    genes
        Name or names of predicted genes.
    sections
        Name or names of the sections (regions of the table) to draw, in this order; all by default.
    difference
        Add a panel with predicted minus measured, on a diverging scale that is symmetric about 0 and reaches the
        99th percentile of the absolute difference.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    layer
        Layer with raw counts; X by default. They are normalised as for training, by default to
        log1p of counts per 10,000.
    key_added
        Prefix of all slots. Predictions are read from the layer of that name.
    cmap
        Colour map of expression.
    image_alpha
        Opacity of the H&E, from 0 (white) to 1.
    size
        Factor on the true size of the spots.
    ax
        Axes to draw on, as an array of the shape that is returned, best from a figure with ``layout="constrained"``,
        which makes room for the titles; a new figure of at most journal width (7 in) by default.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes, (n_genes * n_sections, 2), or 3 columns with ``difference``: gene by gene the sections, and in a row
    measured, predicted and difference.

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
    >>> sdata = agl_sc.datasets.toy_tissue()
    >>> model = agl_sc.tl.train(sdata)
    >>> agl_sc.pl.spatial_pred(sdata, model.genes[:2], difference=True, save="toy.png")
    """
    path = check_save(save)
    keys = Keys(key_added)
    colours = mpl.colormaps.get_cmap(cmap)
    _check_style(size, image_alpha)
    table = _boundary.get_table(sdata, table_key)
    names = _check_genes(table, genes, keys)
    chosen = _check_sections(table, sections, shapes_key)
    found = _boundary.sections(
        sdata, table, image_key=image_key, shapes_key=chosen, coordinate_system=coordinate_system
    )
    n_panels = 3 if difference else 2
    grid = None if ax is None else axes_grid(ax, shape=(len(names) * len(found), n_panels))
    normalize = (_boundary.recorded(table, keys, "params") or {}).get("normalize", "log1p_cp10k")
    values = _expression(table, found, names, keys=keys, layer=layer, normalize=normalize, size=size)

    style = Style(colours, _UNITS.get(normalize, normalize), size, image_alpha)
    drawn = draw_grid(values, names, n_panels=n_panels, style=style, grid=grid)
    finish(drawn[0, 0], is_new=ax is None, show=show, path=path)
    return drawn


def _check_style(size: float, image_alpha: float) -> None:
    if not (np.isfinite(size) and size > 0):
        msg = f"size={size!r} is not a positive factor on the spot size."
        raise ValueError(msg)
    if not 0 <= image_alpha <= 1:
        msg = f"image_alpha={image_alpha!r} is not between 0 (white) and 1 (opaque)."
        raise ValueError(msg)


def _listed(names: Iterable[Any], argument: str) -> list[str]:
    """Names as a list without repeats."""
    listed = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if not listed:
        msg = f"{argument} is empty; name at least one."
        raise ValueError(msg)
    strange = [name for name in listed if not isinstance(name, str)]
    if strange:
        msg = f"{argument} holds {strange[0]!r}, a {type(strange[0]).__name__}; pass names."
        raise TypeError(msg)
    return list(dict.fromkeys(listed))


def _check_genes(table: "AnnData", genes: str | Sequence[str], keys: Keys) -> list[str]:
    if keys.layer not in table.layers:
        msg = (
            f'There is no prediction layers["{keys.layer}"] in the table; make one with agl_sc.tl.train '
            "or agl_sc.tl.predict, or name another with key_added=."
        )
        raise KeyError(msg)
    names = _listed(genes, "genes")
    unknown = [name for name in names if name not in table.var_names]
    if unknown:
        msg = f"Gene {unknown[0]!r} is not in the table{_boundary.near_matches(unknown, table.var_names)}."
        raise KeyError(msg)
    predicted = ~np.isnan(np.asarray(table.layers[keys.layer])).all(axis=0)
    missing = [name for name in names if not predicted[table.var_names.get_loc(name)]]
    if missing:
        available = table.var_names[predicted]
        msg = (
            f'Gene {missing[0]!r} was not predicted: layers["{keys.layer}"] holds predictions of {len(available)} '
            f"other genes{_boundary.near_matches(missing, available)}."
        )
        raise ValueError(msg)
    return names


def _check_sections(table: "AnnData", sections: Names, shapes_key: Names) -> list[str] | None:
    """Regions to draw; None means what the boundary finds."""
    if sections is None:
        return None if shapes_key is None else _listed(shapes_key, "shapes_key")
    names = _listed(sections, "sections")
    known = sorted(set(_boundary.region_of(table))) if shapes_key is None else _listed(shapes_key, "shapes_key")
    unknown = [name for name in names if name not in known]
    if unknown:
        near = _boundary.near_matches(unknown, known)
        msg = f"Section {unknown[0]!r} is not among the regions of the table: {', '.join(known)}{near}."
        raise KeyError(msg)
    return names


def _expression(
    table: "AnnData",
    sections: list[Section],
    genes: list[str],
    *,
    keys: Keys,
    layer: str | None,
    normalize: "Normalize",
    size: float,
) -> list[Expression]:
    from agl_sc.pp._genes import normalize_counts

    counts = _boundary.counts_of(table, layer)
    columns = table.var_names.get_indexer(genes)
    predictions = np.asarray(table.layers[keys.layer])
    split = _split(table, keys)
    return [
        Expression(
            section=section,
            view=view_of(section, size=size),
            measured=normalize_counts(counts[section.rows], normalize)[:, columns].toarray().astype(np.float64),
            predicted=predictions[np.ix_(section.rows, columns)].astype(np.float64),
            split=split[section.rows],
        )
        for section in sections
    ]


def _split(table: "AnnData", keys: Keys) -> NDArray[np.object_]:
    """Split of every spot; spots of which nothing is recorded were not in training."""
    if keys.split not in table.obs:
        return np.full(table.n_obs, "test", dtype=object)
    split: NDArray[np.object_] = table.obs[keys.split].astype(str).to_numpy(dtype=object)
    return np.where(np.isin(split, list(SEEN)), split, "test")
