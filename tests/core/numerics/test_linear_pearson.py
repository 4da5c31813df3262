"""Pearson of a linear head: that of its predictions, in value and every derivative."""

from dataclasses import astuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_sc.core.numerics.linear_pearson import linear_moments, linear_pearson_loss
from agl_sc.core.numerics.losses import Moments, correlation, merge, moments, pearson, pearson_loss

N_SPOTS, RANK, N_GENES = 30, 4, 7
Head = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make(dtype: torch.dtype = torch.float64, *, n_spots: int = N_SPOTS, seed: int = 0) -> tuple[Head, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = normal(n_spots, RANK) @ normal(RANK, RANK) + 2 * normal(RANK)
    weight, bias = normal(N_GENES, RANK), 3 * normal(N_GENES)
    measured = hidden @ weight.T + 3 * normal(n_spots, N_GENES) + normal(N_GENES)
    return (hidden.to(dtype), weight.to(dtype), bias.to(dtype)), measured.to(dtype)


def codes(n_sections: int, n_spots: int = N_SPOTS) -> torch.Tensor:
    return torch.randperm(n_spots, generator=torch.Generator().manual_seed(1)) % n_sections


def predictions(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return hidden @ weight.T + bias


def assert_same(found: Moments, expected: Moments) -> None:
    for one, other in zip(astuple(found), astuple(expected), strict=True):
        assert one.shape == other.shape
        there = expected.count > 0  # without spots, no mean
        torch.testing.assert_close(torch.where(there, one, 0.0), torch.where(there, other, 0.0))


@pytest.mark.parametrize("n_sections", [None, 1, 2, 5, 12])
def test_moments_are_those_of_the_predictions(n_sections: int | None) -> None:
    """Also with sections too many for their sums to pay, with one that does not occur, and with codes looked up."""
    head, measured = make()
    sections = None if n_sections is None else codes(n_sections)
    found = linear_moments(*head, measured=measured, sections=sections, n_sections=n_sections)
    assert_same(found, moments(predictions(*head), measured, sections=sections, n_sections=n_sections))
    if n_sections is None or sections is None:
        return
    found = linear_moments(*head, measured=measured, sections=10 * sections)
    assert_same(found, moments(predictions(*head), measured, sections=10 * sections))
    found = linear_moments(*head, measured=measured, sections=sections + 1, n_sections=n_sections + 1)
    assert_same(found, moments(predictions(*head), measured, sections=sections + 1, n_sections=n_sections + 1))


@pytest.mark.parametrize("n_spots", [1, RANK, RANK + 1])
def test_few_spots(n_spots: int) -> None:
    head, measured = make(n_spots=n_spots)
    assert_same(linear_moments(*head, measured=measured), moments(predictions(*head), measured))


@given(
    n_spots=st.integers(6, 40),
    n_sections=st.integers(1, 3),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 1.0, -50.0]),
)
@settings(max_examples=60, deadline=None)
def test_any_spots_sections_scale_and_offset(
    *, n_spots: int, n_sections: int, seed: int, scale: float, shift: float
) -> None:
    """Value and gradient, in float64."""
    (hidden, weight, bias), measured = make(n_spots=n_spots, seed=seed)
    inputs = (scale * hidden + shift).requires_grad_(), weight.requires_grad_()
    sections = codes(n_sections, n_spots)
    found = linear_pearson_loss(*inputs, bias, measured=measured, sections=sections, n_sections=n_sections)
    expected = pearson_loss(predictions(*inputs, bias), measured, sections=sections, n_sections=n_sections)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(x.sum(), inputs) for x in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9 / scale)


