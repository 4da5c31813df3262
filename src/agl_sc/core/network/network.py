"""Features -> shared trunk -> gene head."""

from collections.abc import Mapping

import scipy.sparse
import torch
from torch import nn

from agl_sc.core.arrays import FloatArray
from agl_sc.core.linear.closed_form import LowRank
from agl_sc.core.numerics.tensors import call
from agl_sc.core.spots.calibration import CalibrationSums
from agl_sc.core.spots.counts import in_log_units
from agl_sc.core.spots.scaling import row_slices


class Network(nn.Module):
    """Shared trunk and gene head on encoder features.

    The trunk is a linear map plus a hidden layer whose output starts at zero, so that a closed-form linear solution can
    be loaded exactly and training adds what is not linear.
    """

    def __init__(self, n_features: int, n_genes: int, *, rank: int, hidden: int = 256, dropout: float = 0.2) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, rank, bias=False)
        self.inner = nn.Linear(n_features, hidden)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(hidden, rank, bias=False)
        self.head = nn.Linear(rank, n_genes)
        nn.init.zeros_(self.outer.weight)

    def trunk(self, features: torch.Tensor) -> torch.Tensor:
        """Shared representation, (n_spots, rank), of features (n_spots, n_features)."""
        hidden = self.dropout(nn.functional.gelu(self.inner(features)))
        shared: torch.Tensor = self.linear(features) + self.outer(hidden)
        return shared

    def hidden_at(self, parameters: Mapping[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        """Shared representation at other parameters."""
        return call(_Trunk(self), {f"network.{name}": value for name, value in parameters.items()}, features)

    def forward(self, features: torch.Tensor, n_genes: int | None = None) -> torch.Tensor:
        """Predictions (n_spots, n_genes) of the first ``n_genes`` genes (all by default)."""
        return nn.functional.linear(self.trunk(features), self.head.weight[:n_genes], self.head.bias[:n_genes])


class _Trunk(nn.Module):
    """The trunk alone, as a module to be called at other parameters."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Shared representation."""
        return self.network.trunk(features)


def load_closed_form(network: Network, start: LowRank) -> None:
    """Set trunk and head of a network to a linear solution, exactly."""
    with torch.no_grad():
        network.linear.weight.copy_(torch.from_numpy(start.trunk.T))
        network.head.weight.copy_(torch.from_numpy(start.head.T))
        network.head.bias.zero_()
        network.outer.weight.zero_()


def network_from(state: Mapping[str, torch.Tensor], genes: slice | torch.Tensor = slice(None)) -> Network:
    """Network with the parameters of a state dict, its head cut to some ``genes``, in evaluation mode."""
    rank, n_features = state["linear.weight"].shape
    head = {name: state[name][genes].contiguous() for name in ("head.weight", "head.bias")}
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
        network = Network(n_features, len(head["head.bias"]), rank=rank, hidden=len(state["inner.bias"]))
    network.load_state_dict({**state, **head})
    return network.eval()


def calibration(
    network: Network,
    inputs: torch.Tensor,
    measured: scipy.sparse.csr_matrix,
    *,
    base: torch.Tensor | None = None,
    shrinkage: float = 1.0,
) -> tuple[FloatArray, FloatArray]:
    """Slope and intercept of measured on predicted expression, (n_genes,) each, some spots after the others.

    Parameters
    ----------
    network
        In evaluation mode.
    inputs
        Of the training spots, (n_spots, n_features).
    measured
        The same spots in the units of the layer, (n_spots, n_genes).
    base
        Log of the mean normalised count of every gene, (n_genes,), where the network predicts log rates.
    shrinkage
        What slopes are multiplied by, in [0, 1].
    """
    sums = CalibrationSums(measured.shape[1])
    with torch.inference_mode():
        for rows in row_slices(len(inputs), measured.shape[1]):
            raw = network(inputs[rows])
            predicted = raw if base is None else in_log_units(raw, base)
            sums.add(predicted.double().numpy(), measured[rows])
    return sums.line(shrinkage)
