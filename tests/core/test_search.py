"""What validation picks, on planted problems."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from agl_sc.core.network import RidgeBasis, reduced_rank_ridge, ridge_basis, ridge_coefficients
from agl_sc.core.search import (
    ALPHAS,
    RANKS,
    TRACE_COLUMNS,
    Validation,
    _one_standard_error,
    _smooth,
    choose_alpha,
    choose_rank,
    path_search,
    race_search,
    section_pearson,
)

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
    return ridge_basis(features[train], expression[train]), validation


@pytest.mark.parametrize("position", [0, 4, 9, 16])
def test_choose_alpha_finds_the_penalty_that_predicts_without_error(position: int) -> None:
    basis, validation = planted(0)
    alpha = N_FEATURES * ALPHAS[position]
    exact = validation.features @ ridge_coefficients(basis, alpha, N_TARGETS)
    assert choose_alpha(basis, Validation(validation.features, exact, validation.sections)) == pytest.approx(alpha)


@pytest.mark.parametrize("rank", [4, 8, 16, 30])
def test_choose_rank_finds_the_rank_that_predicts_without_error(rank: int) -> None:
    basis, validation = planted(0)
    start = reduced_rank_ridge(basis, np.ones(basis.genes.shape[1]), alpha=30.0, rank=30)
    exact = start.cut(rank).predict(validation.features)[:, :N_TARGETS]
    assert choose_rank(start, Validation(validation.features, exact, validation.sections)) == rank


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
    assert score.max() > score[0] + 0.01  # than with two auxiliary genes
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
    assert trace["k"].tolist() == list(range(10, 161, 10))
    assert trace["step"].tolist() == list(range(16))
    np.testing.assert_allclose(trace["cutoff"], trace["k"] / N_AUXILIARY)
    assert cutoff in trace["cutoff"].to_numpy()
    for k, score in zip(trace["k"], trace["validation_pearson"], strict=True):
        weights = (np.arange(N_TARGETS + N_AUXILIARY) < N_TARGETS + k).astype(float)
        refit = reduced_rank_ridge(basis, weights, alpha=30.0, rank=4).predict(validation.features)[:, :N_TARGETS]
        assert score == pytest.approx(validation.score(refit), abs=1e-9)


def test_path_search_says_the_same_twice() -> None:
    (first, first_trace), (second, second_trace) = (path_search(*planted(1), alpha=30.0) for _ in range(2))
    assert first == second
    assert first_trace.equals(second_trace)


@pytest.mark.parametrize("n_auxiliary", [1, 3])
def test_path_search_over_few_auxiliary_genes(n_auxiliary: int) -> None:
    cutoff, trace = path_search(*planted(0, n_auxiliary), alpha=30.0)
    assert trace["k"].tolist() == list(range(1, n_auxiliary + 1))
    assert trace["cutoff"].iloc[-1] == 1
    assert 0 < cutoff <= 1


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
    assert _one_standard_error(np.array(scores)) == expected


def test_section_pearson_averages_within_sections() -> None:
    rng = np.random.default_rng(0)
    measured, codes = rng.normal(size=(30, 3)), np.repeat([5, 7], [10, 20])
    predicted = measured + rng.normal(size=(30, 3)) + 50 * (codes == 7)[:, None]
    expected = [
        np.mean([stats.pearsonr(measured[codes == c, j], predicted[codes == c, j]).statistic for c in (5, 7)])
        for j in range(3)
    ]
    np.testing.assert_allclose(section_pearson(measured, predicted, codes), expected)


def test_section_pearson_leaves_out_sections_without_variance() -> None:
    rng = np.random.default_rng(0)
    measured, codes = rng.normal(size=(30, 3)), np.repeat([0, 1], 15)
    predicted = measured + rng.normal(size=(30, 3))
    measured[codes == 0, 1] = 0.0
    measured[:, 2] = 0.0
    correlation = section_pearson(measured, predicted, codes)
    assert correlation[1] == pytest.approx(stats.pearsonr(measured[15:, 1], predicted[15:, 1]).statistic)
    assert np.isnan(correlation[2])
    assert np.isfinite(correlation[:2]).all()


def test_race_keeps_the_better_half_and_doubles_the_epochs() -> None:
    asked: list[tuple[float, int]] = []

    def train(cutoff: float, n_epochs: int) -> float:
        asked.append((cutoff, n_epochs))
        return -abs(cutoff - 0.35)

    cutoff, trace = race_search(train, cutoffs=(0.1, 0.3, 0.5, 0.9), first_rung=3)
    assert cutoff == 0.3
    assert asked == [(0.1, 3), (0.3, 3), (0.5, 3), (0.9, 3), (0.3, 6), (0.5, 6)]
    assert list(trace["step"]) == [0, 0, 0, 0, 1, 1]


def test_race_of_equals_takes_the_fewest_genes() -> None:
    assert race_search(lambda cutoff, n_epochs: 0.5)[0] == 0.02


def test_race_of_one_has_a_winner() -> None:
    assert race_search(lambda cutoff, n_epochs: 0.5, cutoffs=(0.7,))[0] == 0.7
