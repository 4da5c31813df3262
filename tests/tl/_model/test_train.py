"""Training writes what it declares, repeatably, and leaves no trace when it fails."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import scipy.sparse
import torch
from anndata import AnnData, read_h5ad
from numpy.typing import NDArray
from spatialdata import SpatialData
from tests.core.spots.dense_calibration import calibrate

from agl_sc._sdata.study import Study
from agl_sc.core.config import Method
from agl_sc.core.evaluation.gene_scores import COLUMNS
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.core.spots.scaling import held_out_slope
from agl_sc.model import Model
from agl_sc.pp import embed, rank_auxiliary, split, target_genes
from agl_sc.pp._splits.drawn import SplitRequest
from agl_sc.pp._splits.split import split_study
from agl_sc.tl import GradientSearch, TrainConfig, train

Trained = tuple[SpatialData, Model]
Slots = Callable[[SpatialData], dict[str, Any]]
Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
METHODS = ["pgl", "agl", "dkgsb"]
ALL_METHODS = get_args(Method)


def normalised(table: AnnData) -> NDArray[np.float32]:
    expression: NDArray[np.float32] = normalize_counts(table.X, "log1p_cp10k").toarray()
    return expression


@pytest.mark.parametrize("method", ALL_METHODS)
def test_only_the_declared_slots_are_written(
    *, prepared: SpatialData, config: TrainConfig, slots: Slots, method: Any
) -> None:
    before = slots(prepared)
    train(prepared, method=method, config=config)
    after = slots(prepared)
    assert {name: after[name] for name in before} == before
    added = {name for name in after.keys() - before.keys() if not name.startswith("uns/agl/")}
    scores = {f"var/agl_held_out_{name}" for name in COLUMNS}
    assert added == {"layers/agl", "var/agl_weight", "var/agl_selected", "obs/agl_distance", *scores}


@pytest.mark.parametrize("method", ALL_METHODS)
def test_the_layer_holds_targets_and_selected_genes(prepared: SpatialData, config: TrainConfig, method: Any) -> None:
    model = train(prepared, method=method, config=config)
    table = prepared["table"]
    layer = table.layers["agl"]
    predicted = (table.var["agl_role"] == "target") | table.var["agl_selected"]
    assert layer.dtype == np.float32
    assert np.isfinite(layer[:, predicted]).all()
    assert np.isnan(layer[:, ~predicted]).all()
    assert set(table.var_names[predicted]) == set(model.predicted_genes)
    assert model.method == method
    everything = dict.fromkeys(["agl", "target_weight", "uncertainty", "auxilearn", "cosine"], 24)
    expected = {"pgl": 4, **everything}
    assert model.n_predicted == expected.get(method, 4 + int((model.weights[4:] >= 0.5).sum()))
    assert ((model.weights >= 0) & (model.weights <= 1)).all()


def test_a_spot_without_features_is_not_predicted(prepared: SpatialData, config: TrainConfig) -> None:
    prepared["table"].obsm["agl_features"][[0, 140]] = np.nan
    train(prepared, method="pgl", config=config)
    missing = np.isnan(prepared["table"].layers["agl"]).all(axis=1)
    assert np.flatnonzero(missing).tolist() == [0, 140]


def test_weights_follow_the_prior_ranks(trained: Trained) -> None:
    sdata, model = trained
    var = sdata["table"].var
    assert (var["agl_weight"][var["agl_role"] == "target"] == 1).all()
    auxiliary = var[var["agl_role"] == "auxiliary"].sort_values("agl_prior_rank")
    weight = auxiliary["agl_weight"].to_numpy()
    assert ((weight >= 0) & (weight <= 1)).all()
    assert (np.diff(weight) <= 0).all()
    assert weight[0] > 0.5 > weight[-1]
    assert auxiliary["agl_selected"].dtype == bool
    np.testing.assert_array_equal(auxiliary["agl_selected"], weight >= 0.5)
    assert not var["agl_selected"][var["agl_role"] == "target"].any()
    assert model.genes == [*var.index[var["agl_role"] == "target"], *auxiliary.index]


@pytest.mark.parametrize(("method", "weight"), [("pgl", np.nan), ("agl", 1.0)])
def test_weights_without_a_cutoff(*, prepared: SpatialData, config: TrainConfig, method: Any, weight: float) -> None:
    model = train(prepared, method=method, config=config)
    var = prepared["table"].var
    np.testing.assert_array_equal(var["agl_weight"], np.where(var["agl_role"] == "target", 1.0, weight))
    assert (model.cutoff, model.search) == (None, None)


def test_uns_says_how(trained: Trained) -> None:
    sdata, model = trained
    uns = sdata["table"].uns["agl"]
    assert uns["params"].items() >= {"method": "dkgsb", "seed": 0, "normalize": "log1p_cp10k", "batch_size": 16}.items()
    assert uns["cutoff"] == model.cutoff
    assert uns["best_epoch"] == model.best_epoch
    np.testing.assert_array_equal(uns["history"]["epoch"], np.arange(4))
    assert int(np.argmax(uns["history"]["validation_pearson"])) == model.best_epoch
    assert len(set(map(len, uns["cutoff_trace"].values()))) == 1
    assert model.cutoff in uns["cutoff_trace"]["cutoff"]
    assert set(uns["versions"]) >= {"agl-sc", "torch", "spatialdata"}


def test_a_second_training_leaves_nothing_of_the_first(trained: Trained, config: TrainConfig) -> None:
    sdata, first = trained
    train(sdata, method="pgl", config=config)
    table = sdata["table"]
    assert first.cutoff is not None
    assert table.uns["agl"].get("cutoff") is None
    assert len(table.uns["agl"]["cutoff_trace"]["k"]) == 0
    assert not table.var["agl_selected"].any()
    assert np.isfinite(table.layers["agl"]).any(axis=0).sum() == 4


def test_two_analyses_stand_side_by_side(trained: Trained, config: TrainConfig, slots: Slots) -> None:
    sdata, _ = trained
    split(sdata, test=["section_1"], validation=["section_2"], key_added="other")
    before = slots(sdata)
    target_genes(sdata, genes=3, key_added="other")
    embed(sdata, tile_px=32, mpp=1.0, key_added="other")
    train(sdata, config=config, key_added="other")
    after = slots(sdata)
    assert {name: after[name] for name in before} == before
    assert {"layers/other", "var/other_role", "obsm/other_features"} <= after.keys() - before.keys()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(*, prepared: SpatialData, config: TrainConfig, method: Any) -> None:
    config = replace(config, start="random")  # the closed form, which may be best, is the same for every seed
    layers, weights = [], []
    gentle = replace(config, lr=1e-3)  # an epoch that improves on the closed-form start, which has no randomness
    for seed in (0, 0, 1):
        model = train(prepared, method=method, config=gentle, seed=seed)
        layers.append(prepared["table"].layers["agl"].tobytes())
        weights.append({name: tensor.numpy().tobytes() for name, tensor in model.tensors.items()})
    assert layers[0] == layers[1] != layers[2]
    assert weights[0] == weights[1] != weights[2]


def test_training_leaves_the_random_state_of_the_session_alone(prepared: SpatialData, config: TrainConfig) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(prepared, method="pgl", config=config)
    torch.testing.assert_close(torch.rand(3), expected)


@pytest.mark.parametrize(("refit", "sets"), [(True, ("train", "validation")), (False, ("train",))])
def test_predictions_of_fitted_spots_are_in_measured_units(
    *, refit: bool, sets: tuple[str, ...], prepared: SpatialData, config: TrainConfig
) -> None:
    """Same mean, and the least-squares slope of measured on predicted is the same, 1 or more, for every predicted gene."""
    model = train(prepared, config=replace(config, refit=refit))
    table = prepared["table"]
    rows = table.obs["agl_split"].isin(sets).to_numpy()
    genes = table.var_names.get_indexer(model.predicted_genes)
    predicted = table.layers["agl"][np.ix_(rows, genes)].astype(float)
    measured = normalised(table)[np.ix_(rows, genes)].astype(float)
    slope, _ = calibrate(predicted, measured)
    np.testing.assert_allclose(slope, slope[0], rtol=2e-3)
    assert slope[0] >= 1 - 1e-3
    np.testing.assert_allclose(predicted.mean(axis=0), measured.mean(axis=0), atol=1e-3)


def test_predictions_vary_as_much_as_held_out_expression_follows(prepared: SpatialData, config: TrainConfig) -> None:
    """On the validation spots, which picked the shrinkage, measured expression goes 1 : 1 with the predictions."""
    model = train(prepared, method="agl", config=replace(config, refit=False))
    table = prepared["table"]
    rows = (table.obs["agl_split"] == "validation").to_numpy()
    genes = table.var_names.get_indexer(model.targets)
    predicted = table.layers["agl"][np.ix_(rows, genes)].astype(float)
    measured = normalised(table)[np.ix_(rows, genes)].astype(float)
    one = np.zeros(rows.sum(), dtype=np.int64)
    assert held_out_slope(predicted, measured, one) == pytest.approx(1, abs=1e-3)


def test_calibration_is_in_the_units_asked_for(prepared: SpatialData, config: TrainConfig) -> None:
    target_genes(prepared, genes=4, normalize="log1p")
    rank_auxiliary(prepared)
    model = train(prepared, method="pgl", config=config)
    table = prepared["table"]
    rows = (table.obs["agl_split"] != "test").to_numpy()
    genes = table.var_names.get_indexer(model.targets)
    measured = np.log1p(table.X.toarray()[np.ix_(rows, genes)]).mean(axis=0)
    np.testing.assert_allclose(table.layers["agl"][np.ix_(rows, genes)].mean(axis=0), measured, atol=1e-3)
    assert model.card["normalize"] == "log1p"


def test_the_result_survives_h5ad(trained: Trained, slots: Slots, tmp_path: Path) -> None:
    sdata, _ = trained
    table = sdata["table"]
    table.write_h5ad(tmp_path / "table.h5ad")
    back = read_h5ad(tmp_path / "table.h5ad")
    check_same_results(back, table)


def test_the_result_survives_zarr(trained: Trained, config: TrainConfig, tmp_path: Path) -> None:
    sdata, model = trained
    sdata.write(tmp_path / "result.zarr")
    back = SpatialData.read(tmp_path / "result.zarr")
    check_same_results(back["table"], sdata["table"])
    again = train(back, config=config)  # from what was read: same split, features, roles and ranks
    assert again.genes == model.genes
    np.testing.assert_allclose(back["table"].layers["agl"], sdata["table"].layers["agl"], atol=1e-4)
    again.save(tmp_path / "model")


def check_same_results(back: AnnData, table: AnnData) -> None:
    np.testing.assert_array_equal(back.layers["agl"], table.layers["agl"])
    for column in ("agl_role", "agl_prior_rank", "agl_weight", "agl_selected"):
        assert back.var[column].dtype == table.var[column].dtype
        np.testing.assert_array_equal(back.var[column].to_numpy(), table.var[column].to_numpy())
    assert back.obs["agl_split"].tolist() == table.obs["agl_split"].tolist()
    np.testing.assert_array_equal(back.obsm["agl_features"], table.obsm["agl_features"])
    before, after = table.uns["agl"], back.uns["agl"]
    assert after["params"] == before["params"]
    assert after["versions"] == before["versions"]
    assert after["split"] == before["split"]
    assert after["features"] == before["features"]
    for name in ("history", "cutoff_trace"):
        for column, values in before[name].items():
            np.testing.assert_array_equal(after[name][column], values)


def test_what_is_missing_is_prepared(tissue: SpatialData, config: TrainConfig) -> None:
    train(tissue, config=config)
    table = tissue["table"]
    sets = table.obs.groupby("agl_split", observed=True)["section"].nunique()
    assert sets.to_dict() == {"train": 1, "validation": 1, "test": 1}
    assert table.uns["agl"]["features"]["tile_px"] == 224
    assert (table.var["agl_role"] == "target").sum() == 24
    assert table.layers["agl"].shape == table.shape


def test_two_sections_are_split_by_block(
    tissue: SpatialData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tissue["table"]
    table.obs["section"] = table.obs["section"].astype(str).replace("section_3", "section_2")
    seen: dict[str, Any] = {}

    def spy(study: Study, asked: SplitRequest, *, may_fit: bool) -> None:
        seen.update(by=asked.by, may_fit=may_fit)
        split_study(study, replace(asked, block_um=250, buffer_um=50))

    monkeypatch.setattr("agl_sc.tl._model.train.split_study", spy)
    embed(tissue, tile_px=32, mpp=1.0)
    train(tissue, method="pgl", config=config)
    assert seen == {"by": "block", "may_fit": True}
    assert {"train", "validation", "test"} <= set(table.obs["agl_split"])


def test_a_layer_of_counts_is_used_and_x_is_not(prepared: SpatialData, config: TrainConfig) -> None:
    table = prepared["table"]
    train(prepared, config=config)
    expected = table.layers["agl"]
    table.layers["raw"] = table.X
    table.X = scipy.sparse.csr_matrix(normalised(table))
    train(prepared, config=config, layer="raw")
    np.testing.assert_array_equal(table.layers["agl"], expected)
    assert (table.X.data != np.round(table.X.data)).any()


def test_without_auxiliary_genes_it_is_pgl_and_says_so(
    prepared: SpatialData, config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    target_genes(prepared, genes=prepared["table"].var_names.tolist())
    rank_auxiliary(prepared)
    with caplog.at_level(logging.WARNING):
        model = train(prepared, config=config)
    assert "There are no auxiliary genes: method='dkgsb' becomes 'pgl'." in caplog.messages
    assert caplog.messages.count("There are no auxiliary genes: method='dkgsb' becomes 'pgl'.") == 1
    assert (model.method, model.search, model.cutoff) == ("pgl", None, None)
    assert prepared["table"].uns["agl"]["params"]["method"] == "pgl"
    assert np.isfinite(prepared["table"].layers["agl"]).all()


def test_spots_without_counts_or_tile_are_left_out_and_told(
    prepared: SpatialData, config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    table = prepared["table"]
    counts = table.X.toarray()
    counts[0] = 0
    table.X = scipy.sparse.csr_matrix(counts)
    table.obsm["agl_features"][60] = np.nan
    with caplog.at_level(logging.WARNING):
        train(prepared, method="pgl", config=config)
    assert "2 training or validation spots have no tile or no counts and are left out." in caplog.messages


def test_the_gradient_search_learns_a_cutoff_too(prepared: SpatialData, config: TrainConfig) -> None:
    gradient = GradientSearch(inner_steps=2, outer_lr=0.05)
    settings = replace(config, search="gradient", gradient=gradient, temperature=0.05)
    model = train(prepared, config=settings)
    assert model.search == "gradient"
    assert model.cutoff is not None
    assert 0 <= model.cutoff <= 1
    assert len(model.cutoff_trace) == 4


def interrupt(monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    """Ctrl-C at a step of the optimiser, once; an epoch has 3."""
    original, n_steps = torch.optim.AdamW.step, 0

    def step(self: Any, closure: Any = None) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps == at_step:
            raise KeyboardInterrupt
        return original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


def test_an_interrupted_training_leaves_the_object_and_the_best_model(
    *,
    prepared: SpatialData,
    config: TrainConfig,
    unchanged: Unchanged,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt(monkeypatch, at_step=7)
    with pytest.raises(KeyboardInterrupt), unchanged(prepared):
        train(prepared, config=replace(config, start="random"), checkpoint=tmp_path / "run")
    kept = Model.load(tmp_path / "run" / "model")
    assert kept.history["epoch"].tolist() == list(range(kept.best_epoch + 1))
    assert kept.best_epoch in (1, 2)
    features = prepared["table"].obsm["agl_features"]
    assert np.isfinite(kept.predict(features, prepared["table"].obs["section"].to_numpy())).all()


@pytest.mark.parametrize("finetune", [False, True])
def test_an_interrupted_training_goes_on_where_it_stopped(
    *,
    prepared: SpatialData,
    config: TrainConfig,
    unchanged: Unchanged,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finetune: bool,
) -> None:
    """To the same bytes as without the interrupt."""
    options: dict[str, Any] = {"method": "pgl", "config": config, "finetune": finetune}
    train(prepared, **options)
    expected = prepared["table"].layers["agl"]
    interrupt(monkeypatch, at_step=7)
    with pytest.raises(KeyboardInterrupt), unchanged(prepared):
        train(prepared, checkpoint=tmp_path / "run", **options)
    train(prepared, checkpoint=tmp_path / "run", **options)
    np.testing.assert_array_equal(prepared["table"].layers["agl"], expected)
