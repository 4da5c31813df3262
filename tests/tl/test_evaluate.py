"""Metrics of what is in the layer, section by section, on the spots asked for."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from anndata import AnnData
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, pearsonr, spearmanr
from sklearn.metrics import r2_score
from spatialdata import SpatialData

from agl_sc.model import Model
from agl_sc.pp import split, target_genes
from agl_sc.tl import evaluate, predict

Trained = tuple[SpatialData, Model]
Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
METRICS = [
    "pearson", "spearman", "mse", "r2", "concordance", "variance_ratio", "gene_structure",
    "pearson_beyond_depth", "ssim", "moran_ratio", "p_value", "fdr", "noise_ceiling", "pearson_of_ceiling",
    "pearson_between",
]  # fmt: skip
BASIC = METRICS[:3]


@pytest.fixture
def sdata(trained: Trained) -> SpatialData:
    """Two test sections: the split is another one than the model's, which does not matter here."""
    sdata, _ = trained
    split(sdata, test=["section_1", "section_3"], validation=0.0)
    for name in ("fitted_on", "prediction"):  # it would, rightly, be refused
        del sdata["table"].uns["agl"][name]
    return sdata


def test_a_split_made_after_training_is_refused(trained: Trained) -> None:
    sdata, _ = trained
    split(sdata, test=["section_1", "section_3"], validation=0.0)
    with pytest.raises(ValueError, match=r'layers\["agl"\] was predicted under another split than obs\["agl_split"\]'):
        evaluate(sdata)
    del sdata["table"].uns["agl"]["prediction"]
    with pytest.raises(ValueError, match=r"agl_role.* was fitted on the training spots of another split"):
        evaluate(sdata)


def measured(table: AnnData, rows: NDArray[np.bool_], gene: str) -> NDArray[np.float64]:
    raw = table.X.toarray().astype(float)
    values: NDArray[np.float64] = np.log1p(raw * 1e4 / raw.sum(axis=1, keepdims=True))[
        rows, table.var_names.get_loc(gene)
    ]
    return values


def test_metrics_are_scipys_on_the_layer(sdata: SpatialData, trained: Trained) -> None:
    table = sdata["table"]
    result = evaluate(sdata)
    assert result.columns.tolist() == ["section", "gene", "n_spots", *METRICS]
    assert sorted(zip(result["section"], result["gene"], strict=True)) == sorted(
        (section, gene) for section in ("section_1", "section_3") for gene in trained[1].targets
    )
    np.testing.assert_allclose(result["pearson_of_ceiling"], result["pearson"] / result["noise_ceiling"])
    for row in result.itertuples():
        rows = (table.obs["section"] == row.section).to_numpy()
        truth = measured(table, rows, str(row.gene))
        predicted = table[rows, row.gene].layers["agl"].ravel()
        assert row.n_spots == 53
        assert row.pearson == pytest.approx(pearsonr(truth, predicted).statistic, abs=1e-5)
        assert row.spearman == pytest.approx(spearmanr(truth, predicted).statistic, abs=1e-5)
        assert row.mse == pytest.approx(np.mean((truth - predicted) ** 2), rel=1e-4)
        assert row.r2 == pytest.approx(r2_score(truth, predicted), abs=1e-4)
        assert row.variance_ratio == pytest.approx(predicted.var() / truth.var(), rel=1e-4)


def test_only_the_test_spots_of_a_section_count(sdata: SpatialData) -> None:
    split(sdata, by="block", test=0.3, validation=0.0, block_um=250, buffer_um=110)
    table = sdata["table"]
    expected = evaluate(sdata)
    test = (table.obs["agl_split"] == "test").to_numpy()
    assert expected.groupby("section")["n_spots"].first().sum() == test.sum() < table.n_obs
    table.layers["agl"][~test] *= -3
    assert evaluate(sdata).equals(expected)


def test_means_over_sections_are_kept_in_var(sdata: SpatialData, trained: Trained) -> None:
    result = evaluate(sdata)
    var = sdata["table"].var
    assert var["agl_pearson_between"].isna().all()  # of two sections there is none
    for metric in sorted(set(METRICS) - {"p_value", "fdr", "pearson_between"}):
        column = var[f"agl_{metric}"]
        assert set(column.index[column.notna()]) == set(trained[1].targets)
        for gene in trained[1].targets:
            assert column[gene] == pytest.approx(result.loc[result["gene"] == gene, metric].mean())
    p_values = result.pivot(index="gene", columns="section", values="p_value").loc[trained[1].targets]
    assert len(p_values) == 4
    twice_the_mean = np.minimum(2 * p_values.mean(axis=1), 1)
    np.testing.assert_allclose(var["agl_p_value"][p_values.index], twice_the_mean)
    np.testing.assert_allclose(var["agl_fdr"][p_values.index], false_discovery_control(twice_the_mean))


def test_only_the_declared_slots_are_written(
    sdata: SpatialData, slots: Callable[[SpatialData], dict[str, Any]]
) -> None:
    before = slots(sdata)
    evaluate(sdata)
    after = slots(sdata)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {f"var/agl_{metric}" for metric in METRICS}


