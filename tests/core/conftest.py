"""A small bi-level problem, in float64 for what must agree to many digits; weights of a small Dinov2."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from agl_sc.core.config import LIKELIHOODS, LossName
from agl_sc.core.network.bilevel import Bilevel, Problem
from agl_sc.core.network.network import Network
from agl_sc.core.network.objective import Objective
from agl_sc.core.network.sources import CachedFeatures
from agl_sc.core.spots.counts import Counts, count_law
from agl_sc.core.spots.spots import Validation

CPU = torch.device("cpu")
N_FEATURES, N_TARGETS, N_SPOTS, N_HELD_OUT = 6, 3, 40, 30


class Dense:
    """Expression as one matrix, in any precision."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.device = values.device

    def batch(self, index: torch.Tensor, n_genes: int) -> torch.Tensor:
        return self.values[index, :n_genes]


@pytest.fixture(scope="session")
def make_bilevel() -> Callable[..., Bilevel]:
    """From ``n_auxiliary``, ``loss``, ``n_sections``, ``dropout``, ``dtype`` to a training under way, its Adam warm."""
    return bilevel


def bilevel(
    *,
    n_auxiliary: int = 12,
    loss: LossName = "pearson",
    n_sections: int = 2,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Bilevel:
    rng = np.random.default_rng(0)
    n_genes = N_TARGETS + n_auxiliary
    features = rng.normal(size=(N_SPOTS + N_HELD_OUT, N_FEATURES))
    signal = features @ rng.normal(size=(N_FEATURES, n_genes)) / 2
    expression = signal + rng.normal(size=signal.shape)
    sections = np.arange(len(features)) % n_sections
    training = slice(0, N_SPOTS)
    values = scipy.sparse.csr_matrix(rng.poisson(np.exp(signal[training] / 2 + 1)).astype(float))
    library = np.asarray(values.sum(axis=1)).ravel() + 10.0
    counts = Counts(values, library, float(library.mean()))
    counted = loss in LIKELIHOODS
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(N_FEATURES, n_genes, rank=2, hidden=4, dropout=dropout).to(dtype)
        torch.nn.init.normal_(network.outer.weight, std=0.3)
    problem = Problem(
        network=network.eval(),
        source=source_of(features[training], dtype),
        expression=Dense(torch.from_numpy(expression[training]).to(dtype)),
        sections=torch.from_numpy(sections[training]),
        objective=objective_of(loss, counts, sections[training], dtype=dtype),
        counts=counts if counted else None,
        base=torch.zeros(n_genes, dtype=dtype) if counted else None,
        validation_source=source_of(features[N_SPOTS:], dtype),
        validation=Validation(features[N_SPOTS:], expression[N_SPOTS:, :N_TARGETS], sections[N_SPOTS:]),
        n_targets=N_TARGETS,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    everything = torch.arange(N_SPOTS)
    made = Bilevel(problem, optimizer, [everything], torch.Generator().manual_seed(0))
    for _ in range(4):
        optimizer.zero_grad()
        batch = made.batch(everything, n_genes)
        made.losses(dict(network.named_parameters()), batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    return made


def source_of(features: Any, dtype: torch.dtype) -> CachedFeatures:
    source = CachedFeatures(features, CPU)
    source.features = torch.from_numpy(features).to(dtype)
    return source


def objective_of(loss: LossName, counts: Counts, sections: Any, *, dtype: torch.dtype) -> Objective:
    empty = torch.zeros(0)
    if loss in ("pearson", "mse"):
        return Objective(loss, None, empty, empty)
    law = count_law(counts, sections)
    return Objective(loss, None, *(torch.from_numpy(v).to(dtype) for v in (law.log_share, law.log_dispersion)))


State = dict[str, torch.Tensor]

CONFIG = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "mlp_ratio": 4,
}  # fmt: skip


def dinov2_state(n_hidden: int, *, gated: bool) -> State:
    """Made-up weights under the names of transformers, every one a wave of its own."""
    wide = {"weights_in": (2 * n_hidden, 8), "weights_out": (8, n_hidden)}
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, 8),
        "embeddings.mask_token": (1, 8),
        "embeddings.position_embeddings": (1, 5, 8),
        "embeddings.patch_embeddings.projection.weight": (8, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (8,),
        "layernorm.weight": (8,),
        "layernorm.bias": (8,),
    }
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        linear = {f"attention.attention.{part}": (8, 8) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (8, 8)} | {f"mlp.{k}": v for k, v in wide.items()} if gated else {
            "attention.output.dense": (8, 8), "mlp.fc1": (n_hidden, 8), "mlp.fc2": (8, n_hidden)
        }  # fmt: skip
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{layer}.{name}.weight": (8,), f"{layer}.{name}.bias": (8,)}
        shapes |= {f"{layer}.layer_scale{i}.lambda1": (8,) for i in (1, 2)}
    return {
        name: torch.sin(torch.arange(math.prod(shape), dtype=torch.float32) * 0.7 + 3 * i).reshape(shape)
        for i, (name, shape) in enumerate(sorted(shapes.items()))
    }


@pytest.fixture
def dinov2() -> Callable[[bool], tuple[dict[str, Any], State]]:
    """Configuration and weights of a small Dinov2 as transformers writes them, with a gated perceptron or a plain one."""
    return lambda gated: ({**CONFIG, "use_swiglu_ffn": gated}, dinov2_state(24 if gated else 32, gated=gated))
