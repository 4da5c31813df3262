import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from anndata import AnnData

from agl_sc import pp, tl
from agl_sc._sdata.study import Study
from agl_sc.core.arrays import FloatArray
from agl_sc.core.spots import half
from agl_sc.pp._features.reference import reference_of
from agl_sc.pp._features.sketch import is_same_tissue, sketch_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from agl_sc.tl import TrainConfig

DECLARED: dict[str, Any] = {"encoder": "uni", "tile_px": 224, "mpp": 0.5}


def _features(sdata: "SpatialData", n: int = 12) -> FloatArray:
    return np.random.default_rng(0).normal(size=(sdata["table"].n_obs, n))


def test_an_array_is_taken_in_the_order_of_the_table_with_what_is_declared(tissue: "SpatialData") -> None:
    features = _features(tissue)
    pp.use_features(tissue, features, **DECLARED, weights="v1.0")
    table = tissue["table"]
    np.testing.assert_array_equal(table.obsm["agl_features"], features.astype(np.float32))
    found = table.uns["agl"]["features"]
    assert {name: found[name] for name in ("encoder", "weights_digest", "tile_px", "mpp", "orientations")} == {
        **DECLARED,
        "weights_digest": "v1.0",
        "orientations": 1,
    }


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("by", ["names", "instances"])
def test_an_anndata_is_taken_by_the_names_of_its_rows(tissue: "SpatialData", by: str, sparse: bool) -> None:
    table, features = tissue["table"], _features(tissue)
    table.obs["spot_id"] = [f"spot {number}" for number in range(table.n_obs)]
    tissue.shapes.clear()
    names = table.obs_names if by == "names" else pd.Index(table.obs["spot_id"])
    order = np.random.default_rng(1).permutation(table.n_obs)[5:]
    matrix = scipy.sparse.csr_matrix(features[order]) if sparse else features[order]
    pp.use_features(tissue, AnnData(matrix, obs=pd.DataFrame(index=names[order])), **DECLARED)
    taken = table.obsm["agl_features"]
    np.testing.assert_array_equal(taken[order], features[order].astype(np.float32))
    assert np.isnan(taken[np.setdiff1d(np.arange(table.n_obs), order)]).all()


def test_a_table_of_the_same_sdata_is_taken_by_its_name(tissue: "SpatialData") -> None:
    features = _features(tissue)
    tissue.tables["uni_tiles"] = AnnData(features, obs=pd.DataFrame(index=tissue["table"].obs_names))
    pp.use_features(tissue, "uni_tiles", **DECLARED, table_key="table")
    np.testing.assert_array_equal(tissue["table"].obsm["agl_features"], features.astype(np.float32))


def test_a_file_of_hest_is_taken_by_its_barcodes(tissue: "SpatialData", tmp_path: Path) -> None:
    features, names = _features(tissue), tissue["table"].obs_names
    with h5py.File(tmp_path / "uni.h5", "w") as file:
        file["embeddings"] = features[::-1]
        file["barcodes"] = np.array(names[::-1], dtype="S")[:, None]
    pp.use_features(tissue, tmp_path / "uni.h5", **DECLARED)
    np.testing.assert_array_equal(tissue["table"].obsm["agl_features"], features.astype(np.float32))


def _trident(path: Path, sdata: "SpatialData", features: FloatArray, *, shift: float = 0.0) -> Path:
    with h5py.File(path, "w") as file:
        file["features"] = features
        file["coords"] = np.round(sdata["table"].obsm["spatial"] - 56 + shift).astype(int)
        file["coords"].attrs["patch_size_level0"] = 112
    return path


def test_a_file_of_trident_is_taken_by_the_corners_of_its_tiles(tmp_path: Path) -> None:
    from agl_sc.datasets import toy_tissue

    sdata = toy_tissue(n_sections=1, n_spots_per_side=6)
    features = _features(sdata)
    pp.use_features(sdata, str(_trident(tmp_path / "uni.h5", sdata, features)), **DECLARED)
    np.testing.assert_array_equal(sdata["table"].obsm["agl_features"], features.astype(np.float32))
    with pytest.raises(ValueError, match=r"0 of 41 spots lie where '.*uni\.h5' has a tile of 112 px"):
        pp.use_features(sdata, _trident(tmp_path / "uni.h5", sdata, features, shift=40), **DECLARED)


