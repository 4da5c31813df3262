"""Some measured spots of a section adapt a model to it, and are not scored."""

import logging
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
from agl_sc.pp import embed
from agl_sc.tl import adapt, evaluate, predict

Trained = tuple[SpatialData, Model]
Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}


@pytest.fixture
def other() -> SpatialData:
    """One section of another seed, every third spot measured."""
    sdata = toy_tissue(n_sections=1, n_spots_per_side=7, n_targets=4, n_informative=8, n_auxiliary=20, seed=9)
    embed(sdata, **TILES)
    table = sdata["table"]
    table.obs["measured"] = np.arange(table.n_obs) % 3 == 0
    return sdata


def off_by(model: Model, shift: float) -> Model:
    """The model with another level of every gene."""
    return replace(model, tensors={**model.tensors, "intercept": model.tensors["intercept"] + shift})


def mse(sdata: SpatialData, model: Model) -> float:
    predict(sdata, model)
    return float(evaluate(sdata, metrics=["mse"])["mse"].mean())


def test_a_wrong_level_is_mended_and_measured_spots_are_not_scored(
    trained: Trained, other: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    model, table = off_by(trained[1], 3.0), other["table"]
    with caplog.at_level(logging.INFO):
        adapted = adapt(other, model, "measured")
    measured = table.obs["measured"].to_numpy()
    assert (table.obs["agl_split"].to_numpy() == np.where(measured, "train", "test")).all()
    assert f"Adapted to {measured.sum()} measured spots: shift" in caplog.text
    before, after = mse(other, model), mse(other, adapted)
    assert after < 0.2 * before
    assert (evaluate(other, metrics=["mse"])["n_spots"] == (~measured).sum()).all()
    assert adapted.card["adapted"]["n_spots"] == measured.sum()
    assert adapted.card["adapted"]["saved"] > 0.5
    assert "adapted" not in model.card


def test_the_measured_spots_alone_are_looked_at(trained: Trained, other: SpatialData) -> None:
    model, table = off_by(trained[1], 3.0), other["table"]
    mask = table.obs["measured"].to_numpy()
    first = adapt(other, model, mask)
    counts = np.asarray(table.X.todense() if hasattr(table.X, "todense") else table.X).copy()
    counts[~mask] = 7
    table.X = counts
    second = adapt(other, model, mask)
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name])


def test_it_is_saved_and_read_and_still_knows_what_it_has_seen(
    trained: Trained, other: SpatialData, tmp_path: Path
) -> None:
    adapted = adapt(other, off_by(trained[1], 3.0), "measured")
    adapted.save(tmp_path / "model")
    read = Model.load(tmp_path / "model")
    expected = mse(other, adapted)
    assert mse(other, read) == pytest.approx(expected)
    again = toy_tissue(n_sections=1, n_spots_per_side=7, n_targets=4, n_informative=8, n_auxiliary=20, seed=9)
    predict(again, read)
    assert (again["table"].obs["agl_split"] == "train").sum() >= other["table"].obs["measured"].sum()


def test_sections_of_the_training_table(trained: Trained) -> None:
    sdata, model = trained
    table = sdata["table"]
    rows = (table.obs["section"] == "section_3").to_numpy() & (np.arange(table.n_obs) % 4 == 0)
    adapted = adapt(sdata, model, rows)
    predict(sdata, adapted)
    scores = evaluate(sdata, metrics=["pearson"])
    assert set(scores["section"]) == {"section_3"}
    assert (scores["n_spots"] == (table.obs["section"] == "section_3").sum() - rows.sum()).all()


def few(sdata: SpatialData) -> Any:
    return np.arange(sdata["table"].n_obs) < 4


def text(sdata: SpatialData) -> Any:
    sdata["table"].obs["text"] = "yes"
    return "text"


def empty(sdata: SpatialData) -> Any:
    table = sdata["table"]
    table.X = np.zeros(table.shape, np.float32)
    return np.ones(table.n_obs, dtype=bool)


BAD = [
    pytest.param(few, ValueError, r"4 measured spots are too few to adapt to, .*; name at least 5 with spots=", id="few"),
    pytest.param(empty, ValueError, r"0 measured spots \(\d+ more have no counts or no features\) are too few", id="no counts"),
    pytest.param(text, TypeError, r'obs\["text"\] holds .*, not True or False for every spot', id="text"),
    pytest.param(lambda _: "mesured", KeyError, r"spots='mesured' is no column of obs; did you mean measured", id="column"),
    pytest.param(lambda _: [True, False], TypeError, r"spots is bool of shape \(2,\); pass True or False for each of the \d+ spots", id="length"),
    pytest.param(lambda sdata: np.arange(sdata["table"].n_obs), TypeError, r"spots is int64 of shape", id="numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("spots", "error", "match"), BAD)
def test_refusals(
    *,
    trained: Trained,
    other: SpatialData,
    spots: Callable[[SpatialData], Any],
    error: type[Exception],
    match: str,
    unchanged: Unchanged,
) -> None:
    named = spots(other)
    with unchanged(other), pytest.raises(error, match=match):
        adapt(other, trained[1], named)
