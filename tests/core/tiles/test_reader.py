"""Reading boxes from chunked images."""

import threading
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from agl_sc.core.tiles import reader as tiles_module
from agl_sc.core.tiles.reader import Boxes, TileBatch, read_boxes, resize, tile_batches

UInt8Array = NDArray[np.uint8]
BACKGROUND = np.array([250, 240, 230], dtype=np.uint8)


def random_image(height: int, width: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def lazy(pixels: UInt8Array, chunks: tuple[int, int, int]) -> Any:
    return da.from_array(pixels, chunks=chunks)  # type: ignore[no-untyped-call]


def boxes_on(image: Any, origins: list[tuple[int, int]], side: int) -> Boxes:
    corners = np.array(origins, dtype=np.int64).reshape(-1, 2)
    return Boxes(
        image, corners, side=side, mpp=0.5, background=BACKGROUND, overview_digest="", name="image 'A' (level 0)"
    )


def brute_force(pixels: UInt8Array, origin: tuple[int, int], side: int) -> UInt8Array:
    """Crop of an image with a margin of background wide enough for every box of these tests."""
    margin = 200
    padded = np.empty((3, pixels.shape[1] + 2 * margin, pixels.shape[2] + 2 * margin), dtype=np.uint8)
    padded[:] = BACKGROUND[:, None, None]
    padded[:, margin:-margin, margin:-margin] = pixels
    y, x = origin[0] + margin, origin[1] + margin
    return padded[:, y : y + side, x : x + side]


def zip_boxes(boxes: Boxes, **options: int) -> Iterator[tuple[int, UInt8Array]]:
    """Boxes one by one in reading order."""
    for numbers, tiles in read_boxes(boxes, 7, **options):
        yield from zip(numbers.tolist(), tiles, strict=True)


def assert_exact(pixels: UInt8Array, boxes: Boxes, **options: int) -> None:
    tiles = dict(zip_boxes(boxes, **options))
    assert sorted(tiles) == list(range(len(boxes.origins)))
    for index, (y, x) in enumerate(boxes.origins.tolist()):
        np.testing.assert_array_equal(tiles[index], brute_force(pixels, (y, x), boxes.side))


@st.composite
def images_and_boxes(draw: st.DrawFn) -> tuple[UInt8Array, Boxes]:
    height, width, side = (draw(st.integers(1, high)) for high in (60, 60, 40))
    chunks = (draw(st.integers(1, 3)), draw(st.integers(3, 64)), draw(st.integers(3, 64)))
    corners = st.tuples(st.integers(-side - 20, height + 20), st.integers(-side - 20, width + 20))
    pixels = random_image(height, width)
    return pixels, boxes_on(lazy(pixels, chunks), draw(st.lists(corners, max_size=12)), side)


@settings(deadline=None)  # the machine may be busy
@given(images_and_boxes())
def test_boxes_equal_crops_of_the_padded_image(case: tuple[UInt8Array, Boxes]) -> None:
    assert_exact(*case)


@settings(deadline=None)  # the machine may be busy
@given(images_and_boxes(), st.integers(1, 5000))
def test_boxes_are_exact_in_a_bounded_cache(case: tuple[UInt8Array, Boxes], max_bytes: int) -> None:
    assert_exact(*case, max_bytes=max_bytes)


BORDERS = [
    pytest.param((-5, 20), id="top"),
    pytest.param((20, -5), id="left"),
    pytest.param((35, 20), id="bottom"),
    pytest.param((20, 45), id="right"),
    pytest.param((-5, -5), id="top left corner"),
    pytest.param((35, 45), id="bottom right corner"),
    pytest.param((-100, 20), id="above"),
    pytest.param((20, 51), id="just outside on the right"),
    pytest.param((40, 20), id="just outside below"),
    pytest.param((-10, -10), id="touching the corner from outside"),
]


@pytest.mark.parametrize("origin", BORDERS)
def test_boxes_over_borders_are_padded_and_said_to_be(origin: tuple[int, int]) -> None:
    pixels = random_image(40, 51)
    boxes = boxes_on(lazy(pixels, (3, 16, 16)), [origin, (0, 0), (30, 41)], 10)
    assert_exact(pixels, boxes)
    assert boxes.padded.tolist() == [True, False, False]


def test_box_outside_is_background_alone() -> None:
    image = lazy(random_image(20, 20), (3, 8, 8))
    ((_, (tile,)),) = read_boxes(boxes_on(image, [(50, 3)], 5), 4)
    assert (tile == BACKGROUND[:, None, None]).all()
    assert tile.dtype == np.uint8


def test_box_larger_than_the_image() -> None:
    pixels = random_image(7, 9)
    assert_exact(pixels, boxes_on(lazy(pixels, (3, 4, 4)), [(-10, -10)], 30))


def test_no_boxes() -> None:
    image = lazy(random_image(20, 20), (3, 8, 8))
    assert list(read_boxes(boxes_on(image, [], 5), 4)) == []
    assert list(tile_batches(boxes_on(image, [], 5), 5, 4)) == []


def test_tiles_are_copies() -> None:
    pixels = random_image(20, 20)
    boxes = boxes_on(lazy(pixels, (3, 20, 20)), [(0, 0), (0, 0)], 20)
    stream = zip_boxes(boxes)
    _, first = next(stream)
    first[:] = 0
    np.testing.assert_array_equal(next(stream)[1], pixels)


def counted(pixels: UInt8Array, side: int) -> tuple[Any, Counter[tuple[int, ...]]]:
    """Image that counts how often each of its chunks is computed."""
    decodings: Counter[tuple[int, ...]] = Counter()

    def count(block: UInt8Array, block_id: tuple[int, ...] = ()) -> UInt8Array:
        decodings[block_id] += 1
        return block

    image = lazy(pixels, (3, side, side))
    return image.map_blocks(count, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)), decodings


