"""Calibration of predictions to the units of the measured layer, from sums over blocks of spots."""

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse

from agl_sc.core.arrays import FloatArray


@dataclass(slots=True)
class CalibrationSums:
    """Least squares of measured on predicted expression per gene, of spots that come some after the others.

    A Pearson loss leaves location and scale free; the line puts predictions into the units of the measured layer.
    """

    n_genes: int
    """Genes that are calibrated."""
    n_spots: int = 0
    """Spots that were added."""
    _first: FloatArray = field(init=False)
    """Predictions of the first spot: sums are of what differs from it, 0 where nothing does."""
    _sums: FloatArray = field(init=False)
    """Of predictions less those of the first spot, of their squares, of measured expression, and of products, (4, n_genes)."""
    _varies: FloatArray = field(init=False)
    """Largest difference to the first spot, (n_genes,)."""

    def __post_init__(self) -> None:
        self._first, self._varies = np.zeros(self.n_genes), np.zeros(self.n_genes)
        self._sums = np.zeros((4, self.n_genes))

    def add(self, predicted: FloatArray, measured: scipy.sparse.csr_matrix) -> None:
        """Add some spots.

        Parameters
        ----------
        predicted
            (n_spots, n_genes).
        measured
            The same spots in the units of the layer, (n_spots, n_genes).
        """
        if not self.n_spots and len(predicted):
            self._first = predicted[0].copy()
        self.n_spots += len(predicted)
        off = predicted - self._first
        products = np.repeat(np.arange(len(off)), np.diff(measured.indptr)), measured.indices
        values = measured.data.astype(float)
        self._varies = np.maximum(self._varies, np.abs(off).max(axis=0, initial=0.0))
        self._sums += (
            off.sum(axis=0),
            np.einsum("ij,ij->j", off, off),
            np.bincount(measured.indices, values, minlength=self.n_genes),
            np.bincount(measured.indices, values * off[products], minlength=self.n_genes),
        )

    def line(self, shrinkage: float = 1.0) -> tuple[FloatArray, FloatArray]:
        """Slope, 0 where the prediction is constant and never negative, times ``shrinkage``, and intercept, (n_genes,) each."""
        off, square, measured, product = self._sums / max(self.n_spots, 1)
        spread = np.where(self._varies > 0, square - off**2, 1.0)
        slope = np.maximum(np.where(self._varies > 0, product - off * measured, 0.0) / spread, 0.0) * shrinkage
        return slope, measured - slope * (off + self._first)
