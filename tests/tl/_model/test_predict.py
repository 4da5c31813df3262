"""Prediction of sections never seen, and what is said of those that were."""

import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from spatialdata import SpatialData, get_pyramid_levels, read_zarr

from agl_sc.core.encoders.load import load_encoder
from agl_sc.core.evaluation.gene_scores import COLUMNS
from agl_sc.datasets import toy_tissue
from agl_sc.io import from_anndata
from agl_sc.model import Model
from agl_sc.pp import embed, split
from agl_sc.tl import TrainConfig, evaluate, predict, train

Trained = tuple[SpatialData, Model]
Slots = Callable[[SpatialData], dict[str, Any]]
Unchanged = Callable[[SpatialData], AbstractContextManager[None]]


PLAIN: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}


@pytest.fixture(scope="session")
def _unseen() -> SpatialData:
    return toy_tissue(n_sections=1, n_spots_per_side=7, n_targets=4, n_informative=8, n_auxiliary=20, seed=9)


@pytest.fixture
def unseen(_unseen: SpatialData) -> SpatialData:
    """One section of another seed, nothing prepared."""
    return SpatialData(
        images=dict(_unseen.images),
        shapes=dict(_unseen.shapes),
        tables={"table": _unseen["table"].copy()},
        attrs=copy.deepcopy(_unseen.attrs),
    )


def test_the_layer_of_training_is_found_again(trained: Trained, tissue: SpatialData) -> None:
    """The same three sections from nothing: tiles, features and predictions are made anew."""
    sdata, model = trained
    predict(tissue, model)
    np.testing.assert_allclose(tissue["table"].layers["agl"], sdata["table"].layers["agl"], atol=1e-4, equal_nan=True)


def test_only_the_declared_slots_are_written(trained: Trained, unseen: SpatialData, slots: Slots) -> None:
    before = slots(unseen)
    predict(unseen, trained[1])
    after = slots(unseen)
    assert {name: after[name] for name in before} == before
    added = {name for name in after.keys() - before.keys() if not name.startswith("uns/agl/")}
    scores = {f"var/agl_held_out_{name}" for name in COLUMNS}
    assert added == {"layers/agl", "obsm/agl_features", "obs/agl_split", "obs/agl_distance"} | scores


