"""Sparse expression against the dense arrays it stands for."""

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray

from agl_sc.core.spots import expression as module
from agl_sc.core.spots.expression import Expression, ExpressionOnDevice, gene_blocks, row_blocks
from agl_sc.core.spots.scaling import spread

FloatArray = NDArray[np.float64]

N_SPOTS, N_GENES = 50, 23
SECTIONS = np.random.default_rng(1).permutation(np.repeat([2, 5, 9], [24, 25, 1]))
CPU = torch.device("cpu")


@pytest.fixture
def layer() -> scipy.sparse.csr_matrix:
    """Log counts in single precision, with a constant gene and one that is never seen."""
    counts = np.random.default_rng(0).poisson(np.linspace(0.05, 3, N_GENES), size=(N_SPOTS, N_GENES))
    counts[:, 4], counts[:, 7] = 3, 0
    return scipy.sparse.csr_matrix(np.log1p(counts).astype(np.float32))


def dense(layer: scipy.sparse.csr_matrix) -> FloatArray:
    values: FloatArray = layer.toarray().astype(float)
    for code in np.unique(SECTIONS):
        inside = values[code == SECTIONS] - values[code == SECTIONS].mean(axis=0)
        values[code == SECTIONS] = inside / spread(inside)
    return values


@pytest.fixture(params=[1, 4, N_GENES, 1000], ids="width {}".format)
def block_width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "BLOCK_BYTES", 8 * N_SPOTS * request.param)
    return int(request.param)


def test_columns_are_centred_per_section_and_scaled(layer: scipy.sparse.csr_matrix) -> None:
    expression = Expression.fitted(layer, SECTIONS)
    assert expression.shape == (N_SPOTS, N_GENES)
    np.testing.assert_allclose(expression.columns(0, N_GENES), dense(layer), atol=1e-12)
    np.testing.assert_array_equal(expression.columns(3, 9), expression.columns(0, N_GENES)[:, 3:9])
    assert expression.columns(3, 9).dtype == np.float64


def test_blocks_cover_all_genes_in_order(layer: scipy.sparse.csr_matrix, block_width: int) -> None:
    expression = Expression.fitted(layer, SECTIONS)
    blocks = list(expression.blocks())
    assert np.concatenate([np.arange(N_GENES)[genes] for genes, _ in blocks]).tolist() == list(range(N_GENES))
    assert max(values.shape[1] for _, values in blocks) == min(block_width, N_GENES)
    np.testing.assert_allclose(np.concatenate([values for _, values in blocks], axis=1), dense(layer), atol=1e-12)


@pytest.mark.usefixtures("block_width")
def test_means_and_scale_do_not_depend_on_the_blocks(layer: scipy.sparse.csr_matrix) -> None:
    expression = Expression.fitted(layer, SECTIONS)
    values = layer.toarray().astype(float)
    np.testing.assert_allclose(expression.means[1], values[SECTIONS == 5].mean(axis=0))
    np.testing.assert_allclose(expression.scale[1], spread(values[SECTIONS == 5]))
    assert expression.scale[:, [4, 7]].tolist() == [[1, 1]] * 3
    assert expression.scale[2].tolist() == [1] * N_GENES  # of a single spot


def test_a_section_does_not_change_what_another_is_scaled_to(layer: scipy.sparse.csr_matrix) -> None:
    louder = layer.multiply(np.where(SECTIONS == 5, 10.0, 1.0)[:, None]).tocsr()
    np.testing.assert_allclose(Expression.fitted(louder, SECTIONS).columns(0, N_GENES), dense(layer), atol=1e-12)


def test_typical_scale_is_the_mean_over_spots(layer: scipy.sparse.csr_matrix) -> None:
    expression = Expression.fitted(layer, SECTIONS)
    np.testing.assert_allclose(expression.typical_scale, expression.scale[expression.sections].mean(axis=0))


def test_dense_values_come_back_as_they_are() -> None:
    values = np.random.default_rng(0).normal(size=(6, 5))
    np.testing.assert_array_equal(Expression.from_dense(values).columns(0, 5), values)


def test_the_layer_is_left_alone(layer: scipy.sparse.csr_matrix) -> None:
    before = layer.copy()
    expression = Expression.fitted(layer, SECTIONS)
    ExpressionOnDevice(expression, CPU).batch(torch.arange(4), 5).zero_()
    for _, values in [*expression.blocks(), *gene_blocks(layer)]:
        values[:] = 0
    assert (layer != before).nnz == 0


@pytest.mark.parametrize("n_genes", [1, 10, N_GENES])
def test_batches_are_the_same_whether_kept_dense_or_made_from_sparse(
    layer: scipy.sparse.csr_matrix, n_genes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expression = Expression.fitted(layer, SECTIONS)
    index = torch.tensor([7, 0, 49, 7, 12])
    kept = ExpressionOnDevice(expression, CPU)
    monkeypatch.setattr(module, "DENSE_BYTES", 4 * N_SPOTS * N_GENES - 1)
    made = ExpressionOnDevice(expression, CPU)
    assert (kept.shape, kept.device) == (made.shape, made.device) == ((N_SPOTS, N_GENES), CPU)
    monkeypatch.setattr(kept, "_values", None)  # rows of the dense matrix are all it reads
    batches = [each.batch(index, n_genes) for each in (kept, made)]
    assert torch.equal(*batches)
    assert batches[0].dtype == torch.float32
    np.testing.assert_allclose(batches[0].numpy(), dense(layer)[index.numpy(), :n_genes], atol=3e-6)


@pytest.mark.parametrize("n_entries", [1, 40, 10**6])
@pytest.mark.parametrize("weighted", [False, True])
def test_products_with_the_sparse_matrix_are_those_of_dense_blocks(
    layer: scipy.sparse.csr_matrix, n_entries: int, *, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENTRIES_AT_ONCE", n_entries)
    rng = np.random.default_rng(3)
    left, weights = rng.normal(size=(N_SPOTS, 6)), rng.uniform(0.5, 2, N_SPOTS) if weighted else None
    expression = Expression.fitted(layer, SECTIONS)
    expected = (left * (1 if weights is None else weights[:, None])).T @ dense(layer)
    np.testing.assert_allclose(expression.projected(left, weights), expected, atol=1e-10)
    other = rng.normal(size=(N_SPOTS, 3))
    replaced = expression.replacing(other).projected(left, weights)
    np.testing.assert_allclose(replaced[:, 3:], expected[:, 3:], atol=1e-10)
    weighted_left = left if weights is None else left * weights[:, None]
    np.testing.assert_allclose(replaced[:, :3], weighted_left.T @ other, atol=1e-10)


@pytest.mark.parametrize("n_entries", [1, 17, 10**6])
def test_rows_come_in_blocks_of_so_many_entries(
    layer: scipy.sparse.csr_matrix, n_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENTRIES_AT_ONCE", n_entries)
    blocks = list(row_blocks(layer))
    assert [row for rows in blocks for row in range(rows.start, rows.stop)] == list(range(N_SPOTS))
    n_stored = [int(layer[rows].nnz) for rows in blocks]
    assert all(n <= n_entries or rows.stop - rows.start == 1 for n, rows in zip(n_stored, blocks, strict=True))
    empty = scipy.sparse.csr_matrix((5, N_GENES), dtype=np.float32)
    assert sum(rows.stop - rows.start for rows in row_blocks(empty)) == 5
