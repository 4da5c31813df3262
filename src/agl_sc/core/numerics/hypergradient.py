"""d(validation loss) / d(scalars behind the gene weights) through unrolled optimiser steps, in forward mode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Protocol

import torch

from agl_sc.core.numerics.tensors import Parameters

Dual = tuple[torch.Tensor, torch.Tensor]
"""Values (n,) and their tangents (n_scalars, n)."""
InnerLosses = Callable[[Parameters, list[int]], Sequence[torch.Tensor]]
"""Training losses per gene, in consecutive runs of as many genes as asked for."""

_CHUNK = 1 << 16
"""Entries of a parameter stepped at a time on the CPU: everything that belongs to them stays in the cache."""


@dataclass(frozen=True, slots=True)
class State:
    """Moments of an optimiser, as the inner steps start from them."""

    mean: Parameters
    """Running mean of the gradient, or SGD's momentum buffer, per parameter."""
    square: Parameters
    """Running mean of the squared gradient, per parameter; not read by SGD."""
    n_steps: int
    """Steps taken so far."""


def fresh_state(parameters: Parameters) -> State:
    """An optimiser that has taken no step."""
    zeros = {name: torch.zeros_like(value) for name, value in parameters.items()}
    return State(zeros, zeros, 0)


def warm_state(optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor]) -> State:
    """Moments of a torch Adam, AdamW or SGD, until its next step; zeros for parameters that it has not stepped yet."""
    states = {name: optimizer.state.get(value, {}) for name, value in named.items()}
    steps = [int(own.get("step", 1)) for own in states.values() if own]

    def moment(*keys: str) -> Parameters:
        found = {name: next((own[k] for k in keys if own.get(k) is not None), None) for name, own in states.items()}
        return {k: torch.zeros_like(named[k]) if v is None else v.detach() for k, v in found.items()}

    return State(moment("exp_avg", "momentum_buffer"), moment("exp_avg_sq"), max(steps, default=0))


class Optimizer(Protocol):
    """One step of an optimiser on a run of entries, their tangents alongside."""

    @property
    def moments(self) -> tuple[str, ...]:
        """Fields of :class:`State` that it reads and writes."""

    def update(self, value: Dual, gradient: Dual, moments: Sequence[Dual], *, n_steps: int) -> None:
        """Overwrite value and moments by those after one more step than ``n_steps``."""


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam (Kingma and Ba, 2015), as ``torch.optim.Adam``."""

    lr: float
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of gradient and squared gradient."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Times the parameter, added to the gradient."""

    decoupled: ClassVar[bool] = False
    moments: ClassVar[tuple[str, ...]] = ("mean", "square")

    def update(self, value: Dual, gradient: Dual, moments: Sequence[Dual], *, n_steps: int) -> None:
        """Overwrite value and moments; an entry that never had a gradient stays."""
        (w, dw), (g, dg), ((m, dm), (v, dv)) = value, gradient, moments
        if self.weight_decay and self.decoupled:
            w, dw = w.mul_(1 - self.lr * self.weight_decay), dw.mul_(1 - self.lr * self.weight_decay)
        elif self.weight_decay:
            g, dg = g + self.weight_decay * w, dg + self.weight_decay * dw
        fresh = 1 - self.betas[1]
        m, dm = m.lerp_(g, 1 - self.betas[0]), dm.lerp_(dg, 1 - self.betas[0])
        v, dv = v.mul_(self.betas[1]), dv.mul_(self.betas[1])
        v, dv = v.addcmul_(g, g, value=fresh), dv.addcmul_(dg, g, value=2 * fresh)
        scale = (1 - self.betas[1] ** (n_steps + 1)) ** 0.5
        rate = scale * self.lr / (1 - self.betas[0] ** (n_steps + 1))
        # The root has no derivative at 0: there neither value nor tangent moves.
        root = v.sqrt().clamp_min_(torch.finfo(v.dtype).tiny)
        inverse = (root + scale * self.eps).reciprocal_().mul_(v.sign())
        step = m * inverse
        w.sub_(step, alpha=rate)
        dw.sub_(torch.addcmul(dm, step.div_(root), dv, value=-0.5).mul_(inverse), alpha=rate)


