"""Network and its closed-form start."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from agl_sc.core.network import (
    LowRank,
    Network,
    RidgeBasis,
    load_closed_form,
    network_from,
    reduced_rank_path,
    reduced_rank_ridge,
    ridge_basis,
    ridge_coefficients,
)

FloatArray = NDArray[np.float64]

N_TARGETS, N_GENES, ALPHA = 4, 30, 7.0
SHAPES = [pytest.param((60, 12), id="more spots than features"), pytest.param((15, 40), id="more features than spots")]


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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [1e-3, ALPHA, 1e3])
def test_ridge_equals_sklearn(shape: tuple[int, int], alpha: float) -> None:
    features, genes, new = problem(shape)
    coefficients = ridge_coefficients(ridge_basis(features, genes), alpha)
    oracle = sklearn_ridge(features, genes, alpha)
    np.testing.assert_allclose(coefficients, oracle.coef_.T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(new @ coefficients, oracle.predict(new), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_ridge_whatever_the_weights(shape: tuple[int, int]) -> None:
    features, genes, new = problem(shape)
    basis = ridge_basis(features, genes)
    full = reduced_rank_ridge(basis, gene_weights(), alpha=ALPHA, rank=len(basis.singular_values))
    expected = sklearn_ridge(features, genes, ALPHA).predict(new)
    np.testing.assert_allclose(full.predict(new), expected, rtol=1e-6, atol=1e-8)


def test_ridge_of_the_leading_genes_only() -> None:
    basis = ridge_basis(*problem((60, 12))[:2])
    np.testing.assert_array_equal(ridge_coefficients(basis, ALPHA, 3), ridge_coefficients(basis, ALPHA)[:, :3])


def test_kernel_and_covariance_form_agree() -> None:
    """Zero columns change nothing but the form: 15 x 12 is decomposed by covariance, 15 x 40 by kernel."""
    features, genes, new = problem((15, 12))
    wide, wide_new = (np.pad(values, ((0, 0), (0, 28))) for values in (features, new))
    covariance, kernel = ridge_basis(features, genes), ridge_basis(wide, genes)
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
    solution = reduced_rank_ridge(ridge_basis(features, genes), weights, alpha=ALPHA, rank=rank)
    assert solution.trunk.shape == (shape[1], rank)
    assert solution.head.shape == (rank, N_GENES)
    np.testing.assert_allclose(solution.predict(features), best, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_genes_of_weight_0_do_not_shape_the_trunk(shape: tuple[int, int]) -> None:
    features, genes, _ = problem(shape)
    weights = gene_weights()
    with_all = reduced_rank_ridge(ridge_basis(features, genes), weights, alpha=ALPHA, rank=3)
    genes[:, 20:] *= 1000
    louder = reduced_rank_ridge(ridge_basis(features, genes), weights, alpha=ALPHA, rank=3)
    np.testing.assert_array_equal(louder.trunk, with_all.trunk)
    np.testing.assert_allclose(louder.head[:, 20:], 1000 * with_all.head[:, 20:])


def test_trunk_has_unit_mean_square_over_training_spots() -> None:
    features, genes, _ = problem((60, 12))
    trunk = reduced_rank_ridge(ridge_basis(features, genes), gene_weights(), alpha=ALPHA, rank=4).trunk
    shared = features @ trunk
    np.testing.assert_allclose(shared.T @ shared / 60, np.eye(4), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_path_equals_a_refit_at_every_number_of_auxiliary_genes(shape: tuple[int, int]) -> None:
    features, genes, new = problem(shape)
    basis = ridge_basis(features, genes)
    numbers = np.array([1, 2, 7, 19, 26])
    path = list(reduced_rank_path(basis, N_TARGETS, numbers, alpha=ALPHA, rank=3))
    assert len(path) == len(numbers)
    for n, solution in zip(numbers, path, strict=True):
        weights = (np.arange(N_GENES) < N_TARGETS + n).astype(float)
        refit = reduced_rank_ridge(basis, weights, alpha=ALPHA, rank=3)
        assert solution.head.shape == (3, N_TARGETS)
        np.testing.assert_allclose(solution.predict(new), refit.predict(new)[:, :N_TARGETS], rtol=1e-7, atol=1e-9)
    assert not np.allclose(path[0].predict(new), path[-1].predict(new), rtol=0.01)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_cut_equals_a_refit_at_the_lower_rank(rank: int) -> None:
    features, genes, new = problem((60, 12))
    basis = ridge_basis(features, genes)
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
    basis = ridge_basis(degenerate, genes)
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
    predicted = reduced_rank_ridge(ridge_basis(features, genes), np.ones(N_GENES), alpha=ALPHA, rank=5).predict(new)
    assert (predicted[:, [0, 5]] == 0).all()
    assert np.isfinite(predicted).all()


def solution_and_network(rank: int = 5) -> tuple[LowRank, Network, FloatArray]:
    features, genes, new = problem((60, 12))
    basis: RidgeBasis = ridge_basis(features, genes)
    start = reduced_rank_ridge(basis, gene_weights(), alpha=ALPHA, rank=rank)
    torch.manual_seed(0)
    network = Network(12, N_GENES, rank=rank, hidden=16)
    return start, network, new


def randomised(network: Network) -> Network:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return network.eval()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_closed_form_is_loaded_exactly(mode: str) -> None:
    start, network, new = solution_and_network()
    load_closed_form(randomised(network), start)
    network.train(mode == "train")
    with torch.no_grad():
        predicted = network(torch.from_numpy(new.astype(np.float32))).numpy()
    np.testing.assert_allclose(predicted, start.predict(new), atol=1e-5)


def test_hidden_layer_learns_from_the_closed_form_start() -> None:
    start, network, new = solution_and_network()
    load_closed_form(network, start)
    network(torch.from_numpy(new.astype(np.float32))).square().sum().backward()
    assert network.outer.weight.grad is not None
    assert (network.outer.weight.grad.abs().sum(dim=0) > 0).any()


def test_hidden_layer_starts_without_a_say() -> None:
    network = Network(12, N_GENES, rank=5).eval()
    inputs = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(2 * inputs) - network(inputs), network(inputs) - network(0 * inputs))


def test_leading_genes_only() -> None:
    _, network, _ = solution_and_network()
    randomised(network)
    inputs = torch.ones(3, 12)
    torch.testing.assert_close(network(inputs, 7), network(inputs)[:, :7])
    assert network(inputs, 7).shape == (3, 7)


@pytest.mark.parametrize("n_genes", [None, 7, 1])
def test_network_from_a_state_dict_with_its_head_cut(n_genes: int | None) -> None:
    _, network, new = solution_and_network()
    inputs = torch.from_numpy(new.astype(np.float32))
    again = network_from(randomised(network).state_dict(), n_genes)
    assert not again.training
    torch.testing.assert_close(again(inputs), network(inputs)[:, :n_genes], rtol=0, atol=1e-5)


def test_network_from_does_not_share_memory_with_the_state() -> None:
    _, network, _ = solution_and_network()
    again = network_from(network.state_dict())
    with torch.no_grad():
        again.linear.weight.add_(1)
    assert not torch.allclose(again.linear.weight, network.linear.weight)
