"""Features -> shared trunk -> gene head, and its closed-form start by reduced-rank ridge."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import nn

FloatArray = NDArray[np.float64]


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
        own = {f"network.{name}": value for name, value in parameters.items()}
        hidden: torch.Tensor = torch.func.functional_call(_Trunk(self), own, (features,))
        return hidden

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


@dataclass(frozen=True, slots=True)
class RidgeBasis:
    """Training features and all genes in the eigenbasis of the features' Gram matrix.

    With features F = U diag(s) V', ridge of the genes Z is ``F V diag(s / (s^2 + alpha)) U'Z``. Everything that a
    reduced-rank fit needs is of size min(n_spots, n_features), whatever the number of genes.
    """

    singular_values: FloatArray
    """Of the features, (q,), q <= min(n_spots, n_features)."""
    loadings: FloatArray
    """V, (n_features, q)."""
    genes: FloatArray
    """U'Z, (q, n_genes)."""
    n_spots: int
    """Number of training spots."""


def ridge_basis(features: FloatArray, genes: FloatArray) -> RidgeBasis:
    """Decompose centred features (n_spots, n_features) and project centred genes (n_spots, n_genes) once.

    Works on the smaller of the kernel (n_spots, n_spots) and the covariance (n_features, n_features).
    """
    n_spots, n_features = features.shape
    if n_spots < n_features:
        squares, left = np.linalg.eigh(features @ features.T)
        keep = squares > squares[-1] * 1e-10
        singular_values, left = np.sqrt(squares[keep]), left[:, keep]
        loadings = features.T @ left / singular_values
    else:
        squares, loadings = np.linalg.eigh(features.T @ features)
        keep = squares > squares[-1] * 1e-10
        singular_values, loadings = np.sqrt(squares[keep]), loadings[:, keep]
        left = features @ loadings / singular_values
    return RidgeBasis(singular_values, loadings, left.T @ genes, n_spots)


def ridge_coefficients(basis: RidgeBasis, alpha: float, n_genes: int | None = None) -> FloatArray:
    """Ridge regression of the first ``n_genes`` genes on the features, (n_features, n_genes)."""
    shrunk = basis.singular_values / (basis.singular_values**2 + alpha)
    return basis.loadings @ (shrunk[:, None] * basis.genes[:, :n_genes])


def _fitted(basis: RidgeBasis, alpha: float) -> FloatArray:
    """Ridge fit of the training spots in the eigenbasis, U'HZ, (q, n_genes)."""
    shrinkage = basis.singular_values**2 / (basis.singular_values**2 + alpha)
    return shrinkage[:, None] * basis.genes


@dataclass(frozen=True, slots=True)
class LowRank:
    """A linear predictor of low rank: ``features @ trunk @ head``."""

    trunk: FloatArray
    """(n_features, rank); its output has unit mean square over the training spots."""
    head: FloatArray
    """(rank, n_genes)."""

    def cut(self, rank: int) -> "LowRank":
        """The best solution of a lower rank: leading columns and rows."""
        return LowRank(self.trunk[:, :rank], self.head[:rank])

    def predict(self, features: FloatArray) -> FloatArray:
        """Predictions (n_spots, n_genes)."""
        predicted: FloatArray = features @ self.trunk @ self.head
        return predicted


def _low_rank(basis: RidgeBasis, fitted: FloatArray, *, gram: FloatArray, rank: int) -> LowRank:
    rank = min(rank, len(gram))
    leading = scipy.linalg.eigh(gram, subset_by_index=(len(gram) - rank, len(gram) - 1))[1][:, ::-1]
    scale = np.sqrt(basis.n_spots)
    trunk = basis.loadings @ (leading / basis.singular_values[:, None]) * scale
    return LowRank(trunk, leading.T @ fitted / scale)


def reduced_rank_ridge(basis: RidgeBasis, weights: FloatArray, *, alpha: float, rank: int) -> LowRank:
    """Best rank-``rank`` approximation of the ridge fit under gene weights.

    The leading eigenvectors of ``H Z W Z' H`` span the shared trunk, so auxiliary genes shape it in closed form.

    Parameters
    ----------
    basis
        Of the training spots.
    weights
        Non-negative weight of every gene, (n_genes,).
    alpha
        Ridge penalty on the features' scale.
    rank
        Width of the trunk; at most min(n_spots, n_features).
    """
    fitted = _fitted(basis, alpha)
    active = weights > 0
    gram = (fitted[:, active] * weights[active]) @ fitted[:, active].T
    return _low_rank(basis, fitted, gram=gram, rank=rank)


def reduced_rank_path(
    basis: RidgeBasis, n_targets: int, n_auxiliary: NDArray[np.int64], *, alpha: float, rank: int
) -> Iterator[LowRank]:
    """Reduced-rank ridge of the targets for every number of auxiliary genes, by one running sum over genes.

    Parameters
    ----------
    basis
        Of the training spots; genes are the targets, then the auxiliary genes by prior rank.
    n_targets
        Number of leading genes that are targets (weight 1).
    n_auxiliary
        Increasing numbers of auxiliary genes to include (weight 1).
    alpha
        Ridge penalty on the features' scale.
    rank
        Width of the trunk.

    Yields
    ------
    One solution per entry of ``n_auxiliary``, its head for the targets only.
    """
    fitted = _fitted(basis, alpha)
    gram = fitted[:, :n_targets] @ fitted[:, :n_targets].T
    done = n_targets
    for n in n_auxiliary:
        segment = fitted[:, done : n_targets + n]
        gram = gram + segment @ segment.T
        done = n_targets + int(n)
        yield _low_rank(basis, fitted[:, :n_targets], gram=gram, rank=rank)


def load_closed_form(network: Network, start: LowRank) -> None:
    """Set trunk and head of a network to a linear solution, exactly."""
    with torch.no_grad():
        network.linear.weight.copy_(torch.from_numpy(start.trunk.T))
        network.head.weight.copy_(torch.from_numpy(start.head.T))
        network.head.bias.zero_()
        network.outer.weight.zero_()


def network_from(state: Mapping[str, torch.Tensor], n_genes: int | None = None) -> Network:
    """Network with the parameters of a state dict, its head cut to the leading ``n_genes``, in evaluation mode."""
    rank, n_features = state["linear.weight"].shape
    head = {name: state[name][:n_genes].contiguous() for name in ("head.weight", "head.bias")}
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
        network = Network(n_features, len(head["head.bias"]), rank=rank, hidden=len(state["inner.bias"]))
    network.load_state_dict({**state, **head})
    return network.eval()
