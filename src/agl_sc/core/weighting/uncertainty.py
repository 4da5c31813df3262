"""Homoscedastic uncertainty (Kendall, Gal and Cipolla, CVPR 2018)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agl_sc.core.weighting.base import Weighting


class Uncertainty(Weighting):
    """Mean over all genes of ``exp(-s) L + s``, with s learned along with the network.

    This is how Shiku et al. configured it. The authors' ``(exp(-s) L + s) / 2`` is half of it, which Adam does not see.
    """

    selects = False

    def __init__(self, n_targets: int, n_genes: int) -> None:
        super().__init__(n_targets, n_genes)
        self.log_variance = nn.Parameter(torch.zeros(n_genes))

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """Attenuated losses plus the price of attenuating."""
        return (torch.exp(-self.log_variance) * losses + self.log_variance).mean()

    def weights(self) -> NDArray[np.float64]:
        """``exp(-s)``, the largest being 1."""
        weights = torch.exp(-self.log_variance.detach().double())
        relative: NDArray[np.float64] = (weights / weights.max()).cpu().numpy()
        return relative

    def trained(self) -> list[nn.Parameter]:
        """Log of the variances."""
        return [self.log_variance]
