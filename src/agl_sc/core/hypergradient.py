"""d(validation loss) / d(cutoff) through unrolled Adam steps, exact, in forward mode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class AdamState:
    """Moments of Adam, as the inner steps start from them."""

    mean: Parameters
    """Running mean of the gradient, per parameter."""
    square: Parameters
    """Running mean of the squared gradient, per parameter."""
    n_steps: int
    """Steps taken so far."""


def fresh_state(parameters: Parameters) -> AdamState:
    """Adam that has taken no step."""
    zeros = {name: torch.zeros_like(value) for name, value in parameters.items()}
    return AdamState(zeros, zeros, 0)


def warm_state(optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor]) -> AdamState:
    """Moments of a torch Adam or AdamW, copied; zeros for parameters that it has not stepped yet."""
    states = {name: optimizer.state.get(value, {}) for name, value in named.items()}
    steps = [int(state["step"]) for state in states.values() if "step" in state]
    moments = [
        {name: state[key].clone() if key in state else torch.zeros_like(named[name]) for name, state in states.items()}
        for key in ("exp_avg", "exp_avg_sq")
    ]
    return AdamState(moments[0], moments[1], max(steps, default=0))


def adam_step(
    parameters: Parameters,
    gradients: Parameters,
    state: AdamState,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Parameters, AdamState]:
    """One step of Adam (Kingma and Ba, 2015) as a pure function, differentiable where the second moment is not zero."""
    n_steps = state.n_steps + 1
    mean = {k: torch.lerp(gradients[k], state.mean[k], betas[0]) for k in parameters}
    square = {k: torch.lerp(gradients[k] ** 2, state.square[k], betas[1]) for k in parameters}
    stepped = {}
    for name, value in parameters.items():
        moved = square[name] > 0
        # The root has no derivative at 0: a parameter that never had a gradient stays, with zero tangent.
        root = torch.where(moved, square[name], 1.0).sqrt() / (1 - betas[1] ** n_steps) ** 0.5
        update = mean[name] / (1 - betas[0] ** n_steps) / (root + eps)
        stepped[name] = value - lr * torch.where(moved, update, 0.0)
    return stepped, AdamState(mean, square, n_steps)


def hypergradient(
    inner_loss: Callable[[Parameters, torch.Tensor], torch.Tensor],
    outer_loss: Callable[[Parameters], torch.Tensor],
    parameters: Parameters,
    *,
    cutoff: torch.Tensor,
    state: AdamState,
    inner_steps: int,
    inner_lr: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Validation loss after ``inner_steps`` Adam steps, and its exact derivative with respect to the cutoff.

    The cutoff is one scalar, so the tangent :math:`d\theta/dc` is carried along the steps (forward over reverse mode):
    no step's graph is stored, and memory does not grow with ``inner_steps``. The arguments are not modified.

    Parameters
    ----------
    inner_loss
        Training loss of parameters and cutoff; deterministic.
    outer_loss
        Validation loss of parameters.
    parameters
        Where the inner steps start, by name.
    cutoff
        Scalar.
    state
        Moments of Adam at the start; a fresh Adam hides nearly all of the derivative of a short unroll, because its
        first step is the sign of the gradient.
    inner_steps
        Number of steps to differentiate through.
    inner_lr
        Their learning rate.

    Returns
    -------
    Value and derivative, both scalar.
    """

    def unrolled(at: torch.Tensor) -> torch.Tensor:
        current, moments = parameters, state
        for _ in range(inner_steps):
            gradients = torch.func.grad(inner_loss)(current, at)
            current, moments = adam_step(current, gradients, moments, lr=inner_lr)
        return outer_loss(current)

    value, derivative = torch.func.jvp(  # type: ignore[misc]
        unrolled, (cutoff,), (torch.ones_like(cutoff),)
    )
    return value.detach(), derivative.detach()
