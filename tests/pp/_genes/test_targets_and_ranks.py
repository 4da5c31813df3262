"""Targets, roles and prior ranks, all from training spots."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from agl_sc.core.spots.genes import normalize_counts, ranks
from agl_sc.datasets import toy_tissue
from agl_sc.pp import rank_auxiliary, split, target_genes

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
SLOTS = ["agl_role", "agl_prior_rank"]


@pytest.fixture
def divided(prepared: SpatialData) -> SpatialData:
    """Split into training (section_1), validation and test; no gene has a role."""
    prepared["table"].var = prepared["table"].var.drop(columns=SLOTS)
    del prepared["table"].uns["agl"]["params"]
    return prepared


def training(sdata: SpatialData) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = (sdata["table"].obs["agl_split"] == "train").to_numpy()
    return rows


def scanpy_expression(sdata: SpatialData) -> AnnData:
    """Training spots after scanpy's own normalisation."""
    adata = AnnData(sdata["table"].X[training(sdata)].astype(np.float32), var=sdata["table"].var[[]])
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def set_gene(sdata: SpatialData, gene: str, values: Any) -> None:
    table = sdata["table"]
    dense = table.X.toarray()
    dense[:, table.var_names.get_loc(gene)] = values
    table.X = scipy.sparse.csr_matrix(dense)