def test_other_spots_than_test_are_no_evidence_and_are_not_kept(
    sdata: SpatialData, caplog: pytest.LogCaptureFixture, unchanged: Unchanged
) -> None:
    with caplog.at_level(logging.WARNING), unchanged(sdata):
        result = evaluate(sdata, on="train")
    assert "The model was fitted or chosen on train spots: these numbers are not evidence." in caplog.messages
    assert set(result["section"]) == {"section_2"}


def test_a_perfect_prediction_scores_one(sdata: SpatialData) -> None:
    table = sdata["table"]
    everything = np.ones(table.n_obs, dtype=bool)
    truth = np.column_stack([measured(table, everything, gene) for gene in table.var_names])
    table.layers["agl"] = np.where(np.isnan(table.layers["agl"]), np.nan, truth).astype(np.float32)
    result = evaluate(sdata)
    np.testing.assert_allclose(result[["pearson", "spearman"]], 1, atol=1e-6)
    np.testing.assert_allclose(result["mse"], 0, atol=1e-10)


def test_a_constant_gene_has_no_correlation(sdata: SpatialData, trained: Trained) -> None:
    gene = trained[1].targets[0]
    rows = (sdata["table"].obs["section"] == "section_1").to_numpy()
    sdata["table"].layers["agl"][rows, sdata["table"].var_names.get_loc(gene)] = 1.5
    result = evaluate(sdata).set_index(["section", "gene"])
    (undefined,) = result[[("section_1", gene) == index for index in result.index]].isna().to_numpy()
    defined = {name for name, missing in zip(result.columns, undefined, strict=True) if not missing}
    assert defined == {"n_spots", "mse", "r2", "variance_ratio", "ssim", "noise_ceiling"}
    assert sdata["table"].var["agl_pearson"][gene] == pytest.approx(result.loc[("section_3", gene), "pearson"])


def test_spots_and_sections_without_prediction_are_left_out(sdata: SpatialData) -> None:
    table = sdata["table"]
    table.layers["agl"][(table.obs["section"] == "section_1").to_numpy()] = np.nan
    third = np.flatnonzero(table.obs["section"] == "section_3")
    table.layers["agl"][third[:3]] = np.nan
    result = evaluate(sdata)
    assert set(result["section"]) == {"section_3"}
    assert (result["n_spots"] == 50).all()
    assert np.isfinite(result[BASIC]).all(axis=None)


def test_counts_may_lie_in_a_layer(sdata: SpatialData) -> None:
    expected = evaluate(sdata)
    table = sdata["table"]
    table.layers["raw"] = table.X
    table.X = scipy.sparse.csr_matrix(table.X * 0.5)
    with pytest.raises(ValueError, match="X holds values that are not whole numbers"):
        evaluate(sdata)
    assert evaluate(sdata, layer="raw").equals(expected)


def test_auxiliary_genes_are_evaluated_only_where_no_roles_are_known(sdata: SpatialData, trained: Trained) -> None:
    del sdata["table"].var["agl_role"]
    assert set(evaluate(sdata)["gene"]) == set(trained[1].predicted_genes)


def test_only_the_metrics_asked_for_are_computed_and_written(sdata: SpatialData) -> None:
    everything = evaluate(sdata)
    table = sdata["table"]
    table.var = table.var.drop(columns=[f"agl_{metric}" for metric in METRICS])
    result = evaluate(sdata, metrics=["fdr", "pearson"])
    pd.testing.assert_frame_equal(result, everything[["section", "gene", "n_spots", "fdr", "pearson"]])
    assert {f"agl_{metric}" for metric in METRICS} & set(table.var) == {"agl_fdr", "agl_pearson"}


