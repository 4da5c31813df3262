"""Per-gene metrics that look at where spots lie, within one section: NaN where a metric is undefined."""

import numpy as np
import scipy.sparse
from scipy.ndimage import distance_transform_edt
from skimage.metrics import structural_similarity

from agl_sc.core.arrays import FloatArray
from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.metrics import per_gene, ratio
from agl_sc.core.numerics.constant import constant, varying

_WINDOW = 7
"""Side in cells, scikit-image's default."""


@per_gene
def ssim(measured: FloatArray, predicted: FloatArray, lattice: Lattice) -> FloatArray:
    """Structural similarity of the two images of a gene on the lattice of its section, (n_genes,).

    scikit-image's, over windows of 7 x 7 cells, averaged over the spots whose window lies within the bounding box of all
    spots; on a full square grid it is scikit-image's own mean. A hole takes the value of the nearest spot on either side,
    much as scikit-image continues an image beyond its edge, and is not averaged over. The range of the data is that of
    the measured gene in this section, whatever was predicted, so that methods are measured by the same rule. Rows of a
    hexagonal lattice become rows of the image. Measured and predicted are (n_spots, n_genes), the spots those of the lattice.

    Returns
    -------
    (n_genes,); NaN where the measured gene is constant, and for all genes where the box has a side of fewer than 7 cells
    or no spot lies 3 cells or more within it.

    References
    ----------
    Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE Trans. Image Process. 13, 2004.
    """
    values = np.full(measured.shape[1], np.nan)
    images, (row, column) = lattice.raster(np.concatenate([measured, predicted], axis=1))
    sides, margin = images.shape[1:], _WINDOW // 2
    inner = [(margin <= place) & (place < side - margin) for place, side in zip((row, column), sides, strict=True)]
    counted = inner[0] & inner[1]
    if min(sides) < _WINDOW or not counted.any():
        return values
    nearest = distance_transform_edt(np.isnan(images[0]), return_distances=False, return_indices=True)
    images = images[:, *nearest]
    span = np.ptp(measured, axis=0)
    for gene in np.flatnonzero(varying(measured)):
        pair = images[gene], images[gene + len(span)]
        _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
            *pair, win_size=_WINDOW, data_range=span[gene], full=True
        )
        values[gene] = similarity[row[counted], column[counted]].mean()
    return values


def morans_i(values: FloatArray, graph: scipy.sparse.csr_matrix) -> FloatArray:
    r"""Moran's I of every column, :math:`\sum_{ij} w_{ij} z_i z_j / \sum_i z_i^2 \cdot n / \sum_{ij} w_{ij}`.

    Of dense values on a lattice that was found from all spots of a section. Prior ranks are squidpy's on sparse expression
    (:mod:`agl_sc.pp`), over its own graph of training spots, which need not lie on a lattice: the same formula, equal to
    nine digits, and its values order genes, so that the last digit would change ranks.

    Parameters
    ----------
    values
        (n_spots, n_genes).
    graph
        Weights of neighbours, (n_spots, n_spots), such as :meth:`agl_sc.core.evaluation.lattice.Lattice.graph`.

    Returns
    -------
    (n_genes,); NaN for a gene that is constant, and for all where no spot has a neighbour.
    """
    centred = values - values.mean(axis=0)
    total = float(graph.sum())
    undefined = constant(values) | (total == 0)
    local = (centred * (graph @ centred)).sum(axis=0) * len(values) / (total or 1.0)
    return ratio(local, (centred**2).sum(axis=0), undefined=undefined)


@per_gene
def moran_ratio(measured: FloatArray, predicted: FloatArray, lattice: Lattice) -> FloatArray:
    """Moran's I of the predicted over that of the measured gene, on the graph of adjacent spots, (n_genes,).

    Above 1 the prediction is smoother in space than the measurement, noise of the measurement included. NaN where either
    side is constant, and where the measured gene has no positive autocorrelation that could be kept.
    """
    graph = lattice.graph()
    of_measured = morans_i(measured, graph)
    return ratio(morans_i(predicted, graph), of_measured, undefined=~(of_measured > 0))
