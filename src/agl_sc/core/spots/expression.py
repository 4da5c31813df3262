"""Measured expression, kept sparse: centred and scaled on demand, by blocks of genes or by batches of spots."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray, Floats
from agl_sc.core.numerics.constant import divisor

BLOCK_BYTES = 2**27
"""Size of a dense block of genes."""
ENTRIES_AT_ONCE = 2**22
"""Stored entries of a sparse matrix that are gone through at a time."""
DENSE_BYTES = 2**31
"""Expression up to this size, in single precision, is made dense once for training."""


@dataclass(frozen=True, slots=True)
class Expression:
    """Expression centred per section and scaled, which no array holds as a whole."""

    values: scipy.sparse.csr_matrix
    """In the units of the layer; targets first, then auxiliary genes by prior rank, (n_spots, n_genes)."""
    sections: NDArray[np.int64]
    """Row of ``means`` of every spot, (n_spots,)."""
    means: FloatArray
    """Of every gene in every section, (n_sections, n_genes)."""
    scale: FloatArray
    """What the centred genes of every section are divided by, (n_sections, n_genes)."""
    leading: FloatArray | None = None
    """Centred and scaled expression that stands in place of what was measured of the leading genes, (n_spots, n)."""

    @classmethod
    def fitted(cls, values: scipy.sparse.csr_matrix, sections: NDArray[np.int64]) -> "Expression":
        """Every section centred by its mean and divided by its spread, 1 where a gene is constant.

        Per section, as Pearson is taken: otherwise a gene is learned from the sections in which it varies most, be it only
        because they were sequenced less deeply.

        Parameters
        ----------
        values
            In the units of the layer, (n_spots, n_genes).
        sections
            Section of every spot, (n_spots,).
        """
        codes = np.unique(sections, return_inverse=True)[1]
        n_spots = np.bincount(codes)[:, None]
        means = _sums(values, codes, of_entries=lambda stored, _: stored) / n_spots
        square = _sums(values, codes, of_entries=lambda stored, mean: (stored - mean) ** 2, means=means)
        n_zero = n_spots - _sums(values, codes, of_entries=lambda stored, _: np.ones(len(stored)))
        variance = (square + n_zero * means**2) / n_spots
        return cls(values, codes, means, divisor(np.sqrt(variance)))

    @classmethod
    def from_dense(cls, values: FloatArray) -> "Expression":
        """Of an array that is centred and scaled already, (n_spots, n_genes)."""
        n_spots, n_genes = values.shape
        sections = np.zeros(n_spots, dtype=np.int64)
        return cls(scipy.sparse.csr_matrix(values), sections, np.zeros((1, n_genes)), np.ones((1, n_genes)))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of spots and genes."""
        n_spots, n_genes = self.values.shape
        return n_spots, n_genes

    @property
    def density(self) -> float:
        """Share of the entries that are stored."""
        return float(self.values.nnz / max(self.values.shape[0] * self.values.shape[1], 1))

    @property
    def typical_scale(self) -> FloatArray:
        """Spread of every gene within a section, the mean over spots, (n_genes,)."""
        return np.bincount(self.sections) @ self.scale / len(self.sections)

    def replacing(self, leading: FloatArray) -> "Expression":
        """The same with other values of the leading genes, centred and scaled, (n_spots, n)."""
        return replace(self, leading=leading)

    def of_spots(self, rows: NDArray[np.int64]) -> "Expression":
        """Some of the spots, centred and scaled as they are here."""
        leading = None if self.leading is None else self.leading[rows]
        return replace(self, values=self.values[rows], sections=self.sections[rows], leading=leading)

    def of_genes(self, start: int, stop: int) -> "Expression":
        """Genes ``start`` to ``stop``, as they were measured."""
        genes = slice(start, stop)
        return Expression(self.values[:, genes], self.sections, self.means[:, genes], self.scale[:, genes])

    def columns(self, start: int, stop: int) -> FloatArray:
        """Genes ``start`` to ``stop``, centred and scaled, (n_spots, n)."""
        return self._scaled(self.values[:, start:stop].astype(float).toarray(), slice(start, stop))

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """All genes, centred and scaled, a dense block (n_spots, n) of consecutive ones at a time."""
        for genes, values in gene_blocks(self.values):
            yield genes, self._scaled(values, genes)

    def projected(self, left: Floats, weights: FloatArray | None = None) -> FloatArray:
        """``left' W Z`` of all genes Z, (n_columns, n_genes), without a dense block of them.

        Of every section the products with what is stored, less those with the means, divided by the scale; sums over the rows
        of a block are in the precision of ``left``, those over blocks in double precision.

        Parameters
        ----------
        left
            (n_spots, n_columns).
        weights
            Of the spots, (n_spots,); all 1 by default.
        """
        found = np.zeros((left.shape[1], self.shape[1]))
        weighted = left if weights is None else left * weights[:, None].astype(left.dtype)
        for code in np.unique(self.sections):
            rows = np.flatnonzero(self.sections == code)
            section, total = self.values[rows], np.zeros_like(found)
            for block in row_blocks(section):
                total += (section[block].T @ weighted[rows[block]]).T
            total -= np.outer(weighted[rows].sum(axis=0, dtype=float), self.means[code])
            found += total / self.scale[code]
        if self.leading is not None:
            found[:, : self.leading.shape[1]] = weighted.T @ self.leading
        return found

    def _scaled(self, values: FloatArray, genes: slice) -> FloatArray:
        values -= self.means[self.sections, genes]
        values /= self.scale[self.sections, genes]
        if self.leading is not None and genes.start < self.leading.shape[1]:
            own = self.leading[:, genes]
            values[:, : own.shape[1]] = own
        return values


