"""Reduced-rank ridge with gene weights: the closed-form start of trunk and head."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray, Floats
from agl_sc.core.numerics.eigen import leading_eigenvectors
from agl_sc.core.spots.expression import Expression

_COLUMNS = 1024
_SPARSE = 0.03
"""Share of entries that are stored below which products with the sparse matrix are faster than those of dense blocks."""


@dataclass(frozen=True, slots=True)
class RidgeBasis:
    """Training features and all genes in the eigenbasis of the features' Gram matrix.

    With features F = U diag(s) V', ridge of the genes Z is ``F V diag(s / (s^2 + alpha)) U'Z``; where spots have weights,
    the rows of F and Z count times their roots. Everything that a reduced-rank fit needs is of size
    min(n_spots, n_features), whatever the number of spots.
    """

    singular_values: FloatArray
    """Of the features, (q,), q <= min(n_spots, n_features)."""
    loadings: FloatArray
    """V, (n_features, q)."""
    genes: Floats
    """U'Z, (q, n_genes), in the precision of the features."""
    n_spots: int
    """Number of training spots."""

    def of_leading(self, n_genes: int) -> "RidgeBasis":
        """The same with the leading genes alone."""
        return replace(self, genes=self.genes[:, :n_genes])

    @property
    def to_left(self) -> FloatArray:
        """V diag(1 / s), (n_features, q): features times this are rows of U, but for the roots of their weights."""
        return self.loadings / self.singular_values


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Training features F = U diag(s) V', which genes are projected on; rows of both sides times the roots of their weights."""

    singular_values: FloatArray
    """s, (q,), q <= min(n_spots, n_features)."""
    loadings: FloatArray
    """V, (n_features, q)."""
    left: FloatArray | None
    """U with rows times the roots of their weights, (n_spots, q), where there are fewer spots than features."""

    @classmethod
    def of(cls, features: Floats, weights: FloatArray | None = None) -> "Decomposition":
        """By the smaller of the kernel (n_spots, n_spots) and the covariance (n_features, n_features), in double precision.

        Parameters
        ----------
        features
            Centred, (n_spots, n_features).
        weights
            Of every spot's squared error, with mean 1, (n_spots,); all 1 by default.
        """
        n_spots, n_features = features.shape
        if n_spots >= n_features:
            squares, loadings = _decompose(_gram(features.T, weights))
            return cls(np.sqrt(squares), loadings, None)
        root = np.ones(n_spots) if weights is None else np.sqrt(weights)
        squares, left = _decompose(_gram(features) * np.outer(root, root))
        singular_values = np.sqrt(squares)
        left *= root[:, None]
        return cls(singular_values, features.T @ left / singular_values, left)


