"""The training loop: closed-form start, cutoff, epochs, early stopping; arrays in, a fitted network out."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from agl_sc.core.checkpoint import Checkpoint, Tensors, load_optimizer_tensors, optimizer_tensors, part
from agl_sc.core.config import MIN_BATCH, Method, Search, TrainConfig
from agl_sc.core.gate import n_active, scaled_rank
from agl_sc.core.hypergradient import Parameters, State, call, warm_state
from agl_sc.core.losses import pearson_loss, weighted_mean
from agl_sc.core.network import LowRank, Network, load_closed_form, network_from, reduced_rank_ridge, ridge_basis
from agl_sc.core.problem import Choices, Problem, Spots, gene_weights
from agl_sc.core.search import (
    RANKS,
    TRACE_COLUMNS,
    GradientSearch,
    Validation,
    choose_alpha,
    choose_rank,
    path_search,
    race_search,
)
from agl_sc.core.sources import CachedFeatures, Source

FloatArray = NDArray[np.float64]
__all__ = ["Choices", "FitResult", "Method", "Problem", "Search", "Spots", "TrainConfig", "fit", "gene_weights"]


@dataclass(frozen=True, slots=True)
class FitResult:
    """A fitted network and how it came about."""

    state: Parameters = field(repr=False)
    """Parameters of the best epoch, on the CPU: ``network.*`` and, when fine-tuned, ``encoder.*``."""
    weights: FloatArray = field(repr=False)
    """Weight of every gene, (n_genes,)."""
    choices: Choices
    """What validation picked."""
    history: pd.DataFrame = field(repr=False)
    """epoch, loss, validation_pearson, cutoff, k; epoch 0 is the closed-form start."""
    cutoff_trace: pd.DataFrame = field(repr=False)
    """step, cutoff, k, validation_pearson; empty for methods without a cutoff."""

    def network(self) -> Network:
        """Trunk and head with these parameters, in evaluation mode."""
        state = {name.removeprefix("network."): v for name, v in self.state.items() if name.startswith("network.")}
        return network_from(state)


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
    """Parameters of the best epoch, on the CPU."""
    history: list[dict[str, float]]
    """A row per epoch."""

    def exhausted(self, patience: int) -> bool:
        """Whether the best epoch is too long ago."""
        return self.epoch - self.best_choices.n_epochs >= patience

    def update(self, problem: Problem, loss: float, weights: FloatArray) -> bool:
        """Count an epoch; True if it is the best so far, as every one is without validation spots."""
        self.epoch += 1
        score = problem.score()
        self.note(problem, loss, score=score, weights=weights)
        improved = problem.validation is None or score > self.best_score
        if improved:
            self.best_score, self.best = score, problem.state()
            self.best_choices = replace(self.picked, n_epochs=self.epoch)
        return improved

    def note(self, problem: Problem, loss: float, *, score: float, weights: FloatArray) -> None:
        """Add a row to the history."""
        k = int((weights[problem.n_targets :] >= 0.5).sum())
        row = {"epoch": self.epoch, "loss": loss, "validation_pearson": score, "cutoff": self.picked.cutoff, "k": k}
        self.history.append(row)


def fit(
    spots: Spots,
    validation: Validation | None,
    *,
    n_targets: int,
    method: Method,
    config: TrainConfig,
    choices: Choices | None = None,
    sources: tuple[Source, Source | None] | None = None,
    device: torch.device,
    seed: int = 0,
    on_improvement: Callable[[FitResult], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Fit trunk and head, and the encoder where ``sources`` bring one.

    Parameters
    ----------
    spots
        Training spots.
    validation
        Validation spots, which pick penalty, cutoff and epoch; None trains with the given ``choices``.
    n_targets
        Number of leading genes that are targets.
    method
        ``"pgl"`` (targets only), ``"agl"`` (all auxiliary genes) or ``"dkgsb"`` (soft top-k, cutoff learned).
    config
        Settings.
    choices
        What an earlier fit picked; needed where ``validation`` is None.
    sources
        Where the inputs of training and validation spots come from; their cached features by default.
    device
        Where to train.
    seed
        Seed of initial weights, batches and dropout.
    on_improvement
        Called with the state of every epoch that is the best so far.
    checkpoint
        Written after every epoch; where it exists, training continues from it and ends as if it had not stopped.

    Returns
    -------
    The best epoch by validation, or the last one without validation.
    """
    start, picked, trace = _start(spots, validation, n_targets=n_targets, how=(method, config, choices))
    if method == "dkgsb" and config.search == "race" and choices is None:
        race = partial(
            fit, spots, validation, n_targets=n_targets, method=method, config=config, device=device, seed=seed
        )
        cutoff, trace = race_search(lambda at, n: _best_score(race(choices=replace(picked, cutoff=at, n_epochs=n))))
        trace["k"] = np.round(trace["cutoff"] * (spots.expression.shape[1] - n_targets)).astype(int)
        start, picked, _ = _start(
            spots, validation, n_targets=n_targets, how=(method, config, replace(picked, cutoff=cutoff))
        )
    problem = _problem(spots, validation, n_targets=n_targets, sources=sources, how=(start, config, device, seed))
    optimizer = _optimizer(problem, config)
    searching = method == "dkgsb" and config.search == "gradient" and choices is None
    search = _gradient_search(problem, picked, config) if searching else None
    now = _begin(problem, picked, _weights(problem, method, config=config, cutoff=picked.cutoff))
    if checkpoint is not None:
        now = _resume(checkpoint, problem, optimizer=optimizer, search=search) or now
    if on_improvement is not None and validation is not None and now.epoch == 0:
        on_improvement(_result(problem, now, method=method, config=config, trace=trace))
    last = config.max_epochs if choices is None else choices.n_epochs
    with tqdm(total=last, initial=now.epoch, desc=f"{method}: epochs", disable=None) as bar:
        while now.epoch < last and not now.exhausted(config.patience):
            randomness = torch.Generator().manual_seed(seed * 1_000_003 + now.epoch + 1)
            if search is not None and now.epoch > 0:  # the first epoch warms the optimiser's moments
                _search_epoch(problem, search, optimizer=optimizer, randomness=randomness, config=config)
                now.picked = replace(now.picked, cutoff=float(search.cutoff))
            weights = _weights(problem, method, config=config, cutoff=now.picked.cutoff)
            loss = _train_epoch(problem, weights, optimizer=optimizer, randomness=randomness, config=config)
            improved = now.update(problem, loss, weights)
            if improved and on_improvement is not None and validation is not None:
                on_improvement(_result(problem, now, method=method, config=config, trace=trace))
            if checkpoint is not None:
                checkpoint.write(*_progress(problem, now, optimizer=optimizer, search=search))
            bar.set_postfix(loss=f"{loss:.3f}", pearson=f"{now.history[-1]['validation_pearson']:.3f}", refresh=False)
            bar.update()
    return _result(problem, now, method=method, config=config, trace=None if searching else trace)


