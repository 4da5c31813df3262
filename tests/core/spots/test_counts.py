"""What the likelihoods take for known, recovered from simulated counts."""

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray

from agl_sc.core.spots.counts import Counts, count_law, in_log_units, to_log_rate

FloatArray = NDArray[np.float64]
SHARES = np.array([[0.01, 0.002, 0.03, 0.001, 0.0], [0.02, 0.002, 0.01, 0.004, 0.005]])
DISPERSION = np.array([0.1, 0.5, 2.0, 0.25, 0.4])
N_SPOTS = 20_000


@pytest.fixture(scope="module")
def simulated() -> tuple[Counts, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    sections = np.repeat([0, 1], N_SPOTS // 2)
    library = rng.lognormal(8, 0.4, N_SPOTS)
    mean = library[:, None] * SHARES[sections]
    values = rng.poisson(mean * rng.gamma(1 / DISPERSION, DISPERSION, mean.shape)).astype(float)
    return Counts(scipy.sparse.csr_matrix(values), library, scale=1e4), sections


def test_law_recovers_shares_and_dispersion(simulated: tuple[Counts, NDArray[np.int64]]) -> None:
    law = count_law(*simulated)
    np.testing.assert_array_equal(law.panels, SHARES > 0)
    np.testing.assert_allclose(np.exp(law.log_share)[law.panels], SHARES[law.panels], rtol=0.03)
    assert law.log_share[0, 4] == 0
    np.testing.assert_allclose(np.exp(law.log_dispersion), DISPERSION, rtol=0.1)
    library = simulated[0].library
    mean = (library[:, None] * SHARES[simulated[1]]).sum(axis=0) / library.sum() * 1e4
    np.testing.assert_allclose(np.exp(law.base), mean, rtol=0.03)


def test_law_does_not_depend_on_the_order_of_spots_or_the_format(simulated: tuple[Counts, NDArray[np.int64]]) -> None:
    counts, sections = simulated
    order = np.random.default_rng(1).permutation(N_SPOTS)
    shuffled = Counts(scipy.sparse.csr_matrix(counts.values[order].toarray()), counts.library[order], 1e4)
    one, other = count_law(counts, sections), count_law(shuffled, sections[order])
    np.testing.assert_allclose(one.log_share, other.log_share)
    np.testing.assert_allclose(one.log_dispersion, other.log_dispersion)


def test_poisson_counts_and_absent_genes_have_the_least_dispersion() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([np.full(50, 3.0), np.zeros(50), rng.poisson(40 * np.ones(50))], axis=1)
    law = count_law(Counts(scipy.sparse.csr_matrix(values), np.full(50, 100.0), 100.0), np.zeros(50, dtype=np.int64))
    assert np.exp(law.log_dispersion[:2]) == pytest.approx(1e-3)
    assert np.exp(law.log_dispersion[2]) < 0.05
    assert law.panels.tolist() == [[True, False, True]]
    assert np.isfinite(law.base).all()
    assert np.exp(law.base[0]) == pytest.approx(3.0)


def test_a_section_without_spots_has_no_panel() -> None:
    counts = Counts(scipy.sparse.csr_matrix(np.ones((4, 2))), np.full(4, 10.0), 10.0)
    law = count_law(counts, np.array([0, 0, 2, 2]))
    assert law.panels.tolist() == [[True, True], [False, False], [True, True]]
    np.testing.assert_allclose(law.log_share[[0, 2]], np.log(0.1))


def test_batch_takes_rows_and_leading_genes() -> None:
    values = np.arange(12.0).reshape(4, 3)
    found = Counts(scipy.sparse.csr_matrix(values), np.ones(4), 1.0).batch(torch.tensor([3, 0]), 2)
    assert found.dtype == torch.float32
    assert found.tolist() == [[9, 10], [0, 1]]


def test_log_units_are_those_of_log_normalised_counts() -> None:
    base, log_rate = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([[0.5, 0.0], [-3.0, 2.0]])
    expected = torch.log1p(torch.exp(log_rate + base[:2]))
    torch.testing.assert_close(in_log_units(log_rate, base), expected)
    assert torch.isfinite(in_log_units(torch.tensor([[200.0]]), base)).all()


def test_slope_to_the_log_rate_is_that_of_the_curve_at_the_mean() -> None:
    """A small change of scaled log1p expression is this change of the log rate."""
    base, spread = np.array([3.0, 1.0, -4.0]), np.array([0.5, 0.3, 0.2])
    slope, eps = to_log_rate(spread, base), 1e-5
    moved = np.log(np.expm1(np.log1p(np.exp(base)) + spread * eps)) - base
    np.testing.assert_allclose(slope[:2], moved[:2] / eps, rtol=1e-4)
    assert slope[2] == 1 < moved[2] / eps
