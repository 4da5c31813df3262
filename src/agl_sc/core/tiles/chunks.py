"""Chunks of one level of a lazy (c, y, x) image: where they lie, and their pixels."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import zarr
from dask.base import compute

from agl_sc.core.arrays import IntArray, UInt8Array

Chunk = tuple[int, int]
"""Row and column in the grid of chunks."""

_MEND = "copy the image again from where it came from, or leave out the spots that lie there"


class Chunks:
    """Grid of chunks of a dask array (3, y, x); what lies straight in a zarr array is read without dask.

    Dask costs 1.5 ms a chunk on top of zarr, three times the decoding of a chunk of 256 px.
    """

    def __init__(self, image: Any, name: str) -> None:
        self.image = image
        self.name = name
        """What messages call the image."""
        self.edges: tuple[IntArray, ...] = tuple(np.cumsum([0, *sizes]) for sizes in image.chunks[1:])
        self.stored = _zarr_behind(image)

    @property
    def n_bytes(self) -> IntArray:
        """Decoded size of every chunk, (rows, columns)."""
        heights, widths = (np.diff(edges) for edges in self.edges)
        sizes: IntArray = self.image.shape[0] * heights[:, None] * widths[None, :]
        return sizes

    def corner(self, chunk: Chunk) -> tuple[int, int]:
        """Pixel (y, x) where a chunk begins."""
        return int(self.edges[0][chunk[0]]), int(self.edges[1][chunk[1]])

    def decode(self, wanted: Sequence[Chunk]) -> list[UInt8Array]:
        """Pixels (3, y, x) of some chunks; those of one call share what their dask graphs share.

        Raises
        ------
        OSError
            A chunk cannot be decoded.
        """
        try:
            return self._pixels(wanted)
        except Exception as error:
            if len(wanted) > 1:  # find out which
                return [pixels for chunk in wanted for pixels in self.decode([chunk])]
            msg = f"Chunk {_at(wanted[0])} of {self.name} cannot be decoded ({type(error).__name__}: {error}); {_MEND}."
            raise OSError(msg) from error

    def check_present(self, chunk: Chunk, pixels: UInt8Array) -> None:
        """Refuse a decoded chunk of which the zarr store has no bytes, and which zarr fills without a word.

        Zarr leaves out what is nothing but its fill value, too: ask only where there must be an image.

        Raises
        ------
        FileNotFoundError
            It is not there.
        """
        stored = self.stored
        if stored is None or not any(_is_flat(channel, stored.fill_value) for channel in pixels):
            return
        if stored.nchunks_initialized < stored.nchunks:
            msg = f"Chunk {_at(chunk)} of {self.name} is not in its zarr store although spots lie in it; {_MEND}."
            raise FileNotFoundError(msg)

    def _pixels(self, wanted: Sequence[Chunk]) -> list[UInt8Array]:
        if self.stored is None:
            blocks = [self.image.blocks[:, row, column] for row, column in wanted]
            return [np.asarray(block) for block in compute(*blocks, scheduler="synchronous")]  # type: ignore[no-untyped-call]
        bounds = [list(pairwise(edges.tolist())) for edges in self.edges]
        slices = [(slice(*bounds[0][row]), slice(*bounds[1][column])) for row, column in wanted]
        return [np.asarray(self.stored[:, rows, columns]) for rows, columns in slices]


def _is_flat(channel: UInt8Array, value: Any) -> bool:
    return bool((channel[::32, ::32] == value).all() and (channel == value).all())  # nearly always told by the few


def _at(chunk: Chunk) -> str:
    return f"(row {chunk[0]}, column {chunk[1]})"


def _zarr_behind(image: Any) -> "zarr.Array[Any] | None":
    """The zarr array of which a dask array is the plain reading, nothing done to it since."""
    layers = dict(image.dask.layers)
    if not str(image.name).startswith("from-zarr") or layers.pop(image.name, None) is None or len(layers) != 1:
        return None
    (origin,) = (list(layer.values()) for layer in layers.values())
    found = origin[0] if len(origin) == 1 else None
    return found if isinstance(found, zarr.Array) and found.shape == image.shape else None
