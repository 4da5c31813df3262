"""Gradient cosine similarity (Du et al., 2018, arXiv 1812.02224)."""

import numpy as np
import torch
from numpy.typing import NDArray

from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.numerics.losses import weighted_mean
from agl_sc.core.weighting.base import Weighting


class GradientCosine(Weighting):
    """Every auxiliary gene weighted by the cosine of its gradient with that of the targets, or 0 where they disagree.

    Gradients are those with respect to the shared representation, and taken anew for every update. A head is linear, so the
    gradient of gene j is an outer product of its head and of ``dL_j / dprediction_j``, and all cosines cost one backward pass.
    """

    current: torch.Tensor
    total: torch.Tensor

    selects = False

    def __init__(self, n_targets: int, n_genes: int) -> None:
        super().__init__(n_targets, n_genes)
        self.register_buffer("current", torch.ones(n_genes))
        self.register_buffer("total", torch.zeros(2, n_genes))  # sum of weights and number of updates of an epoch

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """Mean under the weights of this update."""
        return weighted_mean(losses, self.current)

    def weights(self) -> NDArray[np.float64]:
        """Mean over the updates of the last epoch; 1 before the first."""
        mean = torch.where(self.total[1] > 0, self.total[0] / self.total[1].clamp(min=1), 1.0)
        weights: NDArray[np.float64] = mean.double().cpu().numpy()
        return weights

    def before_epoch(self, training: Bilevel, epoch: int) -> None:
        """Forget the epoch before."""
        self.total.zero_()

    def before_update(self, training: Bilevel, index: torch.Tensor) -> None:
        """Weights for this batch."""
        self.current = self.cosines(training, index).clamp(min=0)
        self.current[: self.n_targets] = 1.0
        self.total += torch.stack([self.current, torch.ones_like(self.current)])

    def cosines(self, training: Bilevel, index: torch.Tensor) -> torch.Tensor:
        """Cosine of every gene's gradient with the gradient of the target losses, (n_genes,)."""
        at, batch = training.parameters(self.n_genes), training.batch(index, self.n_genes)
        head, objective = at["head.weight"], training.problem.objective
        with torch.no_grad():
            hidden = training.problem.network.hidden_at(at, batch.inputs)
            predicted = torch.nn.functional.linear(hidden, head, at["head.bias"])
        with torch.enable_grad():
            predicted.requires_grad_()
            losses = objective.losses(objective.parts_of(predicted, batch)[None])
        (own,) = torch.autograd.grad(losses.sum(), predicted)  # every loss depends on its own column alone
        targets = own[:, : self.n_targets] @ head[: self.n_targets]
        inner = ((own.T @ targets) * head).sum(dim=1)
        norm = own.norm(dim=0) * head.norm(dim=1) * targets.norm()
        return torch.where(norm > 0, inner / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
