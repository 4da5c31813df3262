"""What validation picks in closed form, on planted problems."""

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeCV

from agl_sc.core.choices import TRACE_COLUMNS
from agl_sc.core.linear import choose_by_validation as module
from agl_sc.core.linear.choose_by_validation import (
    ALPHAS,
    RANKS,
    _smooth,
    choose_alpha,
    choose_rank,
    one_standard_error,
    own_penalty,
    path_search,
    rank_pearson,
)
from agl_sc.core.linear.closed_form import LowRank, RidgeBasis, reduced_rank_ridge, ridge_basis
from agl_sc.core.numerics import eigen
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Validation

FloatArray = NDArray[np.float64]

N_SPOTS, N_FEATURES, N_TARGETS = 240, 30, 10
N_INFORMATIVE, N_AUXILIARY, N_FIELDS = 40, 160, 4


def planted(seed: int, n_auxiliary: int = N_AUXILIARY) -> tuple[RidgeBasis, Validation]:
    """Noisy targets of four fields; auxiliary genes of the same fields with little noise, then loud ones of other fields."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(2 * N_SPOTS, N_FEATURES))
    fields, others = (features @ rng.normal(size=(N_FEATURES, N_FIELDS)) / np.sqrt(N_FEATURES) for _ in range(2))

    def genes(driver: FloatArray, n_genes: int, noise: float) -> FloatArray:
        return driver @ rng.normal(size=(N_FIELDS, n_genes)) + noise * rng.normal(size=(2 * N_SPOTS, n_genes))

    drawn = [genes(fields, N_TARGETS, 4.0), genes(fields, N_INFORMATIVE, 0.3)]
    drawn.append(genes(3 * others, N_AUXILIARY - N_INFORMATIVE, 0.3))
    expression = np.concatenate(drawn, axis=1)[:, : N_TARGETS + n_auxiliary]
    train, held_out = slice(None, N_SPOTS), slice(N_SPOTS, None)
    for part in (train, held_out):
        features[part] -= features[part].mean(axis=0)
        expression[part] -= expression[part].mean(axis=0)
    sections = np.repeat([0, 1], N_SPOTS // 2)
    validation = Validation(features[held_out], expression[held_out, :N_TARGETS], sections)
    return ridge_basis(features[train], Expression.from_dense(expression[train])), validation


@pytest.mark.parametrize("position", [0, 4, 9, 16])
def test_choose_alpha_finds_the_penalty_that_predicts_without_error(position: int) -> None:
    basis, validation = planted(0)
    alpha = N_FEATURES * ALPHAS[position]
    weights = np.ones(basis.genes.shape[1])
    exact = reduced_rank_ridge(basis, weights, alpha=alpha, rank=8).predict(validation.features)[:, :N_TARGETS]
    assert choose_alpha(basis, Validation(validation.features, exact, validation.sections)) == pytest.approx(alpha)


def test_auxiliary_genes_that_help_bear_a_smaller_penalty() -> None:
    basis, validation = planted(0)
    alone = replace(basis, genes=basis.genes[:, :N_TARGETS])
    helped = replace(basis, genes=basis.genes[:, : N_TARGETS + N_INFORMATIVE])
    assert choose_alpha(helped, validation) < choose_alpha(alone, validation)


@pytest.mark.parametrize("rank", [4, 8, 16, 30])
def test_choose_rank_finds_the_rank_that_predicts_without_error(rank: int) -> None:
    basis, validation = planted(0)
    start = reduced_rank_ridge(basis, np.ones(basis.genes.shape[1]), alpha=30.0, rank=30)
    exact = start.cut(rank).predict(validation.features)[:, :N_TARGETS]
    assert choose_rank(start, Validation(validation.features, exact, validation.sections)) == rank


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_choose_rank_of_few_genes_is_not_left_to_rounding(dtype: type[np.floating[Any]]) -> None:
    """Four genes fill no more than four directions: wider trunks predict the same."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        features = rng.normal(size=(90, 40)).astype(dtype)
        genes = features @ rng.normal(size=(40, 4)) + rng.normal(size=(90, 4))
        basis = ridge_basis(features[:60], Expression.from_dense(genes[:60]))
        start = reduced_rank_ridge(basis, np.ones(4), alpha=40.0, rank=32)
        assert choose_rank(start, Validation(features[60:], genes[60:], np.zeros(30, dtype=np.int64))) == 4


