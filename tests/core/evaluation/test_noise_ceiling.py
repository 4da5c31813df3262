"""The ceiling of planted counts is what a perfect prediction reaches."""

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray

from agl_sc.core.evaluation.metrics import pearson
from agl_sc.core.evaluation.noise_ceiling import RawCounts, noise_ceiling, noise_ceilings

FloatArray = NDArray[np.float64]


def as_is(counts: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    return counts


def raw(values: FloatArray) -> RawCounts:
    return RawCounts(scipy.sparse.csr_matrix(values), values.sum(axis=1) + 100.0, as_is)


@pytest.mark.parametrize("depth", [0.5, 3.0, 30.0])
def test_the_ceiling_is_the_correlation_with_the_truth(depth: float) -> None:
    rng = np.random.default_rng(0)
    truth = depth * rng.gamma(2.0, 0.5, (4000, 6))
    values = rng.poisson(truth).astype(float)
    ceiling = noise_ceiling(raw(values), rng=rng)
    assert ceiling.mean() == pytest.approx(pearson(values, truth).mean(), abs=0.02)
    assert ceiling.std() < 0.03


def test_halves_add_up_and_are_independent_given_the_truth() -> None:
    rng = np.random.default_rng(0)
    values = rng.poisson(4.0, (5000, 2)).astype(float)
    first, second = raw(values).split(rng)
    np.testing.assert_array_equal(first + second, values)
    assert first.mean() == pytest.approx(2.0, abs=0.05)
    np.testing.assert_allclose(pearson(first, second), 0, atol=0.05)


def test_halves_are_normalised_by_their_own_total_over_all_genes() -> None:
    totals: list[FloatArray] = []

    def share(counts: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
        totals.append(np.asarray(counts.sum(axis=1)).ravel())
        return scipy.sparse.csr_matrix(counts / totals[-1][:, None])

    counts = RawCounts(scipy.sparse.csr_matrix(np.array([[3.0, 0.0], [0.0, 7.0]])), np.array([203.0, 407.0]), share)
    counts.split(np.random.default_rng(0))
    np.testing.assert_array_equal(totals[0] + totals[1], [203, 407])
    assert (np.abs(totals[0] - totals[1]) < 80).all()


def test_noise_alone_and_constant_genes_have_no_ceiling() -> None:
    rng = np.random.default_rng(3)
    values = np.column_stack([rng.poisson(2.0, 400), np.zeros(400), np.repeat([[0, 60]], 200, axis=0).ravel()])
    counts = raw(values.astype(float))
    ceilings = np.array([noise_ceiling(counts, rng=np.random.default_rng(seed), n_splits=1) for seed in range(40)])
    assert 0.2 < np.isnan(ceilings[:, 0]).mean() < 0.8  # the halves of noise correlate below 0 every other time
    assert np.isnan(ceilings[:, 1]).all()
    assert (ceilings[:, 2] > 0.9).all()


def test_the_generator_alone_decides() -> None:
    values = np.random.default_rng(0).poisson(np.linspace(1, 5, 50)[:, None], (50, 3)).astype(float)
    first, again, other = (noise_ceiling(raw(values), rng=np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_of_many_genes_it_is_the_same_from_sums() -> None:
    rng = np.random.default_rng(4)
    values = rng.poisson(rng.gamma(0.3, 1.0, (200, 30))).astype(float)
    values[:, 0], values[:, 1] = 0.0, 40.0
    one, many = (f(raw(values), rng=np.random.default_rng(2)) for f in (noise_ceiling, noise_ceilings))
    np.testing.assert_allclose(many, one, rtol=1e-6)
    assert np.isfinite(many).sum() > 20
