"""The parts of a hyper-gradient: optimisers as pure functions, against torch's own, and shares of the loss."""

from dataclasses import asdict

import pytest
import torch

from agl_sc.core.numerics.hypergradient import (
    SGD,
    Adam,
    AdamW,
    State,
    _weighting,
    fresh_state,
    hypergradient,
    step,
    warm_state,
)
from agl_sc.core.numerics.tensors import Parameters
from agl_sc.core.weighting.gate import scaled_rank, soft_top_k

LR = 0.02
RULES: dict[str, Adam | SGD] = {
    "adam": Adam(LR),
    "adam, decay": Adam(LR, betas=(0.5, 0.7), eps=0.3, weight_decay=0.1),
    "adamw": AdamW(LR),
    "adamw, decay": AdamW(LR, weight_decay=0.5),
    "sgd": SGD(LR),
    "momentum": SGD(LR, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "nesterov": SGD(LR, momentum=0.8, nesterov=True),
}


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal(seed: int) -> Parameters:
    """One parameter longer than what is handled at a time, one transposed, one a scalar."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"long": (70_001,), "matrix": (3, 4), "scalar": ()}
    values = {k: torch.randn(shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}
    values["matrix"] = values["matrix"].T
    return values


def gradients(seed: int) -> Parameters:
    """That of one entry is always zero."""
    values = normal(100 + seed)
    values["long"][7] = 0.0
    return values


def as_torch(rule: Adam | SGD, parameters: Parameters) -> torch.optim.Optimizer:
    own = {Adam: torch.optim.Adam, AdamW: torch.optim.AdamW, SGD: torch.optim.SGD}[type(rule)]
    optimizer: torch.optim.Optimizer = own(list(parameters.values()), **asdict(rule))
    return optimizer


def torch_step(optimizer: torch.optim.Optimizer, parameters: Parameters, seed: int) -> None:
    for name, gradient in gradients(seed).items():
        parameters[name].grad = gradient
    optimizer.step()


@pytest.mark.parametrize("n_before", [0, 5])
@pytest.mark.parametrize("rule", RULES)
def test_step_equals_torch(rule: str, n_before: int) -> None:
    """From a fresh optimiser, and from the state of one that has taken steps."""
    live = {name: value.requires_grad_() for name, value in normal(0).items()}
    optimizer = as_torch(RULES[rule], live)
    for seed in range(n_before):
        torch_step(optimizer, live, seed)
    parameters = {name: value.detach().clone() for name, value in live.items()}
    state = warm_state(optimizer, live)
    for seed in range(n_before, n_before + 4):
        parameters, state = step(RULES[rule], parameters, gradients(seed), state=state)
        torch_step(optimizer, live, seed)
        for name, value in live.items():
            torch.testing.assert_close(parameters[name], value.detach(), rtol=1e-12, atol=1e-14)
    assert (parameters["long"][7] == normal(0)["long"][7]) == (rule in {"adam", "sgd", "nesterov"})
    assert state.n_steps >= 4


@pytest.mark.parametrize("rule", RULES)
def test_step_leaves_its_arguments_alone(rule: str) -> None:
    parameters, state = normal(0), State(normal(1), {k: v**2 for k, v in normal(2).items()}, 3)

    def everything() -> list[torch.Tensor]:
        return [value.clone() for own in (parameters, state.mean, state.square) for value in own.values()]

    before = everything()
    moved, after = step(RULES[rule], parameters, gradients(0), state=state)
    assert all(torch.equal(*pair) for pair in zip(before, everything(), strict=True))
    assert after.n_steps == 4
    assert {k: v.shape for k, v in moved.items()} == {k: v.shape for k, v in parameters.items()}
    assert all(not torch.equal(moved[name], value) for name, value in parameters.items())


def test_a_parameter_without_a_gradient_stays() -> None:
    """As in torch, which steps what has a gradient."""
    parameters = normal(0)
    moved, state = step(AdamW(LR), parameters, {"scalar": scalar(1.0)}, state=fresh_state(parameters))
    assert torch.equal(moved["matrix"], parameters["matrix"])
    assert not torch.equal(moved["scalar"], parameters["scalar"])
    assert not state.mean["long"].any()


def test_warm_state_has_zeros_for_what_was_not_stepped() -> None:
    parameters = {name: value.requires_grad_() for name, value in normal(0).items()}
    optimizer = torch.optim.AdamW([parameters["long"]], lr=LR)
    for seed in range(3):
        torch_step(optimizer, parameters, seed)
    state = warm_state(optimizer, parameters)
    assert state.n_steps == 3
    assert torch.equal(state.mean["long"], optimizer.state[parameters["long"]]["exp_avg"])
    assert torch.equal(state.square["long"], optimizer.state[parameters["long"]]["exp_avg_sq"])
    assert state.square["matrix"].shape == (4, 3)
    assert not state.square["matrix"].any()


def test_warm_state_of_an_optimizer_that_took_no_step_is_fresh() -> None:
    parameters = {name: value.requires_grad_() for name, value in normal(0).items()}
    state, fresh = warm_state(torch.optim.Adam(parameters.values()), parameters), fresh_state(parameters)
    assert state.n_steps == fresh.n_steps == 0
    assert all(torch.equal(state.mean[name], fresh.mean[name]) for name in parameters)


def test_derivative_through_a_closed_form_toy() -> None:
    """One step of gradient descent: calculus by hand."""
    w, at, lr = 2.0, 0.3, 0.1
    derivative = hypergradient(
        lambda p, sizes: [torch.stack([p["w"] ** 2, 3 * p["w"]])],
        lambda p: p["w"] ** 3,
        {"w": scalar(w)},
        scalars=scalar(at),
        weights=lambda c: torch.stack([c, 1 - c]),  # the sum of weights is 1: gradient 2 c w + 3 (1 - c)
        optimizer=SGD(lr),
        state=fresh_state({"w": scalar(w)}),
        inner_steps=1,
    )[1]
    stepped = w - lr * (2 * at * w + 3 * (1 - at))
    assert derivative.item() == pytest.approx(3 * stepped**2 * -lr * (2 * w - 3), rel=1e-12)


def test_shares_of_the_loss_and_their_slopes() -> None:
    """With a temperature of 0.01, weights have a derivative within 36 temperatures in double precision."""
    rank = scaled_rank(1001)
    at = _weighting(lambda c: soft_top_k(c, rank, 0.01), scalar(0.5), detach_normalizer=False, whole=False)
    assert all(size > 100 for size in at.sizes)
    assert [slope is None for slope in at.slope[0]] == [True, False, True]
    weight = soft_top_k(scalar(0.5), rank, 0.01)
    far = torch.split(weight * (1 - weight) / 0.01, at.sizes)[::2]
    assert 0 < max(part.max().item() for part in far) < 1e-14
    torch.testing.assert_close(torch.cat(at.share), weight / weight.sum())
    assert at.drift.item() == pytest.approx((weight * (1 - weight)).sum() / 0.01 / weight.sum())


def test_where_the_gradient_is_zero_its_derivative_moves_nothing() -> None:
    """The root of Adam's second moment has no derivative there; the tangent would be that of the gradient over eps."""
    start = {"w": torch.zeros(2, dtype=torch.float64)}
    value, derivative = hypergradient(
        lambda p, sizes: [torch.stack([(p["w"][0] - 1) ** 2 + p["w"][1] ** 2, 2 * p["w"][1]])],
        lambda p: p["w"][1],
        start,
        scalars=scalar(0.0),
        weights=lambda c: torch.stack([1 + c, c]),  # the gradient of the second entry is 2 c: zero, but not its slope
        optimizer=Adam(LR),
        state=fresh_state(start),
        inner_steps=1,
    )
    assert value.item() == 0
    assert derivative.item() == 0
