"""Leading eigenvectors of a sequence of matrices, each from those of the one before."""

from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from agl_sc.core.arrays import FloatArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESIDUAL = 1e-6
"""An eigenvector is found when it misses by less than this, relative to the largest eigenvalue."""
_GROWTH = 1e6
_MAX_SWEEPS = 12
_N_RANDOM = 4


def leading_eigenvectors(matrix: FloatArray, rank: int, guess: FloatArray | None = None) -> FloatArray:
    """Eigenvectors of the largest eigenvalues, largest first, and a few more columns that help as the next guess.

    From a guess by Chebyshev-filtered subspace iteration, vectors that are found being deflated (Zhou and Saad, 2007);
    exact without a guess, where that is as quick, and where the iteration does not converge.

    Parameters
    ----------
    matrix
        Symmetric and positive semi-definite, (n, n).
    rank
        Number of eigenvectors, at most n.
    guess
        What this function returned for a matrix that is not far away, (n, n_columns).

    Returns
    -------
    Orthonormal columns, (n, n_columns) with n_columns between ``rank`` and n; the first ``rank`` are the eigenvectors.
    """
    n_columns = min(rank + max(rank // 2, 4), len(matrix))
    # A dense decomposition costs the same whatever is known; from a guess a few products with the matrix do. They pay only
    # where few of its columns are asked for.
    if guess is not None and len(matrix) > 4 * n_columns:
        found = _iterate(matrix, rank, guess)
        if found is not None:
            return found[:, :n_columns]
    vectors: FloatArray = scipy.linalg.eigh(matrix, subset_by_index=(len(matrix) - n_columns, len(matrix) - 1))[1]
    return vectors[:, ::-1]


def _iterate(matrix: FloatArray, rank: int, guess: FloatArray) -> FloatArray | None:
    """Sweeps of filter and Rayleigh-Ritz; None where they do not converge."""
    found, at = guess[:, :0], np.zeros(0)
    # Random columns, and a first sweep whatever the residuals, find what is orthogonal to the guess.
    random = np.random.default_rng(0).normal(size=(len(matrix), _N_RANDOM))
    block, values, _ = _rayleigh_ritz(matrix, np.concatenate([guess, random], axis=1))
    largest = values[0]
    for _ in range(_MAX_SWEEPS):
        if values[-1] <= 1e-12 * largest:  # there are hardly as many positive eigenvalues: no interval to damp
            return None
        # A vector that is found leaves the matrix and every block: the filter would blow it up again, and drown the next ones.
        block = _filter(matrix, block, values)
        block, values, missed = _rayleigh_ritz(matrix, block - found @ (found.T @ block))
        wanted = rank - len(at)
        open_ = missed[:wanted] > RESIDUAL * largest
        n_found = int(open_.argmax()) if open_.any() else wanted
        if n_found == wanted:
            order = np.argsort(-np.concatenate([at, values]), kind="stable")
            return np.concatenate([found, block], axis=1)[:, order]
        done, block = np.split(block, [n_found], axis=1)
        matrix = matrix - (done * values[:n_found]) @ done.T
        found, at, values = np.concatenate([found, done], axis=1), np.append(at, values[:n_found]), values[n_found:]
    return None


def _rayleigh_ritz(matrix: FloatArray, block: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Best eigenvectors within the span of a block, their eigenvalues, largest first, and the norms of the residuals."""
    basis = np.linalg.qr(block)[0]
    image = matrix @ basis
    values, turn = (each[..., ::-1] for each in np.linalg.eigh(basis.T @ image))
    vectors = basis @ turn
    return vectors, values, np.linalg.norm(image @ turn - vectors * values, axis=0)


def _filter(matrix: FloatArray, block: FloatArray, values: FloatArray) -> FloatArray:
    """Chebyshev polynomial of the matrix times ``block``: eigenvalues between 0 and the last of ``values`` are damped.

    Its degree is such that the largest one does not drown the others in rounding errors. In single precision: what that
    adds to the span of the block is below the residual asked for.
    """
    half = values[-1] / 2
    degree = max(2, int(np.log(2 * _GROWTH) / max(np.arccosh(values[0] / half - 1), 1.0)))
    scaled, before = (matrix / half).astype(np.float32), block.astype(np.float32)
    now: NDArray[np.float32] = scaled @ before - before
    for _ in range(degree - 1):
        before, now = now, 2 * (scaled @ now - now) - before
    return now.astype(np.float64)
