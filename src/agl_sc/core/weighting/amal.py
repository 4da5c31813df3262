"""AMAL (Sivasubramanian et al., AAAI 2023): a weight per auxiliary task, learned by looking one step ahead."""

import numpy as np
import torch
from numpy.typing import NDArray

from agl_sc.core.config import TEMPERATURE
from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.numerics.losses import weighted_mean
from agl_sc.core.weighting.base import Weighting

EVERY, LR, INNER_LR = 20, 3e-3, 3e-2
"""Epochs between searches, learning rate of Adam on the logits, and of the inner SGD step, all of Shiku et al."""


class Amal(Weighting):
    """Mean of losses, auxiliary genes weighted by ``sigmoid(logit / 0.01)``, as Shiku et al. configured it.

    The authors weight every instance; here a gene has one weight for all spots.
    """

    logits: torch.Tensor

    def __init__(self, n_targets: int, n_genes: int) -> None:
        super().__init__(n_targets, n_genes)
        self.register_buffer("logits", torch.zeros(n_genes - n_targets))
        self._optimizer = torch.optim.Adam([self.logits], lr=LR)

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """Mean under the weights."""
        return weighted_mean(losses, self._at())

    def _at(self) -> torch.Tensor:
        weights = torch.sigmoid(self.logits.detach() / TEMPERATURE)
        return torch.cat([weights.new_ones(self.n_targets), weights])

    def weights(self) -> NDArray[np.float64]:
        """In [0, 1]."""
        weights: NDArray[np.float64] = self._at().double().cpu().numpy()
        return weights

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Of the logits."""
        return {"logits": self._optimizer}

    def before_epoch(self, training: Bilevel, epoch: int) -> None:
        """A step of the logits per training batch, every twentieth epoch."""
        if epoch % EVERY == 0 and training.n_validation:
            for index in training.batches:
                self.logits.grad = self.hypergradient(training, index)
                self._optimizer.step()

    def hypergradient(self, training: Bilevel, index: torch.Tensor) -> torch.Tensor:
        """Derivative of the validation loss after one SGD step by the logits, (n_auxiliary,).

        One directional derivative of all losses at once, along the validation gradient.
        """
        at = {name: value.requires_grad_() for name, value in training.parameters(self.n_genes).items()}
        leaves, weights = list(at.values()), self._at()
        batch = training.batch(index, self.n_genes)
        with torch.enable_grad():
            losses = training.losses(at, batch)
            probe = torch.zeros_like(losses, requires_grad=True)
            step = torch.autograd.grad(weighted_mean(losses, weights), leaves, retain_graph=True)
            by_gene = torch.autograd.grad(losses, leaves, probe, create_graph=True)
        ahead = {
            name: (leaf - INNER_LR * s).detach().requires_grad_()
            for (name, leaf), s in zip(at.items(), step, strict=True)
        }
        with torch.enable_grad():
            value = training.validation_loss(ahead)
        towards = torch.autograd.grad(value, list(ahead.values()), materialize_grads=True)
        (slopes,) = torch.autograd.grad(by_gene, probe, towards)
        by_weight = -INNER_LR * (slopes - weighted_mean(slopes, weights)) / weights.sum()
        auxiliary = weights[self.n_targets :]
        return by_weight[self.n_targets :] * auxiliary * (1 - auxiliary) / TEMPERATURE
