"""Prior scores: Moran's I, correlation with the targets, and the order that follows."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from numpy.typing import NDArray

from agl_sc import pp
from agl_sc.core.linear.predictability import predictability
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.genes import ranks, target_correlation
from agl_sc.core.spots.scaling import depth_weights, scale_features, spread
from agl_sc.datasets import toy_tissue
from agl_sc.pp._genes import targets_and_ranks as genes
from agl_sc.pp._genes.scores import morans_i

if TYPE_CHECKING:
    from spatialdata import SpatialData

FloatArray = NDArray[np.float64]


def square_grid(side: int) -> FloatArray:
    return np.array([(x, y) for y in range(side) for x in range(side)], dtype=float)


def hexagonal_grid(side: int) -> FloatArray:
    return np.array([(x + 0.5 * (y % 2), y * 3**0.5 / 2) for y in range(side) for x in range(side)], dtype=float)


def sparse(values: FloatArray) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(values.astype(np.float32))


def counts(n_spots: int, n_genes: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).poisson(0.7, (n_spots, n_genes)).astype(float)


def dense_morans_i(values: FloatArray, centres: FloatArray) -> FloatArray:
    """By hand: neighbours one pitch away, every spot's weights sum to 1."""
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    near = ((distance > 0) & (distance < 1.2)).astype(float)
    weights = near / near.sum(axis=1, keepdims=True)
    z = values - values.mean(axis=0)
    result: FloatArray = np.einsum("ig,ij,jg->g", z, weights, z) / (z**2).sum(axis=0) * len(values) / weights.sum()
    return result


@pytest.mark.parametrize("grid", [square_grid, hexagonal_grid])
@pytest.mark.parametrize("scale", [1.0, 137.5])
def test_morans_i_by_hand(grid: Callable[[int], FloatArray], scale: float) -> None:
    centres = grid(8)
    values = counts(64, 5)
    values[:, 4] = centres[:, 0]
    found = morans_i(sparse(values), centres * scale, np.zeros(64, dtype=np.int64))
    np.testing.assert_allclose(found, dense_morans_i(values, centres), rtol=1e-5)
    assert found[4] > 0.8 > 0.3 > np.abs(found[:4]).max()


def test_morans_i_knows_no_neighbours_across_sections() -> None:
    """Sections in the same place, one ten times as deep: neither overlap nor the shift counts."""
    centres = [square_grid(6), square_grid(8)]
    values = [counts(36, 4), 10 * counts(64, 4, seed=1)]
    order = np.random.default_rng(2).permutation(100)
    codes = np.repeat([7, 3], [36, 64])
    found = morans_i(sparse(np.concatenate(values)[order]), np.concatenate(centres)[order], codes[order])
    each = [dense_morans_i(*pair) for pair in zip(values, centres, strict=True)]
    np.testing.assert_allclose(found, (36 * each[0] + 64 * each[1]) / 100, rtol=1e-5)


def test_gene_constant_in_one_section_takes_the_other_and_in_both_has_none() -> None:
    centres = np.concatenate([square_grid(6), square_grid(6)])
    values = counts(72, 3)
    values[:36, 1] = 0.0
    values[:, 2] = np.repeat([2.0, 5.0], 36)
    found = morans_i(sparse(values), centres, np.repeat([0, 1], 36))
    assert found[1] == pytest.approx(dense_morans_i(values[36:, 1:2], centres[36:])[0], rel=1e-5)
    assert np.isnan(found[2])


def test_spots_without_a_place_and_tiny_sections_are_left_out() -> None:
    centres = np.concatenate([square_grid(6), [[np.nan, np.nan]], square_grid(2)])
    values = counts(41, 3)
    codes = np.repeat([0, 1], [37, 4])
    found = morans_i(sparse(values), centres, codes)
    np.testing.assert_allclose(found, dense_morans_i(values[:36], centres[:36]), rtol=1e-5)


def test_morans_i_of_too_few_spots_is_refused() -> None:
    with pytest.raises(ValueError, match="No section has more than 6 training spots"):
        morans_i(sparse(counts(12, 2)), np.concatenate([square_grid(2)] * 3), np.repeat([0, 1, 2], 4))


