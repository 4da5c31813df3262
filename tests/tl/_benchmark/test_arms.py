"""Arms: what they are called, and what each of them fits."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from spatialdata import SpatialData

from agl_sc._sdata.study import Study
from agl_sc.core.config import Denoise, Method, Preset
from agl_sc.core.linear.baselines import BASELINES
from agl_sc.core.weighting import METHODS
from agl_sc.pp import rank_auxiliary
from agl_sc.tl import TrainConfig, train
from agl_sc.tl._benchmark.arms import ARMS, check_methods, compare_arms, fit_in_place, settings_of, summary


def test_every_method_preset_and_baseline_is_an_arm() -> None:
    assert set(get_args(Method)) | set(BASELINES) <= set(ARMS)
    assert {arm.preset for arm in ARMS.values()} - {None} == set(get_args(Preset))
    assert {name for name, arm in ARMS.items() if arm.method is None} == set(BASELINES)
    assert {arm.score for arm in ARMS.values()} - {None} == {"random", "dispersion", "mean", "moran", "correlation"}


def test_labels_tell_arms_apart_and_fit_a_figure() -> None:
    labels = [arm.label for arm in ARMS.values()]
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 28
    assert {name: ARMS[name].label for name in METHODS} == {name: row.label for name, row in METHODS.items()}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        pytest.param("lasso", "'lasso' is not a method; the methods are mean, depth, knn, ridge", id="unknown"),
        pytest.param([], "methods= is empty; the methods are mean", id="none"),
        pytest.param(["pgl", "pgl"], "names one of them twice; name each once", id="twice"),
    ],
)
def test_refusals(methods: str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_methods(methods)


def test_settings_are_common_but_for_the_published_variants(config: TrainConfig) -> None:
    assert settings_of("dkgsb_moran", config) is config
    assert settings_of("agl_denoised", config) == replace(config, denoise=Denoise())
    paper = settings_of("dkgsb_paper", config)
    assert paper == replace(TrainConfig.preset("paper"), batch_size=config.batch_size)


def test_ranking_of_an_arm(prepared: SpatialData, config: TrainConfig) -> None:
    once = replace(config, max_epochs=0, refit=False)
    fit_in_place(Study.of(prepared), "dkgsb_mean", config=once)
    found = prepared["table"].var["agl_prior_rank"].copy()
    rank_auxiliary(prepared, score="mean")
    np.testing.assert_array_equal(found, prepared["table"].var["agl_prior_rank"])


def test_random_genes_are_as_many_as_dkgsb_chooses(prepared: SpatialData, config: TrainConfig) -> None:
    once = replace(config, max_epochs=1, refit=False)
    chosen = train(prepared, method="dkgsb", config=once)
    roles = prepared["table"].var["agl_role"].copy()
    found = fit_in_place(Study.of(prepared), "random_k", config=once, seed=3)
    assert found is not None
    n_chosen = chosen.n_predicted - chosen.n_targets
    assert 0 < n_chosen < len(chosen.genes) - chosen.n_targets
    assert len(found.genes) - found.n_targets == n_chosen
    rank_auxiliary(prepared, score="random", seed=3)
    ranked = prepared["table"].var["agl_prior_rank"].sort_values()
    assert found.genes[found.n_targets :] == list(ranked.index[:n_chosen])
    assert prepared["table"].var["agl_role"].equals(roles)


@pytest.mark.parametrize("name", ["mean", "depth", "reduced_rank_ridge"])
def test_a_baseline_writes_targets_of_all_spots(name: str, prepared: SpatialData, config: TrainConfig) -> None:
    table = prepared["table"]
    table.obsm["agl_features"][0] = np.nan
    assert fit_in_place(Study.of(prepared), name, config=config) is None
    targets = (table.var["agl_role"] == "target").to_numpy()
    assert table.layers["agl"].dtype == np.float32
    assert np.isfinite(table.layers["agl"][1:, targets]).all()
    assert np.isnan(table.layers["agl"][:, ~targets]).all()
    assert np.isnan(table.layers["agl"][0]).all()


def test_training_mean_is_of_training_and_validation_spots(prepared: SpatialData, config: TrainConfig) -> None:
    fit_in_place(Study.of(prepared), "mean", config=config)
    table = prepared["table"]
    targets = (table.var["agl_role"] == "target").to_numpy()
    counts = table.X.toarray()
    measured = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[:, targets]
    expected = measured[(table.obs["agl_split"] != "test").to_numpy()].mean(axis=0)
    np.testing.assert_allclose(table.layers["agl"][:, targets], np.tile(expected, (table.n_obs, 1)), rtol=1e-5)


def test_the_depth_model_is_ridge_on_log_total_counts_and_sees_no_features(
    prepared: SpatialData, config: TrainConfig
) -> None:
    table = prepared["table"]
    rng = np.random.default_rng(0)
    table.X = scipy.sparse.csr_matrix(table.X.multiply(rng.integers(1, 20, (table.n_obs, 1))))
    fit_in_place(Study.of(prepared), "depth", config=config)
    found = table.layers["agl"].copy()
    table.obsm["agl_features"] = np.random.default_rng(1).normal(size=table.obsm["agl_features"].shape)
    fit_in_place(Study.of(prepared), "depth", config=config)
    np.testing.assert_array_equal(table.layers["agl"], found)
    depth = np.log(table.X.toarray().sum(axis=1, dtype=float))
    sections = table.obs["section"].to_numpy()
    depth -= pd.Series(depth).groupby(sections).transform("mean").to_numpy()
    targets = (table.var["agl_role"] == "target").to_numpy()
    slopes = [np.polyfit(depth[sections == name], found[:, targets][sections == name], 1) for name in set(sections)]
    for slope in slopes[1:]:
        np.testing.assert_allclose(slope, slopes[0], rtol=1e-3, atol=1e-5)
    assert np.abs(slopes[0][0]).max() > 0.01


def test_names_of_slots(prepared: SpatialData, config: TrainConfig) -> None:
    table = prepared["table"]
    for slot, name in (("obs", "split"), ("var", "role"), ("var", "prior_rank"), ("obsm", "features")):
        getattr(table, slot)[f"own_{name}"] = getattr(table, slot)[f"agl_{name}"]
    table.uns["own"] = table.uns["agl"]
    fit_in_place(Study.of(prepared, key_added="own"), "ridge", config=config)
    assert "own" in table.layers
    assert "agl" not in table.layers


def test_comparison_of_arms(prepared: SpatialData, config: TrainConfig) -> None:
    result, model = compare_arms(prepared, ["ridge", "pgl"], config=replace(config, max_epochs=1))
    assert list(result.columns) == ["section", "gene", "pearson", "arm", "seed"]
    assert model is not None
    assert model.method == "pgl"
    assert list(summary(result).index) == ["ridge", "targets only"]
    assert list(summary(result).columns) == ["section_3"]
