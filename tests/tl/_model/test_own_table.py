"""Predictions in a table of their own: the same numbers as in the layer, found by whoever scores or draws them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from anndata import AnnData
from spatialdata import SpatialData, read_zarr

from agl_sc import pl
from agl_sc._sdata import predictions
from agl_sc._sdata.predictions import predicted_of
from agl_sc._sdata.study import Study
from agl_sc.model import Model
from agl_sc.tl import TrainConfig, cross_validate, evaluate, predict, train

Trained = tuple[SpatialData, Model]
Unchanged = Callable[[SpatialData], AbstractContextManager[None]]


def layer_of(sdata: SpatialData) -> AnnData:
    """Predicted genes of the main table alone."""
    table = sdata["table"]
    known = np.isfinite(table.layers["agl"]).any(axis=0)
    return table[:, known]


def test_it_holds_what_the_layer_would(trained: Trained) -> None:
    sdata, model = trained
    expected = layer_of(sdata)
    genes, values = list(expected.var_names), np.asarray(expected.layers["agl"])
    predict(sdata, model, write_to="table")
    own, table = sdata["agl_prediction"], sdata["table"]
    assert "agl" not in table.layers
    assert set(own.var_names) == set(genes) == set(model.predicted_genes)
    assert own.X.dtype == np.float32
    np.testing.assert_array_equal(own[:, genes].X, values)
    assert own.uns["spatialdata_attrs"] == table.uns["spatialdata_attrs"]
    for column in [own.uns["spatialdata_attrs"][key] for key in ("region_key", "instance_key")]:
        assert own.obs[column].equals(table.obs[column])
    predict(sdata, model, write_to="layer")
    np.testing.assert_array_equal(table[:, genes].layers["agl"], values)
    assert "agl_prediction" not in sdata.tables
    assert "prediction_tables" not in table.uns["agl"]


def test_metrics_and_figures_find_it(trained: Trained, tmp_path: Path) -> None:
    sdata, model = trained
    scores = evaluate(sdata)
    gene = model.targets[0]
    titles = [ax.get_title() for ax in pl.spatial_pred(sdata, gene, sections="section_3", show=False).ravel()]
    predict(sdata, model, write_to="table")
    assert "agl_pearson" not in sdata["table"].var
    sdata.write(tmp_path / "store.zarr")
    read = read_zarr(tmp_path / "store.zarr")
    for each in (sdata, read):
        pd.testing.assert_frame_equal(evaluate(each), scores)
        drawn = pl.spatial_pred(each, gene, sections="section_3", show=False)
        assert [ax.get_title() for ax in drawn.ravel()] == titles
        pl.gene_metrics(each, show=False)
        pl.calibration(each, gene, show=False)


def test_out_of_fold(prepared: SpatialData, config: TrainConfig, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"methods": ["ridge"], "genes": 4, "config": config}
    cross_validate(prepared, **arguments)
    scores = evaluate(prepared, prediction="oof")
    layer = prepared["table"].layers["agl_oof"].copy()
    found = cross_validate(prepared, **arguments, write_to="table")
    assert "agl_oof" not in prepared["table"].layers
    own = prepared["agl_oof_prediction"]
    genes = list(own.var_names)
    assert sorted(genes) == sorted(set(found.results["gene"]))
    np.testing.assert_array_equal(own.X, layer[:, prepared["table"].var_names.get_indexer(genes)])
    pd.testing.assert_frame_equal(evaluate(prepared, prediction="oof"), scores)
    pl.gene_metrics(prepared, prediction="oof", against="noise_ceiling", show=False, save=tmp_path / "genes.png")


def test_the_bound(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    sdata, model = trained
    table = sdata["table"]
    layer_bytes = 4 * table.n_obs * table.n_vars
    dense = np.asarray(table.X.todense() if scipy.sparse.issparse(table.X) else table.X, dtype=np.float32)
    monkeypatch.setattr(predictions, "SMALL_LAYER", layer_bytes - 1)
    table.X = dense  # as many bytes as the layer
    predict(sdata, model)
    assert "agl" in table.layers
    table.X = scipy.sparse.csr_matrix((table.n_obs, table.n_vars), dtype=np.float32)
    predict(sdata, model)
    assert "agl" not in table.layers
    assert "agl_prediction" in sdata.tables
    monkeypatch.setattr(predictions, "SMALL_LAYER", layer_bytes)
    predict(sdata, model)
    assert "agl" in table.layers
    assert "agl_prediction" not in sdata.tables


def test_training_writes_it(prepared: SpatialData, config: TrainConfig) -> None:
    model = train(prepared, config=config, write_to="table")
    assert "agl" not in prepared["table"].layers
    assert set(prepared["agl_prediction"].var_names) == set(model.predicted_genes)
    assert list(evaluate(prepared)["gene"]) == [name for name in prepared["table"].var_names if name in model.targets]


def test_a_table_without_genes(trained: Trained, tissue: SpatialData) -> None:
    sdata, model = trained
    bare = AnnData(obs=tissue["table"].obs.copy(), uns={"spatialdata_attrs": tissue["table"].uns["spatialdata_attrs"]})
    tissue.tables["table"] = bare
    with pytest.raises(ValueError, match=r'write_to="layer" needs a column for every gene, .*; pass write_to="auto"'):
        predict(tissue, model, write_to="layer")
    predict(tissue, model)
    own = tissue["agl_prediction"]
    assert list(own.var_names) == model.predicted_genes
    expected = layer_of(sdata)[:, model.predicted_genes].layers["agl"]
    np.testing.assert_allclose(own.X, expected, atol=1e-4)
    drawn = pl.spatial_pred(tissue, model.targets[0], sections="section_3", show=False)
    assert len(drawn.ravel())
    with pytest.raises(KeyError, match=r"Gene 'nothing' is not in the table"):
        pl.spatial_pred(tissue, "nothing", show=False)


def test_rows_are_found_by_the_shape_that_they_annotate(trained: Trained) -> None:
    sdata, model = trained
    predict(sdata, model, write_to="table")
    before = predicted_of(Study.of(sdata), "model").values
    order = np.random.default_rng(0).permutation(sdata["table"].n_obs)
    subset = sdata["table"][order[:50]].copy()
    subset.obs_names = [f"renamed_{number}" for number in range(50)]
    sdata.tables["table"] = subset
    np.testing.assert_array_equal(predicted_of(Study.of(sdata), "model").values, before[order[:50]])
    sdata.tables["agl_prediction"] = sdata["agl_prediction"][::2].copy()
    found = predicted_of(Study.of(sdata), "model").values
    missing = order[:50] % 2 == 1
    assert np.isnan(found[missing]).all()
    np.testing.assert_array_equal(found[~missing], before[order[:50]][~missing])


def test_refusals(trained: Trained, unchanged: Unchanged) -> None:
    sdata, model = trained
    with unchanged(sdata), pytest.raises(ValueError, match=r"write_to='both' is not one of"):
        predict(sdata, model, write_to=cast("Any", "both"))
    foreign = AnnData(obs=sdata["table"].obs.copy(), uns={"spatialdata_attrs": sdata["table"].uns["spatialdata_attrs"]})
    sdata.tables["agl_prediction"] = foreign
    message = r"sdata.tables\['agl_prediction'\] is not agl_sc's .*; pass another key_added"
    with unchanged(sdata), pytest.raises(ValueError, match=message):
        predict(sdata, model, write_to="table", table_key="table")
    foreign.uns["agl_sc_predictions_of"] = "other"
    message = r"sdata.tables\['agl_prediction'\] holds predictions of the table 'other', which would be lost; pass another key_added"
    with unchanged(sdata), pytest.raises(ValueError, match=message):
        predict(sdata, model, write_to="table")


def test_an_earlier_table_outlives_a_failure(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    sdata, model = trained
    predict(sdata, model, write_to="table")
    before = sdata["agl_prediction"]

    def fail(*_: object) -> None:
        message = "the disk is full"
        raise OSError(message)

    monkeypatch.setattr("agl_sc.tl._model.predict.forget_metrics", fail)
    with pytest.raises(OSError, match="the disk is full"):
        predict(sdata, model, write_to="table")
    assert sdata["agl_prediction"] is before
    with pytest.raises(OSError, match="the disk is full"):
        predict(sdata, model, write_to="layer")
    assert sdata["agl_prediction"] is before
    assert "agl" not in sdata["table"].layers


def test_of_more_than_there_is_room_for_the_best_genes_are_written(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Targets first, then by held-out score; what is written is what it would be, and whoever names a place gets all."""
    sdata, model = trained
    table, n_room = sdata["table"], model.n_targets + 7
    predict(sdata, model, write_to="table")
    every = sdata.tables["agl_prediction"].to_df()
    assert list(every) == model.predicted_genes
    monkeypatch.setattr("agl_sc.tl._model.trust.MOST_BYTES", 4 * table.n_obs * n_room + 3)
    caplog.clear()
    predict(sdata, model)
    assert f"{n_room} in all" in caplog.text
    layer = table.to_df("agl")
    written = set(layer.columns[layer.notna().any()])
    others = model.scores["pearson"].reindex(model.predicted_genes[model.n_targets :]).sort_values(ascending=False)
    assert written == {*model.targets, *others.index[:7]}
    names = sorted(written)
    np.testing.assert_array_equal(layer[names], every[names])
    predict(sdata, model, min_r=float(others.iloc[3]))
    layer = table.to_df("agl")
    assert set(layer.columns[layer.notna().any()]) - set(model.targets) == set(others.index[:4])
    predict(sdata, model, write_to="table")
    assert list(sdata.tables["agl_prediction"].var_names) == model.predicted_genes
