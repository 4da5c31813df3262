"""Tiles as the encoder sees them beside the section they were cut from."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray

from agl_sc._sdata.mask import Mask, mask_of
from agl_sc._sdata.sections import Names, Scales, Section
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import check_seed, is_whole
from agl_sc.core.arrays import IntArray, UInt8Array
from agl_sc.pl._finish import WIDTH_IN, AxesGrid, axes_grid, check_save, finish
from agl_sc.pl._style import FONT, ORANGE, SMALL, literal
from agl_sc.pl._tissue import View, draw_scale_bar, draw_spots, draw_view, view_of
from agl_sc.pl._values import parts_of
from agl_sc.pp._features.tiles import Mpp, TileSpec

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from agl_sc.core.tiles.reader import Boxes


_TITLE_IN = 0.15
"""Height of the number over a tile."""
_TOP = 0.08
"""Share of the height of the section in which numbers go under their boxes, clear of the title."""
_OUTLINE_PX = 500
"""Pixels of a mask along its longer side of which the outline is drawn."""
OUTLINE = "#009E73"
_ON_IMAGE: list[AbstractPathEffect] = [withStroke(linewidth=1.5, foreground="white")]


def tiles(  # noqa: PLR0913  one argument per thing that a user may want to name
    sdata: "SpatialData",
    *,
    section: str | None = None,
    n: int = 12,
    tile_px: int | None = None,
    mpp: Mpp = 0.5,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    key_added: str = "agl",
    seed: int = 0,
    ax: Any = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> AxesGrid:
    """Draw a contact sheet of tiles, as the encoder sees them, beside the section with all spots and these tiles' boxes.

    The check to make before anything else: the spots lie on the tissue and follow its outline, and every tile shows what
    its box encloses. The tissue that `agl_sc.io.read_slide` found is outlined in green. The tiles are cut by the code that ``agl_sc.pp.embed`` cuts them with, so pass it the same
    ``tile_px``, ``mpp`` and ``image_mpp``.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    section
        Name of the section to draw; the first by default.
    n
        Tiles to draw, of spots taken at random and numbered from the top; all of a section that has fewer.
    tile_px
        Side of a tile in pixels. 224 by default, or with ``mpp="image"`` what covers the same 112 um.
    mpp
        Microns per pixel of a tile, or ``"image"`` for the image's own resolution whatever it is.
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
    key_added
        Prefix of all slots.
    seed
        Same seed, same tiles.
    ax
        Axes to draw on, as an array of the shape that is returned; a new figure of journal width (7 in) by default.
    show
        Whether to show the figure; by default new figures are shown in interactive sessions, such as notebooks.
    save
        File to save the figure to, at 200 dpi; the ending tells the format.

    Returns
    -------
    Axes, (1 + number of tiles,): the section, then tile 1, tile 2, ... The title of a tile that reaches beyond the
    image says that it is padded.

    Raises
    ------
    KeyError
        A section, table or element is not there, or there is no image.
    ValueError
        ``n`` is not positive; the section has no image; its scale is unknown, contradicts the spot pitch, or is too
        coarse; no spot lies near the image.
    TypeError
        An argument is of the wrong kind.
    FileNotFoundError
        The folder of ``save`` does not exist.
    PermissionError
        ``save`` cannot be written.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=1, n_spots_per_side=6)
    >>> axes = agl_sc.pl.tiles(sdata, n=4, tile_px=112, mpp=1.0, save="tiles.png")
    """
    from agl_sc.pp._features.placed import place_section

    path = check_save(save, show)
    TileSpec(224 if tile_px is None else tile_px, mpp)
    if not is_whole(n) or n < 1:
        msg = f"n={n!r} is not a positive number of tiles; 12 is usual."
        raise ValueError(msg)
    check_seed(seed)
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
    )
    study = Study.of(sdata, address, key_added)
    parts = parts_of(study, section, need_image=True)
    if not parts:
        msg = "The table has no spot; there is no tile to draw."
        raise ValueError(msg)
    first = parts[0]
    spec = TileSpec.of(tile_px, mpp, lambda: [first.mpp()])
    placed, boxes = place_section(first, spec)
    spots = _choose(placed, n, seed=seed)
    some = replace(boxes, origins=boxes.origins[spots])
    view = view_of(placed, size=1.0, margin_px=float(_corners(placed, some)[1].max()) / 2)
    drawn = (
        _new_axes(view, len(spots))
        if ax is None
        else axes_grid(ax, shape=(1, 1 + len(spots)), what="section and tiles")[0]
    )
    _draw_section(drawn[0], placed, some, view=view)
    _draw_outline(drawn[0], mask_of(study.sdata, placed.name, placed.image_key))
    _draw_tiles(drawn[1:], _cut(some, spec.tile_px), padded=some.padded)
    side = f"{spec.tile_px * some.mpp:.3g} µm ({spec.tile_px} px at {some.mpp:.3g} µm/px)"
    title = f"{literal(placed.name)} · {len(placed.rows):,} spots\n{len(spots)} tiles of {side}"
    drawn[0].set_title(title, fontsize=FONT)
    finish(drawn[0], is_new=ax is None, show=show, path=path)
    return drawn


def _choose(section: Section, n: int, *, seed: int) -> IntArray:
    """Numbers of some spots, in bands from the top and in a band from the left."""
    n_spots = len(section.centres)
    chosen = np.random.default_rng(seed).permutation(n_spots)[:n]
    x, y = section.centres[chosen].T
    n_bands = max(1, round(len(chosen) ** 0.5))
    band = np.argsort(np.argsort(y, kind="stable"), kind="stable") * n_bands // len(chosen)
    ordered: IntArray = chosen[np.lexsort((x, band))]
    return ordered


def _corners(section: Section, boxes: "Boxes") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Left top corners (n, 2) and width and height of the boxes, as (x, y) in pixels of the finest level."""
    scale = np.array(section.levels[0].shape[:0:-1]) / np.array(boxes.image.shape[:0:-1])
    return boxes.origins[:, ::-1] * scale, boxes.side * scale