def test_corners_of_one_slide_do_not_tell_spots_of_several(tissue: "SpatialData", tmp_path: Path) -> None:
    path = _trident(tmp_path / "uni.h5", tissue, _features(tissue))
    with pytest.raises(ValueError, match=r"tiles of one slide; pass shapes_key="):
        pp.use_features(tissue, path, **DECLARED)
    pp.use_features(tissue, path, **DECLARED, shapes_key="section_1")
    known = np.isfinite(tissue["table"].obsm["agl_features"][:, 0])
    np.testing.assert_array_equal(known, tissue["table"].obs["section"] == "section_1")


def test_no_image_is_needed_to_train_and_predict(tissue: "SpatialData", config: "TrainConfig") -> None:
    tissue.images.clear()
    pp.use_features(tissue, _features(tissue), **DECLARED, weights="v1.0")
    pp.split(tissue, test=["section_3"], validation=["section_2"])
    model = tl.train(tissue, config=config)
    tl.predict(tissue, model)
    assert np.isfinite(tissue["table"].layers["agl"][:, 0]).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": "v2"}, r"weights_digest='v2', the model with 'v1\.0'"),
        ({"weights": None}, r"weights_digest='not stated', the model with 'v1\.0'"),
        ({"encoder": "virchow"}, r"encoder='virchow', the model with 'uni'"),
        ({"tile_px": 256}, r"tile_px=256, the model with 224"),
        ({"mpp": 1.0}, r"mpp=1\.0, the model with 0\.5"),
    ],
)
def test_a_model_takes_no_features_that_were_declared_otherwise(
    tissue: "SpatialData", config: "TrainConfig", *, changed: dict[str, Any], said: str
) -> None:
    pp.use_features(tissue, _features(tissue), **DECLARED, weights="v1.0")
    pp.split(tissue, test=["section_3"], validation=["section_2"])
    model = tl.train(tissue, config=config)
    pp.use_features(tissue, _features(tissue), **{**DECLARED, "weights": "v1.0", **changed})
    with pytest.raises(ValueError, match=said):
        tl.predict(tissue, model)


def test_features_with_gaps_are_refused_and_rows_without_any_are_taken(tissue: "SpatialData") -> None:
    features = _features(tissue)
    features[3] = np.nan
    pp.use_features(tissue, features, **DECLARED)
    features[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"features holds NaN or infinite values in 1 of 159 rows"):
        pp.use_features(tissue, features, **DECLARED)


