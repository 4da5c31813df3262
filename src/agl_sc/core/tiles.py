"""Chunk-ordered reading of square boxes from lazy (c, y, x) images."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
UInt8Array = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Square boxes on one level of one image."""

    image: Any
    """Lazy dask array, (3, y, x), uint8."""
    origins: IntArray
    """Top left corner of every box, (n_boxes, 2) as (y, x), in pixels of ``image``; may lie outside of it."""
    side: int
    """Side of every box in pixels of ``image``."""
    mpp: float
    """Microns per pixel of the tiles made from them."""
    background: UInt8Array
    """Colour of what lies outside the image, (3,)."""
    overview_digest: str
    """SHA-256 of the pixels of the coarsest level: another image has another one."""

    @property
    def padded(self) -> NDArray[np.bool_]:
        """Boxes that reach beyond the image, (n_boxes,)."""
        ends = self.origins + self.side
        beyond: NDArray[np.bool_] = np.any((self.origins < 0) | (ends > np.array(self.image.shape[1:])), axis=1)
        return beyond


class _ChunkCache:
    """Decoded chunks of one image, the least recently used dropped beyond ``max_bytes``."""

    def __init__(self, image: Any, max_bytes: int) -> None:
        self.image = image
        self.max_bytes = max_bytes
        self.edges = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in image.chunks[1:]]
        self.decoded: OrderedDict[tuple[int, int], UInt8Array] = OrderedDict()
        self.n_bytes = 0

    def get(self, row: int, column: int) -> UInt8Array:
        key = (row, column)
        if key not in self.decoded:
            chunk = np.asarray(self.image.blocks[:, row, column].compute(scheduler="synchronous"))
            self.decoded[key] = chunk
            self.n_bytes += chunk.nbytes
            while self.n_bytes > self.max_bytes and len(self.decoded) > 1:
                self.n_bytes -= self.decoded.popitem(last=False)[1].nbytes
        self.decoded.move_to_end(key)
        return self.decoded[key]

    def chunks_of(self, axis: int, start: int, stop: int) -> range:
        """Indices of the chunks that [start, stop) touches along an axis; empty when it lies outside."""
        edges = self.edges[axis]
        start, stop = max(start, 0), min(stop, int(edges[-1]))
        if start >= stop:
            return range(0)
        return range(int(np.searchsorted(edges, start, "right")) - 1, int(np.searchsorted(edges, stop, "left")))

    def crop(self, y: int, x: int, *, side: int, background: UInt8Array) -> UInt8Array:
        tile = np.broadcast_to(background[:, None, None], (3, side, side)).copy()
        for row, column in product(self.chunks_of(0, y, y + side), self.chunks_of(1, x, x + side)):
            top, left = int(self.edges[0][row]), int(self.edges[1][column])
            chunk = self.get(row, column)
            y0, y1 = max(y, top), min(y + side, top + chunk.shape[1])
            x0, x1 = max(x, left), min(x + side, left + chunk.shape[2])
            tile[:, y0 - y : y1 - y, x0 - x : x1 - x] = chunk[:, y0 - top : y1 - top, x0 - left : x1 - left]
        return tile


def read_boxes(boxes: Boxes, *, max_bytes: int = 512 * 2**20) -> Iterator[tuple[int, UInt8Array]]:
    """Read boxes in the order of the chunks they lie in, decoding each chunk once.

    Parameters
    ----------
    boxes
        What to read.
    max_bytes
        Bound on the decoded chunks held at a time, in bytes.

    Yields
    ------
    Index of the box and its pixels, (3, side, side) uint8, padded with the background beyond the image.
    """
    cache = _ChunkCache(boxes.image, max_bytes)
    rows, columns = (np.searchsorted(cache.edges[axis], boxes.origins[:, axis], "right") for axis in (0, 1))
    for index in np.lexsort((columns, rows)):
        y, x = boxes.origins[index]
        yield int(index), cache.crop(int(y), int(x), side=boxes.side, background=boxes.background)


def resize(tiles: torch.Tensor, tile_px: int) -> torch.Tensor:
    """Resample uint8 tiles (n, 3, side, side) to (n, 3, tile_px, tile_px), antialiased bilinear."""
    if tiles.shape[-1] == tile_px:
        return tiles
    resized = torch.nn.functional.interpolate(tiles.float(), (tile_px, tile_px), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def tile_batches(boxes: Boxes, tile_px: int, batch_size: int) -> Iterator[tuple[IntArray, torch.Tensor]]:
    """Tiles of all boxes, resampled to ``tile_px``, in reading order.

    Yields
    ------
    Indices of the boxes, (n,), and their tiles, (n, 3, tile_px, tile_px) uint8, with n <= ``batch_size``.
    """
    indices: list[int] = []
    tiles: list[UInt8Array] = []
    for index, tile in read_boxes(boxes):
        indices.append(index)
        tiles.append(tile)
        if len(tiles) == batch_size:
            yield np.array(indices), resize(torch.from_numpy(np.stack(tiles)), tile_px)
            indices, tiles = [], []
    if tiles:
        yield np.array(indices), resize(torch.from_numpy(np.stack(tiles)), tile_px)
