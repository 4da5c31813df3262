"""AuxiLearn (Navon et al., ICLR 2021): a network combines the losses, learned by implicit differentiation."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.weighting.base import Weighting

_INITIAL = 0.2
"""Weights of the combining network start between 0 and this, as in the authors' experiments."""


@dataclass(frozen=True, slots=True)
class AuxiLearnConfig:
    """Constants, by default those of Shiku et al.; :data:`AUTHORS` holds the authors' own."""

    hidden: tuple[int, ...] = (64,)
    """Widths of hidden layers."""
    weight_decay: float = 1e-4
    """Of SGD on the combining network."""
    every: int = 50
    """Updates of the network per step of the combining network."""
    neumann_lr: float = 1e-4
    """Scale of the terms of the Neumann series."""
    clip: float = 25.0
    """Largest norm of a hyper-gradient."""
    lr: float = 1e-3
    """Of SGD on the combining network, with momentum 0.9."""
    neumann_terms: int = 3
    """Terms of the series that stands for the inverse Hessian."""


AUTHORS = AuxiLearnConfig(hidden=(10, 10), weight_decay=5e-3, every=30, neumann_lr=1e-3, clip=50.0)
"""Of the authors' experiments on pets."""


class AuxiLearn(Weighting):
    """Sum of the target losses plus a monotone network of the auxiliary losses.

    Its weights are not negative, so that no loss is ever increased; its step follows the implicit derivative of the
    validation loss, the inverse Hessian replaced by a truncated Neumann series.
    """

    seen: torch.Tensor
    n_updates: torch.Tensor

    selects = False

    def __init__(self, n_targets: int, n_genes: int, *, config: AuxiLearnConfig = AuxiLearnConfig()) -> None:
        super().__init__(n_targets, n_genes)
        self.config = config
        widths = [n_genes - n_targets, *config.hidden, 1]
        layers: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            last = i == len(widths) - 2
            layer = nn.Linear(fan_in, fan_out, bias=not last)
            nn.init.uniform_(layer.weight, 0.0, _INITIAL)
            if not last:
                nn.init.zeros_(layer.bias)
            layers += [layer] if last else [layer, nn.Softplus()]
        self.combine = nn.Sequential(*layers)
        self.register_buffer("seen", torch.ones(n_genes))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))
        self._optimizer = torch.optim.SGD(
            self.combine.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay
        )

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """Target losses plus the combined auxiliary losses."""
        self.seen = losses.detach().float()
        combined: torch.Tensor = losses[: self.n_targets].sum() + self.combine(losses[self.n_targets :]).sum()
        return combined

    def weights(self) -> NDArray[np.float64]:
        """Derivative of the training loss by every loss, where it was last seen, the largest being 1."""
        at = self.seen.clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self(at), at)
        relative: NDArray[np.float64] = (slope / slope.max()).double().cpu().numpy()
        return relative

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Of the combining network."""
        return {"combine": self._optimizer}

    def before_update(self, training: Bilevel, index: torch.Tensor) -> None:
        """Step the combining network once in a while."""
        self.n_updates += 1
        if int(self.n_updates) % self.config.every:
            return
        own = list(self.combine.parameters())
        for parameter, gradient in zip(own, self.hypergradient(training, index), strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(own, self.config.clip)
        self._optimizer.step()
        with torch.no_grad():
            for layer in self.combine:
                if isinstance(layer, nn.Linear):
                    layer.weight.clamp_(min=0)

    def hypergradient(self, training: Bilevel, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Derivative of the validation loss by the parameters of the combining network, through the trained network."""
        at = {name: value.requires_grad_() for name, value in training.parameters(self.n_genes).items()}
        leaves = list(at.values())
        batch = training.batch(index, self.n_genes)
        with torch.enable_grad():
            towards = torch.autograd.grad(training.validation_loss(at), leaves, materialize_grads=True)
            loss = self(training.losses(at, batch))
            gradients = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        term, series = towards, towards
        moving = [g.requires_grad for g in gradients]
        outputs = [g for g, moves in zip(gradients, moving, strict=True) if moves]

        def along(vectors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
            return [v for v, moves in zip(vectors, moving, strict=True) if moves]

        for _ in range(self.config.neumann_terms):
            curved = torch.autograd.grad(outputs, leaves, along(term), retain_graph=True, materialize_grads=True)
            term = tuple(t - self.config.neumann_lr * c for t, c in zip(term, curved, strict=True))
            series = tuple(s + t for s, t in zip(series, term, strict=True))
        own = list(self.combine.parameters())
        found = torch.autograd.grad(outputs, own, along(series), materialize_grads=True)
        return tuple(-g for g in found)