def _best_score(result: FitResult) -> float:
    return float(result.history["validation_pearson"].max())


def _start(
    spots: Spots, validation: Validation | None, *, n_targets: int, how: tuple[Method, TrainConfig, Choices | None]
) -> tuple[LowRank, Choices, pd.DataFrame]:
    """Closed-form trunk and head, what they were fitted with, and the trace of the path search."""
    method, config, choices = how
    n_genes = spots.expression.shape[1]
    basis = ridge_basis(spots.features, spots.expression)
    trace = pd.DataFrame(columns=list(TRACE_COLUMNS))
    if choices is None:
        if validation is None:
            msg = "Without validation spots, choices= must say which penalty, cutoff and number of epochs to use."
            raise ValueError(msg)
        alpha = choose_alpha(basis, validation)
        cutoff = {"pgl": 0.0, "agl": 1.0, "dkgsb": config.start_cutoff}[method]
        if method == "dkgsb" and config.search == "path":
            cutoff, trace = path_search(basis, validation, alpha=alpha, rank=config.rank)
        choices = Choices(alpha, config.rank or RANKS[-1], cutoff, 0)
    weights = gene_weights(method, choices.cutoff, n_targets=n_targets, n_genes=n_genes, temperature=config.temperature)
    start = reduced_rank_ridge(basis, weights, alpha=choices.alpha, rank=min(choices.rank, len(basis.singular_values)))
    if validation is not None and config.rank is None:
        start = start.cut(choose_rank(start, validation))
    return start, replace(choices, rank=start.trunk.shape[1]), trace


