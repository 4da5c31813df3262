"""Distances between sets, against those of all pairs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from spatialdata import SpatialData

from agl_sc._sdata.study import Study
from agl_sc.pp._splits.blocks import Positions, locate, shared_pixels

SETS = np.array(["train", "validation", "test", "unused"])


def scattered(n_spots: int, seed: int) -> tuple[Positions, NDArray[np.str_]]:
    """Spots on two images, one of them without a position, in random sets."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 1000, size=(n_spots, 2)).astype(float)
    centres[0] = np.nan
    images = rng.choice(["A", "B"], size=n_spots)
    return Positions(centres, images, images), rng.choice(SETS, size=n_spots)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6), st.sampled_from([0.0, 50.0, 112.0, 400.0]))
def test_shared_pixels_are_those_of_all_pairs(n_spots: int, seed: int, tile_um: float) -> None:
    places, assigned = scattered(n_spots, seed)
    apart = np.abs(places.centres_um[:, None] - places.centres_um).max(axis=2)  # scipy's drops NaN
    shares = (apart < tile_um) & (places.images[:, None] == places.images)  # never with a NaN
    expected = {
        "test": ((assigned == "test") & shares[:, np.isin(assigned, ["train", "validation"])].any(axis=1)).sum(),
        "validation": ((assigned == "validation") & shares[:, assigned == "train"].any(axis=1)).sum(),
    }
    assert shared_pixels(places.centres_um, places.images, assigned, tile_um=tile_um) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6), st.sampled_from([0.0, 60.0, 200.0, 3000.0]))
def test_the_buffer_holds_on_every_image_and_moves_no_test_spot(n_spots: int, seed: int, buffer_um: float) -> None:
    places, assigned = scattered(n_spots, seed)
    kept = places.with_buffer(assigned, buffer_um)
    moved = kept != assigned
    assert set(kept[moved]) <= {"unused"}
    assert not moved[assigned == "test"].any()
    for weak, strong in (("train", ["validation", "test"]), ("validation", ["test"])):
        against = np.isin(assigned, strong)
        apart = cdist(places.centres_um, places.centres_um[against])
        near = ((apart < buffer_um) & (places.images[:, None] == places.images[against])).any(axis=1)
        np.testing.assert_array_equal(moved[assigned == weak], near[assigned == weak])


def test_tiles_that_touch_share_no_pixel() -> None:
    centres = np.array([[0.0, 0.0], [112.0, 0.0], [0.0, 111.0]])
    one = np.array(["A"] * 3)
    touching = shared_pixels(centres[:2], one[:2], np.array(["test", "train"]), tile_um=112.0)
    assert touching == {"test": 0, "validation": 0}
    overlapping = shared_pixels(centres, one, np.array(["test", "train", "validation"]), tile_um=112.0)
    assert overlapping == {"test": 1, "validation": 0}  # validation at (0, 111) is 112 from train in x


def test_places_are_microns_on_the_image(tissue: SpatialData) -> None:
    table = tissue["table"]
    places = locate(Study.of(tissue))
    np.testing.assert_allclose(places.centres_um, table.obsm["spatial"] * 1.0)  # 1 um per pixel
    assert places.images.tolist() == [f"{name}_image" for name in table.obs["section"]]
    assert places.known.all()
    coarse = {**tissue.attrs["agl_sc"], "image_mpp": dict.fromkeys(tissue.images, 0.5), "technology": {}}
    tissue.attrs["agl_sc"] = coarse
    np.testing.assert_allclose(locate(Study.of(tissue)).centres_um, table.obsm["spatial"] * 0.5)


@pytest.mark.parametrize(
    ("x", "y", "block"), [(0, 0, "A/0/0"), (99, 99, "A/0/0"), (100, 0, "A/0/1"), (0, 250, "A/2/0")]
)
def test_blocks_start_at_the_corner_of_their_section(x: float, y: float, block: str) -> None:
    centres: Any = np.array([[1000.0, 500.0], [1000.0 + x, 500.0 + y], [0.0, 0.0]])
    names = np.array(["A", "A", "B"])
    assert Positions(centres, names, names).blocks(100.0).tolist() == ["A/0/0", block, "B/0/0"]