def test_sections_never_seen_are_test(trained: Trained, unseen: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    _, model = trained
    with caplog.at_level(logging.WARNING):
        predict(unseen, model)
    table = unseen["table"]
    assert (table.obs["agl_split"] == "test").all()
    assert "was fitted on" not in caplog.text
    assert table.layers["agl"].dtype == np.float32
    assert set(table.var_names[np.isfinite(table.layers["agl"]).all(axis=0)]) == set(model.predicted_genes)
    assert table.uns["agl"]["params"]["normalize"] == "log1p_cp10k"
    evaluate(unseen)


def test_a_slide_without_expression_needs_positions_and_names_alone(
    trained: Trained, unseen: SpatialData, tmp_path: Path
) -> None:
    _, model = trained
    positions = unseen["table"].obsm["spatial"]
    spots = AnnData(var=pd.DataFrame(index=model.predicted_genes), obsm={"spatial": positions})
    image = np.asarray(get_pyramid_levels(unseen["section_1_image"], n=0))
    slide = from_anndata(spots, image, technology="visium", image_mpp=1.0)
    predict(slide, model)
    predict(unseen, model)
    written = unseen["table"][:, model.predicted_genes].layers["agl"]
    np.testing.assert_array_equal(slide["table"].layers["agl"], written)
    assert slide["table"].X is None
    slide.write(tmp_path / "slide.zarr")
    read = read_zarr(tmp_path / "slide.zarr")["table"]
    assert read.X is None
    np.testing.assert_array_equal(read.layers["agl"], written)


def test_sections_the_model_was_fitted_on_are_training_whatever_their_name(
    trained: Trained, tissue: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    tissue["table"].obs["patient"] = "somebody"
    with caplog.at_level(logging.WARNING):
        predict(tissue, trained[1])
    assert "The model was fitted on section_1, section_2: predictions there are not evidence." in caplog.messages
    obs = tissue["table"].obs
    assert set(obs["section"][obs["agl_split"] == "train"]) == {"section_1", "section_2"}
    assert set(obs["section"][obs["agl_split"] == "test"]) == {"section_3"}


def test_a_split_that_is_there_stays(trained: Trained) -> None:
    sdata, model = trained
    before = sdata["table"].obs["agl_split"].copy()
    predict(sdata, model)
    assert sdata["table"].obs["agl_split"].equals(before)


def test_a_section_the_model_was_fitted_on_is_known_with_a_spot_missing(trained: Trained, tissue: SpatialData) -> None:
    tissue.tables["table"] = tissue["table"][1:].copy()
    predict(tissue, trained[1])
    obs = tissue["table"].obs
    assert set(obs["section"][obs["agl_split"] == "train"]) == {"section_1", "section_2"}


def test_another_split_of_sections_the_model_has_seen_is_refused(
    trained: Trained, tissue: SpatialData, unchanged: Unchanged
) -> None:
    split(tissue, test=["section_1"], validation=["section_3"])
    with unchanged(tissue), pytest.raises(ValueError, match=r"fitted on section_1, section_2, under another split"):
        predict(tissue, trained[1])


def test_a_second_call_takes_the_features_that_are_there(
    trained: Trained, unseen: SpatialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = trained
    predict(unseen, model)
    first = unseen["table"].layers["agl"]
    monkeypatch.setattr("agl_sc.pp._features.embed.encode", lambda *_, **__: pytest.fail("encoded again"))
    predict(unseen, model)
    np.testing.assert_array_equal(unseen["table"].layers["agl"], first)


def test_a_loaded_model_predicts_the_same(trained: Trained, unseen: SpatialData, tmp_path: Path) -> None:
    _, model = trained
    predict(unseen, model)
    first = unseen["table"].layers["agl"]
    model.save(tmp_path / "model")
    predict(unseen, Model.load(tmp_path / "model"))
    np.testing.assert_array_equal(unseen["table"].layers["agl"], first)


def test_genes_in_another_order_are_found_by_name(trained: Trained, unseen: SpatialData) -> None:
    _, model = trained
    predict(unseen, model)
    expected = unseen["table"].to_df("agl")
    order = np.random.default_rng(0).permutation(24)
    unseen.tables["table"] = unseen["table"][:, order].copy()
    predict(unseen, model)
    shuffled = unseen["table"].to_df("agl")
    np.testing.assert_array_equal(shuffled[expected.columns], expected)


def test_targets_that_are_missing_are_told(
    trained: Trained, unseen: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    _, model = trained
    kept = unseen["table"].var_names != model.targets[1]
    unseen.tables["table"] = unseen["table"][:, kept].copy()
    with caplog.at_level(logging.WARNING):
        predict(unseen, model)
    assert f"1 of 4 target genes are not in the table (e.g. {model.targets[1]}) and are not written." in caplog.messages
    predicted = np.isfinite(unseen["table"].layers["agl"]).all(axis=0)
    assert set(unseen["table"].var_names[predicted]) == set(model.predicted_genes) - {model.targets[1]}


def test_a_spot_without_tile_is_nan(trained: Trained, tissue: SpatialData) -> None:
    predict(tissue, trained[1], shapes_key="section_2")
    known = np.isfinite(tissue["table"].layers["agl"]).any(axis=1)
    np.testing.assert_array_equal(known, tissue["table"].obs["section"] == "section_2")


def other_genes(sdata: SpatialData, model: Model) -> Model:
    sdata["table"].var_names = [f"{name}.1" for name in sdata["table"].var_names]
    return model


def other_tiles(sdata: SpatialData, model: Model) -> Model:
    embed(sdata, **{**PLAIN, "tile_px": 40})
    return model


def other_scale(sdata: SpatialData, model: Model) -> Model:
    embed(sdata, **{**PLAIN, "mpp": 1.1})
    return model


def with_features(model: Model, **changes: Any) -> Model:
    return replace(model, card={**model.card, "features": {**model.card["features"], **changes}})


def other_encoder(sdata: SpatialData, model: Model) -> Model:
    embed(sdata, **PLAIN)
    return with_features(model, encoder="resnet18")


def other_weights(sdata: SpatialData, model: Model) -> Model:
    """The encoder has the model's name and other weights, as after an update of timm."""
    return with_features(model, weights_digest="0" * 64)


def too_coarse(sdata: SpatialData, model: Model) -> Model:
    return with_features(model, mpp=0.25)


def no_image(sdata: SpatialData, model: Model) -> Model:
    for name in list(sdata.images):
        del sdata.images[name]
    return model


def unknown_scale(sdata: SpatialData, model: Model) -> Model:
    sdata.attrs["agl_sc"] = {}
    return model


def not_a_model(sdata: SpatialData, model: Model) -> Any:
    return {"tensors": model.tensors}


BAD = [
    pytest.param(not_a_model, TypeError, "model is a dict, not an agl_sc.Model; train one .* or read it", id="no model"),
    pytest.param(other_genes, ValueError, r"none of the model's 4 target genes .*; did you mean .*\.1; name its genes as in training", id="gene space"),
    pytest.param(other_encoder, ValueError, "was made with encoder='efficientnet_lite0', the model with 'resnet18'", id="encoder"),
    pytest.param(other_weights, ValueError, "weights_digest='.*', the model with '0000", id="encoder weights"),
    pytest.param(other_tiles, ValueError, "was made with tile_px=40, the model with 32; delete obsm", id="tile_px"),
    pytest.param(other_scale, ValueError, "was made with mpp=1.1, the model with 1.0", id="mpp"),
    pytest.param(too_coarse, ValueError, "mpp=0.25 needs 4.0x up-sampling of 'section_1_image'", id="too coarse"),
    pytest.param(no_image, KeyError, "sdata has no image", id="no image"),
    pytest.param(unknown_scale, ValueError, "microns per pixel of 'section_1_image' are unknown", id="scale unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "error", "match"), BAD)
def test_what_does_not_fit_is_refused_and_nothing_changed(
    *,
    trained: Trained,
    unseen: SpatialData,
    spoil: Callable[[SpatialData, Model], Model],
    error: type[Exception],
    match: str,
    unchanged: Unchanged,
) -> None:
    model = spoil(unseen, trained[1])
    with pytest.raises(error, match=match), unchanged(unseen):
        predict(unseen, model)


def test_an_anndata_is_pointed_to_its_reader(trained: Trained) -> None:
    sdata, model = trained
    with pytest.raises(TypeError, match=r"sdata is a AnnData, not a SpatialData; .*agl_sc\.io\.from_anndata"):
        predict(sdata["table"], model)


def test_a_finetuned_encoder_travels_with_its_model(
    *, prepared: SpatialData, unseen: SpatialData, config: TrainConfig, tmp_path: Path
) -> None:
    features = prepared["table"].obsm["agl_features"].copy()
    model = train(prepared, method="pgl", finetune=True, config=replace(config, max_epochs=1))
    layer = prepared["table"].layers["agl"]
    np.testing.assert_array_equal(prepared["table"].obsm["agl_features"], features)  # still of the encoder it names
    assert model.finetuned
    assert model.best_epoch == 1
    original = load_encoder("efficientnet_lite0").module.state_dict()
    convolutions = [name for name, tensor in original.items() if tensor.ndim == 4]
    assert not any(torch.equal(original[name], model.tensors[f"encoder.{name}"]) for name in convolutions)
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    predict(prepared, loaded)
    np.testing.assert_allclose(prepared["table"].layers["agl"], layer, atol=1e-4, equal_nan=True)
    predict(unseen, loaded)
    predict(unseen, without_encoder(loaded), key_added="frozen")
    table = unseen["table"]
    genes = table.var_names.get_indexer(loaded.targets)
    assert np.isfinite(table.layers["agl"][:, genes]).all()
    assert not np.allclose(table.layers["agl"][:, genes], table.layers["frozen"][:, genes], atol=1e-3)


def without_encoder(model: Model) -> Model:
    return replace(model, tensors={k: v for k, v in model.tensors.items() if not k.startswith("encoder.")})


@pytest.mark.parametrize("rows", [slice(3, 4), slice(10, 26), slice(40, 100)], ids=["one", "sixteen", "two sections"])
def test_a_part_is_predicted_as_within_the_whole(trained: Trained, rows: slice) -> None:
    """The table alone is cut: the features in place go with it."""
    sdata, model = trained
    whole = sdata["table"].layers["agl"][rows]
    part = sdata["table"][rows].copy()
    part.uns["spatialdata_attrs"]["region"] = sorted(set(part.obs["region"]))
    del part.layers["agl"], part.obs["agl_split"], part.uns["agl"]["split"]
    cut = SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": part}, attrs=sdata.attrs)
    predict(cut, model)
    assert cut["table"].layers["agl"].tobytes() == whole.tobytes()


def test_a_part_that_is_embedded_on_its_own_is_predicted_as_within_the_whole(
    trained: Trained, unseen: SpatialData
) -> None:
    predict(unseen, trained[1])
    whole = unseen["table"].layers["agl"]
    part = unseen["table"][5:9].copy()
    cut = SpatialData(
        images=dict(unseen.images), shapes=dict(unseen.shapes), tables={"table": part}, attrs=unseen.attrs
    )
    del part.layers["agl"], part.obsm["agl_features"]
    del part.uns["agl"], part.obs["agl_split"]
    predict(cut, trained[1])
    np.testing.assert_allclose(cut["table"].layers["agl"], whole[5:9], atol=1e-4)


def test_a_section_of_too_little_tissue_is_refused_by_name(
    trained: Trained, unseen: SpatialData, unchanged: Unchanged
) -> None:
    part = unseen["table"][5:9].copy()
    shapes = {"section_1": unseen.shapes["section_1"].iloc[5:9]}
    few = SpatialData(images=dict(unseen.images), shapes=shapes, tables={"table": part}, attrs=unseen.attrs)
    message = (
        "Region 'section_1' has 4 tiles of tissue, and what its features are centred on takes 8 or more: add spots"
    )
    with unchanged(few), pytest.raises(ValueError, match=message):
        predict(few, trained[1])
