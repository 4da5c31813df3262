"""How far spots lie from the tissue that a model was trained on, measured by training spots that were held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.utils.extmath import randomized_svd

from agl_sc.core.arrays import FloatArray, Floats, IntArray
from agl_sc.core.evaluation.held_out import HeldOutFold
from agl_sc.core.evaluation.neighbours import Neighbours
from agl_sc.core.evaluation.seen_scale import SeenScale
from agl_sc.core.linear.predictability import MOST_SPOTS
from agl_sc.core.spots.thinned import thinned

BEYOND = 0.99
"""A spot is beyond the training tissue if more than this share of held-out training spots lies nearer."""
MOSTLY = 0.5
"""Share of a section's spots beyond the training tissue from which on the section is."""
N_AXES = 32
_SPOTS_PER_AXIS = 4
_LEAST_SPREAD = 0.05
"""Of the median feature's spread within sections; features that hardly vary would be worth hundreds of others."""
_N_QUANTILES = 1000
_LEAST_LIMITS, _BEYOND_FARTHEST = (1.0, 0.8), 1.5
"""A section lies beyond if its mean is moved by more than this, over all features in spreads within sections or along the leading axes in
theirs, and by half as much again as that of any that was held out. Sections of another patient of the same tumour were moved by .6 in
either, another stain by 1.4 in the first, another organ by 1 or more in the second."""
_ROWS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Where training spots lie in the space of features, which are neither clipped nor centred per section."""

    centre: FloatArray
    """Mean over sections of their means, (n_features,)."""
    scale: FloatArray
    """Spread within sections, (n_features,)."""
    axes: FloatArray
    """Leading directions of what is centred and scaled so, between sections and within, (n_axes, n_features)."""
    spread: FloatArray
    """Root mean square along each, (n_axes,)."""

    @classmethod
    def fitted(cls, features: Floats, sections: IntArray) -> "Reference":
        """Of some spots (n_spots, n_features) of several sections, of about 4,096 of them at most."""
        rows = thinned(sections, MOST_SPOTS)
        features, sections = features[rows], sections[rows]
        parts = [np.asarray(features[sections == code], dtype=float) for code in np.unique(sections)]
        centre = np.mean([part.mean(axis=0) for part in parts], axis=0)
        within = np.sqrt(np.mean([part.var(axis=0) for part in parts], axis=0))
        varying = within[within > 0]
        scale = np.maximum(within, _LEAST_SPREAD * (np.median(varying) if len(varying) else 1.0))
        scaled = (np.concatenate(parts) - centre) / scale
        n_axes = max(1, min(N_AXES, len(scaled) // _SPOTS_PER_AXIS, scaled.shape[1]))
        _, singular, axes = randomized_svd(scaled, n_axes, random_state=0)
        spread = singular / np.sqrt(len(scaled))
        return cls(centre, scale, axes, np.maximum(spread, 1e-6 * spread[0] if spread[0] > 0 else 1.0))

    def shifts(self, mean: FloatArray) -> FloatArray:
        """How far the mean of a section, (n_features,), lies from the centre, (2,).

        Root mean squares: over all features, in spreads within sections, and along the leading axes, in the spread along each.
        """
        moved = (mean - self.centre) / self.scale
        return np.sqrt([(moved**2).mean(), ((self.axes @ moved / self.spread) ** 2).mean()])

    def parts(self, features: Floats) -> FloatArray:
        """Mean squares along the axes, in units of their spread, and off them, (n_spots, 2)."""
        found = np.empty((len(features), 2))
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            scaled = (np.asarray(features[rows], dtype=float) - self.centre) / self.scale
            along = scaled @ self.axes.T
            found[rows, 0] = ((along / self.spread) ** 2).mean(axis=1)
            off = (scaled**2).sum(axis=1) - (along**2).sum(axis=1)
            found[rows, 1] = np.maximum(off, 0.0) / scaled.shape[1]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """The training tissue, and how far from it training spots lie that were held out."""

    reference: Reference
    """Of all training spots."""
    held_out: FloatArray
    """How far held-out training spots lie, as 1,000 quantiles in rising order; every section counts the same."""
    limit: FloatArray
    """Shifts of its mean from which on a section lies beyond as a whole, (2,)."""
    units: FloatArray
    """Median of both parts of the reference over held-out training spots, (2,)."""
    neighbours: Neighbours | None = None
    """Training spots that others are measured from; None of older models."""
    measures: FloatArray | None = None
    """As ``held_out``, of the parts and of the ratio to neighbours on their own, (2, 1,000); None of older models, whose distances
    are the parts alone."""
    seen_scale: SeenScale | None = None
    """Tells at which scale a section is seen; None of older models and of features without images."""

    @classmethod
    def fitted(
        cls, features: Floats, sections: IntArray, folds: Sequence[HeldOutFold], *, means: Mapping[int, FloatArray]
    ) -> "Domain":
        """From training spots, every fold measured from the spots of the others.

        How far a spot lies is measured twice, and the rarer of the two among held-out spots counts. From the middle of the
        training tissue: the larger of two mean squares, each in units of its median, that along the leading axes (of Mahalanobis,
        or Hotelling's T2), and that of what lies off them (the squared prediction error), which finds what no training spot
        varied in. And from the nearest training spots (:class:`Neighbours`), which finds what lies between tissues. Features
        are not centred per section: a slide of another stain lies elsewhere as a whole.

        Parameters
        ----------
        features
            (n_spots, n_features).
        sections
            Section of every spot, (n_spots,).
        folds
            What is held out together.
        means
            Mean features of the whole tissue of every section, (n_features,).

        References
        ----------
        Jackson and Mudholkar, Control procedures for residuals associated with principal component analysis,
        Technometrics 21, 1979.
        """
        parts, ratios, farthest = np.full((len(features), 2), np.nan), np.full(len(features), np.nan), np.zeros(2)
        for fold in folds:
            reference = Reference.fitted(features[fold.fit], sections[fold.fit])
            parts[fold.held] = reference.parts(features[fold.held])
            ratios[fold.held] = Neighbours.fitted(features[fold.fit], sections[fold.fit]).ratios(features[fold.held])
            for code in set(sections[fold.held].tolist()) - set(sections[fold.fit].tolist()):
                farthest = np.maximum(farthest, reference.shifts(means[code]))
        known = np.isfinite(ratios)
        units = np.maximum(np.median(parts[known], axis=0), 1e-12)
        both, codes = np.column_stack([(parts[known] / units).max(axis=1), ratios[known]]), sections[known]
        measures = np.array([_quantiles(each, codes) for each in both.T])
        limit = np.maximum(_LEAST_LIMITS, _BEYOND_FARTHEST * farthest)
        reference, neighbours = Reference.fitted(features, sections), Neighbours.fitted(features, sections)
        return cls(reference, _quantiles(_rarest(both, measures), codes), limit, units, neighbours, measures)

    @property
    def width(self) -> int:
        """Features that it knows, the first of those of a spot."""
        return len(self.reference.centre)

    def distance(self, features: Floats, sections: IntArray, *, means: Mapping[int, FloatArray]) -> FloatArray:
        """Share of held-out training spots that lie nearer than each spot, in [0, 1], (n_spots,).

        1 for all spots of a section that lies beyond as a whole or is seen at another scale: tissue varies so much that each spot of another stain may
        look like some training spot, and all of them together like none. NaN for a spot without features. A spot's distance
        does not depend on which others are passed.

        Parameters
        ----------
        features
            (n_spots, n_features).
        sections
            Section of every spot, (n_spots,).
        means
            Mean features of the whole tissue of every section, (n_features,).
        """
        share = np.full(len(features), np.nan)
        known = np.isfinite(features).all(axis=1)
        distances = self._far(features[known, : self.width])
        share[known] = np.searchsorted(self.held_out, distances, side="left") / len(self.held_out)
        for code in np.unique(sections[known]):
            if self.is_moved(means[code]) or self.other_scale(means[code]) is not None:
                share[known & (sections == code)] = 1.0
        return share

    def is_moved(self, mean: FloatArray) -> bool:
        """Whether a section of these mean features, (n_features,), lies beyond as a whole."""
        return bool((self.reference.shifts(mean[: self.width]) > self.limit).any())

    def other_scale(self, mean: FloatArray) -> float | None:
        """Power of two of its scale at which such a section seems to be seen; None where that is no other."""
        own = mean[: self.width]
        return None if self.seen_scale is None or not self.seen_scale.is_other(own) else self.seen_scale.power(own)

    def _far(self, features: Floats) -> FloatArray:
        """How far every spot lies, in what held-out spots were measured in, (n_spots,)."""
        parts: FloatArray = (self.reference.parts(features) / self.units).max(axis=1)
        if self.neighbours is None or self.measures is None:
            return parts
        return _rarest(np.column_stack([parts, self.neighbours.ratios(features)]), self.measures)


def _rarest(values: FloatArray, measures: FloatArray) -> FloatArray:
    """Share of held-out spots that lie nearer by the measure in which fewest lie as far, (n_spots,) from (n_spots, n_measures)."""
    ranks = [np.searchsorted(known, own, side="left") for own, known in zip(values.T, measures, strict=True)]
    share: FloatArray = np.max(ranks, axis=0) / measures.shape[1]
    return share


def _quantiles(values: FloatArray, sections: IntArray) -> FloatArray:
    """1,000 quantiles in rising order, in which every section counts the same."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(1 / np.bincount(sections)[sections[order]])
    wanted = (np.arange(_N_QUANTILES) + 0.5) / _N_QUANTILES * below[-1]
    quantiles: FloatArray = values[order][np.searchsorted(below, wanted)]
    return quantiles
