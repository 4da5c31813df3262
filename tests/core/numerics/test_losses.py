"""Losses per gene: values, derivatives of every order, sections, and entries that were not measured."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import stats

from agl_sc.core.evaluation import metrics
from agl_sc.core.numerics import pearson as pearson_module
from agl_sc.core.numerics.losses import (
    Moments,
    correlation,
    merge,
    moments,
    mse_loss,
    negative_binomial_loss,
    pearson,
    pearson_loss,
    poisson_loss,
    weighted_mean,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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


@pytest.fixture
def sections() -> torch.Tensor:
    """Three sections, their spots mixed."""
    return torch.randperm(N_SPOTS, generator=torch.Generator().manual_seed(1)) % 3


@pytest.fixture(params=[1 << 16, N_SPOTS * 4], ids=["one_block", "blocks_of_4_genes"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Genes handled all at once, or a few at a time."""
    monkeypatch.setattr(pearson_module, "_BLOCK", request.param)


def plain(prediction: torch.Tensor, measured: torch.Tensor, codes: torch.Tensor | None = None) -> torch.Tensor:
    """The formula, one section after the other, for genes that vary everywhere."""
    codes = torch.zeros(len(prediction), dtype=torch.int64) if codes is None else codes
    found = []
    for code in set(codes.tolist()):
        p, m = (values[codes == code] for values in (prediction, measured))
        p, m = p - p.mean(dim=0), m - m.mean(dim=0)
        found.append((p * m).sum(dim=0) / (p.square().sum(dim=0) * m.square().sum(dim=0)).sqrt())
    return torch.stack(found).mean(dim=0)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("mixed", [False, True], ids=["one_section", "three_sections"])