def test_choose_rank_is_never_wider_than_the_start() -> None:
    basis, validation = planted(0)
    start = reduced_rank_ridge(basis, np.ones(basis.genes.shape[1]), alpha=30.0, rank=6)
    assert choose_rank(start, validation) in {4, 6}


@pytest.mark.parametrize("rank", [N_FIELDS, None], ids=["given rank", "chosen rank"])
@pytest.mark.parametrize("seed", range(4))
def test_path_search_stops_where_distractors_begin(seed: int, rank: int | None) -> None:
    basis, validation = planted(seed)
    cutoff, trace = path_search(basis, validation, alpha=choose_alpha(basis, validation), rank=rank)
    truth = N_INFORMATIVE / N_AUXILIARY
    assert 0.05 < cutoff <= truth  # informative genes are much alike: a few may do, no distractor may
    score = trace["validation_pearson"].to_numpy()
    assert trace["cutoff"][score.argmax()] == pytest.approx(truth, abs=0.02)
    assert score.max() > score[:2].max() + 0.01  # than with none, and with two
    assert score.max() > score[-1] + 0.15  # than with all


def test_path_search_usually_takes_most_of_the_informative_genes() -> None:
    cutoffs = [path_search(*planted(seed), alpha=30.0, rank=N_FIELDS)[0] for seed in range(6)]
    assert np.median(cutoffs) == pytest.approx(N_INFORMATIVE / N_AUXILIARY, abs=0.05)


def test_path_search_takes_few_auxiliary_genes_where_they_hardly_matter() -> None:
    """Faint noise genes: scores differ by chance, in the fourth digit, and the highest is anywhere."""
    chosen, highest = [], []
    for seed in range(6):
        basis, validation = planted(seed)
        basis.genes[:, N_TARGETS:] = 0.5 * np.random.default_rng(seed).normal(size=(N_FEATURES, N_AUXILIARY))
        cutoff, trace = path_search(basis, validation, alpha=30.0, rank=N_FIELDS)
        chosen.append(cutoff)
        highest.append(trace["cutoff"][trace["validation_pearson"].argmax()])
    assert np.mean(chosen) < 0.5 * np.mean(highest)


@pytest.mark.parametrize("rank", [N_FIELDS, None], ids=["given rank", "chosen rank"])
@pytest.mark.parametrize("seed", range(4))
def test_path_search_takes_none_where_auxiliary_genes_mislead(seed: int, rank: int | None) -> None:
    """The distractors alone: loud genes of other fields."""
    basis, validation = planted(seed)
    genes = np.delete(basis.genes, np.arange(N_TARGETS, N_TARGETS + N_INFORMATIVE), axis=1)
    basis = replace(basis, genes=genes)
    cutoff, trace = path_search(basis, validation, alpha=choose_alpha(basis, validation), rank=rank)
    assert cutoff == 0
    assert trace["validation_pearson"].argmax() == 0


@pytest.mark.parametrize("rank", [4, 8, 16])
def test_path_search_keeps_the_rank_that_predicts_without_error(rank: int) -> None:
    basis, validation = planted(0)
    weights = (np.arange(N_TARGETS + N_AUXILIARY) < N_TARGETS + 80).astype(float)
    solution = reduced_rank_ridge(basis, weights, alpha=30.0, rank=rank)
    exact = solution.predict(validation.features)[:, :N_TARGETS]
    _, trace = path_search(basis, Validation(validation.features, exact, validation.sections), alpha=30.0, n_cutoffs=16)
    assert trace.set_index("k")["validation_pearson"][80] == pytest.approx(1)


def test_trace_of_the_path() -> None:
    basis, validation = planted(0)
    cutoff, trace = path_search(basis, validation, alpha=30.0, rank=4, n_cutoffs=16)
    assert list(trace) == list(TRACE_COLUMNS)
    assert trace["k"].tolist() == list(range(0, 161, 10))
    assert trace["step"].tolist() == list(range(17))
    np.testing.assert_allclose(trace["cutoff"], trace["k"] / N_AUXILIARY)
    assert cutoff in trace["cutoff"].to_numpy()
    alone = choose_alpha(basis.of_leading(N_TARGETS), validation)
    assert alone != pytest.approx(30.0)
    for k, score in zip(trace["k"], trace["validation_pearson"], strict=True):
        weights = (np.arange(N_TARGETS + N_AUXILIARY) < N_TARGETS + k).astype(float)
        refit = reduced_rank_ridge(basis, weights, alpha=30.0 if k else alone, rank=4).predict(validation.features)[
            :, :N_TARGETS
        ]
        assert score == pytest.approx(validation.score(refit), abs=1e-9)


