"""Features of tiles: of the right pixels, in the right rows, computed once."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from agl_sc._sdata.study import Study
from agl_sc.core.encoders.load import load_encoder
from agl_sc.pp import embed
from agl_sc.pp._features import embed as module
from agl_sc.pp._features.made_from import placed_again

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}


def brute_force(sdata: SpatialData, section: str, side: int) -> torch.Tensor:
    """Crops of the image around every spot of a section, (n_spots, 3, side, side)."""
    image = sdata[f"{section}_image"]["scale0"]["image"].to_numpy()
    centres = sdata["table"].obsm["spatial"][(sdata["table"].obs["section"] == section).to_numpy()]
    corners = np.round(centres - side / 2).astype(int)
    return torch.from_numpy(np.stack([image[:, y : y + side, x : x + side] for x, y in corners]))


def rows_of(sdata: SpatialData, section: str) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = (sdata["table"].obs["section"] == section).to_numpy()
    return rows


def move_spot(sdata: SpatialData, section: str, xy: tuple[float, float]) -> None:
    """Put the first spot of a section elsewhere."""
    old = sdata.shapes[section]
    points = shapely.points([xy, *shapely.get_coordinates(old.geometry)[1:]])
    frame = gpd.GeoDataFrame({"geometry": points, "radius": old["radius"].to_numpy()}, index=old.index)
    sdata.shapes[section] = ShapesModel.parse(frame, transformations=get_transformation(old, get_all=True))


def no_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        pytest.fail("tiles were encoded again")

    monkeypatch.setattr(module, "encode", refuse)


def test_features_are_those_of_the_crops_around_the_spots(tissue: SpatialData) -> None:
    embed(tissue, **TILES)
    with torch.inference_mode():
        expected = load_encoder("efficientnet_lite0")(brute_force(tissue, "section_2", 32))
    features = tissue["table"].obsm["agl_features"]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[rows_of(tissue, "section_2")], expected, atol=2e-4)


def test_features_of_coarser_tiles_are_those_of_resampled_crops(tissue: SpatialData) -> None:
    embed(tissue, **{**TILES, "mpp": 2.0})
    crops = brute_force(tissue, "section_1", 64).float()
    small = torch.nn.functional.interpolate(crops, (32, 32), mode="bilinear", antialias=True).round().to(torch.uint8)
    with torch.inference_mode():
        expected = load_encoder("efficientnet_lite0")(small)
    np.testing.assert_allclose(tissue["table"].obsm["agl_features"][rows_of(tissue, "section_1")], expected, atol=2e-4)


def test_rows_follow_a_shuffled_table(tissue: SpatialData, prepared: SpatialData) -> None:
    order = np.random.default_rng(0).permutation(tissue["table"].n_obs)
    tissue.tables["table"] = tissue["table"][order].copy()
    embed(tissue, batch_size=7, **TILES)
    expected = prepared["table"].obsm["agl_features"][order]
    np.testing.assert_allclose(tissue["table"].obsm["agl_features"], expected, atol=2e-4)


def test_only_the_declared_slots_are_written(
    tissue: SpatialData, slots: Callable[[SpatialData], dict[str, Any]]
) -> None:
    before = slots(tissue)
    embed(tissue, key_added="mine", shapes_key="section_2", **TILES)
    after = slots(tissue)
    assert {name: after[name] for name in before} == before
    record = {
        f"uns/mine/features/{name}"
        for name in (
            *(
                "encoder",
                "weights_digest",
                "tile_px",
                "mpp",
                "context",
                "neighbors",
                "orientations",
                "stages",
                "maps",
                "precision",
            ),
            *(f"{per_section}/section_2" for per_section in ("image_mpp", "images", "sections")),
        )
    }
    address = {"uns/mine/tiles", "uns/mine/address/image_key/section_2"}
    address |= {f"uns/mine/reference/{name}/section_2" for name in ("means", "n_tiles")}
    assert after.keys() - before.keys() == {"obsm/mine_features"} | record | address


def test_regions_left_out_have_no_features(tissue: SpatialData) -> None:
    embed(tissue, shapes_key=["section_2"], **TILES)
    known = np.isfinite(tissue["table"].obsm["agl_features"]).all(axis=1)
    np.testing.assert_array_equal(known, rows_of(tissue, "section_2"))


def test_the_second_call_computes_nothing(prepared: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    features = prepared["table"].obsm["agl_features"]
    no_encoding(monkeypatch)
    embed(prepared, **TILES)
    assert prepared["table"].obsm["agl_features"] is features


def test_features_read_back_from_disk_are_not_computed_again(
    prepared: SpatialData, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared.write(tmp_path / "prepared.zarr")
    no_encoding(monkeypatch)
    embed(SpatialData.read(tmp_path / "prepared.zarr"), **TILES)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"tile_px": 40}, id="tile_px"),
        pytest.param({"mpp": 1.5}, id="mpp"),
        pytest.param({"image_mpp": 0.97}, id="image_mpp"),
        pytest.param({"shapes_key": "section_1"}, id="sections"),
    ],
)
def test_other_tiles_are_computed_again(prepared: SpatialData, changes: dict[str, Any]) -> None:
    before = prepared["table"].obsm["agl_features"].copy()
    embed(prepared, **{**TILES, **changes})
    assert not np.array_equal(prepared["table"].obsm["agl_features"], before, equal_nan=True)


@pytest.mark.parametrize("precision", ["bfloat16", None])
def test_features_of_another_or_unknown_precision_are_computed_again(
    prepared: SpatialData, precision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = prepared["table"].obsm["agl_features"].copy()
    made_from = prepared["table"].uns["agl"]["features"]
    assert made_from.pop("precision") == "float32"
    if precision:
        made_from["precision"] = precision
    monkeypatch.setattr(module, "encode", lambda *_, **__: features + 1)
    embed(prepared, **TILES, device="cpu")
    np.testing.assert_array_equal(prepared["table"].obsm["agl_features"], features + 1)
    assert prepared["table"].uns["agl"]["features"]["precision"] == "float32"


def test_a_moved_spot_is_computed_again(prepared: SpatialData) -> None:
    before = prepared["table"].obsm["agl_features"].copy()
    move_spot(prepared, "section_1", (300.0, 310.0))
    embed(prepared, **TILES)
    changed = ~np.isclose(prepared["table"].obsm["agl_features"], before, atol=2e-4).all(axis=1)
    assert np.flatnonzero(changed).tolist() == [0]


def test_another_image_is_computed_again(prepared: SpatialData) -> None:
    """The same spots on the mirrored image of their section."""
    tree = prepared["section_1_image"].copy()
    mirrored = tree["scale0"]["image"].copy(data=tree["scale0"]["image"].data[:, :, ::-1])
    tree["scale0"]["image"] = mirrored
    prepared.images["section_1_image"] = tree
    before = prepared["table"].obsm["agl_features"].copy()
    embed(prepared, **TILES)
    changed = ~np.isclose(prepared["table"].obsm["agl_features"], before, atol=1e-2).all(axis=1)
    assert changed[rows_of(prepared, "section_1")].mean() > 0.9
    assert not changed[~rows_of(prepared, "section_1")].any()


def test_spots_beyond_the_image_are_padded_counted_and_told(
    tissue: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    move_spot(tissue, "section_1", (3.0, 400.0))
    with caplog.at_level(logging.WARNING):
        embed(tissue, **TILES)
    padded, glass = (record.getMessage() for record in caplog.records)
    assert padded == "1 of 53 tiles of section_1 reach beyond the image and are padded with its background."
    assert glass == (
        "3 of 53 spots of section_1 lie on glass: 9 tenths of their tile or more have the colour of the background, and "
        "what is predicted there means nothing. Drop them from the table."
    )
    image = tissue["section_1_image"]["scale0"]["image"].to_numpy()
    background = np.percentile(image, 95, axis=(1, 2)).astype(np.uint8)
    tile = np.broadcast_to(background[:, None, None], (3, 32, 32)).copy()
    tile[:, :, 13:] = image[:, 384:416, :19]
    with torch.inference_mode():
        expected = load_encoder("efficientnet_lite0")(torch.from_numpy(tile[None]))[0]
    np.testing.assert_allclose(tissue["table"].obsm["agl_features"][0], expected, atol=2e-4)


def test_a_spot_without_position_has_no_features(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    move_spot(tissue, "section_1", (np.nan, np.nan))
    with caplog.at_level(logging.WARNING):
        embed(tissue, **TILES)
    assert "1 spots of section_1 have no position and get no features." in caplog.text
    unknown = np.isnan(tissue["table"].obsm["agl_features"]).all(axis=1)
    assert np.flatnonzero(unknown).tolist() == [0]


def test_the_images_own_resolution_is_recorded(tissue: SpatialData) -> None:
    embed(tissue, tile_px=32, mpp="image", image_mpp=1.02)
    assert tissue["table"].uns["agl"]["features"]["mpp"] == pytest.approx(1.02)


def test_tiles_at_scales_of_their_own_are_cut_again_as_they_were(tissue: SpatialData) -> None:
    """The record holds one number for all sections, their mean."""
    embed(tissue, **{**TILES, "mpp": "image", "image_mpp": {"section_1": 1.04, "section_2": 0.97, "section_3": 1.0}})
    again = placed_again(Study.of(tissue))
    assert [boxes.side for _, boxes in again] == [TILES["tile_px"]] * 3
    assert [boxes.mpp for _, boxes in again] == [1.04, 0.97, 1.0]


def unknown_scale(sdata: SpatialData) -> None:
    sdata.attrs["agl_sc"] = {}


def two_images(sdata: SpatialData) -> None:
    sdata.images["copy"] = sdata["section_1_image"]


def no_images(sdata: SpatialData) -> None:
    for name in list(sdata.images):
        del sdata.images[name]


def nothing(sdata: SpatialData) -> None:
    """As it is."""


BAD = [
    pytest.param(nothing, {"batch_size": 0}, ValueError, "batch_size=0 is not a positive number", id="batch_size"),
    pytest.param(nothing, {"tile_px": 4}, ValueError, "tile_px=4 is not", id="tile_px"),
    pytest.param(nothing, {"mpp": "own"}, ValueError, "mpp='own' is neither", id="mpp"),
    pytest.param(nothing, {"mpp": 0.3}, ValueError, "needs 3.3x up-sampling of 'section_1_image'", id="too coarse"),
    pytest.param(nothing, {"image_mpp": 1.2}, ValueError, "contradicts the visium spot pitch of 100 um", id="contradiction"),
    pytest.param(nothing, {"encoder": "resnet18x"}, ValueError, "encoder='resnet18x' is not known to timm", id="encoder"),
    pytest.param(nothing, {"context": 2}, ValueError, r"context=2 is not a sequence of factors above 1; pass e.g. \(2,\)", id="context, a number"),
    pytest.param(nothing, {"context": (2, 0.5)}, ValueError, r"context=\(2, 0.5\) is not a sequence of factors", id="context, narrower"),
    pytest.param(nothing, {"orientations": 3}, ValueError, "orientations=3 is not one of 1, 2, 4, 8 ways", id="orientations"),
    pytest.param(nothing, {"orientations": 2.0}, ValueError, "orientations=2.0 is not one of", id="orientations float"),
    pytest.param(nothing, {"neighbors": -1}, ValueError, "neighbors=-1 is not a number of rings; pass 0 for none", id="neighbors"),
    pytest.param(nothing, {"client": "tcp://here"}, TypeError, r"client is a str, not a dask.distributed.Client", id="client"),
    pytest.param(nothing, {"key_added": "a b"}, ValueError, "key_added='a b' is not a plain name", id="key_added"),
    pytest.param(nothing, {"image_key": "section_4_image"}, KeyError, "image_key='section_4_image' is not among", id="image_key"),
    pytest.param(unknown_scale, {}, ValueError, "microns per pixel of 'section_1_image' are unknown", id="scale unknown"),
    pytest.param(two_images, {}, ValueError, r"several images \(copy, section_1_image\)", id="two images"),
    pytest.param(no_images, {}, KeyError, "sdata has no image", id="no image"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "options", "error", "match"), BAD)
def test_bad_input_is_refused_and_nothing_changed(
    *,
    tissue: SpatialData,
    spoil: Callable[[SpatialData], None],
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    unchanged: Unchanged,
) -> None:
    spoil(tissue)
    with pytest.raises(error, match=match), unchanged(tissue):
        embed(tissue, **{**TILES, **options})


def test_the_log_tells_of_resizing(
    tissue: SpatialData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the features are those of the resized tiles."""
    fixed = replace(load_encoder("efficientnet_lite0"), name="fixed", input_px=48)
    monkeypatch.setattr(module, "load_encoder", lambda _, **__: fixed)
    with caplog.at_level(logging.INFO):
        embed(tissue, encoder="fixed", **TILES)
    assert "Tiles of 32 px are resized to the 48 px that fixed takes." in caplog.text
    with torch.inference_mode():
        expected = fixed(brute_force(tissue, "section_2", 32))
    np.testing.assert_allclose(tissue["table"].obsm["agl_features"][rows_of(tissue, "section_2")], expected, atol=2e-4)


def test_an_anndata_is_pointed_to_its_reader(tissue: SpatialData) -> None:
    with pytest.raises(TypeError, match=r"sdata is a AnnData, not a SpatialData; .* agl_sc.io.from_anndata"):
        embed(tissue["table"])
