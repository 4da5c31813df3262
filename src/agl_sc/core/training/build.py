"""From arrays to a problem on a device: network at its start, inputs, measurements, losses."""

import numpy as np
import torch
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray
from agl_sc.core.config import LEVEL_FREE, TrainConfig
from agl_sc.core.linear.closed_form import LowRank
from agl_sc.core.network.bilevel import Problem
from agl_sc.core.network.network import Network, load_closed_form
from agl_sc.core.network.objective import Objective
from agl_sc.core.network.sources import CachedFeatures, InputSource
from agl_sc.core.numerics.constant import varying
from agl_sc.core.numerics.tensors import Parameters
from agl_sc.core.spots.counts import count_law, to_log_rate
from agl_sc.core.spots.expression import ExpressionOnDevice, gene_blocks
from agl_sc.core.spots.spots import Spots, Validation


def make_problem(
    spots: Spots,
    validation: Validation | None,
    *,
    n_targets: int,
    start: LowRank,
    config: TrainConfig,
    state: Parameters | None,
    sources: tuple[InputSource, InputSource | None] | None,
    device: torch.device,
    seed: int,
) -> Problem:
    """Network from ``state``, from the closed-form ``start``, or random, as ``config.start`` says.

    Raises
    ------
    ValueError
        The loss is a likelihood, and the spots bring no counts.
    """
    if sources is None:
        held_out = None if validation is None else CachedFeatures(validation.features, device)
        sources = CachedFeatures(spots.features, device), held_out
    n_features, rank = start.trunk.shape
    hidden = config.hidden
    if state is not None:
        rank, hidden = len(state["network.linear.weight"]), len(state["network.inner.bias"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(n_features, start.head.shape[1], rank=rank, hidden=hidden, dropout=config.dropout)
    objective, base, stretch = _objective(spots, config, device)
    if (
        config.loss in LEVEL_FREE
    ):  # which no bias changes: its gradient is rounding, that Adam would make whole steps of
        network.head.bias.requires_grad_(False)  # noqa: FBT003 -- torch's signature
    if config.start == "closed_form" and state is None:
        load_closed_form(network, LowRank(start.trunk, start.head * stretch))
    problem = Problem(
        network=network.to(device),
        source=sources[0],
        expression=ExpressionOnDevice(spots.expression, device),
        sections=torch.from_numpy(spots.sections).to(device),
        objective=objective,
        counts=spots.counts if base is not None else None,
        base=base,
        validation_source=sources[1],
        validation=validation,
        n_targets=n_targets,
    )
    if state is not None:
        problem.load(state)
    return problem


def make_optimizer(problem: Problem, own: list[torch.nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW on network, encoder, and what a weighting trains along with them, whose decay would be a bias."""
    rates = {"network": config.rate(problem.network.linear.in_features), "encoder": config.encoder_lr}
    groups: list[dict[str, object]] = [
        {"params": list(module.parameters()), "lr": rates[part]} for part, module in problem.parts().items()
    ]
    if own:
        groups.append({"params": own, "lr": config.lr, "weight_decay": 0.0})
    fused = problem.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)
    for parameter in problem.network.head.parameters():  # so that there are moments to narrow before the first step
        step = torch.zeros((), device=problem.device if fused else None)
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": step, **moments}
    return optimizer


def _objective(
    spots: Spots, config: TrainConfig, device: torch.device
) -> tuple[Objective, torch.Tensor | None, FloatArray]:
    """Losses; for a likelihood the mean normalised count; what the head is multiplied by, (n_genes,)."""
    ones, empty = np.ones(spots.expression.shape[1]), torch.zeros(0, device=device)
    if config.loss == "pearson":
        return Objective("pearson", None, empty, empty), None, ones
    if config.loss == "mse":
        return Objective("mse", _panels(_varying(spots), device), empty, empty), None, ones
    if spots.counts is None:
        msg = f"loss={config.loss!r} needs raw counts; pass Spots with counts."
        raise ValueError(msg)
    law = count_law(spots.counts, spots.sections)

    def tensor(values: FloatArray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(device)

    objective = Objective(config.loss, _panels(law.panels, device), tensor(law.log_share), tensor(law.log_dispersion))
    return objective, tensor(law.base), to_log_rate(spots.expression.typical_scale, law.base)


def _panels(measured: NDArray[np.bool_], device: torch.device) -> torch.Tensor | None:
    """Rows of sections without spots do not count."""
    return None if measured[measured.any(axis=1)].all() else torch.from_numpy(measured).to(device)


def _varying(spots: Spots) -> NDArray[np.bool_]:
    """Genes that are not the same in all spots of a section, (n_sections, n_genes)."""
    found = np.zeros((int(spots.sections.max()) + 1, spots.expression.shape[1]), dtype=bool)
    for code in np.unique(spots.sections):
        for genes, values in gene_blocks(spots.expression.values[spots.sections == code]):
            found[code, genes] = varying(values)
    return found