def test_all_derivatives_are_those_of_the_formula(
    pair: tuple[torch.Tensor, torch.Tensor], sections: torch.Tensor, *, mixed: bool
) -> None:
    prediction, measured = pair
    codes = sections if mixed else None
    tangent = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = torch.linspace(1, 2, N_GENES, dtype=torch.float64)

    def ours(p: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return (weights * pearson(p, m, sections=codes, n_sections=3 if mixed else None).square()).sum()

    def expected(p: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return (weights * plain(p, m, codes).square()).sum()

    torch.testing.assert_close(ours(*pair), expected(*pair))
    for side in (0, 1):
        inputs = [values.clone().requires_grad_() for values in (prediction, measured)]
        (first,) = torch.autograd.grad(expected(inputs[0], inputs[1]), inputs[side], create_graph=True)
        (second,) = torch.autograd.grad((first * tangent).sum(), inputs[side])
        torch.testing.assert_close(torch.func.grad(ours, argnums=side)(*pair), first.detach())

        def along(value: torch.Tensor, side: int = side) -> torch.Tensor:
            at = [value if i == side else pair[i] for i in (0, 1)]
            gradient: torch.Tensor = torch.func.grad(ours, argnums=side)(*at)
            return gradient

        forward = torch.func.jvp(along, (pair[side],), (tangent,))[1]
        torch.testing.assert_close(forward, second)
        (reverse,) = torch.func.vjp(along, pair[side])[1](tangent)
        torch.testing.assert_close(reverse, second)


def test_several_tangents_at_once(pair: tuple[torch.Tensor, torch.Tensor], sections: torch.Tensor) -> None:
    prediction, measured = pair
    tangents = torch.randn(3, *prediction.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def derivative(tangent: torch.Tensor) -> torch.Tensor:
        gradient = torch.func.grad(lambda p: pearson(p, measured, sections=sections, n_sections=3).square().sum())
        return torch.func.jvp(gradient, (prediction,), (tangent,))[1]  # type: ignore[no-any-return]

    each = torch.stack([derivative(tangent) for tangent in tangents])
    torch.testing.assert_close(torch.func.vmap(derivative)(tangents), each)


@pytest.mark.usefixtures("block")
def test_sections_are_averaged_as_validation_does(
    pair: tuple[torch.Tensor, torch.Tensor], sections: torch.Tensor
) -> None:
    prediction, measured = pair[0] + 100 * sections[:, None], pair[1] - 7 * sections[:, None]
    measured[sections == 1, 2] = 0.0
    measured[:, 3] = 0.0
    each = [
        metrics.pearson(measured[sections == code].numpy(), prediction[sections == code].numpy()) for code in range(3)
    ]
    expected = np.array([np.mean([r for r in gene if np.isfinite(r)] or [0.0]) for gene in zip(*each, strict=True)])
    np.testing.assert_allclose(pearson(prediction, measured, sections=sections).numpy(), expected, rtol=1e-10)
    codes = torch.tensor([5, 0, 900])[sections]  # codes of sections that are not in the batch do not matter
    np.testing.assert_allclose(pearson(prediction, measured, sections=codes).numpy(), expected, rtol=1e-10)
    found = pearson(prediction, measured, sections=sections + 1, n_sections=6)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("value", [0.0, 0.37, -2e4])
def test_gene_constant_within_one_section_has_no_gradient_there(
    pair: tuple[torch.Tensor, torch.Tensor], sections: torch.Tensor, *, value: float, dtype: torch.dtype
) -> None:
    prediction, measured = (values.to(dtype).clone() for values in pair)
    inside = sections == 1
    prediction[inside, 2] = value
    prediction.requires_grad_()
    loss = pearson_loss(prediction, measured, sections=sections).square().sum()
    (first,) = torch.autograd.grad(loss, prediction, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), prediction, create_graph=True)
    (third,) = torch.autograd.grad(second.square().sum(), prediction)
    for gradient in (first, second, third):
        assert gradient.isfinite().all()
        assert (gradient[inside, 2] == 0).all()
        assert (gradient[~inside, 2] != 0).all()


def test_half_precision_is_summed_in_full(pair: tuple[torch.Tensor, torch.Tensor], sections: torch.Tensor) -> None:
    prediction, measured = pair[0].bfloat16(), pair[1].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pearson(prediction, measured, sections=sections)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(prediction.float(), measured, sections))


def test_merged_moments_are_those_of_all_spots(pair: tuple[torch.Tensor, torch.Tensor], sections: torch.Tensor) -> None:
    """As over two processes, one of which lacks a section; value and gradient."""
    prediction, measured = pair[0].clone().requires_grad_(), pair[1] + 3
    mask = torch.rand(prediction.shape, generator=torch.Generator().manual_seed(3)) > 0.2
    first = (sections == 0) | (torch.arange(N_SPOTS) < 11)
    halves = [
        moments(prediction[rows], measured[rows], sections=sections[rows], n_sections=3, mask=mask[rows])
        for rows in (first, ~first)
    ]
    assert not (sections[~first] == 0).any()
    found, whole = correlation(merge(halves)), pearson(prediction, measured, sections=sections, mask=mask)
    torch.testing.assert_close(found, whole)
    gradients = [
        torch.autograd.grad(value.square().sum(), prediction, retain_graph=True)[0] for value in (found, whole)
    ]
    torch.testing.assert_close(*gradients)


def test_stacked_moments_keep_their_order(pair: tuple[torch.Tensor, torch.Tensor], sections: torch.Tensor) -> None:
    found = moments(*pair, sections=sections)
    again = Moments(*found.stacked())
    assert found.stacked().shape == (6, 3, N_GENES)
    assert (again.count[:, 0] == torch.bincount(sections)).all()
    torch.testing.assert_close(correlation(again), correlation(found))


LOG_LIBRARY = torch.linspace(-1, 1, N_SPOTS, dtype=torch.float64)
LOG_DISPERSION = torch.tensor([-11.0, -8.0, -4.0, -1.0, 0.5, 2.0], dtype=torch.float64)


@pytest.fixture
def counted() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    log_rate = torch.randn(N_SPOTS, N_GENES, generator=generator, dtype=torch.float64)
    return log_rate, torch.poisson(3 * log_rate.exp(), generator=generator)


def test_mse_is_the_mean_over_spots(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, measured = pair
    expected = ((prediction - measured).numpy() ** 2).mean(axis=0)
    np.testing.assert_allclose(mse_loss(prediction, measured).numpy(), expected)


def test_poisson_equals_scipy_and_torch(counted: tuple[torch.Tensor, torch.Tensor]) -> None:
    log_rate, counts = counted
    log_mean = log_rate + LOG_LIBRARY[:, None]
    found = poisson_loss(log_rate, counts, log_library=LOG_LIBRARY)
    np.testing.assert_allclose(found.numpy(), -stats.poisson.logpmf(counts, log_mean.exp()).mean(axis=0))
    without_constant = torch.nn.PoissonNLLLoss(log_input=True, reduction="none")(log_mean, counts).mean(dim=0)
    torch.testing.assert_close(found, without_constant + torch.lgamma(counts + 1).mean(dim=0))


def test_negative_binomial_equals_scipy(counted: tuple[torch.Tensor, torch.Tensor]) -> None:
    log_rate, counts = counted
    found = negative_binomial_loss(log_rate, counts, log_library=LOG_LIBRARY, log_dispersion=LOG_DISPERSION)
    mean, size = (log_rate + LOG_LIBRARY[:, None]).exp().numpy(), np.exp(-LOG_DISPERSION.numpy())
    expected = -stats.nbinom.logpmf(counts, size, size / (size + mean)).mean(axis=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)
    single = negative_binomial_loss(
        log_rate.float(), counts.float(), log_library=LOG_LIBRARY.float(), log_dispersion=LOG_DISPERSION.float()
    )
    np.testing.assert_allclose(single.numpy(), found.numpy(), rtol=1e-5)


def test_negative_binomial_without_dispersion_is_poisson(counted: tuple[torch.Tensor, torch.Tensor]) -> None:
    none = torch.full((N_GENES,), -40.0, dtype=torch.float64)
    found = negative_binomial_loss(*counted, log_library=LOG_LIBRARY, log_dispersion=none)
    torch.testing.assert_close(found, poisson_loss(*counted, log_library=LOG_LIBRARY), rtol=1e-9, atol=0.0)


def test_likelihoods_are_lowest_at_the_truth() -> None:
    generator = np.random.default_rng(0)
    counts = torch.from_numpy(generator.negative_binomial(2.0, 2 / 7, (20_000, 1)).astype(float))  # mean 5, alpha 0.5
    at = {"log_rate": np.log(5.0), "log_dispersion": np.log(0.5)}

    def loss(**shift: float) -> float:
        rate, dispersion = (torch.full((1, 1), v + shift.get(k, 0.0), dtype=torch.float64) for k, v in at.items())
        no_offset = torch.zeros(20_000, dtype=torch.float64)
        return float(
            negative_binomial_loss(rate.expand(20_000, 1), counts, log_library=no_offset, log_dispersion=dispersion[0])
        )

    for name in at:
        assert loss() < min(loss(**{name: -0.1}), loss(**{name: 0.1}))


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial"])
def test_likelihoods_differentiate_to_second_order(counted: tuple[torch.Tensor, torch.Tensor], kind: str) -> None:
    log_rate, counts = counted[0][:5].clone().requires_grad_(), counted[1][:5]
    dispersion = LOG_DISPERSION.clone().requires_grad_()

    def negative_binomial(rate: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return negative_binomial_loss(rate, counts, log_library=LOG_LIBRARY[:5], log_dispersion=alpha)

    def poisson(rate: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return poisson_loss(rate, counts, log_library=LOG_LIBRARY[:5])

    function = {"poisson": poisson, "negative_binomial": negative_binomial}[kind]
    inputs = (log_rate, dispersion[None, :].expand(5, -1)[0])
    assert torch.autograd.gradcheck(function, inputs, atol=1e-4)
    assert torch.autograd.gradgradcheck(lambda rate: function(rate, dispersion.detach()), log_rate, atol=1e-4)


MASKED: dict[str, "Callable[..., torch.Tensor]"] = {
    "pearson": lambda p, m, mask: pearson_loss(p, m, mask=mask),
    "pearson_by_section": lambda p, m, mask: pearson_loss(
        p, m, sections=torch.arange(len(p)) % 2, n_sections=2, mask=mask
    ),
    "mse": lambda p, m, mask: mse_loss(p, m, mask=mask),
    "poisson": lambda p, m, mask: poisson_loss(p, m, log_library=LOG_LIBRARY, mask=mask),
    "negative_binomial": lambda p, m, mask: negative_binomial_loss(
        p, m, log_library=LOG_LIBRARY, log_dispersion=LOG_DISPERSION, mask=mask
    ),
}


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", MASKED)
def test_what_was_not_measured_adds_neither_value_nor_gradient(
    counted: tuple[torch.Tensor, torch.Tensor], name: str
) -> None:
    loss = MASKED[name]
    prediction, counts = counted
    mask = torch.rand(counts.shape, generator=torch.Generator().manual_seed(6)) > 0.3
    mask[:, 4], mask[::2, 5] = False, False
    spoilt = [torch.where(mask, values, torch.nan).requires_grad_() for values in (prediction, counts)]
    clean = [torch.where(mask, values, 17.0).requires_grad_() for values in (prediction, counts)]
    found = loss(*spoilt, mask)
    torch.testing.assert_close(found, loss(*clean, mask))
    assert found[4] == 0

    (first,) = torch.autograd.grad(found.square().sum(), spoilt[0], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), spoilt[0])
    for gradient in (first, second):
        assert (gradient[~mask] == 0).all()
        assert (gradient[mask].abs() > 0).all()
    (expected,) = torch.autograd.grad(loss(*clean, mask).square().sum(), clean[0])
    torch.testing.assert_close(first, expected)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", MASKED)
def test_full_mask_changes_nothing(counted: tuple[torch.Tensor, torch.Tensor], name: str) -> None:
    loss = MASKED[name]
    torch.testing.assert_close(loss(*counted, torch.ones_like(counted[1], dtype=torch.bool)), loss(*counted, None))


def test_masked_pearson_is_that_of_the_measured_spots(
    pair: tuple[torch.Tensor, torch.Tensor], sections: torch.Tensor
) -> None:
    """A gene that a section lacks takes the mean over the others; single missing spots are left out."""
    prediction, measured = pair
    panels = torch.ones(3, N_GENES, dtype=torch.bool)
    panels[1, 2] = False
    mask = panels[sections]
    mask[5:9, 3] = False
    found = pearson(prediction, measured, sections=sections, mask=mask)
    kept = sections != 1
    torch.testing.assert_close(found[2], plain(prediction[kept], measured[kept], sections[kept])[2])
    there = mask[:, 3]
    torch.testing.assert_close(found[3], plain(prediction[there], measured[there], sections[there])[3])
    torch.testing.assert_close(found[:2], plain(prediction, measured, sections)[:2])


def test_gene_measured_nowhere_leaves_the_weighted_mean_alone(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, measured = pair
    mask = torch.ones_like(measured, dtype=torch.bool)
    mask[:, 1] = False
    weights = torch.linspace(1, 2, N_GENES, dtype=torch.float64)
    found = weighted_mean(pearson_loss(prediction, measured, mask=mask), weights * mask.any(dim=0))
    kept = [0, 2, 3, 4, 5]
    torch.testing.assert_close(
        found, weighted_mean(pearson_loss(prediction[:, kept], measured[:, kept]), weights[kept])
    )