def scattered(n_boxes: int, extent: int) -> list[tuple[int, int]]:
    return [(int(y), int(x)) for y, x in np.random.default_rng(0).integers(-10, extent, (n_boxes, 2))]


def test_every_chunk_is_decoded_once() -> None:
    pixels = random_image(96, 96)
    image, decodings = counted(pixels, 16)
    assert_exact(pixels, boxes_on(image, scattered(150, 96), 20))
    assert len(decodings) == 36
    assert set(decodings.values()) == {1}


CHUNK_BYTES = 3 * 16 * 16


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of chunks held whenever some were asked for."""
    seen: list[int] = []
    submit = tiles_module._Ahead._submit

    def spy(ahead: Any, wanted: Any) -> None:
        reader = ahead.reader
        assert reader.n_bytes == sum(int(reader.sizes[chunk]) for chunk in reader.held)
        seen.append(reader.n_bytes)
        submit(ahead, wanted)

    monkeypatch.setattr(tiles_module._Ahead, "_submit", spy)
    return seen


def test_a_row_of_chunks_and_three_more_suffice_to_decode_each_once(held: list[int]) -> None:
    """Boxes that span two rows leave one row of six to the next; the other three are where the boxes are."""
    pixels = random_image(96, 96)
    image, decodings = counted(pixels, 16)
    assert_exact(pixels, boxes_on(image, scattered(150, 96), 12), max_bytes=9 * CHUNK_BYTES)
    assert decodings.total() == 36
    assert max(held) <= 9 * CHUNK_BYTES


@pytest.mark.parametrize(("n_chunks", "at_most"), [(8, 1.2), (6, 1.4), (4, 2.0)])
def test_wide_images_are_read_in_bands_that_fit(n_chunks: int, at_most: float, held: list[int]) -> None:
    pixels = random_image(96, 384)
    image, decodings = counted(pixels, 16)
    origins = [(int(y), int(x)) for y, x in np.random.default_rng(0).integers(0, (85, 373), (900, 2))]
    assert_exact(pixels, boxes_on(image, origins, 12), max_bytes=n_chunks * CHUNK_BYTES)
    assert len(decodings) == 6 * 24
    assert decodings.total() <= at_most * len(decodings)
    assert max(held) <= n_chunks * CHUNK_BYTES


def test_a_bound_below_what_one_box_touches_is_exceeded_by_no_more(held: list[int]) -> None:
    pixels = random_image(96, 96)
    assert_exact(pixels, boxes_on(lazy(pixels, (3, 16, 16)), scattered(150, 96), 12), max_bytes=1)
    assert max(held) == 4 * CHUNK_BYTES


def test_what_has_been_used_is_let_go(held: list[int]) -> None:
    """Two of 40 rows of chunks, and what is read ahead."""
    pixels = random_image(640, 96)
    image, decodings = counted(pixels, 16)
    origins = [(y, x) for y in range(0, 624, 8) for x in range(0, 80, 8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles_module, "_PARCEL_BYTES", CHUNK_BYTES)
        assert_exact(pixels, boxes_on(image, origins, 16))
    assert decodings.total() == 240
    assert max(held) <= (2 * 6 + 2 * tiles_module._N_THREADS + 4) * CHUNK_BYTES


def test_what_two_chunks_need_is_computed_once_for_both() -> None:
    """As bands of a TIFF are, of which each holds many chunks."""
    pixels, bands = random_image(64, 96), Counter[int]()

    def count(block: UInt8Array, block_id: tuple[int, ...] = ()) -> UInt8Array:
        bands[block_id[1]] += 1
        return block

    image = lazy(pixels, (3, 16, 96)).map_blocks(count, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    assert_exact(pixels, boxes_on(image.rechunk((3, 16, 16)), scattered(60, 96), 10))
    assert bands == Counter(range(4))


def test_chunks_that_no_box_touches_are_not_decoded() -> None:
    image, decodings = counted(random_image(96, 96), 16)
    list(read_boxes(boxes_on(image, [(33, 33), (32, 32)], 15), 4))
    assert dict(decodings) == {(0, 2, 2): 1}


@pytest.mark.parametrize("tile_px", [16, 8])
@pytest.mark.parametrize("batch_size", [1, 4, 25, 100])
def test_tile_batches_hold_every_box_once(batch_size: int, tile_px: int) -> None:
    pixels = random_image(64, 64)
    boxes = boxes_on(lazy(pixels, (3, 16, 16)), scattered(25, 64), 16)
    batches = list(tile_batches(boxes, tile_px, batch_size))
    assert [len(index) for index, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches) == -(-25 // batch_size)
    order = np.concatenate([index for index, _ in batches])
    assert sorted(order) == list(range(25))
    tiles = torch.cat([tiles for _, tiles in batches])
    assert tiles.dtype == torch.uint8
    expected = np.stack([brute_force(pixels, (y, x), 16) for y, x in boxes.origins[order].tolist()])
    torch.testing.assert_close(tiles, resize(torch.from_numpy(expected), tile_px), rtol=0, atol=0)


def test_batches_come_in_reading_order() -> None:
    image = lazy(random_image(64, 64), (3, 16, 16))
    origins = [(40, 40), (0, 40), (40, 0), (0, 0), (2, 41)]
    ((index, _),) = tile_batches(boxes_on(image, origins, 4), 4, 10)
    assert index.tolist() == [3, 1, 4, 2, 0]


def decode_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("agl_sc-")]


def failing(pixels: UInt8Array, bad: tuple[int, int]) -> Any:
    """Image with one chunk of 16 px that cannot be decoded."""

    def decode(block: UInt8Array, block_id: tuple[int, ...] = ()) -> UInt8Array:
        if block_id[1:] == bad:
            msg = "bad bytes"
            raise RuntimeError(msg)
        return block

    return lazy(pixels, (3, 16, 16)).map_blocks(decode, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))


def test_a_chunk_that_cannot_be_decoded_is_named_after_what_lies_before_it() -> None:
    pixels = random_image(96, 96)
    boxes = boxes_on(failing(pixels, (4, 2)), [(y, x) for y in range(0, 96, 16) for x in range(0, 96, 16)], 16)
    batches = tile_batches(boxes, 16, 4)
    assert [next(batches)[0].tolist() for _ in range(6)] == np.arange(24).reshape(6, 4).tolist()
    with pytest.raises(
        OSError,
        match=r"^Chunk \(row 4, column 2\) of image 'A' \(level 0\) cannot be decoded \(RuntimeError: bad bytes\); copy",
    ):
        next(batches)
    assert decode_threads() == []


def test_closing_the_batches_stops_the_threads() -> None:
    pixels = random_image(96, 96)
    boxes = boxes_on(lazy(pixels, (3, 16, 16)), scattered(100, 96), 12)
    batches = tile_batches(boxes, 12, 4)
    next(batches)
    assert decode_threads()
    batches.close()
    assert decode_threads() == []


def test_reading_runs_ahead_no_further_than_it_should() -> None:
    given: list[int] = []

    def batches() -> Generator[TileBatch]:
        for number in range(20):
            given.append(number)
            yield np.array([number]), torch.zeros(1)

    ahead = tiles_module._ahead(batches(), 2)
    for number in range(5):
        assert next(ahead)[0] == [number]
        assert len(given) <= number + 3


def test_resize_to_the_same_size_changes_nothing() -> None:
    tiles = torch.from_numpy(random_image(32, 32)[None])
    assert torch.equal(resize(tiles, 32), tiles)


@pytest.mark.parametrize("tile_px", [1, 13, 64, 224])
def test_resize_keeps_flat_colours_and_the_mean_grey_level(tile_px: int) -> None:
    flat = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 100, 100)
    assert torch.equal(resize(flat, tile_px), flat[:, :, :1, :1].expand(2, 3, tile_px, tile_px))
    ramp = torch.arange(100).mul(2).to(torch.uint8).view(1, 1, 1, 100).expand(1, 3, 100, 100)
    assert resize(ramp, tile_px).float().mean().item() == pytest.approx(99, abs=0.6)


@pytest.mark.parametrize("tile_px", [25, 60, 224])
def test_resize_is_as_pillows_bilinear(tile_px: int) -> None:
    """Antialiased, on noise; Pillow rounds between its two passes, so that a grey level may be one off."""
    pixels = random_image(100, 100)
    expected = Image.fromarray(pixels.transpose(1, 2, 0)).resize((tile_px, tile_px), Image.Resampling.BILINEAR)
    resized = resize(torch.from_numpy(pixels[None]), tile_px)[0].permute(1, 2, 0).numpy()
    error = np.abs(resized.astype(int) - np.asarray(expected).astype(int))
    assert error.max() <= 1
    assert error.mean() < 0.25
