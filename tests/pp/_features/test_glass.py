import logging

import dask.array as da
import numpy as np
import pytest

from agl_sc._sdata.sections import Section
from agl_sc.pp._features.glass import glass_of, on_glass
from agl_sc.pp._features.placed import place_section
from agl_sc.pp._features.tiles import TileSpec, overview

SPEC = TileSpec(40, 1.0)


def section(*, background: int = 240, far: int = 100) -> Section:
    """Glass with tissue left of column 200, and fat, as bright but with membranes, from row 200 on."""
    pixels = np.random.default_rng(0).normal(background, 3, (3, 400, 400))
    pixels[:, :, :200] = far
    pixels[:, 200:, ::8] = far + 40
    pixels[:, 200:, 1::8] = far + 40
    level = da.from_array(pixels.clip(0, 255).astype(np.uint8), chunks=(3, 200, 200))  # type: ignore[no-untyped-call]
    centres = np.array([[100.0, 100.0], [300.0, 100.0], [300.0, 300.0], [200.0, 100.0], [330.0, 60.0]])
    return Section("A", np.arange(5), "A_image", (level, level[:, ::4, ::4]), centres, 10.0, 1.0, None)


def test_spots_on_glass_are_told_and_fat_and_edges_are_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found, boxes = place_section(section(), SPEC)
    assert "2 of 5 spots of A lie on glass" in caplog.text
    assert on_glass(found, boxes, overview(found).glass).tolist() == [False, True, False, False, True]


def test_without_glass_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found, _ = place_section(section(background=150, far=60), SPEC)
    assert overview(found).glass is None
    assert caplog.text == ""


def test_tiles_that_are_a_few_pixels_of_the_overview_tell_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        place_section(section(), TileSpec(12, 1.0))
    assert caplog.text == ""


def test_colour_of_the_background_is_taken_channel_by_channel() -> None:
    background = np.array([240, 230, 235], dtype=np.uint8)
    pixels = np.array([[240, 230, 235], [221, 250, 216], [240, 209, 235], [255, 255, 255]], dtype=np.uint8).T[:, None]
    glass = glass_of(pixels, background)
    assert glass is not None
    assert glass.tolist() == [[True, True, False, False]]
