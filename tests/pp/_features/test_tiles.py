"""Which pixels a tile is made of."""

from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from agl_sc._sdata.sections import Section
from agl_sc.pp._features import tiles as module
from agl_sc.pp._features.tiles import TileSpec, boxes_of

CENTRES = np.array([[200.0, 150.0], [333.5, 99.5], [64.25, 212.75]])
"""(x, y), well inside."""


def pixels(height: int = 400, width: int = 480) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)


def lazy(image: NDArray[np.uint8]) -> Any:
    return da.from_array(image, chunks=(3, 128, 128))  # type: ignore[no-untyped-call]


def section(*shapes: tuple[int, int], centres: NDArray[np.float64] = CENTRES) -> Section:
    levels = tuple(lazy(pixels(*shape)) for shape in shapes or [(400, 480)])
    return Section(
        name="S",
        rows=np.arange(len(centres)),
        image_key="S_image",
        levels=levels,
        centres=centres,
        radius=10.0,
        image_mpp=None,
        technology=None,
    )


PYRAMID = ((400, 480), (200, 240), (100, 120))


@pytest.mark.parametrize(
    ("mpp", "level", "side"),
    [
        pytest.param(0.25, 0, 16, id="finer than the image"),
        pytest.param(0.5, 0, 32, id="level 0"),
        pytest.param(0.7, 0, 45, id="between levels takes the finer one"),
        pytest.param(0.995, 1, 32, id="within 1 % of level 1"),
        pytest.param(1.0, 1, 32, id="level 1"),
        pytest.param(1.9, 1, 61, id="just finer than level 2"),
        pytest.param(2.0, 2, 32, id="level 2"),
        pytest.param(4.0, 2, 64, id="coarser than the coarsest level"),
        pytest.param("image", 0, 32, id="image"),
    ],
)
def test_the_coarsest_level_that_is_fine_enough(mpp: Any, level: int, side: int) -> None:
    boxes = boxes_of(section(*PYRAMID), TileSpec(32, mpp), 0.5)
    assert boxes.image.shape[1:] == PYRAMID[level]
    assert boxes.side == side
    assert boxes.mpp == (0.5 if mpp == "image" else mpp)


@pytest.mark.parametrize("mpp", [0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("tile_px", [31, 32])
def test_a_tile_lies_around_its_spot(mpp: float, tile_px: int) -> None:
    boxes = boxes_of(section(*PYRAMID), TileSpec(tile_px, mpp), 0.5)
    scale = 400 / boxes.image.shape[1]
    middles = (boxes.origins + boxes.side / 2) * scale
    assert np.abs(middles - CENTRES[:, ::-1]).max() <= scale / 2
    assert boxes.side * scale * 0.5 == pytest.approx(tile_px * mpp, abs=scale * 0.5)


def test_levels_of_odd_size_keep_both_axes() -> None:
    """333 rows halve to 41 (a factor of 8.12), 2001 columns to 250 (8.004)."""
    far = np.array([[1900.0, 300.0]])
    boxes = boxes_of(section((333, 2001), (166, 1000), (83, 500), (41, 250), centres=far), TileSpec(8, 8.2), 1.0)
    assert boxes.image.shape[1:] == (41, 250)
    y, x = boxes.origins[0] + boxes.side / 2
    assert abs(x - 1900 / 2001 * 250) <= 0.5
    assert abs(y - 300 / 333 * 41) <= 0.5


def test_up_sampling_beyond_twofold_is_refused_with_the_reason() -> None:
    coarse = section()
    assert boxes_of(coarse, TileSpec(224, 0.5), 1.0).side == 112
    with pytest.raises(
        ValueError,
        match=r"mpp=0.5 needs 8.3x up-sampling of 'S_image', whose own resolution is 4.14 um/px "
        r"\(112 um are only 27 px there\); read a finer image, or ask for mpp='image'",
    ):
        boxes_of(coarse, TileSpec(224, 0.5), 4.14)
    assert boxes_of(coarse, TileSpec(224, "image"), 4.14).side == 224


def test_a_tile_larger_than_the_image_both_ways_is_refused_with_both_sizes() -> None:
    with pytest.raises(
        ValueError,
        match=r"A tile of 224 px at mpp=4 is 896 x 896 px of image 'S_image' \(level 0\), which has only 480 x 400 px; "
        r"use a smaller tile_px, or check image_mpp=1\.",
    ):
        boxes_of(section(), TileSpec(224, 4.0), 1.0)
    assert boxes_of(section(), TileSpec(448, 1.0), 1.0).padded.all()  # it fits one way


def test_boxes_that_reach_beyond_the_image_are_told_apart() -> None:
    corners = np.array([[16.0, 16.0], [15.0, 16.0], [464.0, 384.0], [464.0, 385.0], [-900.0, 50.0]])
    boxes = boxes_of(section(centres=corners), TileSpec(32, 1.0), 1.0)
    assert boxes.padded.tolist() == [False, True, False, True, True]


def test_background_is_the_bright_end_of_every_channel() -> None:
    image = np.full((3, 400, 480), [[[230]], [[220]], [[210]]], dtype=np.uint8)
    image[:, 100:200, 100:300] = 40  # tissue
    glass = replace(section(), levels=(lazy(image),))
    assert boxes_of(glass, TileSpec(32, 1.0), 1.0).background.tolist() == [230, 220, 210]


def test_the_digest_tells_images_apart() -> None:
    same, again = (boxes_of(section(), TileSpec(32, 1.0), 1.0).overview_digest for _ in range(2))
    other = pixels()
    other[1, 7, 7] ^= 1
    changed = boxes_of(replace(section(), levels=(lazy(other),)), TileSpec(32, 1.0), 1.0).overview_digest
    assert same == again != changed


def test_a_large_coarsest_level_is_known_by_some_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OVERVIEW_BYTES", 4 * 3 * 128 * 128)
    image = pixels()
    image[:] = image // 16 + 200
    decoded: list[int] = []

    def count(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
        decoded.append(1)
        return block

    counted = lazy(image).map_blocks(count, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    boxes = boxes_of(replace(section(), levels=(counted,)), TileSpec(32, 1.0), 1.0)
    assert len(decoded) == 4  # of 16
    assert (boxes.background == 215).all()
    other = image.copy()
    other[1] += 1
    assert (
        boxes_of(replace(section(), levels=(lazy(other),)), TileSpec(32, 1.0), 1.0).overview_digest
        != boxes.overview_digest
    )


@pytest.mark.parametrize("tile_px", [7, 0, -224, 224.0, "224", None])
def test_a_tile_that_is_no_tile_is_refused(tile_px: Any) -> None:
    with pytest.raises(ValueError, match=r"tile_px=.* is not a whole number of at least 8 pixels; 224 is usual"):
        TileSpec(tile_px, 0.5)


@pytest.mark.parametrize("mpp", [0, -0.5, float("nan"), "picture"])
def test_a_scale_that_is_no_scale_is_refused(mpp: Any) -> None:
    with pytest.raises(ValueError, match=r"mpp=.* is neither a positive number of microns per pixel nor 'image'"):
        TileSpec(224, mpp)


def test_a_wide_field_of_view_may_exceed_the_image() -> None:
    wide = boxes_of(section(), TileSpec(224, 4.0), 1.0, may_exceed=True)
    assert wide.side == 896
    assert wide.padded.all()