def test_target_correlation_by_hand() -> None:
    values, codes = counts(60, 6), np.repeat([4, 9], 30)
    values[30:] = 3 * values[30:] + 20
    targets = np.array([True, False, False, True, False, False])
    centred = values - pd.DataFrame(values).groupby(codes).transform("mean").to_numpy()
    expected = np.abs(np.corrcoef(centred.T)[:, targets]).mean(axis=1)
    np.testing.assert_allclose(target_correlation(sparse(values), targets, codes), expected, rtol=1e-6)


def test_target_correlation_ignores_shifts_between_sections() -> None:
    """A gene that only tells sections apart correlates with nothing, however loud it is."""
    values, codes = counts(60, 3), np.repeat([0, 1], 30)
    values[:, 0] += 50 * codes
    values[:, 2] = np.where(codes == 0, 0.1, 7.3)
    found = target_correlation(sparse(values), np.array([True, False, False]), codes)
    assert found[1] < 0.4
    assert np.isnan(found[2])


def test_a_constant_target_does_not_spoil_the_others() -> None:
    values = counts(40, 3)
    values[:, 1] = 1.0
    found = target_correlation(sparse(values), np.array([True, True, False]), np.zeros(40, dtype=np.int64))
    assert found[2] == pytest.approx(abs(np.corrcoef(values[:, 0], values[:, 2])[0, 1]) / 2, rel=1e-6)


def test_unknown_scores_rank_last_behind_minus_infinity() -> None:
    score = np.array([np.nan, -np.inf, 3.0, np.nan, 5.0, 7.0])
    auxiliary = np.array([True, True, True, True, True, False])
    np.testing.assert_array_equal(ranks(score, auxiliary), [3, 2, 1, 4, 0, np.nan])


@pytest.mark.parametrize("dtype", [np.dtype(np.float64), pd.Float64Dtype()], ids=str)
def test_unknown_values_of_a_column_rank_last(
    prepared: "SpatialData", dtype: np.dtype[np.float64] | pd.Float64Dtype
) -> None:
    table = prepared["table"]
    auxiliary = np.flatnonzero(table.var["agl_role"] == "auxiliary")
    column = pd.Series(np.arange(table.n_vars, dtype=float), index=table.var_names)
    column.iloc[auxiliary[-3]] = np.nan
    table.var["mine"] = pd.Series(column, dtype=dtype)
    pp.rank_auxiliary(prepared, score="mine")
    rank = table.var["agl_prior_rank"].to_numpy()
    assert rank[auxiliary[-1]] == 0
    assert rank[auxiliary[-3]] == len(auxiliary) - 1


@pytest.mark.parametrize("score", ["moran", "correlation"])
def test_ranks_follow_the_score_of_the_training_spots(prepared: "SpatialData", score: str) -> None:
    table = prepared["table"]
    pp.rank_auxiliary(prepared, score=score)
    training = (table.obs["agl_split"] == "train").to_numpy()
    raw = scipy.sparse.csr_matrix(table.X)[training].toarray().astype(float)
    expression = np.log1p(raw / raw.sum(axis=1, keepdims=True) * 1e4)
    role, one = table.var["agl_role"].to_numpy(), np.zeros(training.sum(), dtype=np.int64)
    centres = np.asarray(table.obsm["spatial"], dtype=float)[training]
    by_hand = {
        "moran": lambda: morans_i(sparse(expression), centres, one),
        "correlation": lambda: target_correlation(sparse(expression), role == "target", one),
    }[score]()
    rank = table.var["agl_prior_rank"].to_numpy()
    ordered = by_hand[np.argsort(rank)][: (role == "auxiliary").sum()]
    assert (np.diff(ordered) <= 1e-6).all()
    assert np.isnan(rank[role != "auxiliary"]).all()


