"""Targets projected on what genes have in common: against scikit-learn, section by section, streamed or not."""

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from agl_sc.core.spots import denoise
from agl_sc.core.spots.denoise import AS_MEASURED, Denoised, projections
from agl_sc.core.spots.expression import Expression

FloatArray = NDArray[np.float64]
SECTIONS = np.repeat([0, 1], [40, 30])
N_TARGETS, N_GENES = 3, 25


def expression(seed: int = 0) -> Expression:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(70, 4)) @ rng.normal(size=(4, N_GENES)) + rng.normal(size=(70, N_GENES)) + 3
    values[SECTIONS == 1, N_GENES - 1] = 2.0  # constant in a section
    return Expression.fitted(scipy.sparse.csr_matrix(np.maximum(values, 0)), SECTIONS)


@pytest.mark.parametrize("most", [2048, 10], ids=["kernel", "iterated"])
@pytest.mark.parametrize("n_genes", [0, 5, N_GENES - N_TARGETS])
def test_projections_are_those_of_principal_components_of_every_section(
    most: int, n_genes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoise, "MOST_KERNEL", most)
    of = expression()
    found = projections(of, N_TARGETS, n_genes=[n_genes], n_components=[2])[n_genes, 2]
    genes = of.columns(0, N_TARGETS + n_genes)
    for code in (0, 1):
        rows = code == SECTIONS
        pca = PCA(2, svd_solver="full").fit(genes[rows])
        expected = pca.inverse_transform(pca.transform(genes[rows]))[:, :N_TARGETS]
        np.testing.assert_allclose(found[rows], expected, atol=1e-6)


@pytest.mark.parametrize("most", [2048, 10], ids=["kernel", "iterated"])
def test_weights_are_those_of_weighted_least_squares_on_the_components(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoise, "MOST_KERNEL", most)
    of, weights = expression(), np.random.default_rng(1).uniform(0.5, 2, 70)
    found = projections(of, N_TARGETS, n_genes=[0, 22], n_components=[1, 4], weights=weights)
    root, genes = np.sqrt(weights)[:, None], of.columns(0, N_GENES)
    for code in (0, 1):
        rows = code == SECTIONS
        left = np.linalg.svd(root[rows] * genes[rows])[0][:, :4]
        expected = left @ left.T @ (root[rows] * genes[rows, :N_TARGETS]) / root[rows]
        np.testing.assert_allclose(found[22, 4][rows], expected, atol=1e-6)


def test_all_numbers_at_once_are_those_one_by_one_and_all_components_are_the_targets_themselves() -> None:
    of = expression()
    found = projections(of, N_TARGETS, n_genes=[0, 4, 9], n_components=[2, 3])
    for (n, k), values in found.items():
        np.testing.assert_allclose(values, projections(of, N_TARGETS, n_genes=[n], n_components=[k])[n, k], atol=1e-8)
    np.testing.assert_allclose(found[0, 3], of.columns(0, N_TARGETS), atol=1e-8)


def test_a_section_alone_is_as_it_is_among_others() -> None:
    of = expression()
    rows = np.flatnonzero(SECTIONS == 1)
    alone = Expression.fitted(of.values[rows], np.zeros(len(rows), dtype=np.int64))
    found = projections(alone, N_TARGETS, n_genes=[10], n_components=[3])[10, 3]
    np.testing.assert_allclose(found, projections(of, N_TARGETS, n_genes=[10], n_components=[3])[10, 3][rows])


def test_what_many_genes_share_is_nearer_to_the_truth_than_a_noisy_target() -> None:
    rng = np.random.default_rng(3)
    state = rng.normal(size=(300, 2))
    truth = state @ rng.normal(size=(2, 200))
    noisy = truth + 3 * rng.normal(size=truth.shape)
    of = Expression.fitted(scipy.sparse.csr_matrix(noisy), np.zeros(300, dtype=np.int64))
    found = projections(of, 5, n_genes=[0, 195], n_components=[2])

    def error(values: FloatArray) -> float:
        return float(np.mean([1 - np.corrcoef(values[:, gene], truth[:, gene])[0, 1] for gene in range(5)]))

    assert error(found[195, 2]) < 0.5 * error(found[0, 2]) < error(noisy[:, :5])


def test_a_mix_lies_between() -> None:
    measured, projected = np.zeros((2, 2)), np.ones((2, 2))
    np.testing.assert_allclose(Denoised(9, 2, 0.8).mixed(measured, projected), 0.8)
    np.testing.assert_array_equal(AS_MEASURED.mixed(measured, projected), measured)
