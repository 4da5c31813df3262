"""Losses, presets, precision and trackers through ``train``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from spatialdata import SpatialData

from agl_sc.core.evaluation import metrics
from agl_sc.model import Model
from agl_sc.pp import rank_auxiliary, target_genes
from agl_sc.tl import TrainConfig, predict, train


def training_pearson(sdata: SpatialData, model: Model) -> float:
    """Mean over targets."""
    table = sdata["table"]
    rows, columns = (table.obs["agl_split"] == "train").to_numpy(), table.var_names.get_indexer(model.targets)
    counts = np.asarray(table.X[:, columns].todense())
    library = np.asarray(table.X.sum(axis=1)).ravel()
    measured = np.log1p(1e4 * counts / library[:, None])
    return float(np.nanmean(metrics.pearson(measured[rows], table.layers["agl"][rows][:, columns].astype(float))))


@pytest.mark.parametrize("loss", ["mse", "poisson", "negative_binomial", "multinomial"])
def test_losses_predict_in_the_units_of_the_layer(
    prepared: SpatialData, config: TrainConfig, tmp_path: Path, *, loss: Any
) -> None:
    reference = training_pearson(prepared, train(prepared, method="agl", config=config))
    model = train(prepared, method="agl", config=replace(config, loss=loss, lr=1e-3))
    layer = prepared["table"].layers["agl"]
    assert np.isfinite(layer[:, :24]).all()
    assert training_pearson(prepared, model) > 0.8 * reference
    model.save(tmp_path / "model")
    predict(prepared, Model.load(tmp_path / "model"), key_added="again")
    np.testing.assert_allclose(prepared["table"].layers["again"], layer, atol=1e-5)


@pytest.mark.parametrize("loss", ["poisson", "negative_binomial", "multinomial"])
def test_likelihoods_without_library_size(prepared: SpatialData, config: TrainConfig, *, loss: Any) -> None:
    target_genes(prepared, genes=4, normalize="log1p")
    rank_auxiliary(prepared)
    model = train(prepared, method="pgl", config=replace(config, loss=loss, lr=1e-3))
    assert model.card["normalize"] == "log1p"
    table = prepared["table"]
    columns = table.var_names.get_indexer(model.targets)
    measured = np.log1p(np.asarray(table.X[:, columns].todense()))
    np.testing.assert_allclose(table.layers["agl"][:, columns].mean(axis=0), measured.mean(axis=0), rtol=0.3)


@pytest.mark.parametrize("preset", ["paper", "released", "warmstart"])
def test_presets_train(prepared: SpatialData, config: TrainConfig, *, preset: Any) -> None:
    quick = TrainConfig.preset(
        preset, batch_size=config.batch_size, hidden=16, max_epochs=3,
        gradient={"search_patience": 2, "outer_batch_size": None, "validation_batch_size": None},
    )  # fmt: skip
    model = train(prepared, config=quick)
    assert model.method == "dkgsb"
    assert len(model.cutoff_trace) > 1
    assert 0 <= float(model.cutoff or -1) <= 1
    assert model.card["params"]["detach_normalizer"]


@pytest.mark.usefixtures("another_accelerator")
def test_half_precision_is_close(prepared: SpatialData, config: TrainConfig) -> None:
    config = replace(config, lr=1e-3)  # in few large steps the two go different ways
    full = training_pearson(prepared, train(prepared, method="agl", config=config))
    AcceleratorState._reset_state(reset_partial_state=True)
    half = Accelerator(cpu=True, mixed_precision="bf16")
    model = train(prepared, method="agl", config=config, accelerator=half)
    assert training_pearson(prepared, model) == pytest.approx(full, abs=0.03)
    assert all(tensor.dtype.itemsize == 4 for tensor in model.tensors.values())


class Rows(GeneralTracker):  # type: ignore[misc]
    """Keeps what it is told."""

    name = "rows"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None, **kwargs: Any) -> None:
        self.rows.append({**values, "step": step})


@pytest.mark.usefixtures("another_accelerator")
def test_trackers_are_told_of_every_epoch(prepared: SpatialData, config: TrainConfig) -> None:
    rows = Rows()
    model = train(prepared, method="fixed_k", config=config, accelerator=Accelerator(cpu=True, log_with=rows))
    assert rows.config["method"] == "fixed_k"
    assert rows.config["lr"] == config.lr
    told = [row for row in rows.rows if not np.isnan(row["validation_pearson"])]
    assert [row["step"] for row in told] == model.history["epoch"].tolist()[1:]
    assert [row["k"] for row in told] == model.history["k"].tolist()[1:]
