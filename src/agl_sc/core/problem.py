"""What is fitted to what: spots, gene weights, and network, inputs and measurements on one device."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agl_sc.core.checkpoint import Tensors, part
from agl_sc.core.config import Method
from agl_sc.core.gate import n_active, scaled_rank, soft_top_k
from agl_sc.core.hypergradient import Parameters
from agl_sc.core.network import Network
from agl_sc.core.search import Validation
from agl_sc.core.sources import Source

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spots:
    """Spots ready for training."""

    features: FloatArray
    """Centred per section and scaled, (n_spots, n_features)."""
    expression: FloatArray
    """Centred per section and scaled; targets first, then auxiliary genes by prior rank, (n_spots, n_genes)."""
    sections: NDArray[np.int64]
    """Section of every spot, (n_spots,)."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What validation picks."""

    alpha: float
    """Ridge penalty of the closed-form start."""
    rank: int
    """Width of the trunk."""
    cutoff: float
    """On the rank axis, in [0, 1]; 0 without and 1 with all auxiliary genes."""
    n_epochs: int
    """Epochs trained."""


def gene_weights(method: Method, cutoff: float, *, n_targets: int, n_genes: int, temperature: float) -> FloatArray:
    """Weight of every gene, targets first, then auxiliary genes by prior rank, (n_genes,); inactive ones exactly 0."""
    n_auxiliary = n_genes - n_targets
    auxiliary = np.full(n_auxiliary, 1.0 if method == "agl" else 0.0)
    if method == "dkgsb":
        active = n_active(cutoff, n_auxiliary, temperature)
        soft = soft_top_k(torch.tensor(cutoff, dtype=torch.float64), scaled_rank(n_auxiliary), temperature)
        auxiliary[:active] = soft[:active].numpy()
    return np.concatenate([np.ones(n_targets), auxiliary])


@dataclass(frozen=True, slots=True)
class Problem:
    """What is fitted to what, on one device."""

    network: Network
    """Trunk and head."""
    source: Source
    """Inputs of the training spots."""
    expression: torch.Tensor
    """Of the training spots, (n_spots, n_genes)."""
    validation_source: Source | None
    """Inputs of the validation spots."""
    validation: Validation | None
    """Measured targets of the validation spots."""
    n_targets: int
    """Number of leading genes that are targets."""

    def parts(self) -> dict[str, torch.nn.Module]:
        """Everything that is trained."""
        encoder = self.source.encoder
        return {"network": self.network} if encoder is None else {"network": self.network, "encoder": encoder}

    def state(self) -> Parameters:
        """Copy of all parameters and buffers, on the CPU."""
        parts = self.parts().items()
        return {
            f"{part}.{k}": v.detach().cpu().clone() for part, module in parts for k, v in module.state_dict().items()
        }

    def load(self, state: Tensors) -> None:
        """Take over what :meth:`state` copied."""
        for name, module in self.parts().items():
            module.load_state_dict(part(state, f"{name}."))

    def score(self) -> float:
        """Mean validation Pearson of the targets; NaN without validation spots."""
        if self.validation is None or self.validation_source is None:
            return float("nan")
        self.network.eval()
        with torch.inference_mode():
            batches = self.validation_source.all_inputs()
            predicted = torch.cat([self.network(inputs, self.n_targets) for inputs in batches])
        return self.validation.score(predicted.cpu().double().numpy())
