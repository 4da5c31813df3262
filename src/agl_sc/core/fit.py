"""The training loop: closed-form start, cutoff, epochs, early stopping; arrays in, a fitted network out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from agl_sc.core.config import MIN_BATCH, Method, Search, TrainConfig
from agl_sc.core.gate import n_active, scaled_rank, soft_top_k
from agl_sc.core.hypergradient import Parameters, warm_state
from agl_sc.core.losses import pearson_loss, weighted_mean
from agl_sc.core.network import LowRank, Network, load_closed_form, network_from, reduced_rank_ridge, ridge_basis
from agl_sc.core.search import RANKS, TRACE_COLUMNS, GradientSearch, Validation, choose_alpha, choose_rank, path_search
from agl_sc.core.sources import CachedFeatures, Source

FloatArray = NDArray[np.float64]
__all__ = ["Choices", "FitResult", "Method", "Problem", "Search", "Spots", "TrainConfig", "fit", "gene_weights"]


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

    def score(self) -> float:
        """Mean validation Pearson of the targets; NaN without validation spots."""
        if self.validation is None or self.validation_source is None:
            return float("nan")
        self.network.eval()
        with torch.inference_mode():
            batches = self.validation_source.all_inputs()
            predicted = torch.cat([self.network(inputs, self.n_targets) for inputs in batches])
        return self.validation.score(predicted.cpu().double().numpy())


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

    Returns
    -------
    The best epoch by validation, or the last one without validation.
    """
    start, picked, trace = _start(spots, validation, n_targets=n_targets, how=(method, config, choices))
    problem = _problem(spots, validation, n_targets=n_targets, sources=sources, how=(start, config, device, seed))
    optimizer = _optimizer(problem, config)
    search = (
        _gradient_search(problem, picked, config)
        if method == "dkgsb" and config.search == "gradient" and choices is None
        else None
    )
    best_score, best = problem.score(), _result(problem, method, config=config, choices=picked)
    history = [_row(0, float("nan"), score=best_score, result=best, n_targets=n_targets)]
    last = config.max_epochs if choices is None else choices.n_epochs
    for epoch in tqdm(range(1, last + 1), desc=f"{method}: epochs", disable=None):
        randomness = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        if search is not None and epoch > 1:  # the first epoch warms the optimiser's moments
            cutoff = _search_epoch(problem, search, optimizer=optimizer, randomness=randomness, config=config)
            picked = replace(picked, cutoff=cutoff)
        weights = gene_weights(
            method,
            picked.cutoff,
            n_targets=n_targets,
            n_genes=problem.expression.shape[1],
            temperature=config.temperature,
        )
        loss = _train_epoch(problem, weights, optimizer=optimizer, randomness=randomness, config=config)
        score = problem.score()
        current = _result(problem, method, config=config, choices=replace(picked, n_epochs=epoch))
        history.append(_row(epoch, loss, score=score, result=current, n_targets=n_targets))
        if validation is None or score > best_score:
            best_score, best = score, current
            if on_improvement is not None:
                on_improvement(replace(best, history=pd.DataFrame(history), cutoff_trace=trace))
        elif epoch - best.choices.n_epochs >= config.patience:
            break
    table = pd.DataFrame(history)
    return replace(best, history=table, cutoff_trace=_gradient_trace(table) if search is not None else trace)


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
        predicted: torch.Tensor = torch.func.functional_call(problem.network, at, (inputs, n_genes))
        return predicted

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
        search.step(predict, parameters, state=state, batches=((inputs, expression), held_out))
    return float(search.cutoff)


def _result(problem: Problem, method: Method, *, config: TrainConfig, choices: Choices) -> FitResult:
    n_genes = problem.expression.shape[1]
    weights = gene_weights(
        method, choices.cutoff, n_targets=problem.n_targets, n_genes=n_genes, temperature=config.temperature
    )
    return FitResult(problem.state(), weights, choices, pd.DataFrame(), pd.DataFrame(columns=list(TRACE_COLUMNS)))


def _row(epoch: int, loss: float, *, score: float, result: FitResult, n_targets: int) -> dict[str, float]:
    k = int((result.weights[n_targets:] >= 0.5).sum())
    return {"epoch": epoch, "loss": loss, "validation_pearson": score, "cutoff": result.choices.cutoff, "k": k}


def _gradient_trace(history: pd.DataFrame) -> pd.DataFrame:
    return history.rename(columns={"epoch": "step"})[list(TRACE_COLUMNS)]
