"""The training loop: a start, a weighting of genes, epochs, early stopping; arrays in, a fitted network out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from agl_sc.core.arrays import FloatArray
from agl_sc.core.choices import Choices, Earlier, no_trace
from agl_sc.core.config import TrainConfig
from agl_sc.core.linear.closed_form import LowRank
from agl_sc.core.network.bilevel import Bilevel, Problem
from agl_sc.core.network.sources import InputSource
from agl_sc.core.numerics.tensors import Tensors
from agl_sc.core.once import Once
from agl_sc.core.progress import Progress
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.build import make_optimizer, make_problem
from agl_sc.core.training.checkpoint import Checkpoint
from agl_sc.core.training.epoch import batches_of, train_epoch
from agl_sc.core.training.parallel import forked_randomness, from_main, n_pieces, of_main, take_over
from agl_sc.core.training.plan import Plan, Planner
from agl_sc.core.training.result import FitResult, begin, result_of, resume, to_save
from agl_sc.core.weighting import Fixed, MethodSpec, Weighting, weighting_for, with_auxiliary


def fit(  # noqa: PLR0913 -- the entry point of training
    spots: Spots,
    validation: Validation | None,
    *,
    n_targets: int,
    method: MethodSpec,
    config: TrainConfig,
    choices: Choices | None = None,
    earlier: Earlier | None = None,
    sources: tuple[InputSource, InputSource | None] | None = None,
    accelerator: Accelerator | None = None,
    seed: int = 0,
    on_improvement: Callable[[FitResult], None] | None = None,
    checkpoint: Checkpoint | None = None,
    once: Once | None = None,
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
        How the losses of genes are weighted; a row of :data:`agl_sc.core.weighting.METHODS`, or one of the user's.
    config
        Settings.
    choices
        What an earlier fit picked; needed where ``validation`` is None.
    earlier
        Parameters and gene weights of an earlier fit to take over, with ``choices``.
    sources
        Where the inputs of training and validation spots come from; their cached features by default.
    accelerator
        Device, precision, processes, accumulated steps and trackers; ``Accelerator()`` by default.
    seed
        Seed of initial weights, batches and dropout.
    on_improvement
        Called with the state of every epoch that is the best so far, on the main process.
    checkpoint
        Written after every epoch by the main process; where it exists, training continues from it and ends as if it had
        not stopped.
    once
        What trainings on the same spots have in common, whatever their seeds and methods; nothing by default.

    Returns
    -------
    The best epoch by validation, or the last one without validation.

    Raises
    ------
    ValueError
        No section has two validation spots; neither validation spots nor choices are given; a likelihood lacks counts.
    """
    _check(validation)
    accelerator, earlier = accelerator or Accelerator(), earlier or Earlier()
    if method.uses_auxiliary:
        method = with_auxiliary(method, spots.expression.shape[1] - n_targets)
    planner = Planner.of(spots, validation, n_targets=n_targets, method=method, config=config, once=once)
    setup = partial(
        make_problem,
        spots,
        validation,
        n_targets=n_targets,
        config=config,
        state=earlier.state,
        device=accelerator.device,
        seed=seed,
    )

    def attempt(start: LowRank, picked: Choices) -> float:
        """Training on cached features, for the methods that choose by trying."""
        start, picked = of_main((start, picked), accelerator)
        problem = setup(start=start, sources=None)
        weighting = _weighting(method, picked, problem, config=config, seed=seed)
        return _train(
            problem,
            weighting,
            Plan(start, picked, no_trace()),
            config=config,
            accelerator=accelerator,
            seed=seed,
            n_epochs=picked.n_epochs,
        ).score

    def log(row: dict[str, float]) -> None:
        """To trackers; not where epochs are only repeated, without validation."""
        epoch = int(row["epoch"]) + earlier.n_epochs
        accelerator.log({**row, "epoch": epoch}, step=epoch)

    saved = None if checkpoint is None else from_main(checkpoint.read, accelerator)
    if saved is not None:
        plan = planner.saved(saved[1]["plan"])
    else:
        plan = planner.plan(attempt) if choices is None else Plan(*planner.start(choices), no_trace())
    plan = of_main(plan, accelerator)
    problem = setup(start=plan.start, sources=sources)
    searching = method.searches and config.search == "gradient" and choices is None
    weighting = _weighting(
        method, plan.choices, problem, config=config, seed=seed, search=searching, weights=earlier.weights
    )
    return _train(
        problem,
        weighting,
        plan,
        config=config,
        accelerator=accelerator,
        seed=seed,
        n_epochs=config.max_epochs if choices is None else choices.n_epochs,
        on_improvement=on_improvement if accelerator.is_main_process else None,
        on_epoch=None if validation is None else log,
        checkpoint=checkpoint,
        saved=saved,
    )


