"""Features of fields of view as means over maps: every window of the tissue goes through the network once per scale.

All windows of a scale lie on one grid that begins at the corner of the image, so that what a spot is given does not depend
on which others there are. A window is cut at whole pixels of the level, its maps shift by no more than half a pixel.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agl_sc.core.arrays import BoolArray, Float32Array, FloatArray, IntArray, UInt8Array
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.encoders.maps import Layer, Maps
from agl_sc.core.tiles.reader import Boxes, tile_batches

Cells = list[torch.Tensor]
"""Of one window's core: cells (y, n_sums, x) per layer."""
Ways = Sequence[tuple[bool, int]]
"""Ways of laying a tile: whether it is mirrored, and quarter turns."""
_MOST_PX = 6144
"""Side of a window in pixels of the level, as far as windows of a local network can be made smaller: of a level without
coarser ones a window of a wide field is many pixels."""
_FAR_TOO_MANY_PX = 10_240
_FEWEST_ROWS = 32
"""Products of fewer rows are summed in another order, so that a field's features would depend on how many others there are."""
_BAND = 32
"""Columns of windows that are gone through from top to bottom before the next ones: what is held is bounded by it."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Square fields of view on one level of one image."""

    image: Any
    """Lazy dask array, (3, y, x), uint8."""
    centres: FloatArray
    """Of every field, (n_fields, 2) as (y, x), in pixels of ``image``; may lie outside of it."""
    side: float
    """Side of every field in pixels of ``image``."""
    ratio: float
    """Pixels of ``image`` to one of the windows that the network sees."""
    background: UInt8Array
    """Colour of what lies outside the image, (3,)."""
    overview_digest: str
    """SHA-256 of the pixels of the coarsest level."""
    name: str
    """What messages call the level."""
    wider: bool = True
    """Whether they are wider than the tiles of their spots."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Windows over a level: one every ``step`` pixels, of which the middle is kept."""

    side: int
    """Of a window, in pixels of the level."""
    step: float
    """Between windows, in pixels of the level."""
    halo: float
    """What of a window is not kept, on every side, in pixels of the level."""
    window_px: int
    """Side of a window as the network sees it."""
    core_px: int
    """Side of what is kept of it."""

    @classmethod
    def of(cls, maps: Maps, fields: Fields) -> "Grid":
        """The grid on which ``fields.ratio`` pixels of the level are one of the windows, as far as whole pixels allow.

        It is laid over the image, not over its spots. A local network's windows are as large as makes the fewest pixels in
        all, so that the last ones hardly reach beyond the image.
        """
        ratio, window_px = fields.ratio, maps.window_px
        if maps.local:
            window_px = 2 * maps.halo_px + _core_px(maps, fields)
        side = max(1, round(window_px * ratio))
        if side > _FAR_TOO_MANY_PX:
            msg = (
                f"A field of view by maps sees {ratio:.0f} pixels of the image as one, for which windows of {side} px would have "
                "to be read; write the image with coarser scales too, narrow context=, or pass maps='none' to agl_sc.pp.embed."
            )
            raise ValueError(msg)
        pixel, core_px = side / window_px, window_px - 2 * maps.halo_px
        return cls(side, core_px * pixel, maps.halo_px * pixel, window_px, core_px)

    def spans(self, fields: Fields) -> IntArray:
        """First row, last row, first column and last column of the windows whose cores touch every field, (n_fields, 4)."""
        first = np.floor((fields.centres - fields.side / 2) / self.step)
        last = np.ceil((fields.centres + fields.side / 2) / self.step) - 1
        both = np.stack([first, np.maximum(first, last)], axis=2)
        spans: IntArray = both.reshape(len(both), 4).astype(np.int64)
        return spans

    def touch_image(self, fields: Fields, windows: IntArray) -> BoolArray:
        """Whether what is kept of windows (n, 2) holds any of the image; all others are alike, (n,)."""
        ends = np.array(fields.image.shape[1:])
        inside: BoolArray = np.all((windows >= 0) & (windows * self.step < ends), axis=1)
        return inside

    def boxes(self, fields: Fields, windows: IntArray) -> Boxes:
        """What is read for windows (n, 2), given by their rows and columns."""
        return Boxes(
            image=fields.image,
            origins=np.round(windows * self.step - self.halo).astype(np.int64),
            side=self.side,
            mpp=float("nan"),
            background=fields.background,
            overview_digest=fields.overview_digest,
            name=fields.name,
            within=np.floor(fields.centres).astype(np.int64),
        )


