"""P-values of a correlation between two autocorrelated fields."""

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2
from scipy.stats import false_discovery_control, norm

from agl_sc.core.arrays import FloatArray
from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.metrics import per_gene
from agl_sc.core.numerics.constant import constant

_LEAST_KEPT = 0.25
"""Of the spots that a shift has to bring onto others."""
_FEWEST_SHIFTS = 19
"""Other than none: with fewer no p-value could reach .05."""
_ROUNDING = 1e-9
_FEWEST_SPOTS = 6
_PIXELS_AT_ONCE = 2**18
"""Of images that are transformed together: what fits into a cache."""


@per_gene
def shift_p_values(measured: FloatArray, predicted: FloatArray, lattice: Lattice) -> FloatArray:
    r"""One-sided p-value of Pearson > 0 for every gene, within one section, by toroidal shifts.

    Neighbouring spots are alike in both fields, so that two unrelated genes often correlate by chance and a t test, which
    counts spots as independent, is wrong several times over. Here the predicted image is moved across the measured one by
    every whole number of rows and columns, what leaves the bounding box entering on the other side: four blocks of the
    section swap places, cut at every possible line. A shift keeps all autocorrelation but that across the cut, and shifts
    form a group, so that the test is exact for a field whose law is the same wherever the box is cut (on a full square
    grid, for exchangeable blocks). Permuting many small blocks instead would cut the autocorrelation at each of their
    sides. The p-value is :math:`(1 + b) / (1 + n)` of all n shifts, b of which correlate at least as well; nothing is drawn.

    Tissue is no torus and has holes, which leaves the test a little bold: between unrelated fields on the spots of two
    HER2ST sections, smoothed over 1 to 3 spots, p <= .05 came out in 7 to 10 % of genes, by the t test in 24 to 38 %.

    Spots that a shift moves into a hole have no partner. Pearson is then taken over the pairs that are left, and times the
    root of their number, so that fewer pairs do not make the null wider; shifts that keep less than a quarter of the
    spots are left out. Rows of a hexagonal lattice are shifted by even numbers. Measured and predicted are
    (n_spots, n_genes), the spots those of the lattice, all of which have a position.

    Returns
    -------
    (n_genes,); NaN where either side is constant, and for all genes where fewer than 19 shifts are left.

    References
    ----------
    Besag and Clifford, Generalized Monte Carlo significance tests, Biometrika 76, 1989. Harms, Condit, Hubbell and Foster,
    Habitat associations of trees and shrubs in a 50-ha neotropical forest plot, J. Ecol. 89, 2001.
    """
    values = np.full(measured.shape[1], np.nan)
    n_spots = len(measured)
    occupied, _ = lattice.raster(np.ones((n_spots, 1)))
    mask = np.nan_to_num(occupied[0])
    if lattice.hexagonal and len(mask) % 2:
        mask = np.pad(mask, ((0, 1), (0, 0)))
    n_pairs = np.round(_over_shifts(_spectrum(mask), _spectrum(mask), mask.shape))
    kept = n_pairs >= max(3, _LEAST_KEPT * n_spots)
    if lattice.hexagonal:
        kept[1::2] = False
    n_others = int(kept.sum()) - 1
    if n_others < _FEWEST_SHIFTS:
        return values
    genes = np.flatnonzero(~(constant(measured) | constant(predicted)))
    n_at_once = max(1, _PIXELS_AT_ONCE // mask.size)
    for start in range(0, len(genes), n_at_once):
        some = genes[start : start + n_at_once]
        pair = [_images(side[:, some], lattice, mask.shape) for side in (measured, predicted)]
        scores = _scores(pair[0], pair[1], mask, n_pairs=n_pairs)[:, kept]
        # The first shift is none.
        values[some] = (1 + (scores[:, 1:] >= scores[:, :1] - _ROUNDING).sum(axis=1)) / (1 + n_others)
    return values


@per_gene
def shift_z_p_values(measured: FloatArray, predicted: FloatArray, lattice: Lattice) -> FloatArray:
    r"""As :func:`shift_p_values`, by the variance over all shifts and a normal law instead of counting: a fifth of the time.

    Of standardised images x and y with 0 in holes, the mean over shifts of their product is 0 and its variance, by
    Parseval, :math:`\sum_f |X_f|^2 |Y_f|^2 / N^2` over the N cells of the box. On average a shift leaves
    :math:`n^2 / N` pairs of the n spots, no shift leaves n, so the variance counts N / n times. Hexagonal lattices are
    shifted by odd rows too. Counting has no p-value below 1 / (number of shifts); this has, for thousands of genes.

    Returns
    -------
    (n_genes,); NaN where either side is constant, and for all genes of fewer than 6 spots.
    """
    values = np.full(measured.shape[1], np.nan)
    n_spots = len(measured)
    genes = np.flatnonzero(~(constant(measured) | constant(predicted)))
    if n_spots < _FEWEST_SPOTS or not len(genes):
        return values
    occupied, _ = lattice.raster(np.ones((n_spots, 1)))
    shape = occupied.shape[1:]
    n_cells = shape[0] * shape[1]
    n_at_once = max(1, _PIXELS_AT_ONCE // n_cells)
    for start in range(0, len(genes), n_at_once):
        some = genes[start : start + n_at_once]
        first, second = (_images(side[:, some], lattice, shape) for side in (measured, predicted))
        powers = (np.abs(rfft2(first)) * np.abs(rfft2(second))) ** 2
        # Of a real image half the spectrum is there; all but its first column, and the last of an even width, stands for two.
        twice = np.full(powers.shape[-1], 2.0)
        twice[0] = 1.0
        if shape[1] % 2 == 0:
            twice[-1] = 1.0
        variance = (powers * twice).sum(axis=(1, 2)) / (n_cells * n_spots)
        values[some] = norm.sf((first * second).sum(axis=(1, 2)) / np.sqrt(variance))
    return values


def false_discovery_rate(p_values: FloatArray) -> FloatArray:
    """Benjamini-Hochberg adjusted p-values over the genes that have one, (n_genes,); NaN for the others."""
    adjusted = np.full(len(p_values), np.nan)
    defined = np.isfinite(p_values)
    if defined.any():
        adjusted[defined] = false_discovery_control(p_values[defined])
    return adjusted


def combined_p_values(p_values: FloatArray) -> FloatArray:
    """One p-value per gene from those of several sections (n_sections, n_genes): twice their mean, at most 1.

    It holds whatever the sections have in common, as neighbouring sections of one tumour do; a gene with one p-value keeps
    it, one without has NaN.

    References
    ----------
    Vovk and Wang, Combining p-values via averaging, Biometrika 107, 2020.
    """
    defined = np.isfinite(p_values)
    count = defined.sum(axis=0)
    total = np.where(defined, p_values, 0.0).sum(axis=0)
    mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    combined: FloatArray = np.where(count > 1, np.minimum(2 * mean, 1.0), mean)
    return combined


def _images(values: FloatArray, lattice: Lattice, shape: tuple[int, ...]) -> FloatArray:
    """Standardised values (n_spots, n_genes) on the lattice, 0 in holes, (n_genes, n_rows, n_columns)."""
    raster, _ = lattice.raster((values - values.mean(axis=0)) / values.std(axis=0))
    images = np.zeros((len(raster), *shape))
    images[:, : raster.shape[1]] = np.nan_to_num(raster)
    return images


def _spectrum(images: FloatArray) -> NDArray[np.complex128]:
    spectrum: NDArray[np.complex128] = rfft2(images)
    return spectrum


def _over_shifts(fixed: NDArray[np.complex128], moved: NDArray[np.complex128], shape: tuple[int, ...]) -> FloatArray:
    """Sum over cells of the product of two images at every shift of the second, in the shape of the image."""
    products: FloatArray = irfft2(np.conj(fixed) * moved, s=shape)
    return products


def _scores(measured: FloatArray, predicted: FloatArray, mask: FloatArray, *, n_pairs: FloatArray) -> FloatArray:
    """Pearson over the pairs of spots at every shift, times the root of their number; -inf where either side is constant."""
    spots = _spectrum(mask)
    of_measured, of_predicted = _spectrum(measured), _spectrum(predicted)
    sums = [
        _over_shifts(fixed, moved, mask.shape)
        for fixed, moved in (
            (of_measured, spots),
            (spots, of_predicted),
            (_spectrum(measured**2), spots),
            (spots, _spectrum(predicted**2)),
            (of_measured, of_predicted),
        )
    ]
    n = np.maximum(n_pairs, 1)
    spread = (sums[2] - sums[0] ** 2 / n) * (sums[3] - sums[1] ** 2 / n)
    varying = spread > _ROUNDING
    return np.where(
        varying, (sums[4] - sums[0] * sums[1] / n) * np.sqrt(n) / np.sqrt(np.where(varying, spread, 1.0)), -np.inf
    )
