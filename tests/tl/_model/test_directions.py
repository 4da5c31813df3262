"""Training of many spots on few directions of their features: a model of whole features comes out."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from spatialdata import SpatialData

from agl_sc._sdata.study import Study
from agl_sc.core.linear import directions as core
from agl_sc.core.network.network import network_from
from agl_sc.core.numerics.tensors import part
from agl_sc.core.training.recipe import fit_arm
from agl_sc.core.weighting import METHODS
from agl_sc.model import Model
from agl_sc.tl import TrainConfig, predict, train
from agl_sc.tl._model import data as module
from agl_sc.tl._model.data import training_data

WIDTH = 12


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of spots is many."""
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    monkeypatch.setattr(core, "WIDTHS", (WIDTH,))


def test_the_network_of_whole_features_is_that_of_their_directions(prepared: SpatialData, config: TrainConfig) -> None:
    data = training_data(Study.of(prepared))
    assert data.directions is not None
    n_features = prepared["table"].obsm["agl_features"].shape[1]
    assert (data.features.shape[1], data.directions.shape) == (WIDTH, (n_features, WIDTH))
    result = fit_arm(data, METHODS["agl"], replace(config, max_epochs=1))
    own = network_from(part(result.state, "network."))
    whole = network_from(part(data.calibrated(result, config), "network."))
    scaled = torch.from_numpy(np.random.default_rng(0).normal(size=(9, n_features)).astype(np.float32))
    with torch.inference_mode():
        expected = own(scaled @ torch.from_numpy(data.directions))
        torch.testing.assert_close(whole(scaled), expected[:, torch.from_numpy(result.selected)], rtol=1e-3, atol=1e-4)


def test_such_a_model_is_saved_and_predicts_as_any(
    prepared: SpatialData, config: TrainConfig, *, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = train(prepared, config=config)
    assert f"Training on {WIDTH} directions of the" in caplog.text
    written = prepared["table"].layers["agl"].copy()
    model.save(tmp_path / "model")
    predict(prepared, Model.load(tmp_path / "model"))
    np.testing.assert_array_equal(prepared["table"].layers["agl"], written)


def test_few_spots_fine_tuning_and_going_on_take_whole_features(
    prepared: SpatialData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.of(prepared)
    assert training_data(study, whole=True).directions is None
    model = train(prepared, config=replace(config, max_epochs=1))
    again = train(prepared, init=model, config=replace(config, max_epochs=1))
    assert again.tensors["network.linear.weight"].shape == model.tensors["network.linear.weight"].shape
    monkeypatch.setattr(module, "MOST_BYTES", 4 * prepared["table"].obsm["agl_features"].size)
    assert training_data(study).directions is None


def test_directions_know_nothing_of_other_spots(prepared: SpatialData) -> None:
    before = training_data(Study.of(prepared)).directions
    table = prepared["table"]
    others = (table.obs["agl_split"] != "train").to_numpy()
    counts = table.X.toarray()
    counts[others] = counts[others][:, ::-1]
    table.X = type(table.X)(counts)
    after = training_data(Study.of(prepared)).directions
    np.testing.assert_array_equal(before, after)