def test_path_search_says_the_same_twice() -> None:
    (first, first_trace), (second, second_trace) = (path_search(*planted(1), alpha=30.0) for _ in range(2))
    assert first == second
    assert first_trace.equals(second_trace)


@pytest.mark.parametrize("n_auxiliary", [1, 3])
def test_path_search_over_few_auxiliary_genes(n_auxiliary: int) -> None:
    cutoff, trace = path_search(*planted(0, n_auxiliary), alpha=30.0)
    assert trace["k"].tolist() == list(range(n_auxiliary + 1))
    assert trace["cutoff"].iloc[[0, -1]].tolist() == [0, 1]
    assert cutoff in trace["cutoff"].to_numpy()


def test_a_target_that_is_constant_in_validation_counts_0() -> None:
    basis, validation = planted(0)
    validation.targets[:, 0] = 0
    cutoff, trace = path_search(basis, validation, alpha=choose_alpha(basis, validation))
    assert 0 < cutoff <= 0.25
    assert np.isfinite(trace["validation_pearson"]).all()
    predicted = np.random.default_rng(0).normal(size=validation.targets.shape)
    per_gene = validation.per_gene(predicted)
    assert np.isnan(per_gene[0])
    assert validation.score(predicted) == pytest.approx(per_gene[1:].sum() / N_TARGETS)


def test_widths_tried_are_powers_of_two() -> None:
    assert RANKS == (4, 8, 16, 32, 64)


def test_smoothing_is_a_running_mean_cut_at_the_ends() -> None:
    scores = np.array([[1.0, 0.0], [2.0, 0.0], [6.0, 0.0], [0.0, 10.0]])
    assert _smooth(scores, reach=1).tolist() == [[1.5, 0.0], [3.0, 0.0], [8 / 3, 10 / 3], [3.0, 5.0]]
    assert _smooth(scores).tolist() == [[3.0, 0.0], [2.25, 2.5], [2.25, 2.5], [8 / 3, 10 / 3]]


def test_smoothing_of_one_row() -> None:
    assert _smooth(np.array([[1.0, 2.0]])).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        pytest.param([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [0.3, 0.4, 0.5]], 2, id="same gain in every gene is certain"),
        pytest.param([[0.1, 0.5, 0.3], [0.5, 0.1, 0.4], [0.4, 0.3, 0.5]], 0, id="genes disagree: the first will do"),
        pytest.param([[0.0, 0.0, 0.0], [0.5, 0.1, 0.4], [0.4, 0.3, 0.5]], 1, id="the first is worse beyond doubt"),
        pytest.param([[0.3, 0.3], [0.3, 0.3]], 0, id="ties go to fewer genes"),
        pytest.param([[0.1], [0.3], [0.2]], 1, id="one target has no standard error"),
        pytest.param([[0.4, 0.4]], 0, id="one row"),
    ],
)
def test_one_standard_error(scores: list[list[float]], expected: int) -> None:
    assert one_standard_error(np.array(scores)) == expected


@pytest.mark.parametrize("rank", [None, 4])
def test_path_search_without_auxiliary_genes(rank: int | None) -> None:
    cutoff, trace = path_search(*planted(0, 0), alpha=30.0, rank=rank)
    assert cutoff == 0
    assert trace.empty
    assert list(trace) == list(TRACE_COLUMNS)


def random_solution(n_sections: int = 3) -> tuple[LowRank, Validation]:
    rng = np.random.default_rng(4)
    solution = LowRank(rng.normal(size=(20, 9)), rng.normal(size=(9, 6)))
    sections = rng.integers(n_sections, size=80)
    features = rng.normal(size=(80, 20)) + 3 * sections[:, None]
    return solution, Validation(features, solution.predict(features) + 9 * rng.normal(size=(80, 6)), sections)


def test_pearson_at_every_rank_is_that_of_the_predictions() -> None:
    solution, validation = random_solution()
    ranks = [1, 2, 5, 9]
    expected = [validation.per_gene(solution.cut(rank).predict(validation.features)) for rank in ranks]
    np.testing.assert_allclose(rank_pearson(solution, ranks, validation), expected, rtol=1e-10)


