"""Fields of view by maps: chosen by the encoder, recorded, the same on new slides, and refused where they cannot be."""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

from agl_sc._sdata.records import FeatureRecord
from agl_sc._sdata.study import Study
from agl_sc.core.encoders import dense
from agl_sc.core.encoders.dense import Fields
from agl_sc.core.encoders.encode import EncodedBlock, Recipe, encoded_blocks
from agl_sc.core.encoders.load import load_encoder
from agl_sc.core.encoders.maps import maps_of
from agl_sc.core.tiles.reader import Boxes
from agl_sc.pp import embed
from agl_sc.pp._features import by_maps
from agl_sc.pp._features import embed as module
from agl_sc.pp._features.cache import FeatureCache
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.embed import FeatureRequest, embed_study
from agl_sc.tl import TrainConfig, predict, train

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "orientations": 1, "stages": False}
N_FEATURES = 96


def features_of(sdata: SpatialData) -> NDArray[np.float32]:
    features: NDArray[np.float32] = sdata["table"].obsm["agl_features"]
    return features


def made_from(sdata: SpatialData) -> dict[str, Any]:
    record: dict[str, Any] = sdata["table"].uns["agl"]["features"]
    return record


@pytest.fixture
def weights(tmp_path: Path) -> Callable[[str], str]:
    """Name of an encoder of an architecture with random weights."""

    def name(architecture: str) -> str:
        torch.manual_seed(0)
        state = timm.create_model(architecture, pretrained=False, num_classes=0).state_dict()
        torch.save(state, tmp_path / f"{architecture}.pth")
        return f"{architecture}@{tmp_path / architecture}.pth"

    return name


@pytest.fixture
def small(weights: Callable[[str], str]) -> dict[str, Any]:
    """Tiles of a small convolutional network."""
    return {"encoder": weights("test_resnet"), **TILES}


def test_by_default_wider_fields_of_a_convolutional_network_go_by_maps(
    tissue: SpatialData, small: dict[str, Any]
) -> None:
    embed(tissue, context=(2,), **small)
    default = features_of(tissue)
    assert made_from(tissue)["maps"] == "wider"
    embed(tissue, context=(2,), maps="none", **small)
    np.testing.assert_array_equal(default[:, :N_FEATURES], features_of(tissue)[:, :N_FEATURES])
    assert not np.allclose(default[:, N_FEATURES:], features_of(tissue)[:, N_FEATURES:], atol=1e-3)
    embed(tissue, context=(2,), maps="all", **small)
    np.testing.assert_array_equal(default[:, N_FEATURES:], features_of(tissue)[:, N_FEATURES:])
    assert not np.allclose(default[:, :N_FEATURES], features_of(tissue)[:, :N_FEATURES], atol=1e-3)


@pytest.mark.parametrize(("context", "least_um"), [((), 400), ((1.5,), 100)])
def test_by_default_tiles_that_overlap_go_by_maps_too_however_many_they_are(
    *, tissue: SpatialData, small: dict[str, Any], context: tuple[float, ...], least_um: int
) -> None:
    """Spots are 100 um apart; tiles alone overlap by far."""
    wide = {**small, "tile_px": 104, "mpp": least_um / 100, "context": context}
    embed(tissue, **wide)
    assert made_from(tissue)["maps"] == "all"
    whole = features_of(tissue)
    some = np.arange(tissue["table"].n_obs) % 3 > 0  # a third of the spots less are as close
    tissue["table"] = tissue["table"][some].copy()
    del tissue["table"].obsm["agl_features"]
    embed(tissue, **wide)
    assert made_from(tissue)["maps"] == "all"
    np.testing.assert_array_equal(features_of(tissue), whole[some])
    embed(tissue, **{**wide, "tile_px": 96})
    assert made_from(tissue)["maps"] == ("wider" if context else "none")