@pytest.mark.parametrize("n_sections", [None, 2])
def test_derivatives_agree_with_finite_differences(n_sections: int | None) -> None:
    (hidden, weight, bias), measured = make(n_spots=12)
    sections = None if n_sections is None else codes(n_sections, 12)
    inputs = hidden[:, :3].clone().requires_grad_(), weight[:4, :3].clone().requires_grad_()

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        found = linear_moments(
            hidden, weight, bias[:4], measured=measured[:, :4], sections=sections, n_sections=n_sections
        )
        merged = merge([found, found])  # uses the means
        return torch.stack([correlation(found), merged.prediction_mean.sum(dim=0)])

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("n_sections", [None, 3])
def test_derivatives_to_third_order_are_those_of_the_predictions(n_sections: int | None) -> None:
    (hidden, weight, bias), measured = make()
    sections = None if n_sections is None else codes(n_sections)
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    slopes = torch.linspace(1, 2, N_GENES, dtype=torch.float64)
    found = linear_pearson_loss(*inputs, bias, measured=measured, sections=sections)
    expected = pearson_loss(predictions(*inputs, bias), measured, sections=sections)
    values = [(slopes * losses.square()).sum() for losses in (found, expected)]
    for _ in range(3):
        pairs = list(zip(*(torch.autograd.grad(x, inputs, create_graph=True) for x in values), strict=True))
        for one, other in pairs:
            torch.testing.assert_close(one, other)
        values = [
            sum((side.pow(2).sum() for side in sides), start=torch.zeros(())) for sides in zip(*pairs, strict=True)
        ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("value", [0.0, 0.37, -2e4])
@pytest.mark.parametrize("n_sections", [None, 2])
@pytest.mark.parametrize("side", ["prediction", "measured"])
def test_constant_gene_has_correlation_0_and_no_gradient_of_any_order(
    *, side: str, n_sections: int | None, value: float, dtype: torch.dtype
) -> None:
    (hidden, weight, bias), measured = make(dtype)
    if side == "prediction":
        weight[2], bias[2] = 0.0, value
    else:
        measured[:, 2] = value
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    sections = None if n_sections is None else codes(n_sections)
    losses = linear_pearson_loss(*inputs, bias, measured=measured, sections=sections)
    assert losses[2] == 1
    (alone,) = torch.autograd.grad(losses[2], hidden, retain_graph=True)
    assert (alone == 0).all()
    total = losses.square().sum()
    for _ in range(3):
        gradients = torch.autograd.grad(total, inputs, create_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[1][2] == 0).all()
        assert (gradients[1][[0, 1, 3, 4, 5, 6]] != 0).all()
        total = gradients[0].square().sum() + gradients[1].square().sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.37, -2e4])
def test_constant_inputs_tell_no_gene(value: float, dtype: torch.dtype) -> None:
    (hidden, weight, bias), measured = make(dtype)
    inputs = torch.full_like(hidden, value).requires_grad_(), weight.requires_grad_()
    losses = linear_pearson_loss(*inputs, bias, measured=measured)
    assert (losses == 1).all()
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(losses.sum(), inputs))


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-3])
def test_single_precision_loses_digits_in_proportion_to_what_is_shared(spread: float) -> None:
    """Inputs of the head that are nearly the same, and genes that live on the little that differs."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 1, generator=generator) + spread * torch.randn(200, 16, generator=generator)
    weight = torch.randn(50, 16, generator=generator)
    weight -= weight.mean(dim=1, keepdim=True)
    measured = hidden @ weight.T / spread + torch.randn(200, 50, generator=generator)
    found = correlation(linear_moments(hidden, weight, torch.zeros(50), measured=measured))
    exact = pearson(hidden.double() @ weight.double().T, measured.double())
    assert (found - exact).abs().max() < 1e-6 + 3 * torch.finfo(torch.float32).eps / spread  # not its square


@pytest.mark.parametrize("n_sections", [None, 2])
def test_half_precision_is_summed_in_full(n_sections: int | None) -> None:
    (hidden, weight, bias), measured = make(torch.float32)
    sections = None if n_sections is None else codes(n_sections)
    inputs = hidden.bfloat16().requires_grad_(), weight.requires_grad_()

    def value(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_pearson_loss(hidden, weight, bias, measured=measured, sections=sections).square().sum()

    expected = torch.autograd.grad(value(inputs[0].float(), weight), inputs[1])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(torch.autograd.grad(found, inputs[1])[0], expected)


def test_mask_leaves_out_what_was_not_measured() -> None:
    head, measured = make()
    mask = torch.rand(measured.shape, generator=torch.Generator().manual_seed(3)) > 0.2
    mask[:, 3] = False
    measured = torch.where(mask, measured, torch.nan)
    how = {"sections": codes(2), "n_sections": 2, "mask": mask}
    found = linear_pearson_loss(*head, measured=measured, **how)  # type: ignore[arg-type]
    torch.testing.assert_close(found, pearson_loss(predictions(*head), measured, **how))  # type: ignore[arg-type]
    assert found[3] == 0


def test_moments_of_parts_merge_with_those_of_predictions() -> None:
    head, measured = make()
    hidden, *rest = head
    parts = [
        linear_moments(hidden[:20], *rest, measured=measured[:20]),
        moments(predictions(hidden[20:], *rest), measured[20:]),
    ]
    torch.testing.assert_close(correlation(merge(parts)), pearson(predictions(*head), measured))
