"""Rounds of searching and training from a trained network, until validation gains nothing more."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator

from agl_sc.core.choices import TRACE_COLUMNS, Earlier
from agl_sc.core.config import TrainConfig
from agl_sc.core.network.bilevel import Bilevel, Problem
from agl_sc.core.network.sources import InputSource
from agl_sc.core.once import Once
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.build import make_optimizer, make_problem
from agl_sc.core.training.checkpoint import Checkpoint
from agl_sc.core.training.epoch import batches_of
from agl_sc.core.training.fit import fit
from agl_sc.core.training.parallel import of_main
from agl_sc.core.training.plan import Planner
from agl_sc.core.training.result import FitResult
from agl_sc.core.weighting import METHODS, LearnedCutoff, MethodSpec


def fit_in_rounds(
    spots: Spots,
    validation: Validation,
    *,
    n_targets: int,
    method: MethodSpec,
    config: TrainConfig,
    sources: tuple[InputSource, InputSource | None] | None = None,
    accelerator: Accelerator | None = None,
    seed: int = 0,
    on_improvement: Callable[[FitResult], None] | None = None,
    checkpoint: Checkpoint | None = None,
    once: Once | None = None,
) -> FitResult:
    """DkGSB from a network trained on all auxiliary genes, as in the paper's earlier supplement.

    Every round learns the cutoff anew on the best network so far, which stays as it is, and then trains on from that network
    with the cutoff fixed. The first round without a better validation Pearson is the last. ``method`` is one whose cutoff is
    searched for; parameters are those of :func:`agl_sc.core.training.fit.fit`; every round has a checkpoint of its own beside ``checkpoint``.
    """
    accelerator = accelerator or Accelerator()
    plain = replace(config, start="random")

    def saved(round_: int) -> Checkpoint | None:
        if checkpoint is None:
            return None
        return replace(checkpoint, path=checkpoint.path.with_name(f"{checkpoint.path.name}.{round_}"))

    common: dict[str, Any] = {
        "n_targets": n_targets, "config": plain, "sources": sources, "accelerator": accelerator, "seed": seed,
        "once": once,
    }  # fmt: skip
    best = fit(spots, validation, method=METHODS["agl"], on_improvement=on_improvement, checkpoint=saved(0), **common)
    planner = Planner.of(spots, validation, n_targets=n_targets, method=method, config=plain, once=once)
    start, _ = planner.start(best.choices)
    setup = partial(make_problem, spots, validation, n_targets=n_targets, start=start, config=plain, sources=sources)
    history, traces, round_ = [best.history], list[pd.DataFrame](), 0
    while True:
        round_ += 1
        problem = setup(state=best.state, device=accelerator.device, seed=seed)
        cutoff, trace = of_main(search_cutoff(problem, config, seed=seed + round_), accelerator)
        traces.append(trace)
        picked = replace(best.choices, cutoff=cutoff, n_epochs=config.max_epochs)
        trained = fit(
            spots,
            validation,
            method=method,
            choices=picked,
            earlier=Earlier(best.state, n_epochs=sum(map(len, history)) - 1),
            checkpoint=saved(round_),
            **common,
        )
        history.append(trained.history.iloc[1:])
        if not trained.score > best.score:
            break
        best = trained
        if on_improvement is not None and accelerator.is_main_process:
            on_improvement(_joined(best, history, traces))
    return _joined(best, history, traces)


def _joined(best: FitResult, history: list[pd.DataFrame], traces: list[pd.DataFrame]) -> FitResult:
    """The best round with the history and trace of all, epochs and steps counted on."""
    joined, trace = (pd.concat(tables, ignore_index=True) for tables in (history, traces))
    joined["epoch"], trace["step"] = range(len(joined)), range(len(trace))
    choices = replace(best.choices, n_epochs=int(joined["validation_pearson"].argmax()))
    return replace(best, choices=choices, history=joined, cutoff_trace=trace)


def search_cutoff(problem: Problem, config: TrainConfig, *, seed: int) -> tuple[float, pd.DataFrame]:
    """Cutoff with the lowest validation loss after the inner steps, the network staying as it is.

    Returns
    -------
    The cutoff, and the trace: step (a pass over the training spots), cutoff, k, validation_pearson (after inner steps).
    """
    with problem.device:
        weighting = LearnedCutoff(problem.n_targets, problem.n_genes, config=config)
    optimizer = make_optimizer(problem, [], config)
    n_auxiliary = problem.n_genes - problem.n_targets
    problem.network.eval()
    problem.source.begin_epoch()
    best, rows = 0, list[list[float]]()
    while len(rows) - best < config.gradient.search_patience and len(rows) < max(config.max_epochs, 1):
        randomness = torch.Generator().manual_seed(seed * 1_000_003 + len(rows))
        batches = batches_of(len(problem.source), config.batch_size, randomness)
        cutoff = weighting.cutoff
        pearson = 1 - weighting.search(Bilevel(problem, optimizer, batches, randomness))
        rows.append([len(rows), cutoff, round(cutoff * n_auxiliary), pearson])
        if pearson > rows[best][-1]:
            best = len(rows) - 1
    return float(rows[best][1]), pd.DataFrame(rows, columns=list(TRACE_COLUMNS))
