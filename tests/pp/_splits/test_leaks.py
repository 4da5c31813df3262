"""What sets share is counted and told."""

import logging
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from spatialdata import SpatialData

from agl_sc._sdata.study import Study
from agl_sc.pp import split
from agl_sc.pp._splits.leaks import tile_um


def of_tiles(sdata: SpatialData, tile_um: float) -> None:
    """As if features of tiles alone were there."""
    rest = {"encoder": "x", "weights_digest": "0", "image_mpp": {}, "images": {}, "sections": {}}
    sdata["table"].uns["agl"] = {"features": {**rest, "tile_px": 112, "mpp": tile_um / 112}}


def test_what_a_wider_buffer_costs_is_told(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    of_tiles(tissue, 112)
    with caplog.at_level(logging.WARNING):
        split(tissue, by="block", test=0.15, validation=0.15, block_um=250, buffer_um=0.0)
    n_train = (tissue["table"].obs["agl_split"] == "train").sum()
    told = next(message for message in caplog.messages if message.startswith("buffer_um="))
    n_left = int(told.split(" training spots")[0].split()[-3])
    assert told.startswith(
        f"buffer_um=159 would keep them apart and leave {n_left} of {n_train} training spots; so would"
    )
    split(tissue, by="block", test=0.15, validation=0.15, block_um=250, buffer_um=159)
    assert tissue["table"].uns["agl"]["split"]["shared_pixels"] == {"test": 0, "validation": 0}
    assert (tissue["table"].obs["agl_split"] == "train").sum() == n_left


def test_tiles_of_a_random_split_share_pixels(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = tissue["table"]
    of_tiles(tissue, 112)
    with caplog.at_level(logging.WARNING):
        split(tissue, by="spot", test=0.3, validation=0.0)
    test = (table.obs["agl_split"] == "test").to_numpy()
    xy, section = table.obsm["spatial"], table.obs["section"].to_numpy()
    shares = (cdist(xy, xy, "chebyshev") < 112) & (section[:, None] == section)
    n_shared = int((test & shares[:, ~test].any(axis=1)).sum())
    assert n_shared > 20  # of 48: spots lie 100 um apart
    manifest = table.uns["agl"]["split"]
    assert manifest["shared_pixels"] == {"test": n_shared, "validation": 0}
    assert manifest["tile_um"] == 112
    assert f"{n_shared} of 48 test tiles of 112 um share pixels with a training or validation tile." in caplog.text


def test_a_buffer_wider_than_a_tile_leaves_no_shared_pixel(tissue: SpatialData) -> None:
    of_tiles(tissue, 112)
    for buffer_um, shared in ((0.0, True), (160.0, False)):
        split(tissue, by="block", test=0.15, validation=0.15, block_um=250, buffer_um=buffer_um)
        counts = tissue["table"].uns["agl"]["split"]["shared_pixels"]
        assert all((n > 0) == shared for n in counts.values())


def test_sections_on_one_image_share_its_pixels(tissue: SpatialData) -> None:
    """Regions of one slide, closer than a tile: whole sections, and yet the same pixels."""
    from spatialdata.transformations import get_transformation, set_transformation

    system = get_transformation(tissue.images["section_1_image"], get_all=True)
    set_transformation(tissue["section_2"], system, set_all=True)
    del tissue.images["section_2_image"]
    split(tissue, test="section_2", validation="section_3")
    assert tissue["table"].uns["agl"]["split"]["shared_pixels"] == {"test": 53, "validation": 0}


@pytest.mark.parametrize(
    ("made_from", "expected"),
    [
        pytest.param(None, 896.0, id="no features"),
        pytest.param({"tile_px": 32, "mpp": 1.5}, 48.0, id="own tile"),
        pytest.param({"tile_px": 32, "mpp": 1.5, "context": "2 4"}, 192.0, id="widest field of view"),
    ],
)
def test_the_tile_is_that_of_the_features(tissue: SpatialData, made_from: Any, expected: float) -> None:
    rest = {"encoder": "x", "weights_digest": "0", "image_mpp": {}, "images": {}, "sections": {}}
    if made_from is not None:
        tissue["table"].uns["agl"] = {"features": {**rest, **made_from}}
    assert tile_um(Study.of(tissue).features) == expected


def test_tiles_are_counted_by_positions_alone(tissue: SpatialData) -> None:
    table, found = tissue["table"], []
    for _ in range(2):
        split(tissue, by="block", block_um=200, buffer_um=50)
        found.append((table.uns["agl"]["split"]["shared_pixels"], list(table.obs["agl_split"])))
        for name in list(tissue.images):
            del tissue.images[name]
    assert found[0] == found[1]


def test_without_a_scale_nothing_is_counted_and_that_is_told(
    tissue: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    tissue.attrs["agl_sc"] = {}
    with caplog.at_level(logging.WARNING):
        split(tissue)
    assert "Tiles of different sets that share pixels were not counted: The microns per pixel of" in caplog.text
    assert "shared_pixels" not in tissue["table"].uns["agl"]["split"]


def test_sections_of_one_patient_in_training_and_test(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = tissue["table"]
    table.obs["patient"] = np.where(table.obs["section"] == "section_1", "B", "C")
    with caplog.at_level(logging.WARNING):
        split(tissue, test="section_1", validation="section_2")
        assert not caplog.records
        split(tissue, test="section_3", validation="section_1")
    assert "Sections of patient 'C' are in training and test (section_2, section_3)" in caplog.text


@pytest.mark.parametrize("kind", ["str", "object", "category"])
def test_patients_are_not_told_for_one_where_another_has_no_name(
    tissue: SpatialData, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    sections = tissue["table"].obs["section"].astype(object)
    tissue["table"].obs["patient"] = sections.replace("section_3", None).astype(kind)
    with caplog.at_level(logging.WARNING):
        split(tissue, test="section_1", validation="section_2")
    assert "are in training and test" not in caplog.text


def test_one_section_under_two_names(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = tissue["table"]
    dense = table.X.toarray()
    dense[table.obs["section"] == "section_3"] = dense[table.obs["section"] == "section_2"][::-1]
    table.X = dense
    with caplog.at_level(logging.WARNING):
        split(tissue, assignments={"section_1": "test", "section_2": "train", "section_3": "train"})
        assert not caplog.records
        split(tissue, test="section_2", validation="section_1")
    assert "section_2 and section_3 hold the same spots (100 % have the same expression profile)" in caplog.text
    assert "are in different sets: drop one of the two" in caplog.text
