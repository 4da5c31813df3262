"""Random access to tiles, for fine-tuning and for PyTorch's DataLoader."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from agl_sc.core.arrays import IntArray
from agl_sc.core.tiles.reader import MAX_BYTES, Boxes, TileBatch, TileReader, resize, tile_batches

N_WAYS = 8
"""Ways to lay a square on itself: four turns, flipped or not."""
_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston, 2001)."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What happens to a tile at random."""

    lay: bool = True
    """Turn and flip it, one of the eight ways."""
    stain: float = 0.0
    """Each stain's density times 1 +- ``stain``, plus +- ``stain`` / 10; 0.05 is light (Tellez et al., 2019)."""

    def __post_init__(self) -> None:
        if not 0 <= self.stain < 1:
            msg = f"stain={self.stain!r} is not in [0, 1); 0 leaves colours alone, 0.05 is light."
            raise ValueError(msg)

    def __call__(self, tile: torch.Tensor, randomness: np.random.Generator) -> torch.Tensor:
        """A tile (3, y, x) uint8, changed."""
        way = int(randomness.integers(N_WAYS))
        change = torch.from_numpy(randomness.uniform(-self.stain, self.stain, (2, 3)).astype(np.float32))
        tile = lay(tile, way) if self.lay else tile
        return restain(tile, 1 + change[0], change[1] / 10) if self.stain else tile


def lay(tiles: torch.Tensor, way: int) -> torch.Tensor:
    """Tiles (..., y, x) turned ``way`` % 4 quarters, and then flipped from ``way`` 4 on."""
    turned = torch.rot90(tiles, way % 4, (-2, -1))
    return turned.flip(-1) if way >= 4 else turned


def restain(tile: torch.Tensor, factor: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Change the density d of each stain of a tile (3, y, x) uint8 to ``factor`` d + ``offset``, each (3,).

    Light that comes through is 10^-D of what came in, D being the sum over stains of d times the stain's unit vector.
    """
    stains = torch.nn.functional.normalize(_HED, dim=1)
    density = -torch.log10((tile.float() + 1) / 256).flatten(1)
    amounts = torch.linalg.solve(stains.T, density)
    light = torch.pow(10.0, -(stains.T @ (factor[:, None] * amounts + offset[:, None])))
    return (light * 256 - 1).round_().clamp_(0, 255).to(torch.uint8).view_as(tile)


class TileDataset(Dataset[torch.Tensor]):
    """Tiles (3, tile_px, tile_px) uint8 of one or several images, cut when asked for.

    A DataLoader gives the same tiles whatever its number of workers, as they depend on seed, epoch and item alone. Only
    decoded chunks are held.

    Parameters
    ----------
    parts
        Items and the boxes they are made of, one pair per image; together items 0 to n - 1, each once.
    tile_px
        Side of a tile in pixels.
    augmentation
        What happens to tiles at random; nothing by default.
    seed
        Of the augmentation.
    max_bytes
        Bound on the decoded chunks held by every process, in bytes.

    Examples
    --------
    >>> dataset = TileDataset([(np.arange(len(boxes.origins)), boxes)], 224)  # doctest: +SKIP
    >>> loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)  # doctest: +SKIP
    """

    def __init__(
        self,
        parts: Sequence[tuple[IntArray, Boxes]],
        tile_px: int,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        items = np.concatenate([np.zeros(0, np.int64), *(numbers for numbers, _ in parts)])
        if not np.array_equal(np.sort(items), np.arange(len(items))):
            msg = f"The items of the {len(parts)} parts are not 0 to {len(items) - 1}, each once; number them over all parts."
            raise ValueError(msg)
        self.parts = list(parts)
        self.tile_px = tile_px
        self.augmentation = augmentation
        self.seed = seed
        self.readers = [TileReader(boxes, max_bytes=max_bytes // max(1, len(parts))) for _, boxes in parts]
        order = np.argsort(items)
        self.part = np.repeat(np.arange(len(parts)), [len(numbers) for numbers, _ in parts])[order]
        self.number = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(n)) for n, _ in parts)])[order]
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        """Changes the augmentation; set it in place, ``dataset.epoch.fill_(3)``, and running workers see it."""

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, item: int) -> torch.Tensor:
        """One tile (3, tile_px, tile_px)."""
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[torch.Tensor]:
        """Tiles in the order of ``items``."""
        items = np.arange(len(self))[list(items)].tolist()  # from the end where negative
        tiles = list(self.tiles(np.array(items)))
        augment, epoch = self.augmentation, int(self.epoch)
        if augment is None:
            return tiles
        return [
            augment(tile, np.random.default_rng((self.seed, epoch, item)))
            for item, tile in zip(items, tiles, strict=True)
        ]

    def tiles(self, items: IntArray) -> torch.Tensor:
        """Tiles (n, 3, tile_px, tile_px) in the order of ``items``, as they are."""
        tiles = torch.empty((len(items), 3, self.tile_px, self.tile_px), dtype=torch.uint8)
        for part in np.unique(self.part[items]):
            places = np.flatnonzero(self.part[items] == part)
            cut = _cut(self.readers[part], self.number[items[places]])
            tiles[torch.from_numpy(places)] = resize(torch.from_numpy(cut), self.tile_px)
        return tiles

    def batches(self, batch_size: int) -> Iterator[TileBatch]:
        """Every tile once, as it is, with its item, in the order that reads fastest."""
        for items, boxes in self.parts:
            for numbers, tiles in tile_batches(boxes, self.tile_px, batch_size):
                yield items[numbers], tiles


def _cut(reader: TileReader, numbers: IntArray) -> NDArray[np.uint8]:
    """Boxes (n, 3, side, side) in the order of ``numbers``."""
    side = reader.boxes.side
    tiles = np.empty((len(numbers), 3, side, side), dtype=np.uint8)
    with closing(reader.read(numbers, keep=True)) as steps:
        for places, pieces in steps:
            for place in places.tolist():
                reader.cut(int(numbers[place]), pieces, tiles[place])
    return tiles
