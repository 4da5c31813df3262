"""Scores of genes over sections against those of one section at a time."""

import numpy as np
import pytest
import scipy.sparse
from scipy.stats import pearsonr

from agl_sc.core.arrays import FloatArray
from agl_sc.core.evaluation.gene_scores import COLUMNS, GeneScores
from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.noise_ceiling import RawCounts
from agl_sc.core.evaluation.shift_test import combined_p_values, false_discovery_rate, shift_z_p_values

SIDE = 6


def counts_of(values: FloatArray) -> RawCounts:
    return RawCounts(scipy.sparse.csr_matrix(values), values.sum(axis=1), lambda counts: counts)


def planted() -> tuple[GeneScores, FloatArray, FloatArray]:
    """Three sections, the last of which is too small; two spots of the first are not held out."""
    rng = np.random.default_rng(0)
    sections = np.repeat([0, 1, 2], [36, 36, 5])
    measured = rng.poisson(rng.gamma(3.0, 2.0, (len(sections), 4))).astype(float)
    measured[:, 3] = 0.0
    predicted = measured + rng.normal(0, [1.0, 8.0, 8.0, 1.0], measured.shape)
    held = np.ones(len(sections), dtype=bool)
    held[[0, 7]] = False
    lattice = Lattice(np.indices((SIDE, SIDE)).reshape(2, -1).T, hexagonal=False)
    scores = GeneScores.empty(sections, held, n_genes=4, lattices={0: lattice, 1: lattice})
    predicted[~held] = np.nan
    for genes in (slice(0, 3), slice(3, 4)):
        scores.add(genes, measured[:, genes], predicted[:, genes])
    scores.add_ceilings(counts_of(measured), seed=5)
    return scores, measured, predicted


def test_means_over_the_sections_where_they_are_defined() -> None:
    scores, measured, predicted = planted()
    table = scores.table(["A", "B", "C", "D"])
    assert tuple(table) == COLUMNS
    first, second = np.arange(36)[np.r_[1:7, 8:36]], np.arange(36, 72)
    each = [pearsonr(measured[rows, 0], predicted[rows, 0]).statistic for rows in (first, second)]
    assert table["pearson"].iloc[0] == pytest.approx(np.mean(each))
    assert table[["n_spots", "n_sections"]].iloc[0].tolist() == [70, 2]
    lattice = Lattice(np.indices((SIDE, SIDE)).reshape(2, -1).T, hexagonal=False)
    p_values = np.stack([
        shift_z_p_values(measured[rows], predicted[rows], part)
        for rows, part in ((first, lattice.take(first)), (second, lattice))
    ])  # fmt: skip
    np.testing.assert_allclose(table["q_value"], false_discovery_rate(combined_p_values(p_values)))
    assert table["q_value"].iloc[0] < 0.01


def test_the_share_of_the_ceiling_is_of_sections_that_have_both() -> None:
    scores, _, _ = planted()
    table = scores.table(["A", "B", "C", "D"])
    defined = np.isfinite(scores.pearson) & np.isfinite(scores.ceiling)
    expected = [
        np.mean(scores.pearson[defined[:, gene], gene]) / np.mean(scores.ceiling[defined[:, gene], gene])
        for gene in range(3)
    ]
    np.testing.assert_allclose(table["pearson_of_ceiling"].iloc[:3], expected)


def test_a_constant_gene_has_no_score() -> None:
    table = planted()[0].table(["A", "B", "C", "D"])
    assert table[["n_spots", "n_sections"]].iloc[3].tolist() == [0, 0]
    assert table[["pearson", "noise_ceiling", "pearson_of_ceiling", "q_value"]].iloc[3].isna().all()
    assert table["pearson"].iloc[:3].notna().all()


def test_without_a_lattice_there_is_no_q_value() -> None:
    rng = np.random.default_rng(1)
    scores = GeneScores.empty(np.zeros(30, dtype=np.int64), np.ones(30, dtype=bool), n_genes=2, lattices={})
    scores.add(slice(0, 2), rng.normal(size=(30, 2)), rng.normal(size=(30, 2)))
    table = scores.table(["A", "B"])
    assert table["q_value"].isna().all()
    assert table["pearson"].notna().all()
