"""Where to cut the ranking of auxiliary genes: by closed form along the whole path, or by a race."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agl_sc.core import metrics
from agl_sc.core.network import LowRank, RidgeBasis, reduced_rank_path, ridge_coefficients

FloatArray = NDArray[np.float64]

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-2, 2, 17))
"""Ridge penalties tried, per feature."""
RACE_CUTOFFS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Cutoffs that ``search="race"`` trains."""
RANKS = (4, 8, 16, 32, 64)
"""Widths of the trunk tried."""
TRACE_COLUMNS = ("step", "cutoff", "k", "validation_pearson")


@dataclass(frozen=True, slots=True)
class Validation:
    """Validation spots of the target genes."""

    features: FloatArray
    """Scaled as the training features, (n_spots, n_features)."""
    targets: FloatArray
    """Measured expression, (n_spots, n_targets)."""
    sections: NDArray[np.int64]
    """Section of every spot, (n_spots,)."""

    def per_gene(self, predicted: FloatArray) -> FloatArray:
        """Pearson of every target within sections, averaged over sections, (n_targets,); NaN where undefined."""
        return section_pearson(self.targets, predicted, self.sections)

    def score(self, predicted: FloatArray) -> float:
        """Mean Pearson over targets; an undefined one counts 0."""
        return float(np.nan_to_num(self.per_gene(predicted)).mean())


def section_pearson(measured: FloatArray, predicted: FloatArray, codes: NDArray[np.int64]) -> FloatArray:
    """Pearson of every gene within sections, averaged over the sections where it is defined, (n_genes,)."""
    per_section = np.stack([metrics.pearson(measured[codes == c], predicted[codes == c]) for c in np.unique(codes)])
    defined = np.isfinite(per_section).sum(axis=0)
    return np.where(defined > 0, np.nansum(per_section, axis=0) / np.maximum(defined, 1), np.nan)


def choose_alpha(basis: RidgeBasis, validation: Validation) -> float:
    """Ridge penalty with the best mean validation Pearson of the targets."""
    n_targets = validation.targets.shape[1]
    n_features = validation.features.shape[1]
    grid = [n_features * alpha for alpha in ALPHAS]
    scores = [validation.score(validation.features @ ridge_coefficients(basis, a, n_targets)) for a in grid]
    return float(grid[int(np.argmax(scores))])


def choose_rank(start: LowRank, validation: Validation) -> int:
    """Rank of the trunk with the best mean validation Pearson of the targets."""
    n_targets = validation.targets.shape[1]
    ranks = _ranks(start.trunk.shape[1])
    targets = LowRank(start.trunk, start.head[:, :n_targets])
    return ranks[int(np.argmax([validation.score(targets.cut(r).predict(validation.features)) for r in ranks]))]


def path_search(
    basis: RidgeBasis, validation: Validation, *, alpha: float, rank: int | None = None, n_cutoffs: int = 64
) -> tuple[float, pd.DataFrame]:
    """Cutoff from the closed-form fit at every number of auxiliary genes.

    Validation scores are smoothed over neighbouring cutoffs, and the best rank of the trunk is kept; of the cutoffs whose
    paired difference to the best is within one standard error over target genes, the one with the fewest genes is taken.

    Parameters
    ----------
    basis
        Training spots; genes are the targets, then the auxiliary genes by prior rank.
    validation
        Validation spots.
    alpha
        Ridge penalty on the features' scale.
    rank
        Width of the trunk; chosen on the validation spots if None.
    n_cutoffs
        Number of cutoffs tried, evenly over the rank axis.

    Returns
    -------
    The cutoff in [0, 1], and the trace: step, cutoff, k, validation_pearson.
    """
    n_targets = validation.targets.shape[1]
    n_auxiliary = basis.genes.shape[1] - n_targets
    widest = min(len(basis.singular_values), RANKS[-1] if rank is None else rank)
    ranks = _ranks(widest) if rank is None else [widest]
    k = np.unique(np.maximum(np.round(np.linspace(0, n_auxiliary, n_cutoffs + 1)[1:]).astype(np.int64), 1))
    path = reduced_rank_path(basis, n_targets, k, alpha=alpha, rank=widest)
    scores = np.stack([_by_rank(solution, ranks, validation) for solution in path])
    smooth = _smooth(scores)
    best = int(np.argmax(smooth.mean(axis=2).max(axis=0)))
    cutoffs = k / n_auxiliary
    trace = {"step": np.arange(len(k)), "cutoff": cutoffs, "k": k, "validation_pearson": scores[:, best].mean(axis=1)}
    return float(cutoffs[_one_standard_error(smooth[:, best])]), pd.DataFrame(trace)


def _ranks(widest: int) -> list[int]:
    return [rank for rank in RANKS if rank < widest] + [widest] if widest < RANKS[-1] else list(RANKS)


def _by_rank(solution: LowRank, ranks: list[int], validation: Validation) -> FloatArray:
    """Validation Pearson of every target at every rank, undefined ones 0, (n_ranks, n_targets)."""
    return np.stack([np.nan_to_num(validation.per_gene(solution.cut(r).predict(validation.features))) for r in ranks])


def _smooth(scores: FloatArray, reach: int = 2) -> FloatArray:
    """Running mean over the first axis, the window cut at the ends."""
    windows = [scores[max(i - reach, 0) : i + reach + 1] for i in range(len(scores))]
    return np.stack([window.mean(axis=0) for window in windows])


def _one_standard_error(scores: FloatArray) -> int:
    """First row whose paired difference to the best row is within one standard error over columns."""
    best = scores[np.argmax(scores.mean(axis=1))]
    difference = best - scores
    error = difference.std(axis=1) / np.sqrt(scores.shape[1])
    return int(np.argmax(difference.mean(axis=1) <= error))


def race_search(
    train: Callable[[float, int], float], *, cutoffs: Sequence[float] = RACE_CUTOFFS, first_rung: int = 2
) -> tuple[float, pd.DataFrame]:
    """Cutoff by successive halving (Jamieson and Talwalkar, 2016): the question that a short hyper-gradient cannot ask.

    Parameters
    ----------
    train
        From a cutoff and a number of epochs to the best validation Pearson of a training from the common start.
    cutoffs
        Contestants on the rank axis, increasing.
    first_rung
        Epochs of the first rung; every rung has twice as many, and the better half of the contestants.

    Returns
    -------
    The cutoff in [0, 1], and the trace: step (the rung), cutoff, validation_pearson.
    """
    alive, n_epochs, rows = list(cutoffs), first_rung, []
    for rung in range(len(cutoffs).bit_length()):
        scores = {cutoff: train(cutoff, n_epochs) for cutoff in alive}
        rows += [{"step": rung, "cutoff": c, "validation_pearson": score} for c, score in scores.items()]
        # Sorting is stable: of equal scores the smaller cutoff stays.
        alive = sorted(sorted(alive, key=lambda c: -scores[c])[: max(1, len(alive) // 2)])
        n_epochs *= 2
        if len(scores) <= 2:
            break
    return alive[0], pd.DataFrame(rows)