def _problem(
    spots: Spots,
    validation: Validation | None,
    *,
    n_targets: int,
    sources: tuple[Source, Source | None] | None,
    how: tuple[LowRank, TrainConfig, torch.device, int],
) -> Problem:
    start, config, device, seed = how
    if sources is None:
        held_out = None if validation is None else CachedFeatures(validation.features, device)
        sources = CachedFeatures(spots.features, device), held_out
    n_features, rank = start.trunk.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(n_features, start.head.shape[1], rank=rank, hidden=config.hidden, dropout=config.dropout)
    load_closed_form(network, start)
    expression = torch.from_numpy(spots.expression.astype(np.float32)).to(device)
    return Problem(network.to(device), sources[0], expression, sources[1], validation, n_targets)


def _optimizer(problem: Problem, config: TrainConfig) -> torch.optim.AdamW:
    rates = {"network": config.lr, "encoder": config.encoder_lr}
    groups = [{"params": list(module.parameters()), "lr": rates[part]} for part, module in problem.parts().items()]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _train_epoch(
    problem: Problem,
    weights: FloatArray,
    *,
    optimizer: torch.optim.AdamW,
    randomness: torch.Generator,
    config: TrainConfig,
) -> float:
    """One pass over the training spots, computing only genes of weight above zero; mean loss."""
    n_active_genes = int((weights > 0).sum())
    active = torch.from_numpy(weights[:n_active_genes].astype(np.float32)).to(problem.expression.device)
    problem.source.begin_epoch()
    problem.network.train()
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=randomness)))
        for index in _batches(len(problem.source), config.batch_size, randomness):
            inputs = problem.source.inputs(index, randomness)
            measured = problem.expression[index.to(inputs.device), :n_active_genes]
            loss = weighted_mean(pearson_loss(problem.network(inputs, n_active_genes), measured), active)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _batches(n_spots: int, batch_size: int, randomness: torch.Generator) -> list[torch.Tensor]:
    order = torch.randperm(n_spots, generator=randomness)
    return [index for index in torch.split(order, batch_size) if len(index) >= min(MIN_BATCH, n_spots)]


def _gradient_search(problem: Problem, picked: Choices, config: TrainConfig) -> GradientSearch:
    device = problem.expression.device
    cutoff = torch.tensor(picked.cutoff, dtype=torch.float32, device=device)
    n_auxiliary = problem.expression.shape[1] - problem.n_targets
    return GradientSearch(
        cutoff=cutoff,
        prior_rank=scaled_rank(n_auxiliary).float().to(device),
        temperature=config.temperature,
        inner_steps=config.inner_steps,
        inner_lr=config.lr,
        optimizer=torch.optim.Adam([cutoff], lr=config.outer_lr),
    )


