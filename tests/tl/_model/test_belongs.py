"""A score belongs to its training, and features to the tiles that spots have: kinds of change, each noticed everywhere."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from shapely.affinity import translate
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, get_transformation, set_transformation
from tests.conftest import TILES

from agl_sc import pl
from agl_sc.model import Model
from agl_sc.pp import embed, split
from agl_sc.tl import TrainConfig, cross_validate, evaluate, predict, train

Trained = tuple[SpatialData, Model]
Change = Callable[[SpatialData], None]
SCORERS: dict[str, Callable[[SpatialData, str], Any]] = {
    "evaluate": lambda sdata, gene: evaluate(sdata, metrics=["pearson"]),
    "spatial_pred": lambda sdata, gene: pl.spatial_pred(sdata, gene, show=False),
    "residual_map": lambda sdata, gene: pl.residual_map(sdata, gene, show=False),
    "calibration": lambda sdata, gene: pl.calibration(sdata, gene, show=False),
    "gene_metrics": lambda sdata, gene: pl.gene_metrics(sdata, sections="section_2", against=None, show=False),
}


def split_anew(sdata: SpatialData) -> None:
    split(sdata, test=["section_1"], validation=["section_3"])


def split_by_hand(sdata: SpatialData) -> None:
    table = sdata["table"]
    table.obs["agl_split"] = np.where(table.obs["section"] == "section_1", "test", "train")
    del table.uns["agl"]["split"]


def spots_dropped_and_split_anew(sdata: SpatialData) -> None:
    sdata.tables["table"] = sdata["table"][::2].copy()
    split(sdata, by="spot")


@pytest.mark.parametrize("change", [split_anew, split_by_hand, spots_dropped_and_split_anew], ids=lambda f: f.__name__)
@pytest.mark.parametrize("score", SCORERS.values(), ids=list(SCORERS))
def test_nothing_is_scored_under_another_split(
    *, trained: Trained, change: Change, score: Callable[[SpatialData, str], Any]
) -> None:
    sdata, model = trained
    change(sdata)
    with pytest.raises(ValueError, match=r'layers\["agl"\] was predicted under another split than obs\["agl_split"\]'):
        score(sdata, model.targets[0])


@pytest.mark.parametrize("score", SCORERS.values(), ids=list(SCORERS))
def test_spots_that_were_dropped_are_noticed(*, trained: Trained, score: Callable[[SpatialData, str], Any]) -> None:
    sdata, model = trained
    sdata.tables["table"] = sdata["table"][3:].copy()
    with pytest.raises(ValueError, match=r"no longer matches its manifest|under another split"):
        score(sdata, model.targets[0])


def test_counts_of_another_layer_are_told(prepared: SpatialData, config: TrainConfig, caplog: Any) -> None:
    table = prepared["table"]
    table.layers["counts"], table.layers["other"] = table.X.copy(), table.X.copy()
    table.X = scipy.sparse.csr_matrix(np.random.default_rng(0).poisson(3, table.shape).astype(np.float32))
    train(prepared, method="pgl", layer="counts", config=config)
    with caplog.at_level(logging.WARNING):
        remembered = evaluate(prepared, metrics=["pearson"])
    assert caplog.messages == []
    assert remembered.equals(evaluate(prepared, metrics=["pearson"], layer="counts"))
    for layer in ("other", "X"):
        caplog.clear()
        evaluate(prepared, metrics=["pearson"], layer=layer)
        assert any(
            f"fitted to the counts of layer 'counts' and is compared with those of layer '{layer}'" in m
            for m in caplog.messages
        )
    caplog.clear()
    table.layers["counts"] = table.X.copy()
    evaluate(prepared, metrics=["pearson"])
    assert any("was fitted to other counts of layer 'counts' than are there now" in m for m in caplog.messages)


def other_pixels(sdata: SpatialData) -> None:
    replace_image(sdata, lambda pixels: 255 - pixels)


def fewer_pixels(sdata: SpatialData) -> None:
    replace_image(sdata, lambda pixels: pixels[:, ::2, ::2], Scale([2.0, 2.0], axes=("x", "y")))


def moved_alignment(sdata: SpatialData) -> None:
    shapes = sdata.shapes["section_1"]
    shapes.geometry = [translate(point, 20, 0) for point in shapes.geometry]


def stretched_alignment(sdata: SpatialData) -> None:
    set_transformation(sdata.shapes["section_1"], {"section_1": Scale([1.02, 1.02], axes=("x", "y"))}, set_all=True)


def swapped_spots(sdata: SpatialData) -> None:
    shapes = sdata.shapes["section_1"]
    shapes.geometry = shapes.geometry.to_numpy()[::-1]


def replace_image(sdata: SpatialData, change: Callable[[Any], Any], transformation: Any = None) -> None:
    pixels = np.asarray(next(iter(sdata["section_1_image"]["scale0"].values())).data)
    element = Image2DModel.parse(
        np.ascontiguousarray(change(pixels)),
        dims=("c", "y", "x"),
        transformations={"section_1": transformation or Identity()},
    )
    sdata.images["section_1_image"] = element


CHANGES = [other_pixels, fewer_pixels, moved_alignment, stretched_alignment, swapped_spots]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_features_of_other_tiles_are_not_trained_on(
    *, prepared: SpatialData, config: TrainConfig, change: Change, trained: Trained
) -> None:
    change(prepared)
    for use in (
        lambda: train(prepared, method="pgl", config=config),
        lambda: predict(prepared, trained[1]),
        lambda: cross_validate(prepared, methods="ridge", genes=4),
    ):
        with pytest.raises(
            ValueError, match=r"was made from other tiles than these spots have now .*; run agl_sc\.pp\.embed"
        ):
            use()
    embed(prepared, **TILES)
    train(prepared, method="pgl", config=config)


@pytest.mark.parametrize("seed", range(3))
def test_features_outlive_the_loss_and_the_order_of_spots(
    prepared: SpatialData, config: TrainConfig, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kept = rng.permutation(prepared["table"].n_obs)[: 90 + 20 * seed]
    prepared.tables["table"] = prepared["table"][kept].copy()
    before = prepared["table"].obsm["agl_features"]
    embed(prepared, **TILES)
    assert prepared["table"].obsm["agl_features"] is before
    split(prepared, by="spot", seed=seed)
    del prepared["table"].uns["agl"]["fitted_on"]
    train(prepared, method="pgl", config=config)


def test_features_without_an_image_are_trusted(prepared: SpatialData, config: TrainConfig) -> None:
    for name in list(prepared.images):
        del prepared.images[name]
    train(prepared, method="pgl", config=config)


def test_a_section_is_image_and_place(prepared: SpatialData, config: TrainConfig) -> None:
    """Two cores on one slide: the one that the model was not fitted on is new, the other one is not."""
    table = prepared["table"]
    left = table.obsm["spatial"][:, 0] < np.median(table.obsm["spatial"][table.obs["section"] == "section_1", 0])
    one, two = (core(prepared, (table.obs["section"] == "section_1").to_numpy() & side) for side in (left, ~left))
    split(one, by="spot", test=0.0, validation=0.3)
    model = train(one, method="pgl", config=TrainConfig(batch_size=8, max_epochs=1, hidden=16))
    for sdata, expected in ((one, "train"), (two, "test")):
        predict(sdata, model, key_added="again")
        assert set(sdata["table"].obs["again_split"]) == {expected}


def core(sdata: SpatialData, rows: Any) -> SpatialData:
    part = sdata["table"][rows].copy()
    part.uns["spatialdata_attrs"] = {**part.uns["spatialdata_attrs"], "region": ["section_1"]}
    for name in ("agl_role", "agl_prior_rank"):
        del part.var[name]
    del part.uns["agl"], part.obs["agl_split"], part.obsm["agl_features"]
    made = SpatialData(
        images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": part}, attrs=dict(sdata.attrs)
    )
    embed(made, **TILES)
    return made


def test_spots_without_counts_are_not_scored(trained: Trained, caplog: Any) -> None:
    sdata, model = trained
    table = sdata["table"]
    test = np.flatnonzero(table.obs["agl_split"] == "test")
    counts = table.X.toarray()
    counts[test[:7]] = 0
    table.X = scipy.sparse.csr_matrix(counts)
    with caplog.at_level(logging.WARNING):
        result = evaluate(sdata, metrics=["pearson"])
    assert set(result["n_spots"]) == {len(test) - 7}
    assert "7 test spots have no counts: nothing was measured there, and they are left out." in caplog.messages
    drawn = pl.spatial_pred(sdata, model.targets[0], sections="section_3", show=False)[0, 0].collections[-1].get_array()
    assert np.ma.getmaskarray(drawn).sum() == 7


def test_transformations_are_those_that_were_read(prepared: SpatialData) -> None:
    """What the changes above change is what a user would."""
    assert get_transformation(prepared.shapes["section_1"], "section_1") == Identity()