@dataclass(frozen=True, slots=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as ``torch.optim.AdamW``."""

    weight_decay: float = 0.01
    """Times the learning rate, the share of a parameter taken off in every step."""

    decoupled: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent, as ``torch.optim.SGD``."""

    lr: float
    """Learning rate."""
    momentum: float = 0.0
    """Decay of the momentum buffer."""
    dampening: float = 0.0
    """Share of the gradient kept out of the buffer."""
    weight_decay: float = 0.0
    """Times the parameter, added to the gradient."""
    nesterov: bool = False
    """Step along the gradient plus the decayed buffer."""

    @property
    def moments(self) -> tuple[str, ...]:
        """The momentum buffer, where there is one."""
        return ("mean",) if self.momentum else ()

    def update(self, value: Dual, gradient: Dual, moments: Sequence[Dual], *, n_steps: int) -> None:
        """Overwrite value and momentum buffer; all is linear, so tangents go the way of the values."""
        for w, g, *buffer in zip(value, gradient, *moments, strict=True):
            direction = g + self.weight_decay * w if self.weight_decay else g
            for b in buffer:
                fresh = direction if n_steps == 0 else self.momentum * b + (1 - self.dampening) * direction
                direction = direction + self.momentum * fresh if self.nesterov else fresh
                b.copy_(fresh)
            w.sub_(direction, alpha=self.lr)


def step(
    optimizer: Optimizer, parameters: Parameters, gradients: Parameters, *, state: State
) -> tuple[Parameters, State]:
    """Parameters and state after one step, as new tensors."""
    unroll = _Unroll.start(optimizer, parameters, state=state, n_scalars=0)
    unroll.step(optimizer, {name: (value, []) for name, value in gradients.items()}, drift=torch.zeros(0))
    value, *moments = (unroll.values(key) for key in ("value", *optimizer.moments))
    return value, replace(state, **dict(zip(optimizer.moments, moments, strict=True)), n_steps=unroll.n_steps)


def hypergradient(
    inner: InnerLosses,
    outer: Callable[[Parameters], torch.Tensor],
    parameters: Parameters,
    *,
    scalars: torch.Tensor,
    weights: Callable[[torch.Tensor], torch.Tensor],
    optimizer: Optimizer,
    state: State,
    inner_steps: int,
    hessian: bool = True,
    detach_normalizer: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Validation loss after ``inner_steps`` training steps, and its derivative with respect to a few scalars.

    The training loss is :math:`\sum_j w_j(s) L_j(\theta) / \sum_j w_j(s)`. The scalars are few, so the tangents
    :math:`d\theta/ds` are carried along the steps: every step's graph is freed, and memory does not grow with
    ``inner_steps``. The tangent of a gradient has two terms,

    .. math:: \frac{d g}{d s} = \nabla^2_\theta\ell \, \frac{d\theta}{d s} + \frac{\partial g}{\partial s},

    from one second backward pass. Arguments, buffers of modules run through :func:`call` and torch's global generators
    are left as they are.

    Parameters
    ----------
    inner
        From parameters and sizes of consecutive runs of genes to the training losses of these runs, (size,) each. Any
        network and loss will do with ``torch.split(losses, sizes)``; where the runs share a trunk, but neither head nor loss,
        the genes far from a cutoff cost no second backward pass.
    outer
        Validation loss of parameters.
    parameters
        Where the inner steps start, by name; one that neither loss depends on may be among them.
    scalars
        Such as a cutoff, any shape.
    weights
        From scalars to the weight of every gene, (n_genes,).
    optimizer
        Of the inner steps.
    state
        Its moments at the start; a fresh Adam hides nearly all of the derivative of a short unroll, because its
        first step is the sign of the gradient.
    inner_steps
        Number of steps to differentiate through.
    hessian
        Exact; otherwise without the first term of the sum above, which costs most of the time.
    detach_normalizer
        Take the sum of weights for a constant, as the released code does.

    Returns
    -------
    Value, a scalar, and derivative in the shape of ``scalars``.
    """
    weighting = _weighting(weights, scalars.detach(), detach_normalizer=detach_normalizer, whole=hessian)
    unroll = _Unroll.start(optimizer, parameters, state=state, n_scalars=scalars.numel())
    device = scalars.device
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=_generator_of(device)):
        for _ in range(inner_steps):
            gradients = _gradients(inner, unroll, weighting, hessian=hessian)
            unroll.step(optimizer, gradients, drift=weighting.drift)
            del gradients
        leaves = unroll.leaves()
        with torch.enable_grad():
            value = outer(leaves)
        towards = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    tangents = [duals["value"][1] for duals in unroll.duals.values()]
    terms = [tangent @ part.reshape(-1) for tangent, part in zip(tangents, towards, strict=True) if part is not None]
    return value.detach(), torch.stack(terms).sum(dim=0).reshape(scalars.shape)


@dataclass(frozen=True, slots=True)
class _Weighting:
    """Share of every gene in the training loss, and how it changes with the scalars, by runs of genes."""

    sizes: list[int]
    """Genes per run."""
    share: list[torch.Tensor]
    """Weight over sum of weights, (size,) per run."""
    slope: list[list[torch.Tensor | None]]
    """Derivative of the share at a constant sum of weights, per scalar and run; None for a run in which it is zero."""
    drift: torch.Tensor
    """Relative derivative of the sum of weights: it takes as much off every gene's share, (n_scalars,)."""


def _weighting(
    weights: Callable[[torch.Tensor], torch.Tensor], scalars: torch.Tensor, *, detach_normalizer: bool, whole: bool
) -> _Weighting:
    """One run of all genes, or runs that begin and end where a weight's derivative becomes zero to float precision."""
    flat = scalars.reshape(-1)
    directions = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    at = [torch.func.jvp(lambda s: weights(s.reshape(scalars.shape)), (flat,), (one,)) for one in directions]
    weight, slope = at[0][0], torch.stack([derivative[1] for derivative in at])
    total, n_genes = weight.sum(), len(weight)
    edges = {0, n_genes}
    size = slope.abs()
    near = ~(size < torch.finfo(size.dtype).eps * size.amax(dim=1, keepdim=True))  # NaN is near
    for found in [] if whole else [row.nonzero()[:, 0].tolist() for row in near]:
        edges.update((found[0], found[-1] + 1))
    sizes = [stop - start for start, stop in pairwise(sorted(edges))]
    runs = [
        [run if flag.any() else None for run, flag in zip(row.split(sizes), flags.split(sizes), strict=True)]
        for row, flags in zip(slope / total, near, strict=True)
    ]
    drift = torch.zeros_like(flat) if detach_normalizer else slope.sum(dim=1) / total
    return _Weighting(sizes, list((weight / total).split(sizes)), runs, drift)


def _gradients(
    inner: InnerLosses, unroll: "_Unroll", weighting: _Weighting, *, hessian: bool
) -> dict[str, tuple[torch.Tensor, list[torch.Tensor]]]:
    """Gradient of the training loss and, at a constant sum of weights, its tangent for every scalar."""
    leaves = unroll.leaves()
    with torch.enable_grad():
        runs = list(inner(leaves, weighting.sizes))
    share = [part.to(run.dtype) for run, part in zip(runs, weighting.share, strict=True)]
    found = torch.autograd.grad(
        runs, list(leaves.values()), share, create_graph=hessian, retain_graph=True, allow_unused=True
    )
    gradients = {name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None}
    wanted = [leaves[name] for name in gradients]
    tangents: dict[str, list[torch.Tensor]] = {name: [] for name in gradients}
    for i, slopes in enumerate(weighting.slope):
        pairs = [(run, slope.to(run.dtype)) for run, slope in zip(runs, slopes, strict=True) if slope is not None]
        pairs += [(g, unroll.tangent(name, i)) for name, g in gradients.items() if g.requires_grad]
        outputs, along = [one for one, _ in pairs], [other for _, other in pairs]
        keep = i + 1 < len(weighting.slope)
        second = torch.autograd.grad(outputs, wanted, along, retain_graph=keep, materialize_grads=True)
        for name, tangent in zip(gradients, second, strict=True):
            tangents[name].append(tangent)
    return {name: (gradient.detach(), tangents[name]) for name, gradient in gradients.items()}


@dataclass(slots=True)
class _Unroll:
    """Parameters and moments with their tangents, own and flat: the inner steps overwrite them."""

    shapes: dict[str, torch.Size]
    """Of the parameters."""
    duals: dict[str, dict[str, Dual]]
    """Per parameter: ``value``, and the moments of the optimiser."""
    n_steps: int
    """Taken by the optimiser so far."""

    @classmethod
    def start(cls, optimizer: Optimizer, parameters: Parameters, *, state: State, n_scalars: int) -> "_Unroll":
        """Copies, with tangents zero."""

        def dual(values: torch.Tensor) -> Dual:
            flat = values.detach().clone(memory_format=torch.contiguous_format).view(-1)
            return flat, flat.new_zeros(n_scalars, len(flat))

        duals = {
            name: {"value": dual(value), **{key: dual(getattr(state, key)[name]) for key in optimizer.moments}}
            for name, value in parameters.items()
        }
        return cls({name: value.shape for name, value in parameters.items()}, duals, state.n_steps)

    def values(self, key: str = "value") -> Parameters:
        """Current parameters or moments."""
        return {name: own[key][0].view(self.shapes[name]) for name, own in self.duals.items()}

    def leaves(self) -> Parameters:
        """Current parameters, to be differentiated."""
        return {name: value.detach().requires_grad_() for name, value in self.values().items()}

    def tangent(self, name: str, scalar: int) -> torch.Tensor:
        """Of one parameter in the direction of one scalar."""
        return self.duals[name]["value"][1][scalar].view(self.shapes[name])

    def step(
        self,
        optimizer: Optimizer,
        gradients: dict[str, tuple[torch.Tensor, list[torch.Tensor]]],
        *,
        drift: torch.Tensor,
    ) -> None:
        """One step of the optimiser; a parameter without a gradient stays."""
        for name, (gradient, tangents) in gradients.items():
            flat = [gradient.reshape(-1), *(tangent.reshape(-1) for tangent in tangents)]
            own = [_chunks(values) for dual in self.duals[name].values() for values in dual]
            for (g, *parts), duals in zip(zip(*map(_chunks, flat), strict=True), zip(*own, strict=True), strict=True):
                dg = g.new_zeros(0, len(g))
                if parts:
                    rows = torch.stack(parts) if len(parts) > 1 else parts[0][None]
                    dg = torch.addcmul(rows, drift[:, None].to(g.dtype), g, value=-1)
                value, *moments = zip(duals[::2], duals[1::2], strict=True)
                optimizer.update(value, (g, dg), moments, n_steps=self.n_steps)
        self.n_steps += 1


def _chunks(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views along the last axis."""
    n = values.shape[-1]
    return torch.split(values, _CHUNK if values.device.type == "cpu" else max(n, 1), dim=-1)


def _generator_of(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