def test_the_same_seed_gives_the_same_ceiling_and_another_one_another(sdata: SpatialData) -> None:
    first, again, other = (evaluate(sdata, metrics=["noise_ceiling"], seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_new_predictions_drop_every_metric_of_earlier_ones(trained: Trained) -> None:
    sdata, model = trained
    evaluate(sdata)
    written = {f"agl_{metric}" for metric in METRICS}
    assert written <= set(sdata["table"].var)
    predict(sdata, model)
    assert not written & set(sdata["table"].var)


def test_targets_chosen_in_other_units_after_training_are_refused(trained: Trained, unchanged: Unchanged) -> None:
    sdata, _ = trained
    target_genes(sdata, genes=4, normalize="log1p")
    with pytest.raises(ValueError, match="in units of normalize='log1p_cp10k', but"), unchanged(sdata):
        evaluate(sdata)


def test_undefined_values_are_counted_in_the_log(sdata: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    gene = sdata["table"].var_names[sdata["table"].var["agl_role"] == "target"][0]
    sdata["table"].layers["agl"][:, sdata["table"].var_names.get_loc(gene)] = 0.5
    evaluate(sdata, metrics=["pearson", "mse"])
    assert "Undefined (NaN) in section_1, of 4 genes: pearson 1." in caplog.messages
    evaluate(sdata, metrics=["pearson", "variance_ratio"])
    assert "1 of 4 genes are predicted the same at all spots of section_1" in caplog.text


def test_without_positions_the_spatial_metrics_are_undefined_unless_asked_for(
    sdata: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    for name in list(sdata.shapes):
        del sdata.shapes[name]
    result = evaluate(sdata)
    assert result[["ssim", "moran_ratio", "p_value", "fdr"]].isna().all(axis=None)
    assert np.isfinite(result[BASIC]).all(axis=None)
    assert any(message.startswith("ssim, moran_ratio, p_value, fdr are undefined, for") for message in caplog.messages)
    with pytest.raises(KeyError, match="Region 'section_1' of the table is none of the shapes, points and labels"):
        evaluate(sdata, metrics=["moran_ratio"])


def test_metrics_on_the_lattice_need_no_image(sdata: SpatialData) -> None:
    expected = evaluate(sdata)
    for name in list(sdata.images):
        del sdata.images[name]
    pd.testing.assert_frame_equal(evaluate(sdata), expected)


def test_spots_on_no_lattice_are_told(sdata: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    shapes = sdata.shapes["section_1"]
    at_random = np.random.default_rng(0).uniform(0, 800, (len(shapes), 2))
    sdata.shapes["section_1"] = shapes.set_geometry(gpd.points_from_xy(*at_random.T))
    result = evaluate(sdata)
    assert "Spots of section_1 lie on no lattice: ssim, moran_ratio, p_value, fdr are undefined." in caplog.messages
    assert (result["p_value"].isna() == (result["section"] == "section_1")).all()


def other_units(sdata: SpatialData) -> None:
    sdata["table"].uns["agl"]["params"]["normalize"] = "log1p"


def no_layer(sdata: SpatialData) -> None:
    del sdata["table"].layers["agl"]


def no_split(sdata: SpatialData) -> None:
    del sdata["table"].obs["agl_split"]


def moved_spots(sdata: SpatialData) -> None:
    sdata["table"].obs["agl_split"] = sdata["table"].obs["agl_split"].to_numpy()[::-1]
    sdata["table"].obs.iloc[0, sdata["table"].obs.columns.get_loc("agl_split")] = "train"


def nothing_predicted(sdata: SpatialData) -> None:
    sdata["table"].layers["agl"][:] = np.nan


def no_test_predicted(sdata: SpatialData) -> None:
    sdata["table"].layers["agl"][(sdata["table"].obs["agl_split"] == "test").to_numpy()] = np.nan


def nothing(sdata: SpatialData) -> None:
    """As it is."""


BAD = [
    pytest.param(no_layer, {}, KeyError, r'layers\["agl"\] is missing; run agl_sc.tl.train or agl_sc.tl.predict', id="no layer"),
    pytest.param(other_units, {}, ValueError, r"predicted in units of normalize='log1p_cp10k', but .* now records 'log1p'; run", id="other units"),
    pytest.param(nothing, {"layer": "agl"}, ValueError, "NaN or infinite values; raw counts are needed", id="predictions as counts"),
    pytest.param(nothing, {"metrics": ["pearson", "rmse"]}, ValueError, "metrics='rmse' is not among the metrics; .* pearson, spearman, mse", id="metric"),
    pytest.param(nothing, {"metrics": []}, ValueError, r"metrics=\[\] is not among the metrics", id="no metric"),
    pytest.param(nothing, {"metrics": "mse"}, ValueError, "metrics='mse' is not among the metrics; pass a list", id="metric as text"),
    pytest.param(no_split, {}, KeyError, r'obs\["agl_split"\] is missing', id="no split"),
    pytest.param(moved_spots, {}, ValueError, "no longer matches its manifest", id="split changed"),
    pytest.param(nothing_predicted, {}, ValueError, "holds no prediction of a target gene", id="nothing predicted"),
    pytest.param(no_test_predicted, {}, ValueError, "holds no prediction of a test spot; run agl_sc.tl.predict on all", id="no test spot predicted"),
    pytest.param(nothing, {"on": "all"}, ValueError, "on='all' is not one of 'test', 'validation', 'train'", id="on"),
    pytest.param(nothing, {"on": "validation"}, ValueError, r"has no validation spot; run agl_sc.pp.split\(sdata, validation=0.2\)", id="no such spot"),
    pytest.param(nothing, {"layer": "raw"}, KeyError, "layer='raw' is not in the table", id="layer missing"),
    pytest.param(nothing, {"key_added": "other"}, KeyError, r'layers\["other"\] is missing', id="other analysis"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "options", "error", "match"), BAD)
def test_bad_input_is_refused_and_nothing_changed(
    *,
    sdata: SpatialData,
    spoil: Callable[[SpatialData], None],
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    unchanged: Unchanged,
) -> None:
    spoil(sdata)
    with pytest.raises(error, match=match), unchanged(sdata):
        evaluate(sdata, **options)


def test_an_anndata_is_pointed_to_its_reader(sdata: SpatialData) -> None:
    with pytest.raises(TypeError, match=r"sdata is a AnnData, not a SpatialData; .*agl_sc\.io\.from_anndata"):
        evaluate(sdata["table"])
