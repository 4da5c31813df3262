"""AuxiLearn's implicit derivative against an explicit Hessian."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.weighting import AuxiLearn
from agl_sc.core.weighting.auxilearn import AUTHORS, AuxiLearnConfig

Make = Callable[..., Bilevel]
INDEX = torch.arange(5, 40)
ETA = 0.05


def combining(training: Bilevel, config: AuxiLearnConfig) -> AuxiLearn:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AuxiLearn(training.problem.n_targets, training.problem.n_genes, config=config)


def implicit(training: Bilevel, weighting: AuxiLearn) -> list[torch.Tensor]:
    """Minus the mixed derivative times the sum of (I - eta H)^i v over i = 0..3, all of it dense."""
    problem = training.problem
    named = dict(problem.network.named_parameters())
    sizes, shapes = [p.numel() for p in named.values()], [p.shape for p in named.values()]
    flat = torch.cat([p.detach().reshape(-1) for p in named.values()])
    batch = training.batch(INDEX, problem.n_genes)
    own = list(weighting.combine.parameters())

    def at(values: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = torch.split(values, sizes)
        return {name: part.view(shape) for name, part, shape in zip(named, parts, shapes, strict=True)}

    def loss(values: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = weighting(training.losses(at(values), batch))
        return value

    hessian = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]
    v = torch.autograd.functional.jacobian(lambda values: training.validation_loss(at(values)), flat)  # type: ignore[no-untyped-call]
    contraction = torch.eye(len(flat), dtype=torch.float64) - ETA * hessian
    series = sum((torch.linalg.matrix_power(contraction, i) @ v for i in range(4)), torch.zeros_like(v))
    leaf = flat.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    mixed = [
        torch.stack([torch.autograd.grad(entry, parameter, retain_graph=True)[0].reshape(-1) for entry in gradient])
        for parameter in own
    ]
    return [-(series @ m).view(p.shape) for m, p in zip(mixed, own, strict=True)]


@pytest.mark.parametrize("hidden", [(5,), (4, 3)])
def test_hypergradient_is_the_truncated_implicit_derivative(make_bilevel: Make, hidden: tuple[int, ...]) -> None:
    training = make_bilevel(n_auxiliary=4)
    weighting = combining(training, AuxiLearnConfig(hidden=hidden, neumann_lr=ETA)).double()
    expected = implicit(training, weighting)
    found = weighting.hypergradient(training, INDEX)
    plain = weighting.config.neumann_terms + 1
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-6, atol=1e-9)
    # The Hessian is not lost among the identities.
    short = combining(training, AuxiLearnConfig(hidden=hidden, neumann_terms=0)).double()
    ratio = expected[0] / (plain * short.hypergradient(training, INDEX)[0])
    assert (ratio - 1).abs().max() > 1e-3


def test_steps_every_fiftieth_update(make_bilevel: Make) -> None:
    training = make_bilevel(dtype=torch.float32)
    weighting = combining(training, AuxiLearnConfig())
    moved = []
    for update in range(1, 101):
        before = [p.detach().clone() for p in weighting.combine.parameters()]
        weighting.before_update(training, INDEX)
        if not all(torch.equal(b, p) for b, p in zip(before, weighting.combine.parameters(), strict=True)):
            moved.append(update)
    assert moved == [50, 100]


def test_step_is_clipped_sgd_and_weights_are_never_negative(make_bilevel: Make) -> None:
    training = make_bilevel(dtype=torch.float32)
    config = AuxiLearnConfig(every=1, clip=0.5, lr=10.0, weight_decay=0.0)
    weighting = combining(training, config)
    before = [p.detach().clone() for p in weighting.combine.parameters()]
    weighting.before_update(training, INDEX)
    gradients = weighting.hypergradient(training, INDEX)
    norm = torch.stack([(p.grad if p.grad is not None else p).norm() for p in weighting.combine.parameters()]).norm()
    assert float(norm) <= 0.5 + 1e-6
    assert len(gradients) == len(before) == 3
    layers = [layer for layer in weighting.combine if isinstance(layer, torch.nn.Linear)]
    moved = [
        b - 10.0 * p.grad for b, p in zip(before, weighting.combine.parameters(), strict=True) if p.grad is not None
    ]
    assert min(float(m.min()) for m in moved) < 0, "without a negative one nothing is tested"
    for i, layer in zip((0, 2), layers, strict=True):
        torch.testing.assert_close(layer.weight.detach(), moved[i].clamp(min=0))


def test_training_loss_and_weights(make_bilevel: Make) -> None:
    training = make_bilevel()
    weighting = combining(training, AuxiLearnConfig())
    losses = torch.linspace(0.2, 1.5, training.problem.n_genes).requires_grad_()
    value = weighting(losses)
    (slope,) = torch.autograd.grad(value, losses)
    assert (slope[:3] == 1).all()
    assert (slope > 0).all()
    expected = losses[:3].sum() + weighting.combine(losses[3:]).sum()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    weights = weighting.weights()
    np.testing.assert_allclose(weights, (slope / slope.max()).numpy(), rtol=1e-6)
    assert weights.max() == 1
    assert weighting.selected().all()


def test_weights_of_the_authors_config() -> None:
    weighting = AuxiLearn(2, 9, config=AUTHORS)
    assert [tuple(p.shape) for p in weighting.combine.parameters()] == [(10, 7), (10,), (10, 10), (10,), (1, 10)]
    assert (AUTHORS.every, AUTHORS.neumann_lr, AUTHORS.clip, AUTHORS.weight_decay) == (30, 1e-3, 50.0, 5e-3)
    assert (AUTHORS.lr, AUTHORS.neumann_terms) == (1e-3, 3)
    assert np.isfinite(weighting.weights()).all()
    assert ((weighting.weights() >= 0) & (weighting.weights() <= 1)).all()


def test_constants_are_those_of_the_paper() -> None:
    config = AuxiLearnConfig()
    assert (config.hidden, config.lr, config.weight_decay) == ((64,), 1e-3, 1e-4)
    assert (config.every, config.neumann_terms, config.neumann_lr, config.clip) == (50, 3, 1e-4, 25.0)
    group = AuxiLearn(2, 9)._optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