@pytest.mark.parametrize("score", ["predictability", "dispersion", "mean", "variance", "moran", "correlation"])
def test_only_training_spots_count(prepared: "SpatialData", score: str) -> None:
    table = prepared["table"]
    pp.rank_auxiliary(prepared, score=score)
    before = table.var["agl_prior_rank"].copy()
    raw = scipy.sparse.csr_matrix(table.X).toarray()
    training = (table.obs["agl_split"] == "train").to_numpy()
    raw[~training] = np.random.default_rng(0).poisson(5, raw[~training].shape)
    table.X = scipy.sparse.csr_matrix(raw)
    pp.rank_auxiliary(prepared, score=score)
    pd.testing.assert_series_equal(table.var["agl_prior_rank"], before)

    raw[training] = np.random.default_rng(1).poisson(5, raw[training].shape)
    table.X = scipy.sparse.csr_matrix(raw)
    pp.rank_auxiliary(prepared, score=score)
    assert not table.var["agl_prior_rank"].equals(before)


def test_genes_that_h_and_e_shows_rank_before_noise() -> None:
    sdata = toy_tissue(n_sections=3, n_spots_per_side=10, n_targets=6, n_informative=20, n_auxiliary=60)
    pp.embed(sdata, tile_px=32, mpp=1.0, context=(), stages=False)
    pp.split(sdata, test=["section_3"])
    truth = sdata["table"].uns["truth"]
    pp.target_genes(sdata, genes=truth["targets"])
    pp.rank_auxiliary(sdata)
    rank = sdata["table"].var["agl_prior_rank"]
    unseen = [*truth["invisible"], *truth["noise"]]
    assert (rank[truth["informative"]] < rank[unseen].median()).mean() > 0.8


def test_predictability_is_that_of_the_arrays(prepared: "SpatialData") -> None:
    table = prepared["table"]
    table.obsm["agl_features"][3] = np.nan  # a spot without tile is left out
    pp.rank_auxiliary(prepared)
    training = (table.obs["agl_split"] == "train").to_numpy(copy=True)
    training[3] = False
    features = np.asarray(table.obsm["agl_features"], dtype=float)[training]
    features -= features.mean(axis=0)
    targets = (table.var["agl_role"] == "target").to_numpy()
    raw = scipy.sparse.csr_matrix(table.X)[training].toarray().astype(float)
    expression = sparse(np.log1p(raw / raw.sum(axis=1, keepdims=True) * 1e4))
    one = np.zeros(training.sum(), dtype=np.int64)
    scores = np.full(table.n_vars, np.nan)
    order = np.concatenate([np.flatnonzero(targets), np.flatnonzero(~targets)])
    scores[order] = predictability(
        scale_features(features, spread(features)).astype(np.float32),
        Expression.fitted(expression[:, order], one),
        4,
        weights=depth_weights(raw.sum(axis=1), one),
    )
    found = table.var["agl_prior_rank"].to_numpy()
    assert (np.diff(scores[np.argsort(found)][:20]) <= 1e-4).all()


def test_many_spots_are_ranked_by_some_of_them(prepared: "SpatialData", monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def record(features: FloatArray, *args: object, **kwargs: object) -> FloatArray:
        seen.append(features.shape)
        return predictability(features, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(genes, "predictability", record)
    monkeypatch.setattr(genes, "MOST_SPOTS", 30)
    pp.rank_auxiliary(prepared)
    first = prepared["table"].var["agl_prior_rank"].copy()
    pp.rank_auxiliary(prepared)
    assert [shape[0] for shape in seen] == [30, 30]
    pd.testing.assert_series_equal(prepared["table"].var["agl_prior_rank"], first)


def test_without_features_another_score_is_named(prepared: "SpatialData") -> None:
    del prepared["table"].obsm["agl_features"]
    with pytest.raises(
        KeyError, match=r"needs obsm.*agl_features.*run agl_sc.pp.embed\(sdata\) first, or .*dispersion"
    ):
        pp.rank_auxiliary(prepared)


def test_a_whole_transcriptome_takes_seconds(data_dir: Path) -> None:
    from agl_sc.io._st import read_st_folder

    sdata = read_st_folder(data_dir / "her2st")
    pp.split(sdata, by="section", test=["C6", "B4"], validation=["C5"])
    pp.target_genes(sdata)
    start = time.perf_counter()
    pp.rank_auxiliary(sdata, score="moran")
    assert time.perf_counter() - start < 60
    var = sdata["table"].var
    assert var["agl_prior_rank"].idxmin() in {"TFF3", "CHGA", "S100A6"}  # tumour against stroma, plain to see