def test_maps_are_chosen_of_the_network_that_runs(
    tissue: SpatialData, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of one whose normalisation is folded afterwards, which might be refused what the other was granted."""
    tried: list[int] = []

    def counted(network: Any) -> Any:
        tried.append(sum(isinstance(part, torch.nn.BatchNorm2d) for part in network.module.modules()))
        return maps_of(network)

    monkeypatch.setattr(by_maps, "maps_of", counted)
    embed(tissue, context=(2,), **small)
    assert tried == [0]


def test_tiles_alone_are_tiles_whatever_wider_fields_are(tissue: SpatialData, small: dict[str, Any]) -> None:
    embed(tissue, context=(), maps="none", **small)
    before = features_of(tissue)
    embed(tissue, context=(), maps="wider", **small)
    assert features_of(tissue) is before
    assert made_from(tissue)["maps"] == "none"


def test_features_older_than_maps_are_made_anew_and_it_is_said(
    tissue: SpatialData, small: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    embed(tissue, context=(2,), maps="none", **small)
    del made_from(tissue)["maps"]
    before = features_of(tissue)
    caplog.set_level("INFO", logger="agl_sc")
    embed(tissue, context=(2,), maps="none", **small)
    assert features_of(tissue) is before
    assert "anew" not in caplog.text
    embed(tissue, context=(2,), **small)
    assert made_from(tissue)["maps"] == "wider"
    assert not np.allclose(features_of(tissue), before, atol=1e-3)
    assert (
        "Features in obsm[\"agl_features\"] are made anew: maps was 'none' and is 'wider', halo_px was None and is 64."
        in caplog.text
    )


def test_features_that_nobody_recorded_are_made_anew_and_it_is_said(
    tissue: SpatialData, small: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    embed(tissue, context=(), **small)
    expected = features_of(tissue)
    tissue["table"].obsm["agl_features"] = np.ones((tissue["table"].n_obs, 3), dtype=np.float32)
    del tissue["table"].uns["agl"]["features"]
    caplog.set_level("INFO", logger="agl_sc")
    embed(tissue, context=(), **small)
    np.testing.assert_array_equal(features_of(tissue), expected)
    assert "are made anew: what they were made from is not recorded." in caplog.text


def test_the_views_of_a_record_are_those_it_was_made_with(tissue: SpatialData, small: dict[str, Any]) -> None:
    embed(tissue, context=(2,), **small)
    assert made_from(tissue)["halo_px"] == 64
    assert Views.of(FeatureRecord.read(made_from(tissue))) == Views((2.0,), maps="wider")


def test_tiles_are_laid_once_beside_wider_fields_by_maps_that_are_laid_twice(
    tissue: SpatialData, small: dict[str, Any]
) -> None:
    both = {**small, "orientations": 2}
    embed(tissue, context=(2,), **both)
    default = features_of(tissue)
    assert made_from(tissue)["orientations"] == 2
    embed(tissue, context=(2,), **small)
    np.testing.assert_array_equal(default[:, :N_FEATURES], features_of(tissue)[:, :N_FEATURES])
    assert not np.allclose(default[:, N_FEATURES:], features_of(tissue)[:, N_FEATURES:], atol=1e-3)
    embed(tissue, context=(2,), maps="none", **both)
    assert "halo_px" not in made_from(tissue)
    assert not np.allclose(default[:, :N_FEATURES], features_of(tissue)[:, :N_FEATURES], atol=1e-3)


@pytest.mark.parametrize("maps", ["wider", "all"])
def test_a_record_older_than_the_halo_is_of_what_was_made_then(maps: Any) -> None:
    views = Views.of(FeatureRecord("e", "d", 32, 1.0, {}, {}, {}, "2 4", 0, 4, maps=maps))
    assert (views.halo_px, views.of_tiles) == (32, 4 if maps == "wider" else 2)
    assert views.plain()["halo_px"] is None


def test_a_model_of_an_older_recipe_makes_features_as_then_and_refuses_those_of_today(
    *, prepared: SpatialData, tissue: SpatialData, small: dict[str, Any], config: TrainConfig
) -> None:
    own = {name: small[name] for name in ("encoder", "tile_px", "mpp")}
    views = Views((2,), orientations=2, maps="wider", halo_px=32)
    embed_study(Study.of(prepared), FeatureRequest(**own, views=views))
    assert "halo_px" not in made_from(prepared)
    model = train(prepared, method="pgl", config=config)
    predict(tissue, model)
    np.testing.assert_array_equal(features_of(tissue), features_of(prepared))
    embed(tissue, context=(2,), **{**small, "orientations": 2})
    with pytest.raises(ValueError, match=r"was made with halo_px=64, the model with None; delete obsm"):
        predict(tissue, model)


def test_a_record_of_another_halo_is_refused() -> None:
    record = FeatureRecord("e", "d", 32, 1.0, {}, {}, {}, "2", maps="wider", halo_px=48)
    with pytest.raises(ValueError, match=r"halo_px=48 is not 32 or 64, as agl_sc\.pp\.embed records it; run it again"):
        Views.of(record)


def test_workers_of_a_cluster_give_the_same_bytes(tissue: SpatialData, small: dict[str, Any]) -> None:
    distributed = pytest.importorskip("distributed")
    options = {**small, "orientations": 4, "stages": True, "context": (2,), "maps": "all", "neighbors": 1}
    embed(tissue, **options)
    here = features_of(tissue)
    del tissue["table"].obsm["agl_features"]
    with distributed.Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        embed(tissue, **options, client=client)
    np.testing.assert_array_equal(features_of(tissue), here)


def test_a_transformer_goes_by_tiles_unless_it_is_asked_for_its_patch_tokens(
    tissue: SpatialData, weights: Callable[[str], str]
) -> None:
    name = weights("test_vit")
    embed(tissue, encoder=name, context=(2,), **TILES)
    assert made_from(tissue)["maps"] == "none"
    embed(tissue, encoder=name, context=(2,), maps="wider", **TILES)
    assert made_from(tissue)["maps"] == "wider"
    assert features_of(tissue).shape[1] == 2 * load_encoder(name).n_features
    assert np.isfinite(features_of(tissue)).all()


def test_maps_of_an_encoder_that_has_none_are_refused(
    tissue: SpatialData, weights: Callable[[str], str], unchanged: Unchanged
) -> None:
    name = weights("vgg11")
    with unchanged(tissue), pytest.raises(ValueError, match=r"maps='all' needs an encoder .* pass maps='none'"):
        embed(tissue, encoder=name, context=(), maps="all", **TILES)


def test_maps_of_an_image_made_of_patches_are_refused(
    tissue: SpatialData, monkeypatch: pytest.MonkeyPatch, small: dict[str, Any]
) -> None:
    choose = by_maps.chosen_views

    def patched(views: Any, network: Any, sections: Any, **options: Any) -> Any:
        return choose(views, network, [replace(section, patch_px=64) for section in sections], **options)

    monkeypatch.setattr(module, "chosen_views", patched)
    with pytest.raises(
        ValueError, match=r"maps='all' needs a whole image, and .* is made of patches; pass maps='none'"
    ):
        embed(tissue, context=(), maps="all", **small)
    embed(tissue, context=(1.5,), **small)
    assert made_from(tissue)["maps"] == "none"


def test_another_word_for_maps_is_refused(tissue: SpatialData) -> None:
    with pytest.raises(ValueError, match="maps='some' is not one of 'none', 'wider', 'all'; leave it out"):
        embed(tissue, maps="some", **TILES)  # type: ignore[arg-type]


def test_an_interrupted_pass_goes_on_by_windows_with_the_same_bytes(
    *, tissue: SpatialData, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("core.encoders.encode", "pp._features.cache", "pp._features.embed"):
        monkeypatch.setattr(f"agl_sc.{part}.BLOCK", 16)
    tissue.write(tmp_path / "tissue.zarr")
    passed: list[int] = []

    def counted(recipe: Recipe, seen: Boxes | Fields, blocks: Sequence[int]) -> Iterator[EncodedBlock]:
        for block, values in encoded_blocks(recipe, seen, blocks):
            passed.append(block)
            yield block, values

    def dies(recipe: Recipe, seen: Boxes | Fields, blocks: Sequence[int]) -> Iterator[EncodedBlock]:
        yield from (each for _, each in zip(range(2), encoded_blocks(recipe, seen, blocks), strict=False))
        raise KeyboardInterrupt

    options = {"context": (), "maps": "all", **small}
    monkeypatch.setattr(module, "encoded_blocks", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(tissue, **options)
    monkeypatch.setattr(module, "encoded_blocks", counted)
    embed(tissue, **options)
    sizes = [int((tissue["table"].obs["section"] == name).sum()) for name in ("section_1", "section_2", "section_3")]
    assert len(passed) == sum(-(-size // 16) for size in sizes) - 2
    resumed = features_of(tissue)
    monkeypatch.setattr(module, "cache_folder", lambda _: None)
    del tissue["table"].obsm["agl_features"]
    embed(tissue, **options)
    np.testing.assert_array_equal(resumed, features_of(tissue))


def test_a_full_disk_while_maps_are_passed_is_told(
    *, tissue: SpatialData, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tissue.write(tmp_path / "tissue.zarr")

    def full(self: FeatureCache, block: int, values: NDArray[np.float32]) -> None:
        del block, values
        raise self._full(OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(FeatureCache, "add", full)
    with pytest.raises(OSError, match="finished blocks are kept: make room and run again"):
        embed(tissue, context=(), maps="all", **small)
    assert "agl_features" not in tissue["table"].obsm


def test_a_field_that_holds_the_whole_section_is_nearly_the_same_for_all_its_spots(
    tissue: SpatialData, small: dict[str, Any]
) -> None:
    embed(tissue, context=(60,), **small)
    features = features_of(tissue)[:, N_FEATURES:]
    rows = (tissue["table"].obs["section"] == "section_1").to_numpy()
    assert np.isfinite(features).all()
    assert np.ptp(features[rows], axis=0).max() < 0.1 * features.max()  # but for what windows make of their borders


def test_spots_far_from_the_image_are_told_and_others_do_not_change(
    *, tissue: SpatialData, small: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As of a section whose transformation is wrong for some: all of them see background, at the cost of one window."""
    options = {"context": (4,), "maps": "all", **small}
    embed(tissue, **options)
    near = features_of(tissue)
    shapes, far = tissue["section_1"], [3, 7, 11]
    shapes.loc[shapes.index[far], "geometry"] = [Point(x, 40.0) for x in (-9e5, 4e4, 8e7)]
    rows = np.flatnonzero((tissue["table"].obs["section"] == "section_1").to_numpy())
    caplog.clear()
    with pytest.MonkeyPatch.context() as patch:
        passed = counted_windows(patch)
        embed(tissue, **options)
    assert sum(passed) < 60
    assert "3 of 53 spots of section_1 lie outside the image; check its transformation" in caplog.text
    features = features_of(tissue)
    off = np.isin(np.arange(len(near)), rows[far])
    np.testing.assert_array_equal(features[~off], near[~off])
    assert np.isfinite(features[off]).all()
    np.testing.assert_allclose(features[off], np.broadcast_to(features[rows[far[0]]], features[off].shape), atol=1e-4)


def counted_windows(patch: pytest.MonkeyPatch) -> list[int]:
    """How many windows every batch has that is passed through the network from now on."""
    passed, pass_on = list[int](), dense._passed

    def counting(how: Any, windows: torch.Tensor) -> Any:
        passed.append(len(windows))
        return pass_on(how, windows)

    patch.setattr(dense, "_passed", counting)
    return passed


@pytest.mark.parametrize("fault", ["corrupt", "missing"])
def test_a_window_in_which_the_image_is_missing_is_named(
    *, tissue: SpatialData, small: dict[str, Any], tmp_path: Path, fault: str, unchanged: Unchanged
) -> None:
    """With the chunk back the run ends as if it had never been away."""
    finest = tissue["section_1_image"]["scale0"]["image"]
    tissue.images["section_1_image"] = Image2DModel.parse(
        finest.data, dims=finest.dims, scale_factors=[2], chunks=(3, 256, 256), transformations=get_transformation(finest, get_all=True)
    )  # fmt: skip
    options = {"context": (1.5,), "maps": "all", **small}
    tissue.write(store := tmp_path / "tissue.zarr")
    chunk = store / "images" / "section_1_image" / "s0" / "c" / "0" / "1" / "1"
    whole = chunk.read_bytes()
    chunk.write_bytes(b"no chunk") if fault == "corrupt" else chunk.unlink()
    says = "cannot be decoded" if fault == "corrupt" else "is not in its zarr store"
    broken = SpatialData.read(store)
    with (
        unchanged(broken),
        pytest.raises(OSError, match=rf"Chunk \(row 1, column 1\) of image 'section_1_image' \(level 0\) {says}"),
    ):
        embed(broken, **options)
    chunk.write_bytes(whole)
    mended = SpatialData.read(store)
    embed(mended, **options)
    embed(tissue, **options)
    np.testing.assert_array_equal(features_of(mended), features_of(tissue))
