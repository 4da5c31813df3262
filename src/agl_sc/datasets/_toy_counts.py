"""Planted expression: tissue fields in, sparse counts of genes with known roles out (numpy and scipy only)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack

from agl_sc.core.arrays import FloatArray

N_TARGET_FIELDS = 3
"""The leading visible fields drive targets and informative genes, the others the distractors."""

_COUNTS_PER_GENE = 10.0
_ABUNDANCE_SD = 0.6
_DEPTH_SD = 0.35
_CURVATURE = 0.6
_WAVELENGTHS = (7.8, 3.9)
_N_DIRECTIONS = 6
_LEAST_OWN, _MOST_OTHER = 0.5, 0.2
_OVERDISPERSION = 0.05
_LIMIT = 3.0
_GENES_PER_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class _Role:
    """How the genes of one role behave; standard deviations are of the log of the expected expression."""

    abundance: float
    """Expected counts relative to an auxiliary gene."""
    signal: float
    """Standard deviation of what the fields explain."""
    noise: float
    """Standard deviation of what nothing explains, independent between genes and between spots."""


_ROLES = {
    "target": _Role(abundance=3.0, signal=0.65, noise=1.2),
    "informative": _Role(abundance=1.0, signal=0.8, noise=0.5),
    "distractor": _Role(abundance=1.0, signal=0.8, noise=0.05),
    "invisible": _Role(abundance=1.0, signal=0.65, noise=0.1),
    "noise": _Role(abundance=1.0, signal=0.0, noise=0.5),
}
ROLES = tuple(_ROLES)
"""Roles of genes, in the order of the planted prior."""


@dataclass(frozen=True, slots=True, eq=False)
class GeneLaw:
    """How every gene follows the fields; the same in all sections."""

    role: NDArray[np.intp]
    """Position in :data:`ROLES`, (n_genes,)."""
    abundance: FloatArray
    """Expected counts in a spot of ordinary depth with average fields, (n_genes,)."""
    loadings: FloatArray
    """Effects of the columns of :func:`_terms` on the log of the expected expression, (n_terms, n_genes)."""


def draw_law(rng: np.random.Generator, n_genes: Mapping[str, int], n_visible: int) -> GeneLaw:
    """Draw roles, abundances and loadings, columns in random order.

    Parameters
    ----------
    rng
        Source of all randomness.
    n_genes
        Number of genes of each of :data:`ROLES`.
    n_visible
        Number of visible fields.

    Returns
    -------
    The law of all genes.
    """
    role = rng.permutation(np.repeat(np.arange(len(ROLES)), [n_genes[name] for name in ROLES]))
    relative = np.array([r.abundance for r in _ROLES.values()])[role]
    abundance = _COUNTS_PER_GENE * relative * np.exp(_ABUNDANCE_SD * rng.standard_normal(len(role)))
    drivers, size = _drivers(n_visible)
    loadings = rng.standard_normal((len(size), len(role))) * size[:, None]
    loadings *= drivers[role].T
    _specialise(loadings, np.flatnonzero(role == ROLES.index("informative")))
    length = np.sqrt(np.square(loadings).sum(axis=0))
    signal = np.array([r.signal for r in _ROLES.values()])[role]
    return GeneLaw(role, abundance, loadings * signal / np.where(length > 0, length, 1.0))


def _specialise(loadings: FloatArray, genes: NDArray[np.intp]) -> None:
    """Make each third of the informative genes, in their order, tell of one field above all, the last of the first field.

    Without this a few of them would say as much as all of them, and the boundary would be hard to see from below.
    """
    field = N_TARGET_FIELDS - 1 - np.arange(len(genes)) * N_TARGET_FIELDS // max(len(genes), 1)
    own = np.arange(N_TARGET_FIELDS)[:, None] == field
    linear = loadings[:N_TARGET_FIELDS, genes]
    strong = np.copysign(np.maximum(np.abs(linear), _LEAST_OWN), linear)
    loadings[:N_TARGET_FIELDS, genes] = np.where(own, strong, _MOST_OTHER * linear)


def draw_counts(
    rng: np.random.Generator,
    law: GeneLaw,
    *,
    visible: FloatArray,
    invisible: FloatArray,
    depth_offset: float = 0.0,
    noise: float = 1.0,
) -> csr_matrix:
    """Negative-binomial counts of one section.

    Within each role the expected expression of a spot adds up to the same total everywhere, so that library sizes,
    and with them every normalised gene, say nothing about the fields that drive the other roles.

    Parameters
    ----------
    rng
        Source of all randomness.
    law
        How genes follow the fields.
    visible
        Visible fields, (n_spots, n_visible), mean 0 and variance 1.
    invisible
        Invisible field, (n_spots,).
    depth_offset
        Log factor on the library size of all spots.
    noise
        Factor on what nothing explains.

    Returns
    -------
    Counts, (n_spots, n_genes), float32.
    """
    terms = _terms(visible, invisible)
    depth = np.exp(depth_offset + _DEPTH_SD * rng.standard_normal(len(terms)))
    scale = depth[:, None] * _closure(law, terms)
    noise_sd = noise * np.array([r.noise for r in _ROLES.values()])[law.role]
    blocks = []
    for genes in _blocks(len(law.role)):
        expected = _expression(law, terms, genes) * scale[:, law.role[genes]]
        expected *= np.exp(noise_sd[genes] * rng.standard_normal(expected.shape) - noise_sd[genes] ** 2 / 2)
        rate = rng.gamma(1 / _OVERDISPERSION, _OVERDISPERSION * expected)
        blocks.append(csr_matrix(rng.poisson(rate).astype(np.float32)))
    return csr_matrix(hstack(blocks, format="csr"))


def _terms(visible: FloatArray, invisible: FloatArray) -> FloatArray:
    """What genes may depend on, (n_spots, n_terms): fields and products, fields and waves, a field and its square."""
    groups = (visible[:, :N_TARGET_FIELDS], visible[:, N_TARGET_FIELDS:], invisible[:, None])
    shared, other, hidden = (np.clip(group, -_LIMIT, _LIMIT) for group in groups)
    return np.column_stack([shared, _products(shared), other, _waves(other), hidden, _products(hidden)])


def _products(fields: FloatArray) -> FloatArray:
    """All products of two fields; squares have mean 0 and variance 1 where the field is normal."""
    first, second = np.triu_indices(fields.shape[1])
    products = fields[:, first] * fields[:, second]
    squares = first == second
    products[:, squares] = (products[:, squares] - 1) / np.sqrt(2)
    return products


def _waves(fields: FloatArray) -> FloatArray:
    """Sines and cosines across the plane of the first and last field; mean 0 and variance 1 where these are normal."""
    angle = np.pi * np.arange(_N_DIRECTIONS) / _N_DIRECTIONS
    across = fields[:, :1] * np.cos(angle) + fields[:, -1:] * np.sin(angle)
    columns = []
    for frequency in 2 * np.pi / np.array(_WAVELENGTHS):
        mean, fourth = np.exp(-(frequency**2) / 2), np.exp(-2 * frequency**2)
        columns += [(np.cos(frequency * across) - mean) / np.sqrt((1 + fourth) / 2 - mean**2)]
        columns += [np.sin(frequency * across) / np.sqrt((1 - fourth) / 2)]
    return np.column_stack(columns)


def _drivers(n_visible: int) -> tuple[NDArray[np.bool_], FloatArray]:
    """Which terms drive which role, (n_roles, n_terms), and how strongly, (n_terms,)."""
    n_products = N_TARGET_FIELDS * (N_TARGET_FIELDS + 1) // 2
    n_waves = 2 * _N_DIRECTIONS * len(_WAVELENGTHS)
    sizes = (N_TARGET_FIELDS, n_products, n_visible - N_TARGET_FIELDS, n_waves, 1, 1)
    group = np.repeat([0, 0, 1, 1, 2, 2], sizes)
    group_of_role = np.array([0, 0, 1, 2, -1])
    return group_of_role[:, None] == group, np.repeat([1.0, _CURVATURE, 1.0, 1.0, 1.0, _CURVATURE], sizes)


def _blocks(n_genes: int) -> Iterator[slice]:
    """Genes in blocks, so that memory follows the spots and not the transcriptome."""
    return (slice(start, start + _GENES_PER_BLOCK) for start in range(0, n_genes, _GENES_PER_BLOCK))


def _expression(law: GeneLaw, terms: FloatArray, genes: slice) -> FloatArray:
    return np.asarray(law.abundance[genes] * np.exp(terms @ law.loadings[:, genes]))


def _closure(law: GeneLaw, terms: FloatArray) -> FloatArray:
    """Factor per spot and role that makes the expression of a role add up to its abundances, (n_spots, n_roles)."""
    member = np.equal.outer(law.role, np.arange(len(ROLES))).astype(np.float64)
    total = sum(_expression(law, terms, genes) @ member[genes] for genes in _blocks(len(law.role)))
    return np.asarray(law.abundance @ member / np.where(total > 0, total, 1.0))
