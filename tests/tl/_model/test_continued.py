"""Training goes on from a model: epoch 0 is that model, and what does not agree is refused."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spatialdata import SpatialData

from agl_sc.datasets import toy_tissue
from agl_sc.model import Model
from agl_sc.pp import embed, split, target_genes
from agl_sc.tl import TrainConfig, evaluate, train
from agl_sc.tl._model.continued import digest_of

Trained = tuple[SpatialData, Model]
Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}
NETWORK = ("linear.weight", "inner.weight", "inner.bias", "outer.weight", "head.weight")


@pytest.fixture(scope="session")
def _others() -> SpatialData:
    sdata = toy_tissue(n_sections=3, n_spots_per_side=7, n_targets=4, n_informative=8, n_auxiliary=20, seed=5)
    embed(sdata, **TILES)
    return sdata


@pytest.fixture
def others(_others: SpatialData) -> SpatialData:
    """Three new sections with features and a split, nothing else prepared."""
    sdata = SpatialData(
        images=dict(_others.images),
        shapes=dict(_others.shapes),
        tables={"table": _others["table"].copy()},
        attrs=dict(_others.attrs),
    )
    split(sdata, test=["section_3"], validation=["section_2"])
    return sdata


def test_epoch_0_is_the_model(trained: Trained, others: SpatialData, config: TrainConfig) -> None:
    _, model = trained
    again = train(others, init=model, config=replace(config, max_epochs=0, refit=False))
    assert again.genes == model.predicted_genes
    assert (again.n_targets, again.method, again.cutoff) == (model.n_targets, model.method, model.cutoff)
    for name in NETWORK:
        assert torch.equal(again.tensors[f"network.{name}"], model.tensors[f"network.{name}"])
    assert torch.equal(again.tensors["feature_scale"], model.tensors["feature_scale"])
    np.testing.assert_array_equal(again.weights, model.weights[model.selected])


def test_it_goes_on_and_is_no_worse_on_validation(
    *, trained: Trained, others: SpatialData, config: TrainConfig, tmp_path: Path
) -> None:
    _, model = trained
    again = train(others, init=model, config=config)
    scores = again.history["validation_pearson"]
    assert len(scores) > 1
    assert scores.max() >= scores.iloc[0]
    assert (
        not torch.equal(again.tensors["network.linear.weight"], model.tensors["network.linear.weight"])
        or again.best_epoch == 0
    )
    assert set(evaluate(others)["gene"]) == set(model.targets)
    again.save(tmp_path / "model")
    assert Model.load(tmp_path / "model").card["continued_from"] == digest_of(model)


def test_all_that_was_seen_is_remembered(trained: Trained, others: SpatialData, config: TrainConfig) -> None:
    sdata, model = trained
    again = train(others, init=model, config=replace(config, max_epochs=1))
    images = set(again.card["fitted_on"].values())
    assert images >= set(model.card["fitted_on"].values())
    assert len(images) == 4  # two sections of either table, under the same names
    table = sdata["table"]
    table.obs["agl_split"] = np.where(table.obs["section"] == "section_3", "train", "test")
    table.obs.loc[table.obs_names[-20:], "agl_split"] = "validation"
    del table.uns["agl"]["split"], table.uns["agl"]["fitted_on"]
    message = r'init was fitted on section_1, section_2, of which obs\["agl_split"\] calls \d+ spots test'
    with pytest.raises(ValueError, match=message):
        train(sdata, init=again, config=replace(config, max_epochs=0))


def test_a_checkpoint_is_continued_and_is_of_one_model(
    *, trained: Trained, others: SpatialData, config: TrainConfig, tmp_path: Path
) -> None:
    _, model = trained
    whole = train(others, init=model, config=config)
    train(others, init=model, config=config, checkpoint=tmp_path / "run")
    again = train(others, init=model, config=config, checkpoint=tmp_path / "run")
    for name, tensor in whole.tensors.items():
        assert torch.equal(again.tensors[name], tensor)
    other = replace(
        model, tensors={**model.tensors, "network.linear.weight": model.tensors["network.linear.weight"] * 2}
    )
    with pytest.raises(ValueError, match=r"is of another training: start was"):
        train(others, init=other, config=config, checkpoint=tmp_path / "run")


def other_features(sdata: SpatialData, model: Model) -> dict[str, Any]:
    return {"init": replace(model, card={**model.card, "features": {**model.card["features"], "tile_px": 48}})}


def other_genes(sdata: SpatialData, model: Model) -> dict[str, Any]:
    sdata.tables["table"] = sdata["table"][:, ~sdata["table"].var_names.isin(model.targets[:1])].copy()
    return {"init": model}


def other_targets(sdata: SpatialData, model: Model) -> dict[str, Any]:
    names = [name for name in sdata["table"].var_names if name not in model.targets]
    target_genes(sdata, genes=names[:4])
    return {"init": model}


def other_units(sdata: SpatialData, model: Model) -> dict[str, Any]:
    target_genes(sdata, genes=model.targets, normalize="log1p")
    return {"init": model}


BAD: list[Any] = [
    pytest.param(lambda *_: {"init": "model"}, TypeError, r"init is a str, not an agl_sc.Model; read it with agl_sc.Model.load", id="text"),
    pytest.param(lambda _, model: {"init": replace(model, tensors={**model.tensors, "encoder.x": torch.ones(1)})}, ValueError, r"init is a fine-tuned model, and training goes on from the features", id="fine-tuned"),
    pytest.param(lambda _, model: {"init": model, "finetune": True}, ValueError, r"finetune=True is asked for with init=", id="finetune"),
    pytest.param(lambda _, model: {"init": model, "method": "agl"}, ValueError, r"method='agl' is not that of init, 'dkgsb', whose gene weights stay", id="method"),
    pytest.param(lambda _, model: {"init": model, "config": TrainConfig(batch_size=16, loss="mse")}, ValueError, r"init was trained with loss='pearson', and config has 'mse'; pass config=TrainConfig\(loss='pearson'\)", id="loss"),
    pytest.param(other_features, ValueError, r"was made with tile_px=32, the model with 48", id="tiles"),
    pytest.param(other_genes, ValueError, r"The table lacks 1 of the \d+ genes that init predicts .*; name its genes as in training, or train without init=", id="genes"),
    pytest.param(other_targets, ValueError, r'var\["agl_role"\] has other targets than init', id="targets"),
    pytest.param(other_units, ValueError, r"init models genes in 'log1p_cp10k', and the table records 'log1p'", id="units"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "error", "match"), BAD)
def test_refusals(
    *,
    trained: Trained,
    others: SpatialData,
    config: TrainConfig,
    spoil: Callable[..., dict[str, Any]],
    error: type[Exception],
    match: str,
    unchanged: Unchanged,
) -> None:
    arguments: dict[str, Any] = {"config": config, **spoil(others, trained[1])}
    with unchanged(others), pytest.raises(error, match=match):
        train(others, **arguments)
