"""Spots ready for training, and spots that judge it."""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray, Floats
from agl_sc.core.evaluation import metrics
from agl_sc.core.spots.counts import Counts
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.scaling import depth_weights, row_slices


@dataclass(frozen=True, slots=True)
class Spots:
    """Spots ready for training."""

    features: Floats
    """Centred per section and scaled, (n_spots, n_features)."""
    expression: Expression
    """Centred per section and scaled; targets first, then auxiliary genes by prior rank, (n_spots, n_genes)."""
    sections: NDArray[np.int64]
    """Section of every spot, (n_spots,)."""
    counts: Counts | None = None
    """Raw counts of the same genes, for a likelihood."""

    @property
    def depth_weights(self) -> FloatArray | None:
        """Weight of every spot by its depth, (n_spots,); None without counts."""
        return None if self.counts is None else depth_weights(self.counts.library, self.sections)

    def leading(self, n: int) -> "Spots":
        """The same spots with the first ``n`` genes alone, denoised as they are."""
        if n == self.expression.shape[1]:
            return self
        counts = None if self.counts is None else replace(self.counts, values=self.counts.values[:, :n])
        own = self.expression.of_genes(0, n).replacing(self.expression.columns(0, n))
        return replace(self, expression=own, counts=counts)


def usable_spots(features: Floats, counts: scipy.sparse.csr_matrix) -> NDArray[np.bool_]:
    """Spots with features and counts, which can be trained on, (n_obs,)."""
    blocks = [np.isfinite(features[rows]).all(axis=1) for rows in row_slices(*features.shape)]
    usable: NDArray[np.bool_] = np.concatenate([np.zeros(0, dtype=bool), *blocks])
    return usable & (np.asarray(counts.sum(axis=1)).ravel() > 0)


@dataclass(frozen=True, slots=True)
class Validation:
    """Validation spots of the target genes."""

    features: Floats
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
