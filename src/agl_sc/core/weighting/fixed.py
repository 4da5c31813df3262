"""Weights that do not change while the network is trained: none, all, the first k, a soft top-k, a target weight."""

import numpy as np
import torch

from agl_sc.core.arrays import FloatArray
from agl_sc.core.config import TEMPERATURE, Method
from agl_sc.core.numerics.losses import weighted_mean
from agl_sc.core.weighting.base import Weighting
from agl_sc.core.weighting.gate import n_active, scaled_rank, soft_top_k

FIXED_CUTOFFS = (0.05, 0.1, 0.17, 0.25, 0.5, 0.75)
"""Of ``fixed_k``; validation chooses."""
TARGET_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Of ``target_weight``; validation chooses."""


def gene_weights(
    method: Method, cutoff: float, *, n_targets: int, n_genes: int, temperature: float = TEMPERATURE
) -> FloatArray:
    """Weight of every gene, targets first, then auxiliary genes by prior rank, (n_genes,); inactive ones exactly 0.

    DkGSB's soft edge would leave half its width of weights at a cutoff of 0, which means no auxiliary genes here.
    """
    n_auxiliary = n_genes - n_targets
    auxiliary = np.full(n_auxiliary, 0.0 if method == "pgl" or (method == "dkgsb" and cutoff == 0) else 1.0)
    if method == "dkgsb" and cutoff > 0:
        active = n_active(cutoff, n_auxiliary, temperature)
        soft = soft_top_k(torch.tensor(cutoff, dtype=torch.float64), scaled_rank(n_auxiliary), temperature)
        auxiliary = np.where(np.arange(n_auxiliary) < active, soft.numpy(), 0.0)
    if method == "fixed_k":
        auxiliary[round(cutoff * n_auxiliary) :] = 0.0
    return np.concatenate([np.ones(n_targets), auxiliary])


class Fixed(Weighting):
    """Weighted mean of the losses of the genes that have a weight."""

    active: torch.Tensor

    def __init__(self, n_targets: int, weights: FloatArray, *, target_weight: float = 1.0) -> None:
        super().__init__(n_targets, len(weights))
        self._weights = weights
        active = weights[: int(np.flatnonzero(weights)[-1]) + 1].copy()
        active[:n_targets] *= target_weight
        self.register_buffer("active", torch.tensor(active, dtype=torch.float32), persistent=False)

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """Mean under the weights."""
        return weighted_mean(losses, self.active)

    def weights(self) -> FloatArray:
        """As given, targets at 1."""
        return self._weights

    @property
    def n_active(self) -> int:
        """Up to the last gene that has a weight."""
        return len(self.active)
