"""Weights that do not change while the network is trained: none, all, the first k, a soft top-k, a target weight."""

from collections.abc import Callable

import numpy as np
import torch

from agl_sc.core.arrays import FloatArray
from agl_sc.core.numerics.losses import weighted_mean
from agl_sc.core.weighting.base import Weighting
from agl_sc.core.weighting.gate import n_active, scaled_rank, soft_top_k

FIXED_CUTOFFS = (0.05, 0.1, 0.17, 0.25, 0.5, 0.75)
"""Of ``fixed_k``; validation chooses."""
TARGET_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Of ``target_weight``; validation chooses."""

AuxiliaryWeights = Callable[[float, int, float], FloatArray]
"""From a cutoff on the rank axis, the number of auxiliary genes and a temperature to the weights of the genes by prior rank,
in [0, 1], (n_auxiliary,); inactive ones exactly 0."""


def no_gene(cutoff: float, n_auxiliary: int, temperature: float) -> FloatArray:
    """Weight 0 for every auxiliary gene."""
    del cutoff, temperature
    return np.zeros(n_auxiliary)


def every_gene(cutoff: float, n_auxiliary: int, temperature: float) -> FloatArray:
    """Weight 1 for every auxiliary gene."""
    del cutoff, temperature
    return np.ones(n_auxiliary)


def leading_genes(cutoff: float, n_auxiliary: int, temperature: float) -> FloatArray:
    """Weight 1 up to the cutoff."""
    del temperature
    return np.where(np.arange(n_auxiliary) < round(cutoff * n_auxiliary), 1.0, 0.0)


def soft_leading_genes(cutoff: float, n_auxiliary: int, temperature: float) -> FloatArray:
    """DkGSB's soft top-k, whose edge would leave half its width of weights at a cutoff of 0: that means none here."""
    if cutoff == 0:
        return np.zeros(n_auxiliary)
    active = n_active(cutoff, n_auxiliary, temperature)
    soft = soft_top_k(torch.tensor(cutoff, dtype=torch.float64), scaled_rank(n_auxiliary), temperature)
    return np.where(np.arange(n_auxiliary) < active, soft.numpy(), 0.0)


def beside_targets(auxiliary: FloatArray, n_targets: int) -> FloatArray:
    """Weight of every gene, targets first, each 1, (n_genes,)."""
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