def _search_epoch(
    problem: Problem,
    search: GradientSearch,
    *,
    optimizer: torch.optim.AdamW,
    randomness: torch.Generator,
    config: TrainConfig,
) -> float:
    """One step of the cutoff per training batch against all validation spots; the cutoff afterwards.

    The inner steps start from the training optimiser's own moments, and leave network and optimiser alone. Dropout is off.
    """

    def predict(at: Parameters, inputs: torch.Tensor, n_genes: int) -> torch.Tensor:
        return call(problem.network, at, inputs, n_genes)

    def leading(values: Parameters, n_genes: int) -> Parameters:
        return {name: value[:n_genes] if name.startswith("head.") else value for name, value in values.items()}

    if problem.validation is None or problem.validation_source is None:
        return float(search.cutoff)
    problem.network.eval()
    live = dict(problem.network.named_parameters())
    parameters = {name: value.detach() for name, value in live.items()}
    state = warm_state(optimizer, live)
    measured = torch.from_numpy(problem.validation.targets.astype(np.float32)).to(problem.expression.device)
    held_out = torch.cat(list(problem.validation_source.all_inputs())).detach(), measured
    for index in _batches(len(problem.source), config.batch_size, randomness):
        n_genes = problem.n_targets + n_active(float(search.cutoff), len(search.prior_rank), config.temperature)
        inputs = problem.source.inputs(index, randomness).detach()
        expression = problem.expression[index.to(inputs.device), :n_genes]
        moments = State(leading(state.mean, n_genes), leading(state.square, n_genes), state.n_steps)
        search.step(predict, leading(parameters, n_genes), state=moments, batches=((inputs, expression), held_out))
    return float(search.cutoff)


def _weights(problem: Problem, method: Method, *, config: TrainConfig, cutoff: float) -> FloatArray:
    n_genes = problem.expression.shape[1]
    return gene_weights(method, cutoff, n_targets=problem.n_targets, n_genes=n_genes, temperature=config.temperature)


def _result(
    problem: Problem, now: Progress, *, method: Method, config: TrainConfig, trace: pd.DataFrame | None
) -> FitResult:
    history = pd.DataFrame(now.history)
    if trace is None:
        trace = history.rename(columns={"epoch": "step"})[list(TRACE_COLUMNS)]
    weights = _weights(problem, method, config=config, cutoff=now.best_choices.cutoff)
    return FitResult(now.best, weights, now.best_choices, history, trace)


def _begin(problem: Problem, picked: Choices, weights: FloatArray) -> Progress:
    score = problem.score()
    now = Progress(0, picked, best_score=score, best_choices=picked, best=problem.state(), history=[])
    now.note(problem, float("nan"), score=score, weights=weights)
    return now


def _progress(
    problem: Problem, now: Progress, *, optimizer: torch.optim.Optimizer, search: GradientSearch | None
) -> tuple[Tensors, dict[str, Any]]:
    """Everything that a later epoch depends on, as tensors and plain values."""
    tensors = {f"now.{name}": tensor for name, tensor in problem.state().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in now.best.items()}
    tensors |= optimizer_tensors(optimizer, "optimizer.")
    if search is not None:
        tensors |= {"cutoff": search.cutoff, **optimizer_tensors(search.optimizer, "search.")}
    plain = {"epoch": now.epoch, "best_score": now.best_score, "history": now.history}
    return tensors, {**plain, "picked": asdict(now.picked), "best_choices": asdict(now.best_choices)}


def _resume(
    checkpoint: Checkpoint, problem: Problem, *, optimizer: torch.optim.Optimizer, search: GradientSearch | None
) -> Progress | None:
    """Put everything back to where a checkpoint left it."""
    read = checkpoint.read()
    if read is None:
        return None
    tensors, plain = read
    problem.load(part(tensors, "now."))
    load_optimizer_tensors(optimizer, tensors, "optimizer.")
    if search is not None:
        search.cutoff.copy_(tensors["cutoff"])
        load_optimizer_tensors(search.optimizer, tensors, "search.")
    return Progress(
        plain["epoch"],
        Choices(**plain["picked"]),
        best_score=plain["best_score"],
        best_choices=Choices(**plain["best_choices"]),
        best=part(tensors, "best."),
        history=plain["history"],
    )
