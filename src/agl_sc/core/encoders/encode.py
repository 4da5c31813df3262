"""Features of the tiles in boxes, in blocks that come out the same however the work is divided."""

import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from agl_sc.core.arrays import Float32Array, IntArray
from agl_sc.core.encoders.dense import Fields, Pass, field_blocks, field_rows, n_pixels
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.encoders.maps import WIDER_HALO_PX, Maps
from agl_sc.core.tiles.reader import Boxes, tile_batches

EncodedBlock = tuple[int, Float32Array]
logger = logging.getLogger(__name__)

BLOCK = 256
"""Tiles, or fields of view, of a block, the unit of resuming and of spreading."""
_CPU_BATCH = 8
"""Tiles per forward pass on the CPU at most: more are computed by other kernels in some networks, so that a tile's features
would depend on how many others there are."""
_CPU_PX = 4 * 224**2
"""Pixels per forward pass on the CPU: of more, the maps fit its caches less well."""
_PARTS_PER_THREAD = 4
_USUAL_PX = 224
_ATTEMPTS = 4
_WAIT_S = 60
"""How long to wait for another worker where all are gone."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How tiles become features."""

    encoder: Encoder
    """Makes them."""
    tile_px: int
    """Side that tiles are resampled to, in pixels."""
    orientations: int = 1
    """Ways of laying every tile that are averaged over: 1 as it is, 2 half turns too, 4 quarter turns, 8 mirrored ones."""
    batch_size: int = 32
    """Tiles per forward pass; on the CPU at most 8."""
    device: str | None = None
    """The fastest there is where None."""
    compiled: bool = False
    """Pass the encoder through ``torch.compile`` first."""
    precision: str | None = None
    """What the device must compute in, as :func:`precision_of` names it, so that no blocks of another join; whatever it
    does where None."""
    maps: Maps | None = None
    """Of the encoder; None where nothing is seen by maps."""
    tile_orientations: int | None = None
    """Ways of laying the tiles themselves, by maps too; as many as wider fields where None."""
    wider_halo_px: int = WIDER_HALO_PX
    """Halo of the windows of wider fields, of a network that sees nothing far away."""

    @property
    def ways(self) -> list[tuple[bool, int]]:
        """Whether a tile is mirrored, and its quarter turns, for every way of laying it."""
        return [(mirrored, turns) for mirrored in (False, True) for turns in (0, 2, 1, 3)][: self.orientations]

    @property
    def tile_ways(self) -> list[tuple[bool, int]]:
        """Of :attr:`ways` those for the tiles themselves."""
        return self.ways[: self.tile_orientations]

    def ways_of(self, seen: Boxes | Fields) -> list[tuple[bool, int]]:
        """Of :attr:`ways` all for maps of wider fields, and as many as asked for the tiles themselves."""
        return self.ways if isinstance(seen, Fields) and seen.wider else self.tile_ways

    def n_features(self, seen: Boxes | Fields) -> int:
        """Width of the features of tiles, or of fields of view by maps."""
        return self.encoder.n_features if isinstance(seen, Boxes) else self.mapped.n_features

    def rows(self, seen: Boxes | Fields) -> list[IntArray]:
        """Indices of the boxes, or the fields of view, of every block: up to 256 that lie together."""
        return block_rows(seen) if isinstance(seen, Boxes) else field_rows(self.maps_of(seen), seen, BLOCK)

    def n_passes(self, seen: Boxes | Fields) -> int:
        """Work in tiles: so many of them have as many pixels as what goes through the network, in all orientations."""
        if isinstance(seen, Boxes):
            return len(seen.origins) * len(self.ways_of(seen))
        return math.ceil(n_pixels(self.maps_of(seen), seen) * len(self.ways_of(seen)) / self.tile_px**2)

    @property
    def mapped(self) -> Maps:
        """The maps, which fields of view cannot do without."""
        if self.maps is None:
            msg = "Fields of view need maps=, as agl_sc.core.encoders.maps.maps_of makes them of the encoder."
            raise ValueError(msg)
        return self.maps

    def maps_of(self, seen: Fields) -> Maps:
        """The maps of some fields of view."""
        return self.mapped.with_halo(self.wider_halo_px) if seen.wider else self.mapped


