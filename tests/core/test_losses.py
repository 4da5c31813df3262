"""Pearson as a loss."""

import numpy as np
import pytest
import torch
from scipy import stats

from agl_sc.core.losses import pearson, pearson_loss, weighted_mean

N_SPOTS, N_GENES = 40, 6


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    measured = torch.randn(N_SPOTS, N_GENES, generator=generator, dtype=torch.float64)
    noise = torch.randn(N_SPOTS, N_GENES, generator=generator, dtype=torch.float64)
    return 3 * measured + noise - 5, measured


def test_equals_scipy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, measured = pair
    expected = [stats.pearsonr(*columns).statistic for columns in zip(prediction.T, measured.T, strict=True)]
    np.testing.assert_allclose(pearson(prediction, measured).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(pearson_loss(prediction, measured).numpy(), 1 - np.array(expected), rtol=1e-12)


def test_sign_and_limits(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, measured = pair
    assert pearson(2 * measured + 1, measured).tolist() == pytest.approx([1.0] * N_GENES)
    assert pearson(-measured, measured).tolist() == pytest.approx([-1.0] * N_GENES)


def test_derivatives_agree_with_finite_differences(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, measured = (values[:8, :3].clone() for values in pair)
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: pearson_loss(p, measured), prediction)
    assert torch.autograd.gradgradcheck(lambda p: pearson_loss(p, measured), prediction)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("value", [0.0, -0.1, 0.37, 3.0])
@pytest.mark.parametrize("side", ["prediction", "measured"])
def test_constant_gene_has_correlation_0_and_no_gradient_of_any_order(
    pair: tuple[torch.Tensor, torch.Tensor], *, side: str, value: float, dtype: torch.dtype
) -> None:
    prediction, measured = (values.to(dtype).clone() for values in pair)
    (prediction if side == "prediction" else measured)[:, 2] = value
    prediction.requires_grad_()
    correlation = pearson(prediction, measured)
    assert correlation[2] == 0
    assert pearson_loss(prediction, measured)[2] == 1

    (first,) = torch.autograd.grad(correlation.square().sum(), prediction, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), prediction)
    for gradient in (first, second):
        assert gradient.isfinite().all()
        assert (gradient[:, 2] == 0).all()
        assert (gradient[:, [0, 1, 3, 4, 5]].abs().sum(dim=0) > 0).all()


def test_all_genes_constant_has_a_zero_gradient() -> None:
    prediction = torch.ones(10, 3, requires_grad=True)
    pearson_loss(prediction, torch.zeros(10, 3)).sum().backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None
    assert (prediction.grad == 0).all()


def test_one_spot_has_no_correlation() -> None:
    assert pearson(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).tolist() == [0.0, 0.0]


def test_weighted_mean_differentiates_its_normaliser() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64, requires_grad=True)
    mean = weighted_mean(losses, weights)
    assert mean.item() == pytest.approx(3.5 / 1.75)
    (gradient,) = torch.autograd.grad(mean, weights)
    expected = (losses - mean.detach()) / 1.75  # a detached normaliser would give losses / 1.75
    torch.testing.assert_close(gradient, expected)


def test_weighted_mean_of_equal_losses_does_not_depend_on_the_weights() -> None:
    weights = torch.tensor([1.0, 0.3, 0.01], requires_grad=True)
    mean = weighted_mean(torch.full((3,), 0.7), weights)
    (gradient,) = torch.autograd.grad(mean, weights)
    assert mean.item() == pytest.approx(0.7)
    assert gradient.abs().max() < 1e-6
