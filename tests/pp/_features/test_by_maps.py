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
from spatialdata import SpatialData

from agl_sc._sdata.records import FeatureRecord
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


def test_by_default_tiles_of_crowded_spots_go_by_maps_too_however_many_they_are(
    tissue: SpatialData, small: dict[str, Any]
) -> None:
    """Spots are 100 um apart."""
    wide = {**small, "tile_px": 104, "mpp": 4.0}
    embed(tissue, context=(), **wide)
    assert made_from(tissue)["maps"] == "all"
    whole = features_of(tissue)
    some = np.arange(tissue["table"].n_obs) % 3 > 0  # a third of the spots less are as close
    tissue["table"] = tissue["table"][some].copy()
    del tissue["table"].obsm["agl_features"]
    embed(tissue, context=(), **wide)
    assert made_from(tissue)["maps"] == "all"
    np.testing.assert_array_equal(features_of(tissue), whole[some])
    embed(tissue, context=(), **{**wide, "tile_px": 96})
    assert made_from(tissue)["maps"] == "none"


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


def test_features_older_than_maps_are_made_anew(tissue: SpatialData, small: dict[str, Any]) -> None:
    embed(tissue, context=(2,), maps="none", **small)
    del made_from(tissue)["maps"]
    before = features_of(tissue)
    embed(tissue, context=(2,), maps="none", **small)
    assert features_of(tissue) is before
    embed(tissue, context=(2,), **small)
    assert made_from(tissue)["maps"] == "wider"
    assert not np.allclose(features_of(tissue), before, atol=1e-3)


def test_the_views_of_a_record_are_those_it_was_made_with(tissue: SpatialData, small: dict[str, Any]) -> None:
    embed(tissue, context=(2,), **small)
    assert Views.of(FeatureRecord.read(made_from(tissue))) == Views((2.0,), maps="wider")


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
