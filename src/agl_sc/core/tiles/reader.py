"""Chunk-ordered reading of square boxes from lazy (c, y, x) images, decoding ahead of whoever uses the tiles."""

import os
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agl_sc.core.arrays import IntArray, UInt8Array
from agl_sc.core.tiles.chunks import Chunk, Chunks

DecodedPart = tuple[int, int, UInt8Array]
"""Top, left and pixels (3, y, x) of a decoded chunk."""
TileBatch = tuple[IntArray, torch.Tensor]
"""Numbers of boxes (n,) and their tiles (n, 3, tile_px, tile_px) uint8."""

MAX_BYTES = 512 * 2**20
"""Bound on the decoded chunks held at a time."""
_N_THREADS = min(8, os.cpu_count() or 1)
_PARCEL_BYTES = 8 * 2**20
"""Chunks handed to a thread at a time."""
_BATCHES_AHEAD = 2


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
    name: str
    """What messages call the level, such as ``"image 'A' (level 0)"``."""
    within: IntArray | None = None
    """Pixels (n, 2) as (y, x) where there must be an image; the middle of every box if None."""

    @property
    def padded(self) -> NDArray[np.bool_]:
        """Boxes that reach beyond the image, (n_boxes,)."""
        ends = self.origins + self.side
        beyond: NDArray[np.bool_] = np.any((self.origins < 0) | (ends > np.array(self.image.shape[1:])), axis=1)
        return beyond


@dataclass(frozen=True, slots=True)
class _Route:
    """Boxes grouped by the chunks they touch, in the order in which they are visited."""

    order: IntArray
    """Positions of the boxes among those asked for, (n_boxes,)."""
    starts: IntArray
    """Where the boxes of every step begin in ``order``, (n_steps + 1,)."""
    spans: IntArray
    """First row, last row, first column and last column of the chunks of every step, (n_steps, 4)."""
    last_use: IntArray
    """Last step that needs a chunk, (rows, columns)."""

    def chunks(self, step: int) -> list[Chunk]:
        """Chunks that the boxes of a step touch; none where they lie outside the image."""
        top, bottom, left, right = self.spans[step].tolist()
        return list(product(range(top, bottom + 1), range(left, right + 1)))


def _spans(chunks: Chunks, boxes: Boxes, numbers: IntArray) -> IntArray:
    """First row, last row, first column and last column of the chunks that boxes touch, (n, 4)."""
    spans = np.empty((len(numbers), 4), dtype=np.int64)
    for axis, edges in enumerate(chunks.edges):
        start = boxes.origins[numbers, axis]
        stop = start + boxes.side
        inside = (stop > 0) & (start < edges[-1])
        last = np.searchsorted(edges, np.minimum(stop, edges[-1]), "left") - 1
        spans[:, 2 * axis] = np.where(inside, np.searchsorted(edges, np.maximum(start, 0), "right") - 1, 0)
        spans[:, 2 * axis + 1] = np.where(inside, last, -1)
    return spans


