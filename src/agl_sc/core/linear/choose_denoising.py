"""How far the targets that are trained on are denoised: what serves sections that were left out best."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray
from agl_sc.core.config import Denoise
from agl_sc.core.evaluation.metrics import pearson
from agl_sc.core.linear.choose_by_validation import one_standard_error
from agl_sc.core.linear.inner_folds import inner_folds
from agl_sc.core.spots.denoise import AS_MEASURED, Denoised, projections
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots

MOST_SPOTS = 2048
"""Spots that the choice rests on at most, an even share of every section's; more would cost much and choose no better."""
ALPHAS = tuple(float(alpha) for alpha in np.logspace(-1, 1.5, 6))
"""Ridge penalties that every candidate is judged at, per feature."""
COLUMNS = ("n_genes", "n_components", "mix", "pearson")
Rows = NDArray[np.int64]
Fold = tuple[Rows, Rows]


@dataclass(frozen=True, slots=True)
class DenoisingChoice:
    """What was chosen, and from what."""

    chosen: Denoised
    """The candidate that training takes."""
    trace: pd.DataFrame
    """n_genes, n_components, mix and pearson of every candidate; empty where nothing was to choose from."""


NOT_DENOISED = DenoisingChoice(AS_MEASURED, pd.DataFrame(columns=list(COLUMNS)))
"""Where nothing was to choose from."""


def choose_denoising(
    spots: Spots, n_targets: int, settings: Denoise, *, centres: FloatArray | None = None
) -> DenoisingChoice:
    """Of the candidates of the settings the one whose ridge fit predicts left-out spots best, or none of them.

    Sections are left out one after another, up to five groups of them; of a single section, five strips across it. Ridge with
    spots weighted by depth is fitted to the denoised targets of the others and judged by the Pearson correlation with what was
    measured of the targets left out. Of the candidates whose paired difference to the best is within one standard error over
    targets, the one that changes targets least is taken: none, else the most components, the smallest share of the projection
    and the fewest genes.

    Parameters
    ----------
    spots
        Training spots; genes are the targets, then the auxiliary genes by prior rank.
    n_targets
        Number of leading genes that are targets.
    settings
        The candidates.
    centres
        Where the spots lie, in any unit, (n_spots, 2); in the order of the rows if None.
    """
    folds = _folds(spots, centres)
    candidates = candidates_of(spots, n_targets, settings, folds=folds)
    if not candidates:
        return NOT_DENOISED
    everything = [AS_MEASURED, *candidates]
    scores = np.mean([_scores(spots, n_targets, fold, candidates=everything) for fold in folds], axis=0)
    at_best = scores[np.arange(len(scores)), scores.mean(axis=2).argmax(axis=1)]
    rows = [(*astuple(each), mean) for each, mean in zip(everything, at_best.mean(axis=1), strict=True)]
    return DenoisingChoice(everything[one_standard_error(at_best)], pd.DataFrame(rows, columns=list(COLUMNS)))


def candidates_of(spots: Spots, n_targets: int, settings: Denoise, *, folds: Sequence[Fold]) -> list[Denoised]:
    """Those that take away anything, least first: fewer components than genes, and than spots of every section fitted to."""
    n_auxiliary = spots.expression.shape[1] - n_targets
    fewest = min(int(np.unique(spots.sections[rows], return_counts=True)[1].min()) for rows, _ in folds)
    numbers = sorted({min(n, n_auxiliary) for n in settings.genes})
    return [
        Denoised(n, k, mix)
        for k in sorted(set(settings.components), reverse=True)
        for mix in sorted(set(settings.mix))
        for n in numbers
        if k < min(n_targets + n, fewest)
    ]


def denoised(spots: Spots, n_targets: int, chosen: Denoised) -> Spots:
    """The same spots with targets denoised as chosen, by themselves alone."""
    if chosen == AS_MEASURED:
        return spots
    n, k = chosen.n_genes, chosen.n_components
    (projected,) = projections(
        spots.expression, n_targets, n_genes=[n], n_components=[k], weights=spots.depth_weights
    ).values()
    return replace(
        spots, expression=spots.expression.replacing(chosen.mixed(spots.expression.columns(0, n_targets), projected))
    )


def _folds(spots: Spots, centres: FloatArray | None) -> list[Fold]:
    """Rows to fit on and rows to judge by: whole sections, or strips of a single one."""
    if len(np.unique(spots.sections)) > 1 or centres is None or not np.isfinite(centres).all():
        return inner_folds(spots.sections)
    along = centres[:, np.ptp(centres, axis=0).argmax()]
    order = np.argsort(along, kind="stable")
    return [(np.sort(order[rows]), np.sort(order[left])) for rows, left in inner_folds(spots.sections)]


def _scores(spots: Spots, n_targets: int, fold: Fold, *, candidates: Sequence[Denoised]) -> FloatArray:
    """Pearson of every target in the spots left out, by candidate and penalty, (n_candidates, n_alphas, n_targets)."""
    fitted_on, left_out = fold
    own = replace(
        spots,
        features=spots.features[fitted_on],
        expression=Expression.fitted(spots.expression.values[fitted_on], spots.sections[fitted_on]),
        sections=spots.sections[fitted_on],
    )
    weights = None if spots.depth_weights is None else spots.depth_weights[fitted_on]
    numbers = sorted({each.n_genes for each in candidates[1:]})
    components = sorted({each.n_components for each in candidates[1:]})
    projected = projections(own.expression, n_targets, n_genes=numbers, n_components=components, weights=weights)
    used = _even_share(own.sections)
    stacked = np.hstack([own.expression.columns(0, n_targets)[used], *(each[used] for each in projected.values())])
    root = np.sqrt(np.ones(len(used)) if weights is None else weights[used])[:, None]
    features, held = root * own.features[used].astype(float), spots.features[left_out].astype(float)
    squares, left = np.linalg.eigh(features @ features.T)
    across, turned = (held @ features.T) @ left, left.T @ (root * stacked)
    measured, sections = spots.expression.values[left_out, :n_targets].toarray(), spots.sections[left_out]
    scores = np.zeros((len(candidates), len(ALPHAS), n_targets))
    for a, alpha in enumerate(ALPHAS):
        shrunk = turned / (np.maximum(squares, 0) + alpha * features.shape[1])[:, None]
        plain, *others = np.split(across @ shrunk, 1 + len(projected), axis=1)
        by_key = dict(zip(projected, others, strict=True))
        for c, each in enumerate(candidates):
            predicted = each.mixed(plain, by_key.get((each.n_genes, each.n_components), plain))
            scores[c, a] = _pearson_within(measured, predicted, sections)
    return scores


def _pearson_within(measured: FloatArray, predicted: FloatArray, sections: NDArray[np.int64]) -> FloatArray:
    """Mean over sections, undefined ones 0, (n_targets,)."""
    each = [pearson(measured[sections == code], predicted[sections == code]) for code in np.unique(sections)]
    mean: FloatArray = np.nan_to_num(np.stack(each)).mean(axis=0)
    return mean


def _even_share(sections: NDArray[np.int64]) -> Rows:
    """At most :data:`MOST_SPOTS` rows, as evenly spread within every section."""
    if len(sections) <= MOST_SPOTS:
        return np.arange(len(sections))
    share = MOST_SPOTS / len(sections)
    rows = [np.flatnonzero(sections == code) for code in np.unique(sections)]
    return np.sort(
        np.concatenate([own[np.linspace(0, len(own) - 1, max(int(share * len(own)), 1)).astype(int)] for own in rows])
    )
