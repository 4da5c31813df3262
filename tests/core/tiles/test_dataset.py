"""Random access to tiles."""

import pickle
from collections import Counter
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from agl_sc.core.tiles.dataset import Augmentation, TileDataset, lay, restain
from agl_sc.core.tiles.reader import Boxes, TileReader

UInt8Array = NDArray[np.uint8]
CHUNK_BYTES = 3 * 16 * 16


def random_image(height: int, width: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def boxes_on(image: Any, n_boxes: int, side: int) -> Boxes:
    origins = np.random.default_rng(n_boxes).integers(0, image.shape[1] - side, (n_boxes, 2))
    background = np.zeros(3, dtype=np.uint8)
    return Boxes(image, origins, side, mpp=0.5, background=background, overview_digest="", name="image 'A' (level 0)")


def counted(pixels: UInt8Array) -> tuple[Any, Counter[tuple[int, ...]]]:
    """Image that counts how often each of its chunks of 16 px is computed."""
    decodings: Counter[tuple[int, ...]] = Counter()

    def count(block: UInt8Array, block_id: tuple[int, ...] = ()) -> UInt8Array:
        decodings[block_id] += 1
        return block

    image: Any = da.from_array(pixels, chunks=(3, 16, 16))  # type: ignore[no-untyped-call]
    return image.map_blocks(count, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)), decodings


def lazy(pixels: UInt8Array) -> Any:
    return da.from_array(pixels, chunks=(3, 16, 16))  # type: ignore[no-untyped-call]


SIDE, N_FIRST, N_SECOND = 12, 14, 9
FIRST, SECOND = random_image(64, 64, 1), random_image(80, 80, 2)
ITEMS = np.random.default_rng(0).permutation(N_FIRST + N_SECOND)


def make(tile_px: int = SIDE, **options: Any) -> TileDataset:
    """Two images, their items in no order."""
    parts = [
        (ITEMS[:N_FIRST], boxes_on(lazy(FIRST), N_FIRST, SIDE)),
        (ITEMS[N_FIRST:], boxes_on(lazy(SECOND), N_SECOND, SIDE)),
    ]
    return TileDataset(parts, tile_px, **options)


def expected() -> torch.Tensor:
    tiles = np.empty((len(ITEMS), 3, SIDE, SIDE), dtype=np.uint8)
    corners = [(FIRST, *c) for c in boxes_on(lazy(FIRST), N_FIRST, SIDE).origins.tolist()]
    corners += [(SECOND, *c) for c in boxes_on(lazy(SECOND), N_SECOND, SIDE).origins.tolist()]
    for item, (pixels, y, x) in zip(ITEMS, corners, strict=True):
        tiles[item] = pixels[:, y : y + SIDE, x : x + SIDE]
    return torch.from_numpy(tiles)


def test_items_are_the_crops_whatever_is_asked_for_together() -> None:
    dataset, tiles = make(), expected()
    assert len(dataset) == len(tiles)
    assert torch.equal(dataset[5], tiles[5])
    assert torch.equal(dataset[-1], tiles[-1])
    wanted = [3, 3, 22, 0, 17, 9]
    assert torch.equal(dataset.tiles(np.array(wanted)), tiles[wanted])
    assert torch.equal(torch.stack(dataset.__getitems__(wanted)), tiles[wanted])
    assert dataset.tiles(np.zeros(0, np.int64)).shape == (0, 3, SIDE, SIDE)
    with pytest.raises(IndexError):
        dataset[len(tiles)]


def test_batches_hold_every_item_once() -> None:
    found = torch.zeros_like(expected())
    seen: list[int] = []
    for items, tiles in make().batches(4):
        found[torch.from_numpy(items)] = tiles
        seen += items.tolist()
    assert sorted(seen) == list(range(len(ITEMS)))
    assert torch.equal(found, expected())


def test_tiles_are_resampled() -> None:
    assert make(tile_px=8)[0].shape == (3, 8, 8)


def test_parts_number_every_item_once() -> None:
    boxes = boxes_on(lazy(FIRST), 3, SIDE)
    with pytest.raises(ValueError, match="items of the 2 parts are not 0 to 5, each once; number them over all parts"):
        TileDataset([(np.arange(3), boxes), (np.arange(3), boxes)], SIDE)


def test_decoded_chunks_are_kept_for_the_next_batch() -> None:
    image, decodings = counted(FIRST)
    dataset = TileDataset([(np.arange(40), boxes_on(image, 40, SIDE))], SIDE)
    order = np.random.default_rng(0).permutation(40)
    for batch in np.split(np.tile(order, 3), 12):
        dataset.tiles(batch)
    assert set(decodings.values()) == {1}


def test_no_more_chunks_are_held_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    image, decodings = counted(FIRST)
    dataset = TileDataset([(np.arange(40), boxes_on(image, 40, SIDE))], SIDE, max_bytes=7 * CHUNK_BYTES)
    (reader,) = dataset.readers
    held: list[int] = []
    decode = TileReader.decode

    def spy(self: TileReader, promised: Any) -> None:
        held.append(self.n_bytes)
        decode(self, promised)

    monkeypatch.setattr(TileReader, "decode", spy)
    crops = torch.from_numpy(np.stack([FIRST[:, y : y + SIDE, x : x + SIDE] for y, x in reader.boxes.origins.tolist()]))
    for batch in np.split(np.random.default_rng(0).permutation(40), 8):
        assert torch.equal(dataset.tiles(batch), crops[batch])
    assert max(held) <= 7 * CHUNK_BYTES
    assert reader.n_bytes == len(reader.held) * CHUNK_BYTES > 0
    assert decodings.total() > 16


