"""What validation picks in closed form: penalty, rank, and where to cut the ranking of auxiliary genes."""

from dataclasses import replace

import numpy as np
import pandas as pd

from agl_sc.core.arrays import FloatArray, Floats
from agl_sc.core.choices import no_trace
from agl_sc.core.linear.closed_form import (
    LowRank,
    RidgeBasis,
    reduced_rank_path,
    reduced_rank_penalties,
    reduced_rank_ridge,
    shrinkage_of,
)
from agl_sc.core.numerics.constant import varying
from agl_sc.core.progress import Progress
from agl_sc.core.spots.spots import Validation

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-2, 2, 17))
"""Ridge penalties tried, per feature."""
RANKS = (4, 8, 16, 32, 64)
"""Widths of the trunk tried."""
_ROUNDING = 1e-6
_ROWS = 4096


def choose_alpha(basis: RidgeBasis, validation: Validation, *, turned: Validation | None = None) -> float:
    """Ridge penalty with the best mean validation Pearson of the targets, each penalty at its best rank of the trunk.

    Of the reduced-rank fit of all genes, not of the targets alone: auxiliary genes make up for the noise of the targets,
    so they bear a smaller penalty, and with the larger one of the targets nothing of what they bring is left. ``turned`` is
    the same spots as :func:`in_basis` gives them, where they are known.
    """
    n_targets = validation.targets.shape[1]
    widest = min(len(basis.singular_values), RANKS[-1])
    grid = [validation.features.shape[1] * alpha for alpha in ALPHAS]
    turned = turned or in_basis(validation, basis)
    solutions = reduced_rank_penalties(basis, n_targets, grid, rank=widest)
    scores = [rank_pearson(solution, _ranks(widest), turned).mean(axis=1).max() for solution in solutions]
    return float(grid[int(np.argmax(scores))])


def own_penalty(
    basis: RidgeBasis, features: Floats, targets: FloatArray, *, weights: FloatArray | None = None
) -> float:
    r"""Ridge penalty of the targets by leave-one-out on the training spots, as the ridge baseline chooses it.

    Exact without refitting: the residual of a spot that is left out is :math:`r_i / (1 - H_{ii})`, rows of both sides being
    multiplied by the roots of their weights. A validation section of another kind knows nothing of genes that are silent
    in it.

    Parameters
    ----------
    basis
        Of the training spots.
    features
        The same, (n_spots, n_features).
    targets
        Centred and scaled expression of the same spots, (n_spots, n_targets).
    weights
        Of the spots, as the basis was made with, (n_spots,).
    """
    grid = [features.shape[1] * alpha for alpha in ALPHAS]
    shrinkages = np.stack([shrinkage_of(basis, alpha) for alpha in grid])
    genes, to_left = basis.genes[:, : targets.shape[1]].astype(np.float64), basis.to_left
    root = np.sqrt(np.ones(len(features)) if weights is None else weights)[:, None]
    errors = np.zeros(len(grid))
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        left = root[rows] * multiplied(features[rows], to_left)
        errors += left_out_errors(left, genes, root[rows] * targets[rows], shrinkages=shrinkages)
    return float(grid[int(np.argmin(errors))])


def left_out_errors(left: FloatArray, genes: FloatArray, measured: FloatArray, *, shrinkages: FloatArray) -> FloatArray:
    """Sum of the squared errors of ridge over spots, each left out, by penalty, (n_penalties,).

    Parameters
    ----------
    left
        Spots along the directions of the basis, rows times the roots of their weights, (n_spots, q).
    genes
        Targets in the directions, (q, n_targets).
    measured
        Targets of the spots, rows weighted likewise, (n_spots, n_targets).
    shrinkages
        Of every direction at every penalty, (n_penalties, q).
    """
    leverages, errors = left**2 @ shrinkages.T, np.zeros(len(shrinkages))
    for number, shrinkage in enumerate(shrinkages):
        missed = measured - (left * shrinkage) @ genes
        errors[number] = ((missed / (1 - leverages[:, number, None])) ** 2).sum()
    return errors


def multiplied(features: Floats, columns: FloatArray) -> FloatArray:
    """``features @ columns`` in the precision of the features, which are not copied."""
    product: FloatArray = (features @ columns.astype(features.dtype)).astype(np.float64)
    return product


def choose_rank(start: LowRank, validation: Validation) -> int:
    """Rank of the trunk with the best mean validation Pearson of the targets."""
    n_targets = validation.targets.shape[1]
    ranks = _ranks(start.trunk.shape[1])
    targets = LowRank(start.trunk, start.head[:, :n_targets])
    return ranks[_first_best(rank_pearson(targets, ranks, validation).mean(axis=1))]


