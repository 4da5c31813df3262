"""What is told of spots by where they lie on their image."""

import logging

import dask.array as da
import numpy as np
import pytest

from agl_sc._sdata.sections import Section
from agl_sc.pp._features.placed import place_section
from agl_sc.pp._features.tiles import TileSpec


@pytest.mark.parametrize(("n_spots", "share", "told"), [(20, 0.29, True), (20, 0.32, False), (19, 0.29, False)])
def test_spots_that_nobody_aligned_are_told(
    n_spots: int, share: float, caplog: pytest.LogCaptureFixture, *, told: bool
) -> None:
    """Microns on an image of .25 um per pixel; few spots may lie anywhere."""
    level = da.full((3, 400, 600), 128, dtype=np.uint8, chunks=(3, 200, 200))  # type: ignore[no-untyped-call]
    centres = np.linspace(10, share * np.array([600.0, 400.0]), n_spots)
    section = Section("A", np.arange(n_spots), "A_image", (level,), centres, 10.0, 1.0, None)
    with caplog.at_level(logging.WARNING):
        place_section(section, TileSpec(16, 1.0))
    assert (f"All {n_spots} spots of A lie in the first 30 % of the image along both sides" in caplog.text) == told