def _cut(boxes: "Boxes", tile_px: int) -> UInt8Array:
    """Tiles as the encoder sees them, (n, tile_px, tile_px, 3)."""
    from agl_sc.core.tiles.reader import tile_batches

    pixels = np.empty((len(boxes.origins), tile_px, tile_px, 3), dtype=np.uint8)
    for numbers, batch in tile_batches(boxes, tile_px, len(boxes.origins)):
        pixels[numbers] = batch.numpy().transpose(0, 2, 3, 1)
    return pixels


def _new_axes(view: View, n_tiles: int) -> AxesGrid:
    """The section on the left, the tiles in rows on the right."""
    import matplotlib.pyplot as plt

    n_columns = min(n_tiles, max(3, int(np.ceil(n_tiles**0.5))))
    n_rows = -(-n_tiles // n_columns)
    ratio, text_in = view.height_per_width, 0.5
    # The width at which the tiles are as high as the section with its title and scale bar
    sheet_in = (WIDTH_IN * ratio + text_in - _TITLE_IN * n_rows) / (ratio + n_rows / n_columns)
    sheet_in = float(np.clip(sheet_in, 0.3 * WIDTH_IN, 0.65 * WIDTH_IN))
    height_in = max((WIDTH_IN - sheet_in) * ratio + text_in, n_rows * (sheet_in / n_columns + _TITLE_IN)) + 0.1
    figure = plt.figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[WIDTH_IN - sheet_in, sheet_in])[0]
    sheet = right.subplots(n_rows, n_columns, squeeze=False).ravel()
    for ax in sheet[n_tiles:]:
        ax.remove()
    return np.array([left.add_subplot(), *sheet[:n_tiles]], dtype=object)


def _draw_section(ax: Axes, section: Section, boxes: "Boxes", *, view: View) -> None:
    """H&E, outlines of all spots, and the numbered boxes of the tiles."""
    draw_view(ax, view, image_alpha=0.7)
    clear = ListedColormap([(0, 0, 0, 0)] if view.cells is None else [(0, 0.45, 0.7, 0.25)])
    draw_spots(
        ax,
        section,
        np.zeros(len(section.centres)),
        size=1.0,
        cmap=clear,
        norm=Normalize(0, 1),
        edge="black",
        edge_pt=0.6,
        cells=view.cells,
    )
    corners, size = _corners(section, boxes)
    for number, corner in enumerate(corners, start=1):
        ax.add_patch(Rectangle((corner[0], corner[1]), *size, fill=False, edgecolor=ORANGE, linewidth=1.0))
        is_top = corner[1] < view.low[1] + _TOP * (view.high[1] - view.low[1])
        label = ax.annotate(
            str(number),
            (corner[0], corner[1] + size[1] if is_top else corner[1]),
            xytext=(0, -1 if is_top else 1),
            textcoords="offset points",
            color=ORANGE,
            fontsize=SMALL,
            va="top" if is_top else "bottom",
        )
        label.set_path_effects(_ON_IMAGE)
    if section.image_mpp is not None:
        draw_scale_bar(ax, view, mpp=section.image_mpp, fontsize=SMALL)


def _draw_outline(ax: Axes, mask: Mask | None) -> None:
    """Outline of the tissue, where a mask tells it."""
    if mask is None:
        return
    step = max(1, max(mask.is_tissue.shape) // _OUTLINE_PX)
    shown = np.pad(mask.is_tissue[::step, ::step], 1)  # closes outlines at the edge
    y, x = np.mgrid[: shown.shape[0], : shown.shape[1]] * step + (0.5 - step)
    x, y, _ = np.tensordot(mask.to_image, np.stack([x, y, np.ones_like(x)]), axes=1)
    ax.contour(x, y, shown, levels=[0.5], colors=OUTLINE, linewidths=0.8)


def _draw_tiles(sheet: AxesGrid, pixels: UInt8Array, *, padded: NDArray[np.bool_]) -> None:
    for number, (ax, tile, is_padded) in enumerate(zip(sheet, pixels, padded, strict=True), start=1):
        ax.imshow(tile)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color=ORANGE, linewidth=1.0)
        ax.set_title(f"{number} (padded)" if is_padded else str(number), fontsize=SMALL, pad=2)
