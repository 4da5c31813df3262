"""Reduced-rank ridge in closed form."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from agl_sc.core.arrays import Floats
from agl_sc.core.linear import closed_form
from agl_sc.core.linear.closed_form import (
    RidgeBasis,
    reduced_rank_path,
    reduced_rank_penalties,
    reduced_rank_ridge,
    ridge_basis,
)
from agl_sc.core.spots import expression
from agl_sc.core.spots.expression import Expression

FloatArray = NDArray[np.float64]

N_TARGETS, N_GENES, ALPHA = 4, 30, 7.0
SHAPES = [pytest.param((60, 12), id="more spots than features"), pytest.param((15, 40), id="more features than spots")]


def ridge_coefficients(basis: RidgeBasis, alpha: float) -> FloatArray:
    """Ridge regression of all genes on the features, as the docstring of the basis has it, (n_features, n_genes)."""
    shrunk = basis.singular_values / (basis.singular_values**2 + alpha)
    coefficients: FloatArray = (basis.loadings * shrunk) @ basis.genes
    return coefficients


def problem(shape: tuple[int, int], seed: int = 0) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Centred features, centred genes that follow them, and new features."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=shape)
    genes = features @ rng.normal(size=(shape[1], N_GENES)) / np.sqrt(shape[1]) + rng.normal(size=(shape[0], N_GENES))
    return features - features.mean(axis=0), genes - genes.mean(axis=0), rng.normal(size=(9, shape[1]))


def gene_weights(seed: int = 1) -> FloatArray:
    weights = np.random.default_rng(seed).random(N_GENES)
    weights[:N_TARGETS] = 1
    weights[20:] = 0
    return weights


def sklearn_ridge(features: FloatArray, genes: FloatArray, alpha: float) -> Any:
    return Ridge(alpha=alpha, fit_intercept=False).fit(features, genes)


def basis_of(features: Floats, genes: FloatArray) -> RidgeBasis:
    return ridge_basis(features, Expression.from_dense(genes))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [1e-3, ALPHA, 1e3])
def test_ridge_equals_sklearn(shape: tuple[int, int], alpha: float) -> None:
    features, genes, new = problem(shape)
    coefficients = ridge_coefficients(basis_of(features, genes), alpha)
    oracle = sklearn_ridge(features, genes, alpha)
    np.testing.assert_allclose(coefficients, oracle.coef_.T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(new @ coefficients, oracle.predict(new), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_ridge_equals_sklearn(shape: tuple[int, int]) -> None:
    features, genes, new = problem(shape)
    weights = np.random.default_rng(2).uniform(0.1, 2, size=shape[0])
    basis = ridge_basis(features, Expression.from_dense(genes), weights)
    oracle = Ridge(alpha=ALPHA, fit_intercept=False).fit(features, genes, weights)
    np.testing.assert_allclose(new @ ridge_coefficients(basis, ALPHA), oracle.predict(new), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_ridge_whatever_the_weights(shape: tuple[int, int]) -> None:
    features, genes, new = problem(shape)
    basis = basis_of(features, genes)
    full = reduced_rank_ridge(basis, gene_weights(), alpha=ALPHA, rank=len(basis.singular_values))
    expected = sklearn_ridge(features, genes, ALPHA).predict(new)
    np.testing.assert_allclose(full.predict(new), expected, rtol=1e-6, atol=1e-8)


def test_kernel_and_covariance_form_agree() -> None:
    """Zero columns change nothing but the form: 15 x 12 is decomposed by covariance, 15 x 40 by kernel."""
    features, genes, new = problem((15, 12))
    wide, wide_new = (np.pad(values, ((0, 0), (0, 28))) for values in (features, new))
    covariance, kernel = basis_of(features, genes), basis_of(wide, genes)
    np.testing.assert_allclose(kernel.singular_values, covariance.singular_values, rtol=1e-9)
    for rank in (1, 3, 8):
        solutions = [
            reduced_rank_ridge(basis, gene_weights(), alpha=ALPHA, rank=rank) for basis in (covariance, kernel)
        ]
        np.testing.assert_allclose(solutions[1].predict(wide_new), solutions[0].predict(new), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rank_r_is_the_best_approximation_of_the_weighted_ridge_fit(shape: tuple[int, int], rank: int) -> None:
    """Eckart-Young: the truncated SVD of the weighted fit, unweighted again, by an independent path."""
    features, genes, _ = problem(shape)
    weights = np.linspace(1.0, 0.1, N_GENES)
    fit = sklearn_ridge(features, genes, ALPHA).predict(features)
    left, values, right = np.linalg.svd(fit * np.sqrt(weights), full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank] / np.sqrt(weights)
    solution = reduced_rank_ridge(basis_of(features, genes), weights, alpha=ALPHA, rank=rank)
    assert solution.trunk.shape == (shape[1], rank)
    assert solution.head.shape == (rank, N_GENES)
    np.testing.assert_allclose(solution.predict(features), best, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_genes_of_weight_0_do_not_shape_the_trunk(shape: tuple[int, int]) -> None:
    features, genes, _ = problem(shape)
    weights = gene_weights()
    with_all = reduced_rank_ridge(basis_of(features, genes), weights, alpha=ALPHA, rank=3)
    genes[:, 20:] *= 1000
    louder = reduced_rank_ridge(basis_of(features, genes), weights, alpha=ALPHA, rank=3)
    np.testing.assert_array_equal(louder.trunk, with_all.trunk)
    np.testing.assert_allclose(louder.head[:, 20:], 1000 * with_all.head[:, 20:])


def test_trunk_has_unit_mean_square_over_training_spots() -> None:
    features, genes, _ = problem((60, 12))
    trunk = reduced_rank_ridge(basis_of(features, genes), gene_weights(), alpha=ALPHA, rank=4).trunk
    shared = features @ trunk
    np.testing.assert_allclose(shared.T @ shared / 60, np.eye(4), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_path_equals_a_refit_at_every_number_of_auxiliary_genes(shape: tuple[int, int]) -> None:
    features, genes, new = problem(shape)
    basis = basis_of(features, genes)
    numbers = np.array([1, 2, 7, 19, 26])
    path = list(reduced_rank_path(basis, N_TARGETS, numbers, alpha=ALPHA, rank=3))
    turned = new @ basis.loadings
    assert len(path) == len(numbers)
    for n, solution in zip(numbers, path, strict=True):
        weights = (np.arange(N_GENES) < N_TARGETS + n).astype(float)
        refit = reduced_rank_ridge(basis, weights, alpha=ALPHA, rank=3)
        assert solution.head.shape == (3, N_TARGETS)
        np.testing.assert_allclose(solution.predict(turned), refit.predict(new)[:, :N_TARGETS], rtol=1e-7, atol=1e-9)
    assert not np.allclose(path[0].predict(turned), path[-1].predict(turned), rtol=0.01)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_cut_equals_a_refit_at_the_lower_rank(rank: int) -> None:
    features, genes, new = problem((60, 12))
    basis = basis_of(features, genes)
    cut = reduced_rank_ridge(basis, gene_weights(), alpha=ALPHA, rank=8).cut(rank)
    refit = reduced_rank_ridge(basis, gene_weights(), alpha=ALPHA, rank=rank)
    assert cut.trunk.shape == (12, rank)
    np.testing.assert_allclose(cut.predict(new), refit.predict(new), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_copies", [1, 6], ids=["covariance form", "kernel form"])
def test_duplicated_and_constant_features_are_no_trouble(n_copies: int) -> None:
    features, genes, new = problem((40, 10))
    degenerate, new_degenerate = (
        np.concatenate([*[values] * n_copies, np.zeros((len(values), 3))], axis=1) for values in (features, new)
    )
    basis = basis_of(degenerate, genes)
    assert len(basis.singular_values) == 10
    assert (basis.singular_values > 0).all()
    expected = sklearn_ridge(features, genes, ALPHA / n_copies).predict(
        new
    )  # n copies of a feature shrink n times less
    solution = reduced_rank_ridge(basis, np.ones(N_GENES), alpha=ALPHA, rank=10)
    np.testing.assert_allclose(solution.predict(new_degenerate), expected, rtol=1e-6, atol=1e-8)


def test_constant_genes_are_predicted_as_0() -> None:
    features, genes, new = problem((60, 12))
    genes[:, [0, 5]] = 0
    predicted = reduced_rank_ridge(basis_of(features, genes), np.ones(N_GENES), alpha=ALPHA, rank=5).predict(new)
    assert (predicted[:, [0, 5]] == 0).all()
    assert np.isfinite(predicted).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_genes_and_rows_make_no_difference(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    features, genes, new = problem(shape)
    whole = reduced_rank_ridge(basis_of(features, genes), gene_weights(), alpha=ALPHA, rank=3)
    monkeypatch.setattr(expression, "BLOCK_BYTES", 8 * shape[0] * 7)
    monkeypatch.setattr(closed_form, "_COLUMNS", 4)
    streamed = reduced_rank_ridge(basis_of(features, genes), gene_weights(), alpha=ALPHA, rank=3)
    np.testing.assert_allclose(streamed.predict(new), whole.predict(new), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision_features_keep_genes_in_single_precision(shape: tuple[int, int]) -> None:
    features, genes, new = problem(shape)
    single = basis_of(features.astype(np.float32), genes)
    assert single.genes.dtype == np.float32
    solutions = [
        reduced_rank_ridge(basis, gene_weights(), alpha=ALPHA, rank=3) for basis in (basis_of(features, genes), single)
    ]
    np.testing.assert_allclose(solutions[1].predict(new), solutions[0].predict(new), atol=1e-5)


def test_all_weights_0_give_a_head_all_the_same() -> None:
    features, genes, new = problem((60, 12))
    nothing = reduced_rank_ridge(basis_of(features, genes), np.zeros(N_GENES), alpha=ALPHA, rank=12)
    expected = sklearn_ridge(features, genes, ALPHA).predict(new)
    np.testing.assert_allclose(nothing.predict(new), expected, rtol=1e-6, atol=1e-8)


def test_penalties_equal_a_refit_at_every_one() -> None:
    features, genes, _ = problem((40, 12))
    basis = basis_of(features, genes)
    alphas = (0.1, 7.0, 300.0)
    for alpha, solution in zip(alphas, reduced_rank_penalties(basis, N_TARGETS, alphas, rank=3), strict=True):
        refit = reduced_rank_ridge(basis, np.ones(N_GENES), alpha=alpha, rank=3)
        assert solution.head.shape == (3, N_TARGETS)
        predicted = solution.predict(features @ basis.loadings)
        np.testing.assert_allclose(predicted, refit.predict(features)[:, :N_TARGETS], atol=1e-9)
