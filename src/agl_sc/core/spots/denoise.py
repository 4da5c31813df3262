"""Targets without what their own counting noise adds: projections on what many genes of a section have in common."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import LinearOperator, svds

from agl_sc.core.arrays import FloatArray
from agl_sc.core.spots.expression import Expression

MOST_KERNEL = 2048
"""Spots of a section up to which the kernel of all of them is decomposed; beyond, the leading directions alone are iterated for."""


@dataclass(frozen=True, slots=True)
class Denoised:
    """How far targets are denoised."""

    n_genes: int
    """Leading auxiliary genes beside the targets that say what they have in common."""
    n_components: int
    """Principal components of every section that targets are projected on."""
    mix: float
    """Share of the projection in a target, in [0, 1]; the rest is what was measured."""

    def plain(self) -> dict[str, float]:
        """By the names that a model remembers."""
        return {"denoised_genes": self.n_genes, "denoised_components": self.n_components, "denoised_mix": self.mix}

    def mixed(self, measured: FloatArray, projected: FloatArray) -> FloatArray:
        """Targets, or predictions of them, which are linear in them."""
        return (1 - self.mix) * measured + self.mix * projected


AS_MEASURED = Denoised(0, 0, 0.0)
"""Nothing is denoised."""


def projections(
    expression: Expression,
    n_targets: int,
    *,
    n_genes: Sequence[int],
    n_components: Sequence[int],
    weights: FloatArray | None = None,
) -> dict[tuple[int, int], FloatArray]:
    r"""Targets projected on the leading components of targets and auxiliary genes, section by section.

    With the scaled genes Z of a section, its spots weighted by W, :math:`W^{1/2} Z = U S V'`, and a target y becomes
    :math:`W^{-1/2} U_k U_k' W^{1/2} y`: principal components of the genes, of which a spot's own genes say where it lies.
    Genes are gone through in blocks, or never made dense.

    Parameters
    ----------
    expression
        Of the training spots, centred per section and scaled; targets first, (n_spots, n_genes).
    n_targets
        Number of leading genes that are targets.
    n_genes
        Increasing numbers of auxiliary genes beside the targets.
    n_components
        Numbers of components; as many as a section has spots or genes are the targets themselves.
    weights
        Of every spot, (n_spots,); all 1 by default.

    Returns
    -------
    By number of auxiliary genes and of components, (n_spots, n_targets).
    """
    root = np.sqrt(np.ones(expression.shape[0]) if weights is None else weights)[:, None]
    targets = expression.columns(0, n_targets)
    found = {(g, k): np.empty_like(targets) for g in n_genes for k in n_components}
    for code in range(len(expression.means)):
        rows = np.flatnonzero(expression.sections == code)
        weighted = root[rows] * targets[rows]
        section, numbers = expression.of_spots(rows), [n_targets + g for g in n_genes]
        for g, left in _left_vectors(section, root[rows], n_genes=numbers, rank=max(n_components)):
            scores = left.T @ weighted
            for k in n_components:
                found[g - n_targets, k][rows] = left[:, :k] @ scores[:k] / root[rows]
    return found


def _left_vectors(
    section: Expression, root: FloatArray, *, n_genes: Sequence[int], rank: int
) -> Iterator[tuple[int, FloatArray]]:
    """Left singular vectors of the leading genes of some spots, for every number of genes, best first."""
    n_spots = section.shape[0]
    if n_spots > MOST_KERNEL:
        for g in n_genes:
            yield g, _iterated(section.of_genes(0, g), root, rank)
        return
    kernel, done = np.zeros((n_spots, n_spots)), 0
    for g in n_genes:
        for _, values in section.of_genes(done, g).blocks():
            weighted = root * values
            kernel += weighted @ weighted.T
        done = g
        n = min(rank, n_spots, g)
        vectors = scipy.linalg.eigh(kernel, subset_by_index=(n_spots - n, n_spots - 1))[1]
        yield g, vectors[:, ::-1]


def _iterated(section: Expression, root: FloatArray, rank: int) -> FloatArray:
    """The same by Lanczos iteration on the sparse expression, which is centred and scaled in passing."""
    if rank >= section.shape[1]:
        few: FloatArray = np.linalg.svd(root * section.columns(0, section.shape[1]), full_matrices=False)[0]
        return few
    values, scale = section.values.astype(float), 1 / section.scale[section.sections[0]]
    means = section.means[section.sections[0]] * scale
    n_spots, n_genes = values.shape

    def forth(x: FloatArray) -> FloatArray:
        scaled = x.reshape(n_genes, -1) * scale[:, None]
        product: FloatArray = root * (values @ scaled - means @ x.reshape(n_genes, -1))
        return product

    def back(y: FloatArray) -> FloatArray:
        weighted = root * y.reshape(n_spots, -1)
        product: FloatArray = scale[:, None] * (values.T @ weighted) - np.outer(means, weighted.sum(axis=0))
        return product

    operator = LinearOperator(values.shape, matvec=forth, rmatvec=back, matmat=forth, rmatmat=back, dtype=float)
    start = np.random.default_rng(0).normal(size=min(values.shape))
    left, strength, _ = svds(operator, k=rank, v0=start)
    found: FloatArray = left[:, np.argsort(-strength)]
    return found
