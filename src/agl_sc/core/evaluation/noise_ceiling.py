"""How well a gene could be predicted at all, given the noise of its counts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from agl_sc.core.arrays import FloatArray
from agl_sc.core.evaluation.metrics import pearson

_ROUNDING = 1e-10
"""Of a sum of squares, what rounding may leave of a spread that is none."""


@dataclass(frozen=True, slots=True, eq=False)
class RawCounts:
    """Raw counts of the spots and genes that are evaluated, and how they become the measured expression."""

    values: scipy.sparse.csr_matrix
    """Counts, whole numbers, (n_spots, n_genes)."""
    library: FloatArray
    """Total counts of every spot over all genes of the table, (n_spots,)."""
    normalize: Callable[[scipy.sparse.csr_matrix], scipy.sparse.csr_matrix]
    """From counts of all genes to the units of the layer; looks at nothing of the other genes but the total of a spot."""

    def split(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Two halves of the counts, every molecule in one or the other by a fair coin, both normalised, (n_spots, n_genes) each.

        The genes that are not evaluated are split as one: only their total matters.
        """
        first, second = (half.toarray().astype(float) for half in self.sparse_split(rng))
        return first, second

    def sparse_split(self, rng: np.random.Generator) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
        """As :meth:`split`, without a zero in memory."""
        rest = np.round(self.library - np.asarray(self.values.sum(axis=1), dtype=float).ravel())
        whole = scipy.sparse.csr_matrix(scipy.sparse.hstack([self.values, rest[:, None]]), dtype=np.float32)
        half = whole.copy()
        half.data = rng.binomial(whole.data.astype(np.int64), 0.5).astype(np.float32)
        first, second = (self.normalize(part)[:, :-1] for part in (half, whole - half))
        return first, second


def noise_ceiling(counts: RawCounts, *, rng: np.random.Generator, n_splits: int = 5) -> FloatArray:
    r"""Highest Pearson correlation that a perfect prediction could reach, by binomial count splitting.

    Of counts that are Poisson given the expression, the two halves are independent given it. Their Pearson correlation r
    over spots, averaged over splits, is the reliability at half the depth; :math:`2r / (1 + r)` is that at full depth
    (Spearman-Brown), and its root the correlation of the measured with the noiseless gene.

    Parameters
    ----------
    counts
        Of the spots of one section.
    rng
        Draws the halves.
    n_splits
        How often.

    Returns
    -------
    (n_genes,), in (0, 1]; NaN where the halves do not correlate positively, or a half is constant in every split.

    References
    ----------
    Neufeld et al., Inference after latent variable estimation for single-cell RNA sequencing data, Biostatistics 25, 2023.
    Spearman, Br. J. Psychol. 3, 1910. Brown, Br. J. Psychol. 3, 1910.
    """
    return _of_halves(np.stack([pearson(*counts.split(rng)) for _ in range(n_splits)]))


def noise_ceilings(counts: RawCounts, *, rng: np.random.Generator, n_splits: int = 5) -> FloatArray:
    """As :func:`noise_ceiling`, of thousands of genes: what is not counted takes neither memory nor time."""
    return _of_halves(np.stack([_sparse_pearson(*counts.sparse_split(rng)) for _ in range(n_splits)]))


def _sparse_pearson(first: scipy.sparse.csr_matrix, second: scipy.sparse.csr_matrix) -> FloatArray:
    """Pearson over rows of every column, from sums; NaN where either side is constant."""
    n = first.shape[0]

    def total(values: scipy.sparse.spmatrix) -> FloatArray:
        return np.asarray(values.sum(axis=0, dtype=np.float64)).ravel()

    sums = [total(each) for each in (first, second)]
    squares = [total(each.astype(np.float64).power(2)) for each in (first, second)]
    spread = [square - each**2 / n for square, each in zip(squares, sums, strict=True)]
    varies = np.all([each > _ROUNDING * square for each, square in zip(spread, squares, strict=True)], axis=0)
    product = total(first.astype(np.float64).multiply(second)) - sums[0] * sums[1] / n
    correlation: FloatArray = np.divide(
        product, np.sqrt(np.prod(np.maximum(spread, 0), axis=0)), out=np.full(len(product), np.nan), where=varies
    )
    return correlation


def _of_halves(halves: FloatArray) -> FloatArray:
    """Ceilings from the correlations of the halves in every split, (n_splits, n_genes)."""
    defined = np.isfinite(halves)
    count = defined.sum(axis=0)
    half = np.where(defined, halves, 0.0).sum(axis=0) / np.maximum(count, 1)
    positive = np.where(half > 0, half, np.nan)
    ceiling: FloatArray = np.sqrt(2 * positive / (1 + positive))
    return ceiling