def test_a_failed_chunk_is_tried_again() -> None:
    fails = [True]

    def once(block: UInt8Array) -> UInt8Array:
        if fails:
            fails.clear()
            msg = "network is down"
            raise OSError(msg)
        return block

    image = lazy(FIRST).map_blocks(once, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    boxes = Boxes(image, np.array([[2, 2]]), 8, mpp=1.0, background=np.zeros(3, np.uint8), overview_digest="", name="A")
    dataset = TileDataset([(np.arange(1), boxes)], 8)
    with pytest.raises(OSError, match=r"Chunk \(row 0, column 0\) of A cannot be decoded \(OSError: network is down\)"):
        dataset[0]
    assert torch.equal(dataset[0], torch.from_numpy(FIRST[:, 2:10, 2:10]))


def test_a_copy_for_another_process_holds_no_chunks() -> None:
    dataset = make()
    dataset.tiles(np.arange(10))
    copy = pickle.loads(pickle.dumps(dataset))  # what a DataLoader does for its workers
    assert [len(reader.held) for reader in copy.readers] == [0, 0]
    assert torch.equal(torch.stack(copy.__getitems__(range(23))), expected())


def all_ways(tile: torch.Tensor) -> list[torch.Tensor]:
    return [
        torch.from_numpy(np.rot90(flipped, k, (1, 2)).copy())
        for flipped in (tile.numpy(), tile.numpy()[..., ::-1])
        for k in range(4)
    ]


def test_tiles_are_laid_in_all_eight_ways() -> None:
    tile = expected()[3]
    assert {way.numpy().tobytes() for way in all_ways(tile)} == {lay(tile, way).numpy().tobytes() for way in range(8)}


def test_augmentation_depends_on_seed_epoch_and_item_alone() -> None:
    augmentation = Augmentation(stain=0.1)
    dataset = make(augmentation=augmentation, seed=3)
    together = torch.stack(dataset.__getitems__(range(23)))
    assert torch.equal(torch.stack([dataset[i] for i in reversed(range(23))]).flip(0), together)
    assert torch.equal(torch.stack(make(augmentation=augmentation, seed=3).__getitems__(range(23))), together)
    assert not torch.equal(torch.stack(make(augmentation=augmentation, seed=4).__getitems__(range(23))), together)
    dataset.epoch.fill_(1)
    assert not torch.equal(torch.stack(dataset.__getitems__(range(23))), together)


def test_turns_and_flips_leave_the_stain_alone_by_default() -> None:
    tiles = expected()
    seen = set()
    dataset = make(augmentation=Augmentation())
    for epoch in range(3):
        dataset.epoch.fill_(epoch)
        for item, tile in enumerate(dataset.__getitems__(range(23))):
            matches = [way for way in range(8) if torch.equal(tile, lay(tiles[item], way))]
            assert len(matches) == 1
            seen.add(matches[0])
    assert seen == set(range(8))


def test_workers_change_nothing() -> None:
    dataset = make(augmentation=Augmentation(stain=0.05))
    alone, spread = (
        torch.cat(
            list(DataLoader(dataset, batch_size=5, num_workers=n, multiprocessing_context="spawn" if n else None))
        )
        for n in (0, 2)
    )
    assert torch.equal(alone, spread)


def test_unchanged_stain_is_unchanged_tile() -> None:
    tile = torch.from_numpy(random_image(20, 20))
    error = restain(tile, torch.ones(3), torch.zeros(3)).int() - tile.int()
    assert error.abs().max() <= 1


def test_twice_the_stain_lets_the_square_of_the_light_through() -> None:
    """Beer and Lambert, all stains alike: optical density doubles in every channel."""
    tile = torch.from_numpy(random_image(20, 20))
    light = (tile.double() + 1) / 256
    expected_light = (light**2 * 256 - 1).round().clamp(0, 255)
    changed = restain(tile, torch.full((3,), 2.0), torch.zeros(3))
    assert (changed.double() - expected_light).abs().max() <= 1


def test_more_eosin_takes_green_and_leaves_haematoxylin() -> None:
    eosin, haematoxylin = (np.array(rgb) / np.linalg.norm(rgb) for rgb in ([0.07, 0.99, 0.11], [0.65, 0.70, 0.29]))
    rgb = 10.0 ** -np.column_stack([0.5 * eosin, 0.5 * haematoxylin]) * 256 - 1
    tile = torch.from_numpy(rgb.round().astype(np.uint8))[:, None]
    changed = restain(tile, torch.tensor([1.0, 1.5, 1.0]), torch.zeros(3))[:, 0].numpy().astype(int)
    np.testing.assert_allclose(changed[:, 0], 10.0 ** (-0.75 * eosin) * 256 - 1, atol=1.5)
    np.testing.assert_allclose(changed[:, 1], rgb[:, 1], atol=1.5)


@pytest.mark.parametrize("stain", [-0.1, 1.0, float("nan")])
def test_a_stain_jitter_that_is_none_is_refused(stain: float) -> None:
    with pytest.raises(ValueError, match=r"stain=.* is not in \[0, 1\); 0 leaves colours alone"):
        Augmentation(stain=stain)
