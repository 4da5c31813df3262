"""Every spot out of fold, everything fitted anew in every fold, and a run that was stopped goes on."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from anndata import read_h5ad
from numpy.typing import NDArray
from scipy.stats import spearmanr
from spatialdata import SpatialData

from agl_sc._sdata.study import Study
from agl_sc.core.evaluation.section_metrics import NAMES
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.pp import rank_auxiliary, split, target_genes
from agl_sc.pp._features.embed import FeatureRequest, embed_study
from agl_sc.pp._splits.folds import Fold
from agl_sc.tl import TrainConfig, cross_validate, evaluate, train
from agl_sc.tl._benchmark.runs import RunData, run

GENES = ["G0001", "G0002", "G0003", "G0004"]
SECTIONS = ["section_1", "section_2", "section_3"]
Slots = Callable[[SpatialData], dict[str, Any]]


def in_section(sdata: SpatialData, name: str) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = (sdata["table"].obs["section"] == name).to_numpy()
    return rows


def normalized(sdata: SpatialData) -> NDArray[np.floating[Any]]:
    counts = sdata["table"].X.toarray()
    scaled: NDArray[np.floating[Any]] = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    return scaled


def set_counts(sdata: SpatialData, rows: NDArray[np.bool_], *, genes: Any, counts: NDArray[np.floating[Any]]) -> None:
    dense = sdata["table"].X.toarray()
    dense[np.ix_(rows, genes)] = counts
    sdata["table"].X = scipy.sparse.csr_matrix(dense)


def test_one_row_per_method_fold_seed_section_gene_and_metric(prepared: SpatialData, config: TrainConfig) -> None:
    once = replace(config, max_epochs=0, refit=False)
    result = cross_validate(prepared, methods=["ridge", "pgl"], genes=GENES, seeds=2, config=once).results
    assert list(result.columns) == ["method", "fold", "seed", "section", "gene", "metric", "value"]
    expected = {
        (name, section, seed, section, gene, metric)
        for name, seeds in (("ridge", [0]), ("pgl", [0, 1]))  # ridge draws nothing
        for seed in seeds
        for section in SECTIONS
        for gene in GENES
        for metric in ("pearson", "pearson_beyond_depth", "spearman", "mse")
    }
    rows = [tuple(row) for row in result.drop(columns="value").itertuples(index=False)]
    assert len(rows) == len(expected)
    assert set(rows) == expected


def test_values_are_those_of_the_out_of_fold_layer(prepared: SpatialData) -> None:
    result = cross_validate(prepared, methods="ridge", genes=GENES).results
    table = prepared["table"]
    assert table.layers["agl_oof"].dtype == np.float32
    columns = table.var_names.get_indexer(GENES)
    assert np.isfinite(table.layers["agl_oof"][:, columns]).all()
    assert np.isnan(np.delete(table.layers["agl_oof"], columns, axis=1)).all()
    assert (table.obs["agl_fold"].astype(str) == table.obs["section"].astype(str)).all()
    values = result.set_index(["section", "gene", "metric"])["value"]
    for section in SECTIONS:
        rows = in_section(prepared, section)
        for gene, column in zip(GENES, columns, strict=True):
            measured, predicted = normalized(prepared)[rows, column], table.layers["agl_oof"][rows, column]
            assert values[section, gene, "pearson"] == pytest.approx(np.corrcoef(measured, predicted)[0, 1], rel=1e-4)
            assert values[section, gene, "spearman"] == pytest.approx(
                spearmanr(measured, predicted).statistic, rel=1e-4
            )
            assert values[section, gene, "mse"] == pytest.approx(np.mean((measured - predicted) ** 2), rel=1e-4)


def test_all_metrics_are_those_of_evaluate(prepared: SpatialData, config: TrainConfig) -> None:
    once = replace(config, max_epochs=1)
    result = cross_validate(prepared, methods="pgl", genes=GENES, metrics=NAMES, config=once).results
    table = prepared["table"]
    target_genes(prepared, genes=GENES)  # on the split in place, with section_3 for test
    table.layers["agl"] = table.layers["agl_oof"]
    expected = evaluate(prepared).set_index("gene")
    found = result[result["section"] == "section_3"].pivot(index="gene", columns="metric", values="value")
    for name in NAMES:
        if name != "pearson_between":  # over the sections of all folds
            np.testing.assert_allclose(found[name], expected[name].reindex(found.index), rtol=1e-5, err_msg=name)
    between = result[result["metric"] == "pearson_between"]
    assert (between.groupby("gene")["value"].nunique() == 1).all()
    means = {kind: _section_means(prepared, layer) for kind, layer in (("predicted", "agl_oof"), ("measured", None))}
    for gene in found.index:
        oracle = np.corrcoef(means["measured"][gene], means["predicted"][gene])[0, 1]
        assert found.loc[gene, "pearson_between"] == pytest.approx(oracle, abs=1e-4)
    assert found["ssim"].notna().all()


def _section_means(sdata: SpatialData, layer: str | None) -> pd.DataFrame:
    """Pseudobulk of every section, of log-normalised counts where no layer is named."""
    table = sdata["table"]
    values = (
        normalize_counts(scipy.sparse.csr_matrix(table.X), "log1p_cp10k").toarray()
        if layer is None
        else table.layers[layer]
    )
    frame = pd.DataFrame(values, columns=table.var_names)
    return frame.groupby(table.obs["section"].to_numpy()).mean()


def test_a_fold_is_what_split_and_train_would_make_of_it(prepared: SpatialData, config: TrainConfig) -> None:
    cross_validate(prepared, methods="dkgsb", genes=4, config=config)
    table = prepared["table"]
    out_of_fold = table.layers["agl_oof"].copy()
    split(prepared, n_folds=3)
    sets = dict(zip(table.uns["agl"]["split"]["names"], table.uns["agl"]["split"]["sets"], strict=True))
    table.obs["sets"] = np.array(["train", "validation", "test", "unused"])[sets["section_2"]]
    split(prepared, assignments="sets")
    target_genes(prepared, genes=4)
    rank_auxiliary(prepared)
    train(prepared, method="dkgsb", config=config)
    rows, targets = in_section(prepared, "section_2"), (table.var["agl_role"] == "target").to_numpy()
    assert targets.sum() == 4
    np.testing.assert_array_equal(out_of_fold[np.ix_(rows, targets)], table.layers["agl"][np.ix_(rows, targets)])
    assert np.isnan(out_of_fold[np.ix_(rows, ~targets)]).all()


def test_auxiliary_genes_are_ranked_by_a_column_of_the_user(
    *, prepared: SpatialData, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    var, seen = prepared["table"].var, []
    kept = RunData.scratch

    def scratch(data: RunData, fold: Fold) -> Study:
        made = kept(data, fold)
        seen.append(made.sdata)
        return made

    monkeypatch.setattr(RunData, "scratch", scratch)
    once = replace(config, max_epochs=0, refit=False)
    asked: dict[str, Any] = {"methods": "agl", "genes": GENES, "config": once, "checkpoint": tmp_path / "runs"}
    var["mine"] = np.arange(24.0)
    cross_validate(prepared, score="mine", **asked)
    for each in seen:
        ranked = each["table"].var["agl_prior_rank"].dropna().sort_values().index
        assert list(ranked) == [name for name in var.index[::-1] if name in set(ranked)]
    assert len(seen) == 3
    cross_validate(prepared, score="mine", **asked)
    assert len(seen) == 3  # taken from the folder
    var["mine"] = -np.arange(24.0)
    cross_validate(prepared, score="mine", **asked)
    assert len(seen) == 6  # another order is another run


@pytest.mark.parametrize("method", ["dkgsb", "reduced_rank_ridge", "random_forest"])
def test_counts_of_a_fold_do_not_reach_its_predictions(method: str, prepared: SpatialData, config: TrainConfig) -> None:
    once = replace(config, max_epochs=1)
    cross_validate(prepared, methods=method, genes=4, config=once)
    before = prepared["table"].layers["agl_oof"].copy()
    rows = in_section(prepared, "section_3")
    counts = prepared["table"].X.toarray()[rows]
    set_counts(prepared, rows, genes=np.arange(24), counts=np.random.default_rng(0).permuted(counts, axis=1) * 50)
    cross_validate(prepared, methods=method, genes=4, config=once)
    after = prepared["table"].layers["agl_oof"]
    np.testing.assert_array_equal(after[rows], before[rows])
    assert not np.array_equal(after[~rows], before[~rows], equal_nan=True)


def plant(sdata: SpatialData) -> None:
    """Four genes that are the place of the spot in a random order of its section."""
    rng = np.random.default_rng(0)
    for section in SECTIONS:
        rows = in_section(sdata, section)
        order = np.column_stack([rng.permutation(rows.sum()) for _ in GENES])
        set_counts(sdata, rows, genes=sdata["table"].var_names.get_indexer(GENES), counts=order * 20.0)


LEAK_METHODS = ["pca_ridge", "ridge", "knn", "reduced_rank_ridge", "agl"]


def test_a_gene_that_is_the_number_of_the_spot_is_not_predictable(prepared: SpatialData, config: TrainConfig) -> None:
    plant(prepared)
    result = cross_validate(prepared, methods=LEAK_METHODS, genes=GENES, metrics=["pearson"], config=config).results
    by_method = result.groupby("method")["value"].mean()
    assert set(by_method.index) == set(LEAK_METHODS)
    assert by_method.abs().max() < 0.15


def test_the_test_above_notices_a_leak(prepared: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(prepared)
    honest = RunData.scratch

    def leaky(*args: Any) -> Study:
        study = honest(*args)
        assigned = study.table.obs["agl_split"]
        study.table.obs["agl_split"] = assigned.where(assigned != "test", "train")
        return study

    monkeypatch.setattr(RunData, "scratch", leaky)
    result = cross_validate(prepared, methods="pca_ridge", genes=GENES, metrics=["pearson"]).results
    assert result["value"].mean() > 0.5


def test_only_declared_slots_change(prepared: SpatialData, slots: Slots) -> None:
    before = slots(prepared)
    cross_validate(prepared, methods="ridge", genes=4)
    after = slots(prepared)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    new = {name for name in changed if not name.startswith("uns/agl/cross_validation/")}
    assert new == {"layers/agl_oof", "obs/agl_fold"}
    assert new < changed


def test_features_are_made_once_where_there_are_none(
    tissue: SpatialData, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(study: Study, asked: FeatureRequest) -> None:
        embed_study(study, replace(asked, tile_px=32, mpp=1.0))

    monkeypatch.setattr("agl_sc.tl._model.train.embed_study", small)
    before = slots(tissue)
    cross_validate(tissue, methods="ridge", genes=4)
    added = {name for name in slots(tissue) if name not in before}
    assert {name.split("/")[0] for name in added} == {"layers", "obs", "obsm", "uns"}
    assert {name for name in added if not name.startswith("uns")} == {
        "layers/agl_oof", "obs/agl_fold", "obsm/agl_features"
    }  # fmt: skip


class Stopped(BaseException):
    """As an interrupt."""


def stop_after(n_runs: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the methods that were run."""
    names: list[str] = []

    def counted(*args: Any, name: str, **how: Any) -> Any:
        if len(names) == n_runs:
            raise Stopped
        names.append(name)
        return run(*args, name=name, **how)

    monkeypatch.setattr("agl_sc.tl._benchmark.cross_validate.run", counted)
    return names