def ridge_basis(
    features: Floats,
    expression: Expression,
    weights: FloatArray | None = None,
    *,
    decomposition: Decomposition | None = None,
) -> RidgeBasis:
    """Decompose centred features once, and project centred genes on them, block by block.

    Genes are projected and kept in the precision of the features.

    Parameters
    ----------
    features
        (n_spots, n_features).
    expression
        Of the same spots.
    weights
        Of every spot's squared error, with mean 1, (n_spots,); all 1 by default.
    decomposition
        Of these features under these weights, where it is known.
    """
    found = decomposition or Decomposition.of(features, weights)
    singular_values, loadings = found.singular_values, found.loadings
    if found.left is not None:
        genes = _project(found.left.astype(features.dtype), expression)
        return RidgeBasis(singular_values, loadings, genes, len(features))
    # With WF before V', no left singular vectors of n_spots rows are needed.
    genes = _project(features, expression, weights)
    turn = (loadings / singular_values).astype(features.dtype)
    for start in range(0, genes.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        genes[: len(singular_values), columns] = turn.T @ genes[:, columns]
    return RidgeBasis(singular_values, loadings, genes[: len(singular_values)], len(features))


def _gram(matrix: Floats, weights: FloatArray | None = None) -> FloatArray:
    """``matrix W matrix'`` in double precision, a few columns at a time."""
    n_rows, n_columns = matrix.shape
    root = np.ones(n_columns) if weights is None else np.sqrt(weights)
    gram = np.zeros((n_rows, n_rows))
    for start in range(0, n_columns, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        block = matrix[:, columns] * root[columns]
        gram += block @ block.T
    return gram


def _decompose(gram: FloatArray) -> tuple[FloatArray, FloatArray]:
    squares, vectors = np.linalg.eigh(gram)
    keep = squares > squares[-1] * 1e-10
    return squares[keep], vectors[:, keep]


def _project(left: Floats, expression: Expression, weights: FloatArray | None = None) -> Floats:
    """``left' W Z``, (n_columns, n_genes), of ``left`` (n_spots, n_columns)."""
    if expression.density < _SPARSE:
        return expression.projected(left, weights).astype(left.dtype)
    projected = np.empty((left.shape[1], expression.shape[1]), dtype=left.dtype)
    for genes, values in expression.blocks():
        if weights is not None:
            values *= weights[:, None]
        projected[:, genes] = left.T @ values.astype(left.dtype, copy=False)
    return projected


@dataclass(frozen=True, slots=True)
class LowRank:
    """A linear predictor of low rank: ``features @ trunk @ head``."""

    trunk: FloatArray
    """(n_features, rank); its output has unit mean square over the training spots."""
    head: FloatArray
    """(rank, n_genes)."""

    def cut(self, rank: int) -> "LowRank":
        """The best solution of a lower rank: leading columns and rows."""
        return LowRank(self.trunk[:, :rank], self.head[:rank])

    def averaged_with(self, own: "LowRank") -> "LowRank":
        """The mean of two predictions, ``own`` being of the leading genes alone; for the others this one's half."""
        n_more = self.head.shape[1] - own.head.shape[1]
        heads = [self.head / 2, np.pad(own.head / 2, ((0, 0), (0, n_more)))]
        return LowRank(np.hstack([self.trunk, own.trunk]), np.vstack(heads))

    def predict(self, features: Floats) -> FloatArray:
        """Predictions (n_spots, n_genes)."""
        predicted: FloatArray = features @ self.trunk @ self.head
        return predicted


def shrinkage_of(basis: RidgeBasis, alpha: float) -> FloatArray:
    """What ridge does to every direction of the basis, (q,): it fits ``HZ = U diag(shrinkage) U'Z``."""
    squares = basis.singular_values**2
    shrinkage: FloatArray = squares / (squares + alpha)
    return shrinkage


def _low_rank(basis: RidgeBasis, leading: FloatArray, *, shrinkage: FloatArray, n_genes: int | None = None) -> LowRank:
    """Trunk from orthonormal directions in the basis, (q, rank), on features times loadings; its head for leading genes."""
    scale = np.sqrt(basis.n_spots)
    trunk = leading / basis.singular_values[:, None] * scale
    head = (leading * (shrinkage / scale)[:, None]).T.astype(basis.genes.dtype) @ basis.genes[:, :n_genes]
    return LowRank(trunk, head.astype(np.float64))


def reduced_rank_ridge(basis: RidgeBasis, weights: FloatArray, *, alpha: float, rank: int) -> LowRank:
    """Best rank-``rank`` approximation of the ridge fit under gene weights.

    The leading eigenvectors of ``H Z W Z' H`` span the shared trunk, so auxiliary genes shape it in closed form.

    Parameters
    ----------
    basis
        Of the training spots.
    weights
        Non-negative weight of every gene, (n_genes,).
    alpha
        Ridge penalty on the features' scale.
    rank
        Width of the trunk; at most min(n_spots, n_features).
    """
    rank = min(rank, len(basis.singular_values))
    shrinkage = shrinkage_of(basis, alpha)
    n_active = int(np.flatnonzero(weights).max(initial=-1)) + 1
    gram = _gram(basis.genes[:, :n_active], weights[:n_active]) * np.outer(shrinkage, shrinkage)
    found = _low_rank(basis, leading_eigenvectors(gram, rank)[:, :rank], shrinkage=shrinkage)
    return LowRank(basis.loadings @ found.trunk, found.head)


def reduced_rank_path(
    basis: RidgeBasis, n_targets: int, n_auxiliary: NDArray[np.int64], *, alpha: float, rank: int
) -> Iterator[LowRank]:
    """Reduced-rank ridge of the targets for every number of auxiliary genes, by one running sum over genes.

    Parameters
    ----------
    basis
        Of the training spots; genes are the targets, then the auxiliary genes by prior rank.
    n_targets
        Number of leading genes that are targets (weight 1).
    n_auxiliary
        Increasing numbers of auxiliary genes to include (weight 1).
    alpha
        Ridge penalty on the features' scale.
    rank
        Width of the trunk.

    Yields
    ------
    One solution per entry of ``n_auxiliary``, on features times loadings; its head for the targets only.
    """
    rank = min(rank, len(basis.singular_values))
    shrinkage = shrinkage_of(basis, alpha)
    shrinkages = np.outer(shrinkage, shrinkage)
    gram = np.zeros_like(shrinkages)
    done, leading = 0, None
    for n in n_targets + n_auxiliary:
        gram += _gram(basis.genes[:, done:n])
        done = n
        leading = leading_eigenvectors(gram * shrinkages, rank, leading)
        yield _low_rank(basis, leading[:, :rank], shrinkage=shrinkage, n_genes=n_targets)


def reduced_rank_penalties(
    basis: RidgeBasis, n_targets: int, alphas: Sequence[float], *, rank: int
) -> Iterator[LowRank]:
    """Reduced-rank ridge of all genes, weight 1 each, at every penalty; the genes are gone through once.

    Parameters
    ----------
    basis
        Of the training spots.
    n_targets
        Number of leading genes that are targets.
    alphas
        Ridge penalties on the features' scale, best in order: eigenvectors start from those of the penalty before.
    rank
        Width of the trunk; at most min(n_spots, n_features).

    Yields
    ------
    One solution per penalty, on features times loadings; its head for the targets only.
    """
    rank = min(rank, len(basis.singular_values))
    gram, leading = _gram(basis.genes), None
    for alpha in alphas:
        shrinkage = shrinkage_of(basis, alpha)
        leading = leading_eigenvectors(gram * np.outer(shrinkage, shrinkage), rank, leading)
        yield _low_rank(basis, leading[:, :rank], shrinkage=shrinkage, n_genes=n_targets)