def _core_px(maps: Maps, fields: Fields) -> int:
    """Side of the middle of a local network's windows."""
    unit = max(maps.layers[0].cell_px, *(layer.stride_px for layer in maps.layers))
    fits = max(1, int(_MOST_PX / fields.ratio - 2 * maps.halo_px) // unit)
    sizes = unit * np.arange(1, min(maps.core_px // unit, fits) + 1)
    extent = np.array(fields.image.shape[1:]) / fields.ratio
    n_windows = np.ceil(extent[:, None] / sizes).prod(axis=0)
    return int(sizes[np.argmin(n_windows * (sizes + 2 * maps.halo_px) ** 2)])


def field_rows(maps: Maps, fields: Fields, size: int) -> list[IntArray]:
    """Indices of the fields of every block: up to ``size`` whose last windows lie together, in the order of the windows."""
    spans = Grid.of(maps, fields).spans(fields)
    y, x = fields.centres.T
    order = np.lexsort((x, y, spans[:, 3], spans[:, 1], spans[:, 3] // _BAND))
    return np.split(order, range(size, len(order), size))


def n_windows(maps: Maps, fields: Fields) -> int:
    """How many windows all fields need; all those beyond the image are one."""
    grid = Grid.of(maps, fields)
    windows = _touched(grid.spans(fields))
    inside = grid.touch_image(fields, windows)
    return int(inside.sum()) + bool((~inside).any())


def n_pixels(maps: Maps, fields: Fields) -> int:
    """How many pixels the network sees in one orientation of all windows that the fields need."""
    return n_windows(maps, fields) * Grid.of(maps, fields).window_px ** 2


def _touched(spans: IntArray) -> IntArray:
    """Rows and columns of the windows in some spans, each once, (n, 2)."""
    spans = np.unique(spans, axis=0)
    parts = [np.zeros((0, 2), dtype=np.int64)]
    down, right = (int((spans[:, i + 1] - spans[:, i]).max(initial=-1)) + 1 for i in (0, 2))
    for row, column in np.ndindex(down, right):
        inside = (spans[:, 0] + row <= spans[:, 1]) & (spans[:, 2] + column <= spans[:, 3])
        parts.append(spans[inside][:, [0, 2]] + (row, column))
    return np.unique(np.concatenate(parts), axis=0)


@dataclass(frozen=True, slots=True)
class Pass:
    """How windows go through the network."""

    encoder: Encoder
    """Scales pixels."""
    maps: Maps
    """Of that encoder, on the device."""
    ways: Ways
    """Ways of laying every window that are averaged over."""
    at_once: int
    """Windows per forward pass."""
    device: torch.device
    """Where."""
    dtype: torch.dtype
    """Of the arithmetic."""


def field_blocks(
    how: Pass, fields: Fields, *, rows: Sequence[IntArray], blocks: Sequence[int]
) -> Iterator[tuple[int, Float32Array]]:
    """Features of blocks of fields, every window they need read and passed through the network once.

    A block's features are the same bytes whichever others are computed with it. Cells of a window are held until the last
    block that needs them.

    Parameters
    ----------
    how
        Windows go through the network.
    fields
        Of all blocks.
    rows
        Fields of every block, as :func:`field_rows` gives them.
    blocks
        Which blocks.

    Yields
    ------
    Number of a block and its features, (n_rows, n_features), in the order of its rows.
    """
    grid = Grid.of(how.maps, fields)
    spans = grid.spans(fields)
    needed = {block: [tuple(each) for each in _touched(spans[rows[block]]).tolist()] for block in blocks}
    uses = Counter(window for windows in needed.values() for window in windows)
    users: dict[tuple[int, ...], list[int]] = {window: [] for window in uses}
    for block, windows in needed.items():
        for window in windows:
            users[window].append(block)
    lacking = {block: len(windows) for block, windows in needed.items()}
    held: dict[tuple[int, ...], Cells] = {}
    for window, cells in _window_cells(how, grid, fields, windows=sorted(uses)):
        held[window] = cells
        for block in users[window]:
            lacking[block] -= 1
            if lacking[block]:
                continue
            parts = {each: held[each] for each in needed[block]}
            yield block, _features(how, grid, fields, rows=rows[block], cells=parts)
            for each in needed[block]:
                uses[each] -= 1
                if not uses[each]:
                    del held[each]


def _window_cells(
    how: Pass, grid: Grid, fields: Fields, *, windows: Sequence[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], Cells]]:
    """Every window with its cells, those beyond the image first, then in the order that reads fastest."""
    inside = grid.touch_image(fields, np.array(windows))
    if not inside.all():
        colour = torch.from_numpy(fields.background)[:, None, None]
        beyond = [layer[0] for layer in _passed(how, colour.expand(1, 3, grid.window_px, grid.window_px))]
        yield from ((window, beyond) for window, is_inside in zip(windows, inside, strict=True) if not is_inside)
    seen = [window for window, is_inside in zip(windows, inside, strict=True) if is_inside]
    if not seen:
        return
    for numbers, tiles in tile_batches(grid.boxes(fields, np.array(seen)), grid.window_px, how.at_once):
        cells = _passed(how, tiles)
        for place, number in enumerate(numbers.tolist()):
            yield seen[number], [layer[place] for layer in cells]


def _passed(how: Pass, windows: torch.Tensor) -> Cells:
    """Cells of a batch of windows, or of fewer: all batches are of one size, so that each window comes out the same in any."""
    lacking = how.at_once - len(windows)
    filled = torch.cat([windows, windows.new_zeros(lacking, *windows.shape[1:])]) if lacking else windows
    autocast = torch.autocast(how.device.type, dtype=how.dtype) if how.dtype != torch.float32 else nullcontext()
    with torch.inference_mode(), autocast:
        return window_cells(how, filled.to(how.device))


def window_cells(how: Pass, windows: torch.Tensor) -> Cells:
    """Cells (n, y, n_sums, x) of the cores of uint8 windows (n, 3, window_px, window_px), per layer, mean over the ways."""
    total: Cells = []
    for mirrored, turns in how.ways:
        laid = torch.rot90(windows.flip(3) if mirrored else windows, turns, (2, 3))
        scaled = how.encoder.scale(laid).contiguous(memory_format=torch.channels_last)
        for i, (values, layer) in enumerate(zip(how.maps(scaled), how.maps.layers, strict=True)):
            back = torch.rot90(_cells(values, layer, how.maps), -turns, (2, 3))
            back = back.flip(3) if mirrored else back
            if i < len(total):
                total[i] += back
            else:
                total.append(back)
    return [(each / len(how.ways)).transpose(1, 2).contiguous() for each in total]


def _cells(values: torch.Tensor, layer: Layer, maps: Maps) -> torch.Tensor:
    """Means, and means of squares, of the cells in the core of a map, (n, n_sums, y, x)."""
    first = maps.halo_px // layer.stride_px
    n = values.shape[3] - 2 * first
    core = values[:, :, first : first + n, first : first + n].float()
    parts = [core, core * core] if layer.squares else [core]
    factor = layer.cell_px // layer.stride_px
    if factor > 1:  # one by one: joined first, pooling takes five times as long
        parts = [torch.nn.functional.avg_pool2d(part, factor) for part in parts]
    return torch.cat(parts, dim=1)


def _features(
    how: Pass, grid: Grid, fields: Fields, *, rows: IntArray, cells: dict[tuple[int, ...], Cells]
) -> Float32Array:
    """Features (n_rows, n_features) of fields, from the cells of all windows that touch them."""
    with torch.inference_mode():
        sums, area = field_sums(how, grid, fields, rows=rows, cells=cells)
        means = [_at_least(total / area, _FEWEST_ROWS) for total in sums]
        features: Float32Array = how.maps.features(means)[: len(rows)].float().cpu().numpy()
    return features


def field_sums(
    how: Pass, grid: Grid, fields: Fields, *, rows: IntArray, cells: dict[tuple[int, ...], Cells]
) -> tuple[list[torch.Tensor], float]:
    """Sums over fields, (n_rows, n_sums) per layer, and the area that they are over, in pixels of the windows."""
    pixel = grid.side / grid.window_px
    low, high = ((fields.centres[rows] + sign * fields.side / 2) / pixel for sign in (-1, 1))
    sums = [torch.zeros((len(rows), layer.n_sums), device=how.device) for layer in how.maps.layers]
    core = grid.core_px
    for window, parts in sorted(cells.items()):
        corner = np.array(window) * core
        chosen = np.flatnonzero(np.all((high > corner) & (low < corner + core), axis=1))
        place = torch.from_numpy(chosen).to(how.device)
        for total, part, layer in zip(sums, parts, how.maps.layers, strict=True):
            edges = np.arange(0, core + 1, layer.cell_px, dtype=np.float64)
            y, x = (
                torch.from_numpy(overlaps(low[chosen, i] - corner[i], high[chosen, i] - corner[i], edges))
                for i in (0, 1)
            )
            total.index_add_(0, place, box_sums(part, y.to(how.device), x.to(how.device)))
    return sums, (fields.side / pixel) ** 2


def overlaps(low: FloatArray, high: FloatArray, edges: FloatArray) -> Float32Array:
    """Length that cells between ``edges`` (n_cells + 1,) have in common with intervals, (n_intervals, n_cells)."""
    common = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    lengths: Float32Array = np.maximum(common, 0).astype(np.float32)
    return lengths


def box_sums(cells: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Sums (n, n_sums) of cells (n_y, n_sums, n_x) weighted by y (n, n_y) times x (n, n_x)."""
    filled_y, filled_x = (_at_least(each, _FEWEST_ROWS) for each in (y, x))
    rows = (filled_y @ cells.flatten(1)).view(len(filled_y), *cells.shape[1:])
    return torch.bmm(rows, filled_x[:, :, None])[: len(y), :, 0]


def _at_least(values: torch.Tensor, n: int) -> torch.Tensor:
    """Values (n_rows, n_columns) and rows of zeros behind them, n rows in all or more."""
    return torch.nn.functional.pad(values, (0, 0, 0, max(0, n - len(values))))