def _routes(chunks: Chunks, spans: IntArray, tops: IntArray, *, max_bytes: int) -> Iterator[_Route]:
    """Row by row of chunks, in bands of columns so narrow that what a row leaves to the next fits ``max_bytes``.

    Boxes of a step go from top to bottom, so that one finds in the processor's cache what the last one read: cutting
    takes a fifth less time.
    """
    sizes = chunks.n_bytes
    down, right = (int((spans[:, i + 1] - spans[:, i]).max(initial=0)) for i in (0, 2))
    width = max(1, (max_bytes // int(sizes.max()) - right - 1) // max(1, down) - right)
    band = spans[:, 2] // width
    for chosen in np.unique(band):
        places = np.flatnonzero(band == chosen)
        top, bottom, left, end = spans[places].T
        places = places[np.lexsort((tops[places], end, bottom, left, top))]
        is_new = np.any(np.diff(spans[places], axis=0, prepend=-2) != 0, axis=1)
        steps = spans[places[is_new]]
        last_use = np.full(sizes.shape, -1, dtype=np.int64)
        for row, column in product(range(down + 1), range(right + 1)):
            rows, columns = steps[:, 0] + row, steps[:, 2] + column
            touching = np.flatnonzero((rows <= steps[:, 1]) & (columns <= steps[:, 3]))
            np.maximum.at(last_use, (rows[touching], columns[touching]), touching)
        yield _Route(places, np.append(np.flatnonzero(is_new), len(places)), steps, last_use)


class TileReader:
    """Cuts boxes out of one image; threads decode its chunks ahead, and no more than ``max_bytes`` are held."""

    def __init__(self, boxes: Boxes, *, max_bytes: int = MAX_BYTES) -> None:
        self.boxes = boxes
        self.max_bytes = max_bytes
        self.chunks = Chunks(boxes.image, boxes.name)
        self.sizes = self.chunks.n_bytes
        self.held: OrderedDict[Chunk, Future[UInt8Array]] = OrderedDict()
        """Decoded chunks and those being decoded, the least recently used first."""
        self.n_bytes = 0
        self.centres = self._centres()

    def __getstate__(self) -> dict[str, Any]:
        """Another process starts with nothing decoded."""
        return {**self.__dict__, "held": OrderedDict(), "n_bytes": 0}

    def read(self, numbers: IntArray, *, keep: bool) -> Generator[tuple[IntArray, list[DecodedPart]]]:
        """Visit some boxes in the order of the chunks they lie in.

        Parameters
        ----------
        numbers
            Which boxes, (n,).
        keep
            Whether chunks stay for the next call as far as ``max_bytes`` allows; else they go after their last use.

        Yields
        ------
        Positions in ``numbers`` of boxes that lie in the same chunks, and these chunks.
        """
        spans, tops = _spans(self.chunks, self.boxes, numbers), self.boxes.origins[numbers, 0]
        with ThreadPoolExecutor(_N_THREADS, thread_name_prefix="agl_sc-decode") as pool:
            try:
                for route in _routes(self.chunks, spans, tops, max_bytes=self.max_bytes):
                    yield from self._follow(route, _Ahead(self, route, pool), keep=keep)
            finally:
                pool.shutdown(cancel_futures=True)
                for chunk in [c for c, f in self.held.items() if not f.done() or f.exception() is not None]:
                    self.drop(chunk)

    def _follow(self, route: _Route, ahead: "_Ahead", *, keep: bool) -> Iterator[tuple[IntArray, list[DecodedPart]]]:
        for step in range(len(route.spans)):
            ahead.request(step)
            needed = route.chunks(step)
            pieces = [(*self.chunks.corner(chunk), self.held[chunk].result()) for chunk in needed]
            yield route.order[route.starts[step] : route.starts[step + 1]], pieces
            for chunk in needed:
                self.held.move_to_end(chunk)
                if not keep and route.last_use[chunk] == step:
                    self.drop(chunk)

    def cut(self, number: int, pieces: Sequence[DecodedPart], out: UInt8Array) -> None:
        """Put the pixels of a box into ``out``, (3, side, side), background where there is no chunk."""
        (y, x), side = self.boxes.origins[number].tolist(), self.boxes.side
        covered = 0
        for top, left, pixels in pieces:
            y0, y1 = max(y, top), min(y + side, top + pixels.shape[1])
            x0, x1 = max(x, left), min(x + side, left + pixels.shape[2])
            covered += (y1 - y0) * (x1 - x0)
            out[:, y0 - y : y1 - y, x0 - x : x1 - x] = pixels[:, y0 - top : y1 - top, x0 - left : x1 - left]
        if covered < side * side:
            height, width = self.boxes.image.shape[1:]
            for beyond in (
                np.s_[:, : max(-y, 0)], np.s_[:, max(height - y, 0) :],
                np.s_[:, :, : max(-x, 0)], np.s_[:, :, max(width - x, 0) :],
            ):  # fmt: skip
                out[beyond] = self.boxes.background[:, None, None]

    def decode(self, promised: dict[Chunk, "Future[UInt8Array]"]) -> None:
        """Decode some chunks in a thread; one that fails fails alone."""
        try:
            decoded = self.chunks.decode(list(promised))
            for chunk, pixels in zip(promised, decoded, strict=True):
                if chunk in self.centres:
                    self.chunks.check_present(chunk, pixels)
        except Exception as error:  # noqa: BLE001  # is raised where the chunk is waited for
            if len(promised) > 1:
                for chunk, future in promised.items():
                    self.decode({chunk: future})
            else:
                next(iter(promised.values())).set_exception(error)
        else:
            for future, pixels in zip(promised.values(), decoded, strict=True):
                future.set_result(pixels)

    def drop(self, chunk: Chunk) -> None:
        """Forget a decoded chunk."""
        del self.held[chunk]
        self.n_bytes -= int(self.sizes[chunk])

    def _centres(self) -> frozenset[Chunk]:
        """Chunks in which a box has its centre, or where else there must be an image."""
        boxes = self.boxes
        middles = boxes.origins + boxes.side // 2 if boxes.within is None else boxes.within
        found = [np.searchsorted(edges, middles[:, axis], "right") - 1 for axis, edges in enumerate(self.chunks.edges)]
        return frozenset(map(tuple, np.unique(np.column_stack(found), axis=0).tolist()))


class _Ahead:
    """Has chunks decoded in the order of a route, somewhat ahead of the step that is being used."""

    def __init__(self, reader: TileReader, route: _Route, pool: ThreadPoolExecutor) -> None:
        self.reader = reader
        self.route = route
        self.pool = pool
        self.next_step = 0
        self.early: deque[tuple[int, int]] = deque()
        """Step and size of what was requested for steps to come."""
        self.n_early = 0
        """Sum of these sizes."""
        self.enough = _N_THREADS * max(2 * _PARCEL_BYTES, int(reader.sizes.max()))

    def request(self, step: int) -> None:
        """Have decoded what a step needs, and what the next ones need as far as memory allows."""
        while self.early and self.early[0][0] <= step:
            self.n_early -= self.early.popleft()[1]
        if self.next_step > step and 2 * self.n_early > self.enough:
            return
        wanted: list[Chunk] = []
        while self.next_step < len(self.route.spans) and self.n_early < self.enough:
            missing = [chunk for chunk in self.route.chunks(self.next_step) if chunk not in self.reader.held]
            n_bytes = sum(int(self.reader.sizes[chunk]) for chunk in missing)
            if not self._make_room(n_bytes, step) and self.next_step > step:
                break
            for chunk in missing:
                self.reader.held[chunk] = Future()
            self.reader.n_bytes += n_bytes
            wanted += missing
            if self.next_step > step and missing:
                self.early.append((self.next_step, n_bytes))
                self.n_early += n_bytes
            self.next_step += 1
        self._submit(wanted)

    def _make_room(self, n_bytes: int, step: int) -> bool:
        """Drop what no step needs any more, and for the step being used whatever else it does not need."""
        reader, excess = self.reader, self.reader.n_bytes + n_bytes - self.reader.max_bytes
        if excess <= 0:
            return True
        needed = set(self.route.chunks(self.next_step))
        for chunk in list(reader.held):
            if self.route.last_use[chunk] < step or (self.next_step == step and chunk not in needed):
                excess -= int(reader.sizes[chunk])
                reader.drop(chunk)
                if excess <= 0:
                    return True
        return False

    def _submit(self, wanted: list[Chunk]) -> None:
        """In parcels, so that chunks share what their dask graphs share, and small ones the cost of a hand-over."""
        parcel: dict[Chunk, Future[UInt8Array]] = {}
        n_bytes = 0
        for chunk in wanted:
            n_bytes += int(self.reader.sizes[chunk])
            parcel[chunk] = self.reader.held[chunk]
            if n_bytes >= _PARCEL_BYTES or chunk == wanted[-1]:
                self.pool.submit(self.reader.decode, parcel)
                parcel, n_bytes = {}, 0


def read_boxes(boxes: Boxes, batch_size: int, *, max_bytes: int = MAX_BYTES) -> Generator[tuple[IntArray, UInt8Array]]:
    """Read boxes in the order of the chunks they lie in, decoding each chunk once.

    Parameters
    ----------
    boxes
        What to read.
    batch_size
        Boxes at a time.
    max_bytes
        Bound on the decoded chunks held at a time, in bytes; exceeded only by what a single box touches.

    Yields
    ------
    Numbers of the boxes, (n,), and their pixels, (n, 3, side, side) uint8, padded with the background beyond the image,
    with n = ``batch_size`` but for the last.

    Raises
    ------
    OSError
        A chunk cannot be decoded, or is missing where a box has its centre.
    """
    reader = TileReader(boxes, max_bytes=max_bytes)
    n_left = len(boxes.origins)
    numbers: list[int] = []
    with closing(reader.read(np.arange(n_left), keep=False)) as steps:
        for places, pieces in steps:
            for number in places.tolist():
                if not numbers:
                    tiles = np.empty((min(batch_size, n_left), 3, boxes.side, boxes.side), dtype=np.uint8)
                reader.cut(number, pieces, tiles[len(numbers)])
                numbers.append(number)
                if len(numbers) == len(tiles):
                    yield np.array(numbers), tiles
                    n_left -= len(tiles)
                    numbers = []


def resize(tiles: torch.Tensor, tile_px: int) -> torch.Tensor:
    """Resample uint8 tiles (n, 3, side, side) to (n, 3, tile_px, tile_px), antialiased bilinear."""
    if tiles.shape[-1] == tile_px:
        return tiles
    resized = torch.nn.functional.interpolate(tiles.float(), (tile_px, tile_px), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def tile_batches(boxes: Boxes, tile_px: int, batch_size: int) -> Generator[TileBatch]:
    """Tiles of all boxes, resampled to ``tile_px``, in reading order; a thread reads ahead while the last ones are used.

    Yields
    ------
    Numbers of the boxes, (n,), and their tiles, (n, 3, tile_px, tile_px) uint8, with n <= ``batch_size``.
    """

    def batches() -> Generator[TileBatch]:
        with closing(read_boxes(boxes, batch_size)) as read:
            for numbers, tiles in read:
                yield numbers, resize(torch.from_numpy(tiles), tile_px)

    return _ahead(batches(), _BATCHES_AHEAD)


def _ahead(batches: Generator[TileBatch], n: int) -> Generator[TileBatch]:
    """Run a generator in a thread, at most ``n`` results ahead; it ends with whoever asks for them."""
    with closing(batches), ThreadPoolExecutor(1, thread_name_prefix="agl_sc-read") as thread:
        waiting = deque(thread.submit(next, batches, None) for _ in range(n))
        try:
            while (batch := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, batches, None))
                yield batch
        finally:
            thread.shutdown(cancel_futures=True)
