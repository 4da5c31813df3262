"""Rounds of searching and training, from a network trained on all genes."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from agl_sc.core.choices import TRACE_COLUMNS
from agl_sc.core.config import TrainConfig
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training import fit as fit_module
from agl_sc.core.training import rounds
from agl_sc.core.training.checkpoint import Checkpoint
from agl_sc.core.training.epoch import train_epoch
from agl_sc.core.training.fit import fit
from agl_sc.core.training.plan import Planner
from agl_sc.core.training.result import FitResult
from agl_sc.core.training.rounds import fit_in_rounds, search_cutoff
from agl_sc.core.weighting import method_spec

N_TARGETS = 4


def make_spots() -> tuple[Spots, Validation]:
    rng = np.random.default_rng(6)
    features = rng.normal(size=(112, 12))
    expression = np.tanh(features @ rng.normal(size=(12, 30))) + 2 * rng.normal(size=(112, 30))
    codes = np.zeros(112, dtype=np.int64)
    validation = Validation(features[64:], expression[64:, :N_TARGETS], codes[64:])
    return Spots(features[:64], Expression.from_dense(expression[:64]), codes[:64]), validation


def config(**changes: Any) -> TrainConfig:
    gradient = {"start": "agl", "search": "gradient", "inner_steps": 2, "outer_lr": 0.05, "temperature": 0.05}
    size = {"max_epochs": 4, "patience": 3, "search_patience": 2, "batch_size": 32, "hidden": 8, "dropout": 0.1}
    return TrainConfig.from_plain({**gradient, **size, "lr": 2e-2, **changes})


def run(
    checkpoint: Checkpoint | None = None, on_improvement: Callable[[FitResult], None] | None = None, **changes: Any
) -> FitResult:
    spots, validation = make_spots()
    common: dict[str, Any] = {"n_targets": N_TARGETS, "checkpoint": checkpoint, "seed": 5}
    common |= {"method": method_spec("dkgsb"), "config": config(**changes)}
    return fit_in_rounds(spots, validation, on_improvement=on_improvement, **common)


def same(left: FitResult, right: FitResult) -> bool:
    tensors = all(torch.equal(left.state[name], right.state[name]) for name in left.state)
    frames = left.history.equals(right.history) and left.cutoff_trace.equals(right.cutoff_trace)
    return tensors and frames and left.choices == right.choices and bool((left.weights == right.weights).all())


@dataclass(frozen=True, slots=True)
class Rounds:
    """Training in rounds, and every training in it."""

    result: FitResult
    fits: list[FitResult]
    improved: list[FitResult]
    logged: list[tuple[int, dict[str, float]]]


@pytest.fixture(scope="module")
def whole() -> Rounds:
    seen, improved, logged = list[FitResult](), list[FitResult](), list[tuple[int, dict[str, float]]]()

    def noted(*args: Any, **kwargs: Any) -> FitResult:
        seen.append(fit(*args, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "fit", noted)
        patch.setattr(Accelerator, "log", lambda _, values, step: logged.append((step, values)))
        return Rounds(run(on_improvement=improved.append), seen, improved, logged)


def test_stops_at_the_first_round_without_gain_and_returns_the_best(whole: Rounds) -> None:
    result, scores = whole.result, [each.score for each in whole.fits]
    assert len(scores) > 2
    assert all(np.diff(scores[:-1]) > 0)
    assert scores[-1] <= scores[-2]
    best = whole.fits[-2]
    for found in (result, whole.improved[-1]):
        assert all(torch.equal(found.state[k], best.state[k]) for k in best.state)
        np.testing.assert_array_equal(found.weights, best.weights)
    assert result.choices.cutoff == best.choices.cutoff
    assert result.score == best.score
    assert whole.improved[-1].choices == result.choices


def test_every_round_trains_on_from_the_best_with_the_cutoff_it_found(whole: Rounds) -> None:
    for before, after in pairwise(whole.fits):
        assert after.history["validation_pearson"][0] == before.score
        assert (after.history["cutoff"] == after.choices.cutoff).all()
    assert (whole.fits[0].history["cutoff"] == 1).all()
    assert whole.fits[0].weights.min() == 1
    assert set(whole.result.cutoff_trace["cutoff"]) >= {each.choices.cutoff for each in whole.fits[1:]}


def test_history_and_trace_are_counted_on(whole: Rounds) -> None:
    history, trace = whole.result.history, whole.result.cutoff_trace
    assert history["epoch"].tolist() == list(range(len(history)))
    assert len(history) == 1 + sum(len(each.history) - 1 for each in whole.fits)
    assert history["loss"].isna().sum() == 1
    assert history["validation_pearson"].argmax() == whole.result.choices.n_epochs
    assert list(trace) == list(TRACE_COLUMNS)
    assert trace["step"].tolist() == list(range(len(trace)))
    assert [step for step, _ in whole.logged] == history["epoch"][1:].tolist()
    assert [row for _, row in whole.logged] == history.iloc[1:].to_dict(orient="records")
    assert (trace["cutoff"] == 0.5).sum() == len(whole.fits) - 1  # every search starts there


def test_killed_and_resumed_ends_with_the_same_bytes(
    whole: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of the second training; validation would prefer another rank there."""
    checkpoint, epochs = Checkpoint(tmp_path / "state.safetensors"), iter(range(100))
    stop_at = len(whole.fits[0].history)  # its epochs, and one more

    def interrupted(*args: Any, **kwargs: Any) -> float:
        if next(epochs) == stop_at:
            raise KeyboardInterrupt
        return train_epoch(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint)
    assert same(run(checkpoint), whole.result)
    trained = []
    monkeypatch.setattr(fit_module, "train_epoch", lambda *args, **kwargs: trained.append(args))
    assert same(run(checkpoint), whole.result)
    assert not trained, "what is finished is not trained further"


def test_search_leaves_the_network_alone_and_takes_the_best_pass(make_bilevel: Any) -> None:
    problem = make_bilevel(dtype=torch.float32, n_auxiliary=20).problem
    before = problem.state()
    cutoff, trace = search_cutoff(problem, config(max_epochs=6, search_patience=2), seed=0)
    after = problem.state()
    assert all(torch.equal(before[k], after[k]) for k in before)
    best = trace["validation_pearson"].argmax()
    assert cutoff == trace["cutoff"][best]
    assert trace["cutoff"][0] == 0.5
    assert trace["cutoff"].nunique() == len(trace)
    assert len(trace) == min(best + 2, 6)
    pd.testing.assert_frame_equal(search_cutoff(problem, config(max_epochs=6, search_patience=2), seed=0)[1], trace)


def test_without_epochs_a_round_changes_nothing() -> None:
    result = run(max_epochs=0)
    assert len(result.history) == 1
    assert len(result.cutoff_trace) == 1
    assert result.choices.n_epochs == 0


def test_rank_is_that_of_the_first_training(whole: Rounds) -> None:
    """Under the later cutoffs the closed form would prefer another one."""
    at = Planner.of(*make_spots(), n_targets=N_TARGETS, method=method_spec("dkgsb"), config=config())
    ranks = [each.choices.rank for each in whole.fits]
    assert len(set(ranks)) == 1
    assert any(at.start(each.choices, pick_rank=True)[1].rank != ranks[0] for each in whole.fits)