def row_blocks(values: scipy.sparse.csr_matrix) -> Iterator[slice]:
    """Consecutive rows with about four million stored entries at a time, in rising order."""
    start, n_spots = 0, values.shape[0]
    while start < n_spots:
        stop = int(np.searchsorted(values.indptr, values.indptr[start] + ENTRIES_AT_ONCE, side="right")) - 1
        yield slice(start, max(stop, start + 1))
        start = max(stop, start + 1)


def _sums(
    values: scipy.sparse.csr_matrix,
    codes: NDArray[np.int64],
    *,
    of_entries: Callable[[FloatArray, FloatArray], FloatArray],
    means: FloatArray | None = None,
) -> FloatArray:
    """Sums over the stored entries of every section and gene of what is made of them and their means, (n_sections, n_genes)."""
    shape = int(codes.max(initial=-1)) + 1, values.shape[1]
    means, total = np.zeros(shape) if means is None else means, np.zeros(shape[0] * shape[1])
    for rows in row_blocks(values):
        entries = slice(values.indptr[rows.start], values.indptr[rows.stop])
        cells = np.repeat(codes[rows], np.diff(values.indptr[rows.start : rows.stop + 1])) * shape[1]
        cells += values.indices[entries]
        made = of_entries(values.data[entries].astype(float), means.ravel()[cells])
        total += np.bincount(cells, made, minlength=len(total))
    return total.reshape(shape)


def gene_blocks(values: scipy.sparse.csr_matrix) -> Iterator[tuple[slice, FloatArray]]:
    """Dense blocks (n_spots, n) of consecutive genes, each of at most 128 MiB or one gene, and where they are."""
    n_spots, n_genes = values.shape
    width = max(1, BLOCK_BYTES // (8 * max(n_spots, 1)))
    by_gene = values.tocsc()
    for start in range(0, n_genes, width):
        genes = slice(start, min(start + width, n_genes))
        yield genes, by_gene[:, genes].astype(float).toarray()


class ExpressionBatches(Protocol):
    """Expression of the training spots, a batch of spots at a time."""

    device: torch.device
    """Where batches are."""

    def batch(self, index: torch.Tensor, n_genes: int) -> torch.Tensor:
        """First ``n_genes`` genes, centred and scaled, of the spots ``index``, (n, n_genes)."""
        ...


class ExpressionOnDevice:
    """Expression on one device, in single precision, batch by batch.

    Dense where that takes at most 2 GiB, and otherwise made from the sparse matrix for every batch; the values are the same.
    """

    def __init__(self, expression: Expression, device: torch.device) -> None:
        self.shape = expression.shape
        self.device = device
        self._values = expression.values
        self._sections = torch.from_numpy(expression.sections)
        self._means = torch.from_numpy(expression.means.astype(np.float32)).to(device)
        self._scale = torch.from_numpy(expression.scale.astype(np.float32)).to(device)
        leading = np.zeros((len(expression.sections), 0)) if expression.leading is None else expression.leading
        self._leading = torch.from_numpy(leading.astype(np.float32)).to(device)
        self._dense: torch.Tensor | None = None
        n_spots, n_genes = self.shape
        if 4 * n_spots * n_genes <= DENSE_BYTES:
            dense = torch.empty(self.shape, device=device)
            for index in torch.split(torch.arange(n_spots), 1024):
                dense[index] = self.batch(index, n_genes)
            self._dense = dense

    def batch(self, index: torch.Tensor, n_genes: int) -> torch.Tensor:
        """First ``n_genes`` genes, centred and scaled, of the spots ``index``, (n, n_genes)."""
        if self._dense is not None:
            return self._dense[:, :n_genes].index_select(0, index.to(self.device))
        rows = self._values[index.cpu().numpy()][:, :n_genes].astype(np.float32).toarray()
        sections = self._sections[index.cpu()].to(self.device)
        centred = torch.from_numpy(rows).to(self.device) - self._means[sections, :n_genes]
        scaled = centred / self._scale[sections, :n_genes]
        leading = self._leading[:, :n_genes].index_select(0, index.to(self.device))
        scaled[:, : leading.shape[1]] = leading
        return scaled
