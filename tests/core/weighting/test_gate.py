"""Soft top-k over prior ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_sc.core.config import TEMPERATURE
from agl_sc.core.weighting.gate import n_active, scaled_rank, soft_top_k


def at(cutoff: float) -> torch.Tensor:
    return torch.tensor(cutoff, dtype=torch.float64)


def test_scaled_rank_runs_from_0_to_1() -> None:
    assert scaled_rank(5).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("k", [1, 4, 9, 10])
def test_towards_temperature_0_the_gate_is_a_hard_top_k(k: int) -> None:
    between = (k - 0.5) / 9  # between the k-th and the next of ten genes
    weights = soft_top_k(at(between), scaled_rank(10), temperature=1e-6)
    assert torch.equal(weights, torch.tensor([1.0] * k + [0.0] * (10 - k), dtype=torch.float64))


def test_weight_at_the_cutoff_is_a_half_and_the_edge_is_as_wide_as_the_temperature() -> None:
    weights = soft_top_k(at(0.5), torch.tensor([0.5 - 0.01, 0.5, 0.5 + 0.02], dtype=torch.float64), temperature=0.01)
    assert weights.tolist() == pytest.approx([0.7310585786, 0.5, 0.1192029220], abs=1e-9)


@settings(deadline=None)  # the machine may be busy
@given(
    cutoff=st.floats(0, 1),
    step=st.floats(1e-3, 0.5),
    n_genes=st.integers(2, 300),
    temperature=st.floats(0.005, 0.2),
)
def test_weights_fall_with_rank_and_rise_with_cutoff(
    *, cutoff: float, step: float, n_genes: int, temperature: float
) -> None:
    weights = soft_top_k(at(cutoff), scaled_rank(n_genes), temperature)
    higher = soft_top_k(at(cutoff + step), scaled_rank(n_genes), temperature)
    assert (weights.diff() <= 0).all()
    assert (higher >= weights).all()
    assert ((weights >= 0) & (weights <= 1)).all()


@pytest.mark.parametrize("cutoff", [0.0, 0.303, 1.0])
@pytest.mark.parametrize("temperature", [TEMPERATURE, 0.2])
def test_derivative_is_that_of_finite_differences(cutoff: float, temperature: float) -> None:
    ranks, step = scaled_rank(50), 1e-6
    derivative = torch.func.jacfwd(lambda c: soft_top_k(c, ranks, temperature))(at(cutoff))
    difference = soft_top_k(at(cutoff + step), ranks, temperature) - soft_top_k(at(cutoff - step), ranks, temperature)
    torch.testing.assert_close(derivative, difference / (2 * step), rtol=1e-6, atol=1e-7)
    assert derivative.sum() > 1


@settings(deadline=None)  # the machine may be busy
@given(cutoff=st.floats(0, 1), n_genes=st.integers(1, 2000), temperature=st.floats(0.001, 0.1))
def test_inactive_genes_weigh_next_to_nothing_and_active_ones_more(
    cutoff: float, n_genes: int, temperature: float
) -> None:
    weights = soft_top_k(at(cutoff), scaled_rank(n_genes), temperature)
    n = n_active(cutoff, n_genes, temperature)
    assert (weights[n:] < 1e-6).all()
    assert (weights[:n] > 1e-7).all()


def test_few_genes_are_active_at_a_low_cutoff() -> None:
    assert n_active(0.1, 10_001) == 2500  # ranks below 0.1 + 15 * 0.01
    assert n_active(1.0, 10_001) == 10_001


def test_one_gene_has_rank_0_and_is_half_selected_at_cutoff_0() -> None:
    assert scaled_rank(1).tolist() == [0.0]
    assert soft_top_k(at(0.0), scaled_rank(1)).tolist() == [0.5]
    assert n_active(0.0, 1) == 1


def test_no_genes() -> None:
    assert scaled_rank(0).shape == (0,)
    assert n_active(1.0, 0) == 0