def pick_device(device: str | None) -> torch.device:
    """The device asked for, or the fastest there is."""
    if device is not None:
        try:
            return torch.device(device)
        except (RuntimeError, TypeError) as error:
            msg = f"device={device!r} is no device of torch; pass such as 'cpu', 'cuda' or 'cuda:1', or None for the fastest."
            raise ValueError(msg) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def precision_of(device: str | None, client: Any = None) -> str:
    """What a device, or that of the workers of a ``dask.distributed.Client``, computes in: ``"float32"``, ``"bfloat16"``...

    Raises
    ------
    ValueError
        The workers differ.
    """
    if client is None:
        return str(_dtype(pick_device(device))).removeprefix("torch.")
    found: dict[str, str] = client.run(precision_of, device)
    if len(set(found.values())) != 1:
        listed = ", ".join(f"{worker}: {precision}" for worker, precision in sorted(found.items())) or "there are none"
        msg = (
            f"The workers of client do not compute in one precision ({listed}); pass device='cpu', or a client whose "
            "workers have the same device."
        )
        raise ValueError(msg)
    return next(iter(found.values()))


def block_rows(boxes: Boxes) -> list[IntArray]:
    """Indices of the boxes of every block: up to 256 that lie together, in the order of the image's chunks."""
    edges = [np.cumsum(sizes) for sizes in boxes.image.chunks[1:]]
    rows, columns = (np.searchsorted(edges[axis], boxes.origins[:, axis], "right") for axis in (0, 1))
    order = np.lexsort((columns, rows))
    return np.split(order, range(BLOCK, len(order), BLOCK))


def encoded_blocks(recipe: Recipe, seen: Boxes | Fields, blocks: Sequence[int]) -> Iterator[EncodedBlock]:
    """Encode blocks of boxes or of fields of view, reading all of them in one go.

    A block's features are the same bytes whichever others are encoded with it: its tiles are gathered first and then
    passed through the network in batches of its own; windows of maps are all passed in batches of one size.

    Parameters
    ----------
    recipe
        How.
    seen
        The boxes, or the fields of view, of all blocks.
    blocks
        Which blocks, as numbered by :meth:`Recipe.rows`.

    Yields
    ------
    Number of a block and its features, (n_rows, n_features), in the order of its rows.

    Raises
    ------
    ValueError
        The device computes in another precision than the recipe's.
    """
    device = pick_device(recipe.device)
    if recipe.precision not in (None, precision := precision_of(recipe.device)):
        msg = f"Features in {recipe.precision} cannot be made on device {device.type!r}, which computes in {precision}; name a device= that all have."
        raise ValueError(msg)
    if isinstance(seen, Fields):
        yield from field_blocks(_pass(recipe, seen, device), seen, rows=recipe.rows(seen), blocks=blocks)
    else:
        yield from _tile_blocks(recipe, seen, blocks, device=device)


def _pass(recipe: Recipe, seen: Fields, device: torch.device) -> Pass:
    """How windows go through the network; one by one on the CPU, which finds less of a larger batch in its caches."""
    maps = recipe.maps_of(seen).to(device).to(memory_format=torch.channels_last)
    at_once = recipe.batch_size * _USUAL_PX**2 // maps.window_px**2
    compiled = cast("Maps", torch.compile(maps, dynamic=False)) if recipe.compiled else maps
    at_once = 1 if device.type == "cpu" else max(1, at_once)
    return Pass(recipe.encoder, compiled, recipe.ways_of(seen), at_once, device, _dtype(device))


def _tile_blocks(
    recipe: Recipe, boxes: Boxes, blocks: Sequence[int], *, device: torch.device
) -> Iterator[EncodedBlock]:
    module = recipe.encoder.module.to(device).to(memory_format=torch.channels_last)
    if recipe.compiled:
        compiled = cast("torch.nn.Module", torch.compile(module, dynamic=False))
        recipe = replace(recipe, encoder=replace(recipe.encoder, module=compiled))
    rows = block_rows(boxes)
    sizes = [len(rows[block]) for block in blocks]
    block_of = np.repeat(blocks, sizes)
    place = torch.from_numpy(np.concatenate([np.arange(size) for size in sizes]))
    chosen = replace(boxes, origins=boxes.origins[np.concatenate([rows[block] for block in blocks])])
    gathered: dict[int, torch.Tensor] = {}
    left = dict(zip(blocks, sizes, strict=True))
    for index, tiles in tile_batches(chosen, recipe.tile_px, recipe.batch_size):
        for block in np.unique(block_of[index]).tolist():
            inside = torch.from_numpy(block_of[index] == block)
            held = gathered.setdefault(block, tiles.new_empty((len(rows[block]), *tiles.shape[1:])))
            held[place[torch.from_numpy(index)[inside]]] = tiles[inside]
            left[block] -= int(inside.sum())
            if not left[block]:
                yield block, _features(recipe, gathered.pop(block), device)