def _check(validation: Validation | None) -> None:
    """Refuse what Pearson, taken within sections, is not defined on."""
    if validation is not None and np.unique(validation.sections, return_counts=True)[1].max(initial=0) < 2:
        msg = (
            "Validation Pearson is taken within sections and needs at least two validation spots of a section; pass more, "
            "such as by agl_sc.pp.split(sdata, validation=0.2)."
        )
        raise ValueError(msg)


def _train(
    problem: Problem,
    weighting: Weighting,
    plan: Plan,
    *,
    config: TrainConfig,
    accelerator: Accelerator,
    seed: int,
    n_epochs: int,
    on_improvement: Callable[[FitResult], None] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    checkpoint: Checkpoint | None = None,
    saved: tuple[Tensors, dict[str, Any]] | None = None,
) -> FitResult:
    """The loop: before every epoch the weighting may learn, then the network does, then validation judges."""
    optimizer = make_optimizer(problem, weighting.trained(), config)
    stepper = AcceleratedOptimizer(optimizer, scaler=accelerator.scaler)  # prepare() would keep it for ever
    for module in (*problem.parts().values(), weighting):
        take_over(module, accelerator)
    if saved is None:
        now = begin(problem, weighting, plan.choices, score=of_main(problem.score(), accelerator))
    else:
        now = resume(saved, problem, weighting=weighting, optimizer=optimizer)
    if on_improvement is not None and problem.validation is not None and now.epoch == 0:
        on_improvement(result_of(now, weighting, plan))
    hidden = not accelerator.is_main_process
    with Progress[int](total=n_epochs, initial=now.epoch, desc="epochs", unit="epoch", hidden=hidden) as bar:
        while now.epoch < n_epochs and not now.exhausted(config.patience):
            randomness = torch.Generator().manual_seed(seed * 1_000_003 + now.epoch + 1)
            problem.source.begin_epoch()
            batches = batches_of(len(problem.source), config.batch_size * n_pieces(accelerator), randomness)
            training = Bilevel(problem, optimizer, batches, randomness)
            problem.network.eval()
            weighting.before_epoch(training, now.epoch)
            take_over(weighting, accelerator)
            loss = train_epoch(training, weighting, stepper=stepper, accelerator=accelerator)
            improved = now.update(problem, weighting, loss=loss, score=of_main(problem.score(), accelerator))
            if improved and on_improvement is not None and problem.validation is not None:
                on_improvement(result_of(now, weighting, plan))
            if checkpoint is not None and accelerator.is_main_process:
                checkpoint.write(*to_save(problem, now, weighting=weighting, optimizer=optimizer, plan=plan))
            if on_epoch is not None:
                on_epoch(now.history[-1])
            bar.set_postfix(
                loss=f"{loss:.3f}",
                pearson=f"{now.history[-1]['validation_pearson']:.3f}",
                k=now.history[-1]["k"],
            )
            bar.update()
    return result_of(now, weighting, plan)


def _weighting(
    method: MethodSpec,
    picked: Choices,
    problem: Problem,
    *,
    config: TrainConfig,
    seed: int,
    search: bool = False,
    weights: FloatArray | None = None,
) -> Weighting:
    with problem.device, forked_randomness(problem.device):
        torch.manual_seed(seed)
        if weights is not None:
            return Fixed(problem.n_targets, weights, target_weight=picked.target_weight)
        sizes = {"n_targets": problem.n_targets, "n_genes": problem.n_genes}
        return weighting_for(method, picked, config=config, search=search, **sizes)