def test_a_stopped_run_changes_nothing_and_goes_on(
    *,
    prepared: SpatialData,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchanged: Callable[[SpatialData], Any],
) -> None:
    once = replace(config, max_epochs=0, refit=False)
    how: dict[str, Any] = {"methods": ["ridge", "agl"], "genes": 4, "config": once, "seeds": 2}
    with monkeypatch.context() as patch, unchanged(prepared):
        names = stop_after(4, patch)
        with pytest.raises(Stopped):
            cross_validate(prepared, **how, checkpoint=tmp_path / "a")
    assert names == ["ridge", "agl", "agl", "ridge"]
    assert len(list((tmp_path / "a").iterdir())) == 4
    with monkeypatch.context() as patch:
        names = stop_after(9, patch)
        continued = cross_validate(prepared, **how, checkpoint=tmp_path / "a").results
    assert names == ["agl", "agl", "ridge", "agl", "agl"]
    layer = prepared["table"].layers["agl_oof"].copy()
    whole = cross_validate(prepared, **how, checkpoint=tmp_path / "b").results
    pd.testing.assert_frame_equal(continued, whole, check_exact=True)
    assert layer.tobytes() == prepared["table"].layers["agl_oof"].tobytes()
    files = [{path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in "ab"]
    assert len(files[0]) == 9
    assert files[0] == files[1]


def test_finished_runs_of_other_data_or_settings_are_not_taken(
    prepared: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = stop_after(99, monkeypatch)
    cross_validate(prepared, methods="ridge", genes=4, checkpoint=tmp_path)
    assert len(names) == 3
    cross_validate(prepared, methods=["mean", "ridge"], genes=4, checkpoint=tmp_path)
    assert names[3:] == ["mean"] * 3
    for change in ({"genes": 3}, {"normalize": "log1p"}, {"config": TrainConfig(lr=0.5)}):
        del names[:]
        cross_validate(prepared, **{"methods": "ridge", "genes": 4, "checkpoint": tmp_path, **change})  # type: ignore[arg-type]
        assert len(names) == 3, change
    prepared["table"].X[0, 0] += 1
    del names[:]
    cross_validate(prepared, methods="ridge", genes=4, checkpoint=tmp_path)
    assert len(names) == 3


def test_a_damaged_file_is_named(prepared: SpatialData, tmp_path: Path) -> None:
    cross_validate(prepared, methods="mean", genes=4, checkpoint=tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*; delete it to run it again"):
        cross_validate(prepared, methods="mean", genes=4, checkpoint=tmp_path)


def test_the_layer_is_the_mean_over_seeds_of_the_first_method(
    prepared: SpatialData, tmp_path: Path, config: TrainConfig
) -> None:
    cross_validate(
        prepared, methods=["random_forest", "ridge"], genes=GENES, seeds=2, config=config, checkpoint=tmp_path
    )
    table = prepared["table"]
    predicted = []
    for path in tmp_path.glob("2_random_forest_*"):
        with np.load(path) as arrays:
            assert arrays["genes"].tolist() == GENES
            predicted.append(arrays["predicted"])
    assert len(predicted) == 2
    assert not np.array_equal(*predicted)
    rows, columns = in_section(prepared, "section_3"), table.var_names.get_indexer(GENES)
    np.testing.assert_allclose(table.layers["agl_oof"][np.ix_(rows, columns)], np.mean(predicted, axis=0), rtol=1e-5)


def test_folds_in_place(prepared: SpatialData) -> None:
    by_plan = cross_validate(prepared, methods="ridge", genes=GENES).results
    written = dict(prepared["table"].uns["agl"]["cross_validation"])
    split(prepared, n_folds=3)
    in_place = cross_validate(prepared, methods="ridge", genes=GENES, by=None).results
    again = prepared["table"].uns["agl"]["cross_validation"]
    assert set(by_plan["section"]) == set(in_place["section"])
    assert again["hash"] == prepared["table"].uns["agl"]["split"]["hash"]
    assert again["by"] == written["by"] == "section"
    assert again["n_folds"] == written["n_folds"] == 3


def test_blocks_within_sections(prepared: SpatialData) -> None:
    how: dict[str, Any] = {"by": "block", "n_folds": 2, "block_um": 200, "buffer_um": 50, "metrics": ["mse"]}
    result = cross_validate(prepared, methods="mean", genes=GENES, **how).results
    assert set(result["fold"]) == {"fold 0", "fold 1"}
    assert set(zip(result["fold"], result["section"], strict=True)) == {
        (fold, section) for fold in ("fold 0", "fold 1") for section in SECTIONS
    }
    assert np.isfinite(prepared["table"].layers["agl_oof"][:, :4]).all()


def test_undefined_values_are_nan_and_counted(prepared: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = prepared["table"]
    rows = in_section(prepared, "section_1")
    set_counts(prepared, rows, genes=[table.var_names.get_loc("G0001")], counts=np.zeros((rows.sum(), 1)))
    with caplog.at_level(logging.WARNING, "agl_sc.tl._benchmark.cross_validate"):
        result = cross_validate(
            prepared, methods="ridge", genes=GENES, metrics=["pearson", "mse"], validation=0.0
        ).results
    undefined = result[result["value"].isna()]
    assert undefined[["section", "gene", "metric"]].to_numpy().tolist() == [["section_1", "G0001", "pearson"]]
    assert "1 of 24 values are undefined" in caplog.text


def test_what_is_written_survives_h5ad_and_zarr(prepared: SpatialData, tmp_path: Path) -> None:
    cross_validate(prepared, methods=["ridge", "mean"], genes=GENES)
    table = prepared["table"]
    table.write_h5ad(tmp_path / "table.h5ad")
    prepared.write(tmp_path / "sections.zarr")
    written = table.uns["agl"]["cross_validation"]
    for again in (read_h5ad(tmp_path / "table.h5ad"), SpatialData.read(tmp_path / "sections.zarr")["table"]):
        read = again.uns["agl"]["cross_validation"]
        assert set(read) == set(written)
        for name in set(read) - {"config", "versions"}:
            assert np.asarray(read[name]).tolist() == np.asarray(written[name]).tolist(), name
        assert dict(read["versions"]) == written["versions"]
        assert dict(read["config"]) == written["config"]
        assert list(again.obs["agl_fold"].cat.categories) == SECTIONS
        np.testing.assert_array_equal(again.layers["agl_oof"], table.layers["agl_oof"])


REFUSED: list[Any] = [
    pytest.param({"methods": "lasso"}, ValueError, "'lasso' is not a method", id="method"),
    pytest.param({"metrics": ["accuracy"]}, ValueError, "metrics='accuracy' is not among the metrics; .* pearson", id="metric"),
    pytest.param({"metrics": []}, ValueError, r"metrics=\[\] is not among the metrics", id="no metric"),
    pytest.param({"seeds": 0}, ValueError, "seeds=0 is not a number of seeds from 1", id="seeds"),
    pytest.param({"by": "slide"}, ValueError, "by='slide' is not one of", id="by"),
    pytest.param({"by": "section", "n_folds": 9}, ValueError, "9", id="more folds than sections"),
    pytest.param({"by": None}, ValueError, "holds no folds", id="no folds in place"),
    pytest.param({"by": None, "n_folds": 3}, ValueError, "n_folds=3 says how to divide, but by=None", id="folds twice"),
    pytest.param({"genes": ["G0001", "GAPDH"]}, KeyError, "GAPDH not in the table", id="gene"),
    pytest.param({"score": "hvg"}, KeyError, "score='hvg' is neither one of predictability", id="score"),
    pytest.param({"layer": "raw"}, KeyError, "layer='raw' is not in the table", id="layer"),
    pytest.param({"layer": "agl_oof"}, ValueError, "would be overwritten by the predictions", id="own layer"),
    pytest.param({"layer": "log"}, ValueError, "raw counts are needed", id="layer in other units"),
    pytest.param({"methods": "agl", "config": None}, ValueError, "fewer than batch_size=128; pass config", id="batch"),
    pytest.param({"methods": "agl", "validation": 0.0}, ValueError, "pass validation=0.2", id="no validation"),
    pytest.param({"methods": "reduced_rank_ridge", "validation": 0.0}, ValueError, "'reduced_rank_ridge' picks", id="ridge"),
    pytest.param({"checkpoint": "nowhere/runs"}, FileNotFoundError, "does not exist; make it", id="checkpoint"),
    pytest.param({"checkpoint": __file__}, FileExistsError, "is a file, not a folder", id="file as checkpoint"),
    pytest.param({"key_added": "a b"}, ValueError, "is not a plain name", id="key"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED)
def test_refusals(
    *,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
    prepared: SpatialData,
    config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    unchanged: Callable[[SpatialData], Any],
) -> None:
    table = prepared["table"]
    table.layers["agl_oof"] = table.X.copy()
    table.layers["log"] = normalized(prepared)
    names = stop_after(0, monkeypatch)
    with unchanged(prepared), pytest.raises(error, match=message):
        cross_validate(prepared, **{"methods": "ridge", "genes": 4, "config": config, **arguments})
    assert names == []


def test_one_section_cannot_be_held_out(prepared: SpatialData) -> None:
    alone = prepared["table"][in_section(prepared, "section_1")].copy()
    alone.uns["spatialdata_attrs"]["region"] = "section_1"
    single = SpatialData(images=dict(prepared.images), shapes=dict(prepared.shapes), tables={"table": alone})
    with pytest.raises(ValueError, match="there is only one"):
        cross_validate(single, methods="ridge", genes=4)


def test_a_named_gene_that_is_constant_in_training_is_refused_first(
    prepared: SpatialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = in_section(prepared, "section_2")
    set_counts(prepared, rows, genes=[prepared["table"].var_names.get_loc("G0002")], counts=np.zeros((rows.sum(), 1)))
    names = stop_after(0, monkeypatch)
    with pytest.raises(ValueError, match="Target genes G0002 are constant over the training spots of fold 'section_"):
        cross_validate(prepared, methods="ridge", genes=GENES)
    assert names == []


def test_patients_need_a_column(prepared: SpatialData) -> None:
    del prepared["table"].obs["patient"]
    with pytest.raises(KeyError, match="obs has no column 'patient'"):
        cross_validate(prepared, methods="ridge", genes=4, by="patient")