@pytest.mark.parametrize(
    ("features", "error", "said"),
    [
        (np.ones((3, 2)), ValueError, r"features has 3 rows for the 159 spots"),
        (np.ones(159), ValueError, r"features holds float64 of shape \(159,\)"),
        (np.full((159, 2), "x"), ValueError, r"features holds <U1 of shape"),
        ("none", KeyError, r"features='none' is neither a table of sdata \(table\) nor a file"),
        ([[1.0]], TypeError, r"features is a list; pass an array"),
        (AnnData(np.ones((2, 2))), ValueError, r"No row of features is named like a spot \(rows 0, 1, spots "),
    ],
)
def test_features_of_others_are_refused(
    tissue: "SpatialData", *, features: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        pp.use_features(tissue, features, **DECLARED)
    assert "agl_features" not in tissue["table"].obsm


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mpp": "image"}, r"mpp='image' declares nothing"),
        ({"mpp": -1}, r"mpp=-1 is neither"),
        ({"tile_px": 2}, r"tile_px=2 is not a whole number"),
    ],
)
def test_what_is_declared_must_be_possible(tissue: "SpatialData", changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pp.use_features(tissue, _features(tissue), **{**DECLARED, **changed})


def test_files_of_another_kind_are_refused(tissue: "SpatialData", tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.h5' is no HDF5 file"):
        pp.use_features(tissue, tmp_path / "x.h5", **DECLARED)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["features"] = np.ones((3, 2))
    with pytest.raises(KeyError, match=r"y\.h5' holds features; features need"):
        pp.use_features(tissue, tmp_path / "y.h5", **DECLARED)
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file["features"], file["barcodes"] = np.ones((2, 2)), np.array(["a", "b"], dtype="S")
    with pytest.raises(ValueError, match=r"No barcode of '.*z\.h5' \(a, b\) names a spot"):
        pp.use_features(tissue, tmp_path / "z.h5", **DECLARED)


def test_it_is_told_how_many_spots_have_features(tissue: "SpatialData", caplog: pytest.LogCaptureFixture) -> None:
    features = _features(tissue)
    features[:9] = np.nan
    with caplog.at_level(logging.INFO):
        pp.use_features(tissue, features, **DECLARED)
    assert "12 features of uni for 150 of 159 spots" in caplog.text


def test_features_that_were_here_before_leave_no_reference(prepared: "SpatialData") -> None:
    assert "reference" in prepared["table"].uns["agl"]
    features = _features(prepared, prepared["table"].obsm["agl_features"].shape[1])
    pp.use_features(prepared, features, **DECLARED)
    rows = (prepared["table"].obs["region"] == "section_1").to_numpy()
    found = reference_of(Study.of(prepared))["section_1"]
    np.testing.assert_allclose(found, features[rows].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("kind", ["anndata", "barcodes"])
def test_barcodes_that_spots_of_several_slides_have_are_taken_slide_by_slide(
    tissue: "SpatialData", tmp_path: Path, kind: str
) -> None:
    table = tissue["table"]
    regions = table.obs["region"].astype(str).to_numpy()
    barcodes = np.array([f"b{number}" for number in table.obs.groupby("region", observed=True).cumcount()])
    table.obs[table.uns["spatialdata_attrs"]["instance_key"]] = barcodes
    tissue.shapes.clear()
    features = _features(tissue)

    def of(region: str) -> Any:
        rows = regions == region
        if kind == "anndata":
            return AnnData(features[rows], obs=pd.DataFrame(index=barcodes[rows]))
        with h5py.File(tmp_path / f"{region}.h5", "w") as file:
            file["embeddings"], file["barcodes"] = features[rows], np.array(barcodes[rows], dtype="S")
        return tmp_path / f"{region}.h5"

    with pytest.raises(
        ValueError, match=r"spots of several regions \(section_1, section_2, section_3\); pass shapes_key="
    ):
        pp.use_features(tissue, of("section_1"), **DECLARED)
    for region in ("section_1", "section_2"):
        pp.use_features(tissue, of(region), **DECLARED, shapes_key=region)
    taken = table.obsm["agl_features"]
    both = regions != "section_3"
    np.testing.assert_array_equal(taken[both], features[both].astype(np.float32))
    assert np.isnan(taken[~both]).all()
    pp.use_features(tissue, of("section_3"), **{**DECLARED, "mpp": 1.0}, shapes_key="section_3")
    assert np.isnan(table.obsm["agl_features"][both]).all()


def test_rows_of_spots_elsewhere_are_refused(tissue: "SpatialData") -> None:
    features = _features(tissue)
    features = np.where((tissue["table"].obs["region"] == "section_1").to_numpy()[:, None], features, np.nan)
    pp.use_features(tissue, features, **DECLARED, shapes_key="section_1")
    names = tissue["table"].obs_names[:3]
    with pytest.raises(ValueError, match=r"No row of features is named like a spot"):
        pp.use_features(
            tissue, AnnData(np.ones((3, 2)), obs=pd.DataFrame(index=names)), **DECLARED, shapes_key="section_3"
        )


def test_a_model_of_features_of_nobody_knows_what_computes_none(tissue: "SpatialData", config: "TrainConfig") -> None:
    pp.use_features(tissue, _features(tissue), **DECLARED)
    pp.split(tissue, test=["section_3"], validation=["section_2"])
    model = tl.train(tissue, config=config)
    del tissue["table"].obsm["agl_features"]
    with pytest.raises(
        ValueError, match=r"'uni' that were computed elsewhere \(weights: not stated\); .* agl_sc.pp.use_features"
    ):
        tl.predict(tissue, model)


@pytest.mark.parametrize("with_images", [True, False])
def test_a_model_knows_the_sections_whose_features_it_was_fitted_on(
    tissue: "SpatialData", config: "TrainConfig", *, with_images: bool
) -> None:
    if not with_images:
        tissue.images.clear()
    pp.use_features(tissue, _features(tissue), **DECLARED)
    pp.split(tissue, test=["section_3"], validation=["section_2"])
    model = tl.train(tissue, config=config)
    assert sorted(model.card["fitted_on"]) == ["section_1", "section_2"]
    pp.use_features(tissue, _features(tissue), **DECLARED, key_added="again")
    tl.predict(tissue, model, key_added="again")
    obs = tissue["table"].obs
    assert set(obs["again_split"][obs["section"] != "section_3"]) == {"train"}
    assert set(obs["again_split"][obs["section"] == "section_3"]) == {"test"}


def test_a_part_of_a_section_without_an_image_is_known(tissue: "SpatialData", config: "TrainConfig") -> None:
    tissue.images.clear()
    features = _features(tissue)
    features[::9] = 0.0  # blank tiles, which every slide has
    pp.use_features(tissue, features, **DECLARED)
    pp.split(tissue, test=["section_3"], validation=["section_2"])
    model = tl.train(tissue, config=config)
    part = np.arange(tissue["table"].n_obs) % 4 == 1
    tissue.tables["table"] = tissue["table"][part].copy()
    pp.use_features(tissue, features[part], **DECLARED, key_added="again")
    tl.predict(tissue, model, key_added="again")
    obs = tissue["table"].obs
    assert set(obs["again_split"][obs["section"] != "section_3"]) == {"train"}
    assert set(obs["again_split"][obs["section"] == "section_3"]) == {"test"}


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_sketches_tell_parts_from_others(share: float) -> None:
    rng = np.random.default_rng(0)
    whole, other = rng.normal(size=(2, 3000, 5)).astype(np.float32)
    whole[:9], other[:9] = 0.0, 0.0
    whole[10] = np.nan
    part = rng.permutation(whole)[: int(share * len(whole))]
    assert is_same_tissue(sketch_of(part), sketch_of(whole))
    assert not is_same_tissue(sketch_of(part), sketch_of(other))
    assert not is_same_tissue(sketch_of(part), "")


@pytest.mark.parametrize("name", ["features", "coords"])
def test_entries_that_lie_in_other_files_are_not_opened(tissue: "SpatialData", *, name: str, tmp_path: Path) -> None:
    path = _trident(tmp_path / "uni.h5", tissue, _features(tissue))
    with h5py.File(path, "a") as file, h5py.File(tmp_path / "private.h5", "w") as other:
        file.copy(name, other)
        del file[name]
        file[name] = h5py.ExternalLink("private.h5", name)
    with pytest.raises(ValueError, match=rf"'{name}' of '.*uni\.h5' lies in another file, which is not opened"):
        pp.use_features(tissue, path, **DECLARED, shapes_key="section_1")


def test_only_the_rows_of_spots_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agl_sc.datasets import toy_tissue
    from agl_sc.pp._features import elsewhere

    sdata = toy_tissue(n_sections=1, n_spots_per_side=6)
    features, path = _features(sdata), tmp_path / "uni.h5"
    _trident(path, sdata, features)
    monkeypatch.setattr(elsewhere, "_ROWS", 7)
    pp.use_features(sdata, path, **DECLARED)
    np.testing.assert_array_equal(sdata["table"].obsm["agl_features"], features.astype(np.float32))
    with h5py.File(path, "a") as file:
        del file["features"]
        file["features"] = np.ones((2, len(features), 12))
    with pytest.raises(ValueError, match=r"features of '.*uni\.h5' have shape \(2, 41, 12\); they must be a matrix"):
        pp.use_features(sdata, path, **DECLARED)


def test_features_of_many_spots_are_kept_in_half_precision_and_known_as_in_single(
    tissue: "SpatialData", config: "TrainConfig", monkeypatch: pytest.MonkeyPatch
) -> None:
    features = _features(tissue)
    pp.use_features(tissue, features, **DECLARED)
    known = dict(tissue["table"].uns["agl"]["features"]["images"])
    monkeypatch.setattr(half, "MOST_SPOTS", 0)
    pp.use_features(tissue, features, **DECLARED)
    taken = tissue["table"].obsm["agl_features"]
    assert taken.dtype == np.float16
    np.testing.assert_allclose(taken, features, rtol=1e-3, atol=1e-4)
    pp.use_features(tissue, features, **DECLARED, shapes_key="section_2")  # the others stay, and what they are known by
    assert dict(tissue["table"].uns["agl"]["features"]["images"]) == known
    np.testing.assert_array_equal(tissue["table"].obsm["agl_features"], taken)
    pp.split(tissue, test=["section_3"], validation=["section_2"])
    model = tl.train(tissue, config=config)
    assert np.isfinite(tissue["table"][:, model.targets].layers["agl"]).all()
