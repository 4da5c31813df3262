"""Leading eigenvectors from a guess, against LAPACK."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_sc.core.numerics import eigen
from agl_sc.core.numerics.eigen import leading_eigenvectors

FloatArray = NDArray[np.float64]

SIZE, RANK = 120, 8


def matrix(values: FloatArray, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors."""
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (vectors * values) @ vectors.T, vectors


def assert_same_directions(found: FloatArray, expected: FloatArray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.abs(found.T @ expected), np.eye(expected.shape[1]), atol=tolerance)


def near(vectors: FloatArray, error: float) -> FloatArray:
    noise = np.random.default_rng(1).normal(size=vectors.shape)
    return np.asarray(np.linalg.qr(vectors + error * noise)[0])


@pytest.fixture
def no_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("fell back on the exact decomposition")

    monkeypatch.setattr("scipy.linalg.eigh", refuse)


SPECTRA = [
    pytest.param(0.9 ** np.arange(SIZE), id="even decay"),
    pytest.param(1e6 / np.arange(1, SIZE + 1) ** 3.0, id="steep"),
    pytest.param(1.0 + np.arange(SIZE)[::-1] / SIZE, id="flat"),
    pytest.param(np.repeat(2.0 ** -np.arange(SIZE // 2), 2) * np.tile([1, 0.99], SIZE // 2), id="pairs"),
]


@pytest.mark.parametrize("values", SPECTRA)
def test_exact_without_a_guess(values: FloatArray) -> None:
    given, vectors = matrix(values)
    assert_same_directions(leading_eigenvectors(given, RANK)[:, :RANK], vectors[:, :RANK], 1e-8)


@pytest.mark.usefixtures("no_exact")
@pytest.mark.parametrize("error", [1e-9, 1e-3, 0.05])
@pytest.mark.parametrize("values", SPECTRA[:2])
def test_from_a_guess(values: FloatArray, error: float) -> None:
    given, vectors = matrix(values)
    before = given.copy()
    found = leading_eigenvectors(given, RANK, near(vectors[:, :12], error))
    assert found.shape == (SIZE, 12)
    np.testing.assert_array_equal(given, before)
    np.testing.assert_allclose(found.T @ found, np.eye(12), atol=1e-9)
    missed = np.linalg.norm(given @ found - found * np.einsum("ij,ij->j", found, given @ found), axis=0)[:RANK]
    assert missed.max() < 2 * eigen.RESIDUAL * values[0]
    assert_same_directions(found[:, :4], vectors[:, :4])


@pytest.mark.parametrize("values", SPECTRA)
def test_a_useless_guess_is_no_trouble(values: FloatArray) -> None:
    given, vectors = matrix(values)
    found = leading_eigenvectors(given, RANK, np.eye(SIZE, 12))[:, :RANK]
    missed = np.linalg.norm(given @ found - found * np.einsum("ij,ij->j", found, given @ found), axis=0)
    assert missed.max() < 2 * eigen.RESIDUAL * values[0]
    assert_same_directions(found[:, :2], vectors[:, :2], 1e-3)


@pytest.mark.parametrize("place", [0, 5, RANK - 1])
def test_a_direction_orthogonal_to_the_guess_is_found(place: int) -> None:
    """All other vectors of the guess are eigenvectors already."""
    given, vectors = matrix(np.power(0.9, np.arange(SIZE)))
    found = leading_eigenvectors(given, RANK, np.delete(vectors[:, :13], place, axis=1))
    assert_same_directions(found[:, :RANK], vectors[:, :RANK])


@pytest.mark.parametrize("n_positive", [0, 1, 5, 10])
def test_fewer_positive_eigenvalues_than_columns(n_positive: int) -> None:
    values = np.zeros(SIZE)
    values[:n_positive] = 2.0 ** -np.arange(n_positive)
    given, vectors = matrix(values)
    found = leading_eigenvectors(given, RANK, near(vectors[:, :12], 1e-3))
    assert np.isfinite(found).all()
    n = min(n_positive, RANK)
    assert_same_directions(found[:, :n], vectors[:, :n], 1e-6)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_small_matrices(rank: int) -> None:
    given, vectors = matrix(np.array([5.0, 4.0, 3.0, 2.0, 1.0]))
    for guess in (None, vectors):
        found = leading_eigenvectors(given, rank, guess)
        assert rank <= found.shape[1] <= 5
        assert_same_directions(found[:, :rank], vectors[:, :rank], 1e-8)


@pytest.mark.usefixtures("no_exact")
def test_along_a_running_sum() -> None:
    rng = np.random.default_rng(2)
    factors = rng.normal(size=(SIZE, 400)) / np.arange(1, SIZE + 1)[:, None]
    total = factors[:, :40] @ factors[:, :40].T
    vectors = np.linalg.eigh(total)[1][:, ::-1][:, :12]
    for start in range(40, 400, 40):
        segment = factors[:, start : start + 40]
        total = total + segment @ segment.T
        vectors = leading_eigenvectors(total, RANK, vectors)
        assert_same_directions(vectors[:, :RANK], np.linalg.eigh(total)[1][:, ::-1][:, :RANK], 1e-4)