class Workers:
    """The workers of a ``dask.distributed.Client``, every one with the recipe.

    A worker that dies costs the blocks that it had: they are computed again by the others, a few times at most.
    """

    def __init__(self, client: Any, recipe: Recipe) -> None:
        self.client = client
        self._own_recipe = recipe
        self.recipe = self._share(recipe)

    def encoded_blocks(self, seen: Boxes | Fields, blocks: Sequence[int]) -> Iterator[EncodedBlock]:
        """The same as :func:`encoded_blocks`, each worker on blocks that lie together.

        Raises
        ------
        ConnectionError
            Workers died again and again.
        """
        left, failure = list(blocks), None
        if not left:
            return
        for attempt in range(_ATTEMPTS):
            for part, done in self._parts(seen, left, again=attempt > 0):
                if isinstance(done, Exception):
                    failure = done
                    continue
                yield from done
                left = [block for block in left if block not in part]
            if not left:
                return
            logger.warning("Workers were lost (%s); %d blocks of tiles are not computed yet.", failure, len(left))
        msg = (
            f"Workers of client were lost {_ATTEMPTS} times over the same tiles ({failure}); look into their logs, give them "
            "more memory, or leave client= out."
        )
        raise ConnectionError(msg) from failure

    def _parts(
        self, seen: Boxes | Fields, blocks: Sequence[int], *, again: bool
    ) -> Iterator[tuple[list[int], list[EncodedBlock] | Exception]]:
        """Blocks that lie together, and their features, or how the worker that had them was lost."""
        lost, futures = _lost_errors(), []
        try:
            recipe = self._share_again() if again else self.recipe
            per_thread = (
                1 if isinstance(seen, Fields) else _PARTS_PER_THREAD
            )  # parts of maps share windows at their ends
            n_parts = min(len(blocks), max(1, per_thread * sum(self.client.nthreads().values())))
            there = self._share(seen)
            parts = [part.tolist() for part in np.array_split(np.asarray(blocks), n_parts)]
            futures = [self.client.submit(_encoded_part, recipe, there, part, pure=False) for part in parts]
        except lost as error:
            yield [], error
        try:
            for part in parts if futures else ():
                try:
                    done = futures[0].result()
                except lost as error:
                    done = error
                yield part, done
                del futures[0]
        finally:
            self.client.cancel(futures)

    def _share_again(self) -> Any:
        """The recipe for the workers there are by now: what was shared before may have gone with those that had it."""
        self.client.wait_for_workers(1, timeout=_WAIT_S)
        return self._share(self._own_recipe)

    def _share(self, value: Recipe | Boxes | Fields) -> Any:
        # Without hash=False what an earlier call sent has the same key, and its late release takes this one along.
        return self.client.scatter(value, broadcast=True, hash=False)


def _lost_errors() -> tuple[type[Exception], ...]:
    """What tells that a worker is gone, and not that its work cannot be done."""
    own = (CancelledError, TimeoutError)
    try:
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker
    except ImportError:
        return own
    return (*own, CommClosedError, KilledWorker)


def _encoded_part(recipe: Recipe, seen: Boxes | Fields, blocks: list[int]) -> list[EncodedBlock]:
    return list(encoded_blocks(recipe, seen, blocks))


@torch.inference_mode()
def _features(recipe: Recipe, tiles: torch.Tensor, device: torch.device) -> Float32Array:
    """Features of a block's tiles, batch by batch."""
    dtype = _dtype(device)
    with nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype):
        size = recipe.batch_size
        if device.type == "cpu":
            size = min(size, _CPU_BATCH, max(1, _CPU_PX // recipe.tile_px**2))
        batches = [_batch(recipe, batch.to(device), size).float().cpu() for batch in torch.split(tiles, size)]
    features: Float32Array = torch.cat(batches).numpy()
    return features


def _batch(recipe: Recipe, tiles: torch.Tensor, size: int) -> torch.Tensor:
    """Features of one batch; a compiled network sees all batches in one size, as it is compiled anew for every other."""
    n_lacking = size - len(tiles) if recipe.compiled else 0
    filled = torch.cat([tiles, tiles.new_zeros(n_lacking, *tiles.shape[1:])]) if n_lacking else tiles
    return _views(recipe, filled)[: len(tiles)]


def _views(recipe: Recipe, tiles: torch.Tensor) -> torch.Tensor:
    if len(recipe.tile_ways) == 1:
        return recipe.encoder(tiles)
    laid = (torch.rot90(tiles.flip(3) if mirrored else tiles, turns, (2, 3)) for mirrored, turns in recipe.tile_ways)
    return torch.stack([recipe.encoder(way).float() for way in laid]).mean(dim=0)


def _dtype(device: torch.device) -> torch.dtype:
    """Half precision where the device computes faster in it."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
