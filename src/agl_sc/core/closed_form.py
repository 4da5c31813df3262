"""Reduced-rank ridge with gene weights: the closed-form start of trunk and head."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag

from agl_sc.core.eigen import leading_eigenvectors
from agl_sc.core.expression import Expression, Floats

FloatArray = NDArray[np.float64]

_COLUMNS = 1024


@dataclass(frozen=True, slots=True)
class RidgeBasis:
    """Training features and all genes in the eigenbasis of the features' Gram matrix.

    With features F = U diag(s) V', ridge of the genes Z is ``F V diag(s / (s^2 + alpha)) U'Z``. Everything that a
    reduced-rank fit needs is of size min(n_spots, n_features), whatever the number of spots.

    Features of several views of a spot (fields of view) are decomposed view by view, and everything below is stacked.
    """

    singular_values: FloatArray
    """Of the features, (q,), q <= min(n_spots, n_features) for every view."""
    loadings: FloatArray
    """V, (n_features, q); zero between different views."""
    genes: Floats
    """U'Z, (q, n_genes), in the precision of the features."""
    n_spots: int
    """Number of training spots."""
    edges: tuple[int, ...] = ()
    """Where every view but the first begins among the q."""

    @property
    def views(self) -> list[slice]:
        """Rows of every view among the q."""
        return [slice(*ends) for ends in pairwise((0, *self.edges, len(self.singular_values)))]

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self.edges) + 1

    @property
    def widest(self) -> int:
        """Largest width of a trunk that is as wide in every view."""
        return self.n_views * min(int(view.stop) - int(view.start) for view in self.views)

    def within(self, rank: int) -> int:
        """The largest width of such a trunk up to ``rank``, at least one direction of every view."""
        return max(min(rank, self.widest) // self.n_views, 1) * self.n_views


def ridge_basis(features: Floats, expression: Expression, n_views: int = 1) -> RidgeBasis:
    """Decompose centred features once, and project centred genes on them, block by block.

    Works on the smaller of the kernel (n_spots, n_spots) and the covariance (n_features, n_features), in double
    precision; genes are projected and kept in the precision of the features.

    Parameters
    ----------
    features
        (n_spots, n_features); those of one view after the other.
    expression
        Of the same spots.
    n_views
        Number of views, all of the same width.
    """
    parts = [_view_basis(view, expression) for view in np.split(features, n_views, axis=1)]
    return RidgeBasis(
        singular_values=np.concatenate([part.singular_values for part in parts]),
        loadings=block_diag(*(part.loadings for part in parts)) if n_views > 1 else parts[0].loadings,
        genes=np.concatenate([part.genes for part in parts]) if n_views > 1 else parts[0].genes,
        n_spots=len(features),
        edges=tuple(np.cumsum([len(part.singular_values) for part in parts])[:-1].tolist()),
    )


def _view_basis(features: Floats, expression: Expression) -> RidgeBasis:
    n_spots, n_features = features.shape
    if n_spots < n_features:
        squares, left = _decompose(_gram(features))
        singular_values = np.sqrt(squares)
        loadings = features.T @ left / singular_values
        projection = left.astype(features.dtype)
        return RidgeBasis(singular_values, loadings, _project(projection, expression), n_spots)
    squares, loadings = _decompose(_gram(features.T))
    singular_values = np.sqrt(squares)
    genes = _project(features, expression)  # with F' before V', no left singular vectors of n_spots rows are needed
    turn = (loadings / singular_values).astype(features.dtype)
    for start in range(0, genes.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        genes[: len(squares), columns] = turn.T @ genes[:, columns]
    return RidgeBasis(singular_values, loadings, genes[: len(squares)], n_spots)


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


def _project(left: Floats, expression: Expression) -> Floats:
    """``left' Z``, (n_columns, n_genes), of ``left`` (n_spots, n_columns)."""
    projected = np.empty((left.shape[1], expression.shape[1]), dtype=left.dtype)
    for genes, values in expression.blocks():
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

    def predict(self, features: Floats) -> FloatArray:
        """Predictions (n_spots, n_genes)."""
        predicted: FloatArray = features @ self.trunk @ self.head
        return predicted


def _shrinkage(basis: RidgeBasis, alpha: float) -> FloatArray:
    """What ridge does to every direction of the basis, (q,): it fits ``HZ = U diag(shrinkage) U'Z``."""
    squares = basis.singular_values**2
    shrinkage: FloatArray = squares / (squares + alpha)
    return shrinkage


def _low_rank(
    basis: RidgeBasis, leading: list[FloatArray], *, rank: int, shrinkage: FloatArray, n_genes: int | None = None
) -> LowRank:
    """Mean over views of their solutions, as one: first the best direction of every view, then the second best, ...

    ``leading`` are orthonormal directions (q of the view, width) in the basis of every view, the best first.
    """
    scale, width = np.sqrt(basis.n_spots), rank // basis.n_views
    stacked = np.zeros((len(basis.singular_values), width, basis.n_views))
    for number, (view, directions) in enumerate(zip(basis.views, leading, strict=True)):
        stacked[view, :, number] = directions[:, :width]
    columns = stacked.reshape(len(stacked), -1)
    trunk = basis.loadings @ (columns / basis.singular_values[:, None]) * scale
    fitted = columns * (shrinkage / (scale * basis.n_views))[:, None]
    head = fitted.T.astype(basis.genes.dtype) @ basis.genes[:, :n_genes]
    return LowRank(trunk, head.astype(np.float64))


def _leading(
    basis: RidgeBasis,
    grams: list[FloatArray],
    shrinkage: FloatArray,
    *,
    rank: int,
    earlier: list[FloatArray] | None = None,
) -> list[FloatArray]:
    """Leading eigenvectors of every view's ``H Z W Z' H``."""
    width = rank // basis.n_views
    starts: Sequence[FloatArray | None] = earlier or [None] * basis.n_views
    return [
        leading_eigenvectors(gram * np.outer(shrinkage[view], shrinkage[view]), width, start)
        for gram, view, start in zip(grams, basis.views, starts, strict=True)
    ]


def reduced_rank_ridge(basis: RidgeBasis, weights: FloatArray, *, alpha: float, rank: int) -> LowRank:
    """Best rank-``rank`` approximation of the ridge fit under gene weights.

    The leading eigenvectors of ``H Z W Z' H`` span the shared trunk, so auxiliary genes shape it in closed form. Of
    several views every one gets a trunk of its own, and their predictions are averaged.

    Parameters
    ----------
    basis
        Of the training spots.
    weights
        Non-negative weight of every gene, (n_genes,).
    alpha
        Ridge penalty on the features' scale.
    rank
        Width of the trunk, of all views together; at most min(n_spots, n_features), a multiple of the number of views.
    """
    rank, shrinkage = basis.within(rank), _shrinkage(basis, alpha)
    n_active = int(np.flatnonzero(weights).max(initial=-1)) + 1
    grams = [_gram(basis.genes[view, :n_active], weights[:n_active]) for view in basis.views]
    return _low_rank(basis, _leading(basis, grams, shrinkage, rank=rank), rank=rank, shrinkage=shrinkage)


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
    One solution per entry of ``n_auxiliary``, its head for the targets only.
    """
    rank, shrinkage = basis.within(rank), _shrinkage(basis, alpha)
    grams = [np.zeros((view.stop - view.start,) * 2) for view in basis.views]
    done, leading = 0, None
    for n in n_targets + n_auxiliary:
        for gram, view in zip(grams, basis.views, strict=True):
            gram += _gram(basis.genes[view, done:n])
        done = n
        leading = _leading(basis, grams, shrinkage, rank=rank, earlier=leading)
        yield _low_rank(basis, leading, rank=rank, shrinkage=shrinkage, n_genes=n_targets)


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
    One solution per penalty, its head for the targets only.
    """
    rank, leading = basis.within(rank), None
    grams = [_gram(basis.genes[view]) for view in basis.views]
    for alpha in alphas:
        shrinkage = _shrinkage(basis, alpha)
        leading = _leading(basis, grams, shrinkage, rank=rank, earlier=leading)
        yield _low_rank(basis, leading, rank=rank, shrinkage=shrinkage, n_genes=n_targets)