def path_search(
    basis: RidgeBasis,
    validation: Validation,
    *,
    alpha: float,
    alone: float | None = None,
    rank: int | None = None,
    n_cutoffs: int = 64,
    turned: Validation | None = None,
) -> tuple[float, pd.DataFrame]:
    """Cutoff from the closed-form fit at every number of auxiliary genes.

    Validation scores are smoothed over neighbouring cutoffs, and the best rank of the trunk is kept; of the cutoffs whose
    paired difference to the best is within one standard error over target genes, the one with the fewest genes is taken.
    The targets alone, at the penalty and rank that are best for them, are the first candidate.

    Parameters
    ----------
    basis
        Training spots; genes are the targets, then the auxiliary genes by prior rank.
    validation
        Validation spots.
    alpha
        Ridge penalty on the features' scale, with auxiliary genes.
    alone
        The penalty without them; chosen on the validation spots if None.
    rank
        Width of the trunk; chosen on the validation spots if None.
    n_cutoffs
        Number of cutoffs tried beside none, evenly over the rank axis: the gate's soft edge is hardly narrower.
    turned
        The validation spots as :func:`in_basis` gives them, where they are known.

    Returns
    -------
    The cutoff in [0, 1], and the trace: step, cutoff, k, validation_pearson; 0 and an empty trace without auxiliary genes.
    """
    n_targets = validation.targets.shape[1]
    n_auxiliary = basis.genes.shape[1] - n_targets
    if n_auxiliary == 0:
        return 0.0, no_trace()
    widest = min(len(basis.singular_values), RANKS[-1] if rank is None else rank)
    ranks = _ranks(widest) if rank is None else [widest]
    targets = basis.of_leading(n_targets)
    turned = turned or in_basis(validation, basis)
    alone = alone or choose_alpha(targets, validation, turned=turned)
    without = _targets_alone(targets, validation, ranks, alpha=alone)
    k = np.unique(np.maximum(np.round(np.linspace(0, n_auxiliary, n_cutoffs + 1)[1:]).astype(np.int64), 1))
    solutions = reduced_rank_path(basis, n_targets, k, alpha=alpha, rank=widest)
    path = Progress(solutions, total=len(k), desc="cutoffs", unit="cutoff")
    scores = np.stack([rank_pearson(solution, ranks, turned) for solution in path])
    smooth = _smooth(scores)
    best = _first_best(smooth.mean(axis=2).max(axis=0))
    k, scores = np.append(0, k), np.vstack([without, scores[:, best]])
    cutoffs = k / n_auxiliary
    trace = {"step": np.arange(len(k)), "cutoff": cutoffs, "k": k, "validation_pearson": scores.mean(axis=1)}
    return float(cutoffs[one_standard_error(np.vstack([without, smooth[:, best]]))]), pd.DataFrame(trace)


def _targets_alone(targets: RidgeBasis, validation: Validation, ranks: list[int], *, alpha: float) -> FloatArray:
    """Validation Pearson of every target without auxiliary genes, at the rank that is best then, (n_targets,)."""
    weights = np.ones(targets.genes.shape[1])
    solution = reduced_rank_ridge(targets, weights, alpha=alpha, rank=ranks[-1])
    scores = rank_pearson(solution, ranks, validation)
    best: FloatArray = scores[_first_best(scores.mean(axis=1))]
    return best


def in_basis(validation: Validation, basis: RidgeBasis) -> Validation:
    """Validation spots with features times the loadings of the basis: as few as it has directions."""
    return replace(validation, features=multiplied(validation.features, basis.loadings))


def _ranks(widest: int) -> list[int]:
    return [rank for rank in RANKS if rank < widest] + [widest] if widest < RANKS[-1] else list(RANKS)


def rank_pearson(solution: LowRank, ranks: list[int], validation: Validation) -> FloatArray:
    """Pearson of every target within sections, averaged over them, at every rank, undefined ones 0, (n_ranks, n_targets).

    From second moments of the trunk's output, so that its width is the only size that a rank costs: predictions at rank r
    are partial sums over the trunk, and so are their products with the targets and their squares.
    """
    shared, head, at = multiplied(validation.features, solution.trunk), solution.head, np.array(ranks) - 1
    total, n_defined = (np.zeros((len(ranks), head.shape[1])) for _ in range(2))
    for code in np.unique(validation.sections):
        inside = validation.sections == code
        trunk, measured = (each[inside] - each[inside].mean(axis=0) for each in (shared, validation.targets))
        # Square at rank r is h' G h over the leading r of the trunk. What row r adds is its own term and twice those below the
        # diagonal, so one running sum has all ranks, where predictions would cost spots times genes for each of them.
        gram = trunk.T @ trunk
        square = np.cumsum(head * ((np.tril(gram) + np.tril(gram, -1)) @ head), axis=0)[at]
        product = np.cumsum(head * (trunk.T @ measured), axis=0)[at]
        # A constant is not one to the last digit; the trunk's output has unit mean square.
        varies = square > 1e-20 * len(trunk) * np.cumsum(head**2, axis=0)[at]
        varies &= varying(validation.targets[inside])
        norm = np.sqrt(np.where(varies, square * (measured**2).sum(axis=0), 1.0))
        total += np.where(varies, product / norm, 0.0)
        n_defined += varies
    return total / np.maximum(n_defined, 1)


def _first_best(scores: FloatArray) -> int:
    """Position of the first score that nothing but rounding sets apart from the best."""
    return int(np.argmax(scores >= scores.max() - _ROUNDING))


def _smooth(scores: FloatArray, reach: int = 2) -> FloatArray:
    """Running mean over the first axis, the window cut at the ends."""
    windows = [scores[max(i - reach, 0) : i + reach + 1] for i in range(len(scores))]
    return np.stack([window.mean(axis=0) for window in windows])


def one_standard_error(scores: FloatArray) -> int:
    """First row whose paired difference to the best row is within one standard error over columns."""
    best = scores[np.argmax(scores.mean(axis=1))]
    difference = best - scores
    error = difference.std(axis=1) / np.sqrt(scores.shape[1])
    return int(np.argmax(difference.mean(axis=1) <= error))
