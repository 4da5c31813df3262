"""Raw counts for the likelihoods: mean shares, dispersion, and the way back to log-normalised units."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray

_LEAST_DISPERSION, _MOST_DISPERSION = 1e-3, 1e2


@dataclass(frozen=True, slots=True)
class Counts:
    """Raw counts of some spots."""

    values: scipy.sparse.csr_matrix
    """(n_spots, n_genes), the genes in the order of training."""
    library: FloatArray
    """Total counts of every spot over all genes of the table, (n_spots,)."""
    scale: float
    """Counts per spot that the layer is normalised to; the median library where it is not."""

    def batch(self, index: torch.Tensor, n_genes: int) -> torch.Tensor:
        """Counts of the spots ``index``, (n,), and the leading genes, (n, n_genes) of float32."""
        rows = self.values[index.cpu().numpy()][:, :n_genes].toarray()
        return torch.from_numpy(rows.astype(np.float32))


@dataclass(frozen=True, slots=True)
class CountLaw:
    """What a likelihood takes for known, fitted on training spots."""

    log_share: FloatArray
    """Log of a gene's mean share of the counts in every section, (n_sections, n_genes); 0 where it has none."""
    log_dispersion: FloatArray
    """Log of the negative-binomial dispersion of every gene, (n_genes,)."""
    base: FloatArray
    """Log of the mean count of every gene in a spot of ``scale`` counts, (n_genes,)."""
    panels: NDArray[np.bool_]
    """Genes with any count in a section, (n_sections, n_genes)."""


def count_law(counts: Counts, sections: NDArray[np.int64]) -> CountLaw:
    """Fit shares by section, and one dispersion per gene by moments: variance = mean + dispersion * mean^2.

    Parameters
    ----------
    counts
        Of the training spots.
    sections
        Section of every spot, (n_spots,).
    """
    n_sections, n_genes = int(sections.max()) + 1, counts.values.shape[1]
    share = np.zeros((n_sections, n_genes))
    excess, square, total = np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes)
    for code in np.unique(sections):
        inside = sections == code
        x, library = counts.values[inside], counts.library[inside]
        sums = np.asarray(x.sum(axis=0)).ravel()
        p = sums / library.sum()
        share[code], total = p, total + sums
        # Sum of (x - library * p)^2 without a dense matrix.
        squares = np.asarray(x.multiply(x).sum(axis=0)).ravel()
        residual = squares - 2 * p * (x.T @ library) + p**2 * (library**2).sum()
        excess += residual - p * library.sum()
        square += p**2 * (library**2).sum()
    dispersion = np.clip(excess / np.maximum(square, 1e-300), _LEAST_DISPERSION, _MOST_DISPERSION)
    log_share = np.log(np.where(share > 0, share, 1.0))
    mean = total / counts.library.sum() * counts.scale
    return CountLaw(log_share, np.log(dispersion), np.log(np.maximum(mean, 1e-12)), share > 0)


def to_log_rate(spread: FloatArray, base: FloatArray) -> FloatArray:
    """Slope per gene from scaled expression log(1 + count) to the log of the rate, at the mean, at most 1, (n_genes,)."""
    slope: FloatArray = np.minimum(spread * (1 + np.exp(-base)), 1.0)
    return slope


def in_log_units(log_rate: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Log(1 + normalised count) of log rates (n_spots, n) relative to the mean of the leading genes of ``base``."""
    return torch.nn.functional.softplus(log_rate + base[: log_rate.shape[1]])