def test_normalisation_is_scanpys(tissue: SpatialData) -> None:
    adata = AnnData(tissue["table"].X.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    ours = normalize_counts(tissue["table"].X, "log1p_cp10k")
    np.testing.assert_allclose(ours.toarray(), adata.X.toarray(), rtol=1e-5)


def test_normalisation_as_in_the_papers_code_is_log1p_alone(tissue: SpatialData) -> None:
    raw = tissue["table"].X.toarray()
    np.testing.assert_allclose(normalize_counts(tissue["table"].X, "log1p").toarray(), np.log1p(raw), rtol=1e-6)


def test_normalisation_leaves_counts_and_empty_spots_alone() -> None:
    counts = scipy.sparse.csr_matrix(np.array([[0, 0], [3, 1]], dtype=np.float32))
    expression = normalize_counts(counts, "log1p_cp10k").toarray()
    np.testing.assert_allclose(expression, [[0, 0], [np.log1p(7500), np.log1p(2500)]], rtol=1e-6)
    np.testing.assert_array_equal(counts.toarray(), [[0, 0], [3, 1]])


def test_targets_are_the_most_variable_of_the_detected_genes(divided: SpatialData) -> None:
    target_genes(divided, genes=5, min_detected=0.5)
    adata = scanpy_expression(divided)
    dense = adata.X.toarray()
    variance = pd.Series(dense.var(axis=0), index=adata.var_names)
    expected = variance[(dense > 0).mean(axis=0) > 0.5].nlargest(5).index
    role = divided["table"].var["agl_role"]
    assert role.cat.categories.tolist() == ["target", "auxiliary", "excluded"]
    assert set(role.index[role == "target"]) == set(expected)
    assert divided["table"].uns["agl"]["params"]["normalize"] == "log1p_cp10k"


def test_a_rare_gene_is_no_target_however_variable(divided: SpatialData) -> None:
    values = np.zeros(divided["table"].n_obs)
    values[:10] = 10_000
    set_gene(divided, "G0010", values)
    target_genes(divided, genes=4, min_detected=0.3)
    assert divided["table"].var["agl_role"]["G0010"] == "auxiliary"
    target_genes(divided, genes=4, min_detected=0.1)
    assert divided["table"].var["agl_role"]["G0010"] == "target"


def test_targets_of_highest_dispersion_may_be_rare(divided: SpatialData) -> None:
    """As in the paper; what is rare is left out of the most variable genes alone."""
    rare = divided["table"].var_names[0]
    values = np.zeros(divided["table"].n_obs)
    values[np.flatnonzero(training(divided))[:4]] = 40
    set_gene(divided, rare, values)
    target_genes(divided, genes=4, choose_by="dispersion")
    adata = scanpy_expression(divided)
    sc.pp.filter_genes(adata, min_cells=3)
    scores = sc.pp.highly_variable_genes(adata, flavor="seurat", inplace=False)["dispersions_norm"]
    scores.index = adata.var_names
    chosen = divided["table"].var["agl_role"] == "target"
    assert chosen.sum() == 4
    assert chosen[rare]
    others = scores.drop(chosen.index[chosen])
    assert scores[chosen.index[chosen]].min() >= others.max()
    target_genes(divided, genes=4)
    assert divided["table"].var["agl_role"][rare] == "auxiliary"


@pytest.mark.parametrize(
    ("n_detected", "role"), [(2, "excluded"), (3, "auxiliary")], ids=["in 2 training spots", "in 3 training spots"]
)
def test_genes_need_three_training_spots(divided: SpatialData, n_detected: int, role: str) -> None:
    values = (~training(divided)).astype(float)
    values[:n_detected] = 1
    set_gene(divided, "G0010", values)
    target_genes(divided, genes=["G0001"])
    assert divided["table"].var["agl_role"]["G0010"] == role
    assert (divided["table"].var["agl_role"].drop(["G0001", "G0010"]) == "auxiliary").all()


@pytest.mark.parametrize(("normalize", "value"), [("log1p_cp10k", 0), ("log1p", 0), ("log1p", 3)])
def test_a_constant_gene_is_excluded_and_refused_as_a_target(
    *, divided: SpatialData, normalize: Any, value: float, unchanged: Unchanged
) -> None:
    set_gene(divided, "G0010", value)
    with (
        pytest.raises(ValueError, match="Target genes G0010 are constant over the training spots; leave them out"),
        unchanged(divided),
    ):
        target_genes(divided, genes=["G0001", "G0010"], normalize=normalize)
    target_genes(divided, genes=["G0001"], normalize=normalize)
    rank_auxiliary(divided, score="dispersion")
    assert divided["table"].var["agl_role"]["G0010"] == "excluded"
    assert np.isnan(divided["table"].var["agl_prior_rank"]["G0010"])


def test_fewer_targets_than_asked_for_is_told(divided: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    for gene in divided["table"].var_names[3:]:
        values = np.zeros(divided["table"].n_obs)
        values[:5] = 4
        set_gene(divided, gene, values)
    with caplog.at_level(logging.WARNING):
        target_genes(divided, genes=10)
    assert "Only 3 of 10 target genes are detected in more than 30 % of spots." in caplog.text
    assert (divided["table"].var["agl_role"] == "target").sum() == 3


def test_prior_ranks_are_the_order_of_scanpys_dispersions() -> None:
    sdata = toy_tissue(n_sections=2, n_spots_per_side=6, n_auxiliary=400)
    table = sdata["table"]
    split(sdata, by="spot", test=0.3)
    target_genes(sdata, genes=20)
    rank_auxiliary(sdata, score="dispersion")
    adata = scanpy_expression(sdata)
    sc.pp.highly_variable_genes(adata, flavor="seurat")
    ordered = table.var["agl_prior_rank"].dropna().sort_values()
    assert ordered.tolist() == list(range((table.var["agl_role"] == "auxiliary").sum()))
    scores = adata.var["dispersions_norm"][ordered.index].to_numpy()
    assert (np.diff(scores) <= 1e-4).all()  # genes alone in a bin tie but for rounding
    assert scores[0] - scores[-1] > 3


@pytest.mark.parametrize("score", ["mean", "variance"])
def test_other_scores(divided: SpatialData, score: str) -> None:
    target_genes(divided, genes=["G0001"])
    rank_auxiliary(divided, score=score)
    dense = scanpy_expression(divided).X.toarray().astype(float)
    value = pd.Series(dense.mean(axis=0) if score == "mean" else dense.var(axis=0), index=divided["table"].var_names)
    expected = value.drop("G0001").sort_values(ascending=False).index
    assert divided["table"].var["agl_prior_rank"].dropna().sort_values().index.tolist() == expected.tolist()


def test_random_ranks_depend_on_the_seed_alone(divided: SpatialData) -> None:
    target_genes(divided, genes=4)
    drawn = []
    for seed in (0, 0, 1):
        rank_auxiliary(divided, score="random", seed=seed)
        drawn.append(divided["table"].var["agl_prior_rank"].to_numpy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2], equal_nan=True)
    assert sorted(drawn[2][np.isfinite(drawn[2])]) == list(range(20))


def test_a_column_of_var_ranks_the_highest_first_and_the_unknown_last(divided: SpatialData) -> None:
    target_genes(divided, genes=["G0001"])
    column = np.arange(24.0)
    column[5] = np.nan
    divided["table"].var["mine"] = column
    rank_auxiliary(divided, score="mine")
    ordered = divided["table"].var["agl_prior_rank"].dropna().sort_values().index.tolist()
    names = divided["table"].var_names.tolist()
    assert ordered == [*(n for n in names[:0:-1] if n != names[5]), names[5]]


def test_ties_keep_table_order() -> None:
    auxiliary = np.array([True, True, False, True, True])
    found = ranks(np.array([1.0, 2.0, 9.0, 2.0, np.nan]), auxiliary)
    np.testing.assert_array_equal(found, [2, 0, np.nan, 1, 3])


@pytest.mark.parametrize(
    "as_stored",
    [lambda x: x.toarray(), scipy.sparse.csc_matrix, scipy.sparse.csr_array],
    ids=["dense", "csc", "csr_array"],
)
def test_storage_does_not_matter(divided: SpatialData, as_stored: Callable[[Any], Any]) -> None:
    table, found = divided["table"], []
    for matrix in (table.X, as_stored(table.X)):
        table.X = matrix
        target_genes(divided, genes=6)
        rank_auxiliary(divided, score="dispersion")
        found.append(table.var[SLOTS].copy())
    pd.testing.assert_frame_equal(*found)


def test_a_layer_of_counts_is_used_and_x_is_not(divided: SpatialData) -> None:
    table = divided["table"]
    target_genes(divided, genes=6)
    rank_auxiliary(divided, score="dispersion")
    expected = table.var[SLOTS].copy()
    table.layers["raw"] = table.X
    table.X = scipy.sparse.random(*table.shape, density=0.5, format="csr", rng=np.random.default_rng(0))
    target_genes(divided, genes=6, layer="raw")
    rank_auxiliary(divided, score="dispersion", layer="raw")
    pd.testing.assert_frame_equal(table.var[SLOTS], expected)
    with pytest.raises(ValueError, match="X holds values that are not whole numbers, as after normalisation"):
        rank_auxiliary(divided, score="dispersion", layer="X")
    rank_auxiliary(divided, score="dispersion")
    pd.testing.assert_frame_equal(table.var[SLOTS], expected)


def test_only_the_declared_slots_are_written(
    divided: SpatialData, slots: Callable[[SpatialData], dict[str, Any]]
) -> None:
    before = slots(divided)
    target_genes(divided, genes=4)
    middle = slots(divided)
    rank_auxiliary(divided, score="dispersion")
    after = slots(divided)
    assert {name: after[name] for name in before} == before
    assert middle.keys() - before.keys() == {"var/agl_role", "uns/agl/params/normalize"}
    assert after.keys() - middle.keys() == {"var/agl_prior_rank"}


def test_counts_of_other_spots_do_not_matter(divided: SpatialData) -> None:
    table, found = divided["table"], []
    others = np.flatnonzero(~training(divided))
    for seed in (None, 0, 1):
        if seed is not None:
            dense = table.X.toarray()
            dense[others] = np.random.default_rng(seed).negative_binomial(1, 0.01, (len(others), table.n_vars))
            table.X = scipy.sparse.csr_matrix(dense)
        target_genes(divided, genes=6)
        rank_auxiliary(divided, score="dispersion")
        found.append(table.var[SLOTS].copy())
    pd.testing.assert_frame_equal(found[1], found[0])
    pd.testing.assert_frame_equal(found[2], found[0])


def negative(sdata: SpatialData) -> None:
    sdata["table"].X.data[3] = -1


def missing(sdata: SpatialData) -> None:
    sdata["table"].X.data[3] = np.nan


def normalised(sdata: SpatialData) -> None:
    sc.pp.normalize_total(sdata["table"], target_sum=1e4)


def twice(sdata: SpatialData) -> None:
    sdata["table"].var_names = ["G0001", *sdata["table"].var_names[:-1]]


def undivided(sdata: SpatialData) -> None:
    del sdata["table"].obs["agl_split"]


def all_test(sdata: SpatialData) -> None:
    del sdata["table"].uns["agl"]["split"]
    sdata["table"].obs["agl_split"] = "test"


def nothing(sdata: SpatialData) -> None:
    """As it is."""


BAD = [
    pytest.param(negative, {}, ValueError, "X holds negative values; raw counts are needed", id="negative"),
    pytest.param(missing, {}, ValueError, "X holds NaN or infinite values", id="NaN"),
    pytest.param(normalised, {}, ValueError, "not whole numbers, as after normalisation", id="normalised"),
    pytest.param(twice, {}, ValueError, r"1 gene names stand twice in the table \(G0001\)", id="duplicate genes"),
    pytest.param(undivided, {}, KeyError, r"agl_split.* is missing; run agl_sc.pp.split\(sdata\) first", id="no split"),
    pytest.param(all_test, {}, ValueError, "has no training spot; run agl_sc.pp.split", id="no training spot"),
    pytest.param(nothing, {"layer": "counts"}, KeyError, "layer='counts' is not in the table", id="layer missing"),
    pytest.param(nothing, {"genes": ["G0002", "G00001"]}, KeyError, "1 target genes are missing: G00001 .*did you mean G0001", id="gene missing"),
    pytest.param(nothing, {"genes": []}, KeyError, "no gene named", id="no gene"),
    pytest.param(nothing, {"genes": 0}, ValueError, "genes=0 is not between 1 and the 24 genes", id="zero genes"),
    pytest.param(nothing, {"genes": 25}, ValueError, "genes=25 is not between 1 and the 24 genes", id="too many genes"),
    pytest.param(nothing, {"choose_by": "mean"}, ValueError, "choose_by='mean' is not one of 'variance', 'dispersion'", id="choice"),
    pytest.param(nothing, {"normalize": "cpm"}, ValueError, "normalize='cpm' is not one of 'log1p_cp10k', 'log1p'", id="units"),
    pytest.param(nothing, {"min_detected": 1.0}, ValueError, "No gene is detected in more than 100% of the training spots", id="nothing detected"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "options", "error", "match"), BAD)
def test_bad_input_is_refused_and_nothing_changed(
    *,
    divided: SpatialData,
    spoil: Callable[[SpatialData], None],
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    unchanged: Unchanged,
) -> None:
    spoil(divided)
    with pytest.raises(error, match=match), unchanged(divided):
        target_genes(divided, **{"genes": 4, **options})


def test_an_unknown_score_is_refused(prepared: SpatialData, unchanged: Unchanged) -> None:
    with (
        pytest.raises(
            KeyError,
            match=r"score='hvg' is neither one of predictability, dispersion, .* nor a numeric column .*truth_prior",
        ),
        unchanged(prepared),
    ):
        rank_auxiliary(prepared, score="hvg")


def test_ranks_need_roles(divided: SpatialData, unchanged: Unchanged) -> None:
    with (
        pytest.raises(KeyError, match=r"agl_role.* is missing; run agl_sc.pp.target_genes\(sdata\) first"),
        unchanged(divided),
    ):
        rank_auxiliary(divided, score="dispersion")
