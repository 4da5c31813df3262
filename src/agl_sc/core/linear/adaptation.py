"""What a few measured spots of a section change in predictions of it: a shift, a slope, and what features tell of the rest.

Every part is shrunk towards "no change", by as much as held-out spots among the measured ones ask for, and is left out where these do
not show that it helps.
"""

from dataclasses import dataclass

import numpy as np

from agl_sc.core.arrays import FloatArray, IntArray

_FOLDS = 10
_STRENGTHS = (0.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0)
"""Spots that "no change" is worth, of shift and slope."""
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Of ridge on the residual, times the mean square of a spot in the basis."""


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """How strongly every part is held back; None leaves it out."""

    shift: float | None = None
    """Spots that no shift is worth."""
    slope: float | None = None
    """Spots that a slope of 1 is worth."""
    residual: float | None = None
    """Ridge penalty of the residual."""


@dataclass(frozen=True, slots=True, eq=False)
class Adaptation:
    """Adapted is ``shift + slope * predicted + basis @ weights``."""

    shift: FloatArray
    """(n_genes,)."""
    slope: FloatArray
    """(n_genes,), never negative."""
    weights: FloatArray
    """(n_basis, n_genes)."""
    shrinkage: Shrinkage
    """What was chosen."""
    saved: float
    """Share of the squared error of held-out measured spots that it takes away, all genes alike; 0 where nothing helps."""

    def __call__(self, predicted: FloatArray, basis: FloatArray) -> FloatArray:
        """Adapted predictions, (n_spots, n_genes)."""
        adapted: FloatArray = self.shift + self.slope * predicted + basis @ self.weights
        return adapted


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredSpots:
    """Spots to adapt to."""

    measured: FloatArray
    """Expression, (n_spots, n_genes)."""
    predicted: FloatArray
    """The same, predicted, (n_spots, n_genes)."""
    basis: FloatArray
    """What the residual is explained by, of few columns, (n_spots, n_basis)."""

    def take(self, rows: IntArray) -> "MeasuredSpots":
        """Some of them."""
        return MeasuredSpots(self.measured[rows], self.predicted[rows], self.basis[rows])


def adapted_to(spots: MeasuredSpots, *, residual: bool = True, seed: int = 0) -> Adaptation:
    """Shift, slope and residual for some measured spots, each where it helps on spots that are held out in turn.

    One part after the other: the strength of its shrinkage is the one with the least squared error over the held-out spots, all genes
    divided by their spread, and the part is taken where it beats doing without by a standard error over the spots.

    Parameters
    ----------
    spots
        At least two.
    residual
        Whether ridge on the residual is tried.
    seed
        Of the folds.
    """
    scale = _spread(spots.measured)
    folds = _folds(len(spots.measured), seed)
    chosen = Shrinkage()
    first = errors = _errors(spots, chosen, scale=scale, folds=folds)
    tried = [
        [Shrinkage(shift) for shift in _STRENGTHS],
        [Shrinkage(None, slope) for slope in _STRENGTHS[1:]],
        [Shrinkage(None, None, penalty) for penalty in _PENALTIES] if residual else [],
    ]
    for parts in tried:
        candidates = [_joined(chosen, each) for each in parts]
        scored = [(each, _errors(spots, each, scale=scale, folds=folds)) for each in candidates]
        if not scored:
            continue
        best, own = min(scored, key=lambda pair: float(pair[1].mean()))
        gain = errors - own
        if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)):
            chosen, errors = best, own
    saved = 1 - float(errors.mean() / first.mean()) if first.mean() > 0 else 0.0
    return fitted(spots, chosen, saved=saved)


def fitted(spots: MeasuredSpots, shrinkage: Shrinkage, *, saved: float = 0.0) -> Adaptation:
    """Fit with a given shrinkage.

    Parameters
    ----------
    spots
        Measured spots.
    shrinkage
        How strongly every part is held back.
    saved
        What is remembered of the choice.
    """
    n_spots, n_genes = spots.measured.shape
    centre, measured = spots.predicted.mean(axis=0), spots.measured.mean(axis=0)
    predicted = spots.predicted - centre
    slope = np.ones(n_genes)
    if shrinkage.slope is not None:
        square = (predicted**2).sum(axis=0)
        own = np.divide((predicted * spots.measured).sum(axis=0), square, out=np.ones(n_genes), where=square > 0)
        slope = np.maximum(1 + (own - 1) * n_spots / (n_spots + shrinkage.slope), 0.0)
    kept = 0.0 if shrinkage.shift is None else n_spots / (n_spots + shrinkage.shift)
    shift = kept * (measured - centre) + (1 - slope) * centre
    weights = np.zeros((spots.basis.shape[1], n_genes))
    if shrinkage.residual is not None:
        middle = spots.basis.mean(axis=0)
        basis = spots.basis - middle
        rest = spots.measured - measured - slope * predicted
        gram = basis @ basis.T
        penalty = shrinkage.residual * np.trace(gram) / n_spots
        if penalty > 0:
            weights = basis.T @ np.linalg.solve(gram + penalty * np.eye(n_spots), rest)
            shift = shift - middle @ weights
    return Adaptation(shift, slope, weights, shrinkage, saved)


def _joined(first: Shrinkage, second: Shrinkage) -> Shrinkage:
    """Both, the second before the first."""
    parts = [
        after if after is not None else before
        for before, after in (
            (first.shift, second.shift),
            (first.slope, second.slope),
            (first.residual, second.residual),
        )
    ]
    return Shrinkage(*parts)


def held_out_adapted(spots: MeasuredSpots, shrinkage: Shrinkage, *, seed: int = 0) -> FloatArray:
    """Adapted predictions of every spot by the spots of the other folds, (n_spots, n_genes).

    Parameters
    ----------
    spots
        Measured spots.
    shrinkage
        How strongly every part is held back.
    seed
        Of the folds, those of :func:`adapted_to`.
    """
    return _held_out(spots, shrinkage, folds=_folds(len(spots.measured), seed))


def _held_out(spots: MeasuredSpots, shrinkage: Shrinkage, *, folds: IntArray) -> FloatArray:
    predicted = np.empty_like(spots.measured)
    for fold in np.unique(folds):
        held = np.flatnonzero(folds == fold)
        out = spots.take(held)
        predicted[held] = fitted(spots.take(np.flatnonzero(folds != fold)), shrinkage)(out.predicted, out.basis)
    return predicted


def _errors(spots: MeasuredSpots, shrinkage: Shrinkage, *, scale: FloatArray, folds: IntArray) -> FloatArray:
    """Mean squared error over the genes, in squared spreads, of every spot when it is held out, (n_spots,)."""
    errors: FloatArray = (((spots.measured - _held_out(spots, shrinkage, folds=folds)) / scale) ** 2).mean(axis=1)
    return errors


def _spread(measured: FloatArray) -> FloatArray:
    """Spread of every gene, drawn towards that of all genes where there are few spots, (n_genes,)."""
    variance = measured.var(axis=0, ddof=1)
    typical = float(np.median(variance[variance > 0])) if (variance > 0).any() else 1.0
    n_spots = len(measured)
    spread: FloatArray = np.sqrt((variance * (n_spots - 1) + typical * _FOLDS) / (n_spots - 1 + _FOLDS))
    return spread


def _folds(n_spots: int, seed: int) -> IntArray:
    """Number of the fold of every spot, (n_spots,)."""
    order = np.random.default_rng(seed).permutation(n_spots)
    folds = np.empty(n_spots, dtype=np.int64)
    folds[order] = np.arange(n_spots) % min(_FOLDS, n_spots)
    return folds
