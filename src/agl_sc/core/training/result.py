"""How far a training has come: its best epoch, its history, and what a checkpoint holds."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray
from agl_sc.core.choices import TRACE_COLUMNS, Choices
from agl_sc.core.linear.choose_denoising import NOT_DENOISED, DenoisingChoice
from agl_sc.core.network.bilevel import Problem
from agl_sc.core.network.network import Network, network_from
from agl_sc.core.numerics.tensors import Parameters, Tensors, part
from agl_sc.core.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from agl_sc.core.training.plan import Plan
from agl_sc.core.weighting import Weighting


@dataclass(frozen=True, slots=True)
class FitResult:
    """A fitted network and how it came about."""

    state: Parameters = field(repr=False)
    """Parameters of the best epoch, on the CPU: ``network.*`` and, when fine-tuned, ``encoder.*``."""
    weights: FloatArray = field(repr=False)
    """Weight of every gene at the best epoch, in [0, 1], (n_genes,)."""
    selected: NDArray[np.bool_] = field(repr=False)
    """Genes that the network may be asked for, (n_genes,)."""
    choices: Choices
    """What validation picked."""
    history: pd.DataFrame = field(repr=False)
    """epoch, loss, validation_pearson, cutoff, k, skipped (outer steps); epoch 0 is the start."""
    cutoff_trace: pd.DataFrame = field(repr=False)
    """step, cutoff, k, validation_pearson; empty where nothing was searched."""
    shrinkage: float = 1.0
    """What slopes of the calibration are multiplied by."""
    denoising: DenoisingChoice = NOT_DENOISED
    """How far the targets that were trained on were denoised."""
    refitted: bool = False
    """Whether the parameters were fitted to the validation spots too."""

    @property
    def score(self) -> float:
        """Best validation Pearson; NaN without validation spots."""
        return float(self.history["validation_pearson"].max())

    def network(self) -> Network:
        """Trunk and head with these parameters, in evaluation mode."""
        return network_from(part(self.state, "network."))


@dataclass(slots=True)
class Progress:
    """How far training has come."""

    epoch: int
    """Epochs done."""
    picked: Choices
    """In force now."""
    best_score: float
    """Best validation Pearson so far."""
    best_choices: Choices
    """At the best epoch."""
    best: Parameters
    """Parameters of the best epoch, on the CPU, and ``genes.weights`` and ``genes.selected`` then."""
    history: list[dict[str, float]]
    """A row per epoch."""

    def exhausted(self, patience: int) -> bool:
        """Whether the best epoch is too long ago."""
        return self.epoch - self.best_choices.n_epochs >= patience

    def update(self, problem: Problem, weighting: Weighting, *, loss: float, score: float) -> bool:
        """Count an epoch; True if it is the best so far, as every one is without validation spots."""
        self.epoch += 1
        self.note(weighting, loss=loss, score=score)
        improved = problem.validation is None or score > self.best_score
        if improved:
            self.best_score, self.best = score, _snapshot(problem, weighting)
            self.best_choices = replace(self.picked, n_epochs=self.epoch)
        return improved

    def note(self, weighting: Weighting, *, loss: float, score: float) -> None:
        """Add a row to the history."""
        if weighting.cutoff is not None:
            self.picked = replace(self.picked, cutoff=weighting.cutoff)
        k = int((weighting.weights()[weighting.n_targets :] >= 0.5).sum())
        row = {"epoch": self.epoch, "loss": loss, "validation_pearson": score, "cutoff": self.picked.cutoff, "k": k}
        self.history.append({**row, "skipped": weighting.n_skipped})


def _snapshot(problem: Problem, weighting: Weighting) -> Parameters:
    genes = {
        "genes.weights": torch.from_numpy(np.asarray(weighting.weights(), dtype=float)),
        "genes.selected": torch.from_numpy(np.asarray(weighting.selected(), dtype=bool)),
    }
    return {**problem.state(), **genes}


def result_of(now: Progress, weighting: Weighting, plan: Plan) -> FitResult:
    """The best epoch, and how it came about."""
    history = pd.DataFrame(now.history)
    trace = plan.trace
    if weighting.cutoff is not None:
        trace = history.rename(columns={"epoch": "step"})[list(TRACE_COLUMNS)]
    state = {name: value for name, value in now.best.items() if not name.startswith("genes.")}
    weights, selected = now.best["genes.weights"].numpy(), now.best["genes.selected"].numpy()
    return FitResult(state, weights, selected, now.best_choices, history, trace)


def begin(problem: Problem, weighting: Weighting, picked: Choices, *, score: float) -> Progress:
    """Before the first epoch."""
    start = replace(picked, n_epochs=0)
    now = Progress(0, start, best_score=score, best_choices=start, best=_snapshot(problem, weighting), history=[])
    now.note(weighting, loss=float("nan"), score=score)
    return now


def to_save(
    problem: Problem, now: Progress, *, weighting: Weighting, optimizer: torch.optim.Optimizer, plan: Plan
) -> tuple[Tensors, dict[str, Any]]:
    """Everything that a later epoch depends on, as tensors and plain values."""
    tensors = {f"now.{name}": tensor for name, tensor in problem.state().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in now.best.items()}
    tensors |= {f"weighting.{name}": tensor for name, tensor in weighting.state_dict().items()}
    tensors |= optimizer_tensors(optimizer, "optimizer.")
    for name, own in weighting.optimizers().items():
        tensors |= optimizer_tensors(own, f"outer.{name}.")
    plain = {"epoch": now.epoch, "best_score": now.best_score, "history": now.history, "plan": plan.plain()}
    return tensors, {**plain, "picked": asdict(now.picked), "best_choices": asdict(now.best_choices)}


def resume(
    saved: tuple[Tensors, dict[str, Any]], problem: Problem, *, weighting: Weighting, optimizer: torch.optim.Optimizer
) -> Progress:
    """Put everything back to where a checkpoint left it."""
    tensors, plain = saved
    problem.load(part(tensors, "now."))
    weighting.load_state_dict(part(tensors, "weighting."))
    load_optimizer_tensors(optimizer, tensors, "optimizer.")
    for name, own in weighting.optimizers().items():
        load_optimizer_tensors(own, tensors, f"outer.{name}.")
    return Progress(
        plain["epoch"],
        Choices(**plain["picked"]),
        best_score=plain["best_score"],
        best_choices=Choices(**plain["best_choices"]),
        best=part(tensors, "best."),
        history=plain["history"],
    )