def test_undefined_pearson_at_a_rank_is_0_or_left_out_of_the_mean() -> None:
    solution, validation = random_solution()
    solution.head[:, 0] = 0.0
    solution.head[:2, 1] = 0.0  # predicts from rank 3 on
    validation.targets[:, 2] = 5.0
    validation.targets[validation.sections == 1, 3] = 5.1
    validation.features[validation.sections == 2] = 0.3
    expected = [np.nan_to_num(validation.per_gene(solution.cut(r).predict(validation.features))) for r in (2, 9)]
    scores = rank_pearson(solution, [2, 9], validation)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)
    assert (scores[:, [0, 2]] == 0).all()
    assert scores[0, 1] == 0 != scores[1, 1]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("steepness", [0.5, 1.0])
def test_path_with_warm_started_eigenvectors_is_the_exact_one(
    steepness: float, dtype: type[np.floating[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores to 1e-6, wide enough for the iteration to be used; single precision of the features to 1e-4."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(900, 450)) / np.arange(1, 451) ** 0.3
    factors = rng.normal(size=(450, 120)) @ (rng.normal(size=(120, 1200)) / np.arange(1, 121)[:, None] ** steepness)
    genes = features @ factors / 20 + rng.normal(size=(900, 1200))
    validation = Validation(features[600:], genes[600:, :N_TARGETS], np.repeat([0, 1], 150))
    basis = ridge_basis(features[:600].astype(dtype), Expression.from_dense(genes[:600]))
    assert len(basis.singular_values) == 450
    cutoff, trace = path_search(basis, validation, alpha=100.0, n_cutoffs=12)
    refused = Mock(return_value=None)
    monkeypatch.setattr(eigen, "_iterate", refused)
    exact = ridge_basis(features[:600], Expression.from_dense(genes[:600]))
    exact_cutoff, exact_trace = path_search(exact, validation, alpha=100.0, n_cutoffs=12)
    assert refused.call_count == 11 + len(ALPHAS) - 1  # of the path, and of the penalties of the targets alone
    assert cutoff == exact_cutoff
    tolerance = 1e-6 if dtype is np.float64 else 1e-4
    np.testing.assert_allclose(trace, exact_trace, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n_spots", [25, 90], ids=["fewer spots than features", "more"])
def test_own_penalty_is_scikit_learns_by_leave_one_out(n_spots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 16)
    rng = np.random.default_rng(n_spots)
    fields = rng.normal(size=(n_spots, 3))
    features = fields @ rng.normal(size=(3, 40)) + rng.normal(size=(n_spots, 40))
    features -= features.mean(axis=0)
    genes = fields @ rng.normal(size=(3, 6)) + rng.normal(size=(n_spots, 6))
    genes = (genes - genes.mean(axis=0)) / genes.std(axis=0)
    expression = Expression.from_dense(genes)
    best = own_penalty(ridge_basis(features, expression), features, expression.columns(0, 4))
    grid = [40 * alpha for alpha in ALPHAS]
    assert best == pytest.approx(RidgeCV(alphas=grid, fit_intercept=False).fit(features, genes[:, :4]).alpha_)
    assert best < grid[-1]


@pytest.mark.parametrize("n_spots", [25, 90], ids=["fewer spots than features", "more"])
def test_weighted_own_penalty_has_the_least_weighted_error_of_left_out_spots(n_spots: int) -> None:
    rng = np.random.default_rng(n_spots)
    fields = rng.normal(size=(n_spots, 3))
    features = fields @ rng.normal(size=(3, 40)) + rng.normal(size=(n_spots, 40))
    weights = rng.uniform(0.05, 2, size=n_spots)
    genes = fields @ rng.normal(size=(3, 4)) + rng.normal(size=(n_spots, 4)) / weights[:, None]
    expression = Expression.from_dense(genes)
    best = own_penalty(ridge_basis(features, expression, weights), features, genes, weights=weights)

    def error(alpha: float) -> float:
        total = 0.0
        for spot in range(n_spots):
            others = np.arange(n_spots) != spot
            fitted = Ridge(alpha, fit_intercept=False).fit(features[others], genes[others], weights[others])
            total += weights[spot] * ((fitted.predict(features[[spot]]) - genes[spot]) ** 2).sum()
        return total

    assert best == pytest.approx(min((40 * alpha for alpha in ALPHAS), key=error))
