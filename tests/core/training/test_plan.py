"""What validation picks before training, with a training that is only a table."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from agl_sc.core.choices import TRACE_COLUMNS, Choices
from agl_sc.core.config import Method, TrainConfig
from agl_sc.core.linear.closed_form import LowRank, ridge_basis
from agl_sc.core.spots.counts import Counts
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.scaling import depth_weights
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.plan import Planner
from agl_sc.core.training.race import RACE_CUTOFFS
from agl_sc.core.weighting import method_spec
from agl_sc.core.weighting.fixed import FIXED_CUTOFFS, TARGET_WEIGHTS

N_TARGETS, N_AUXILIARY = 4, 40


def planner(method: Method, *, seed: int = 0, validated: bool = True, **changes: Any) -> Planner:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(120, 12))
    driven = np.tanh(features[:, :4] @ rng.normal(size=(4, N_TARGETS + N_AUXILIARY)))
    expression = driven + rng.normal(size=driven.shape)
    expression -= expression.mean(axis=0)
    codes = np.zeros(60, dtype=np.int64)
    held_out = Validation(features[60:], expression[60:, :N_TARGETS], codes) if validated else None
    spots = Spots(features[:60], Expression.from_dense(expression[:60]), codes)
    return Planner.of(
        spots, held_out, n_targets=N_TARGETS, method=method_spec(method), config=TrainConfig.from_plain(changes)
    )


@pytest.mark.parametrize("weighted", [True, False])
def test_shallow_spots_count_less_where_the_settings_say_so(*, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    features, genes, codes = rng.normal(size=(30, 5)), rng.normal(size=(30, 6)), np.zeros(30, dtype=np.int64)
    library = rng.uniform(100, 5000, size=30)
    counts = Counts(scipy.sparse.csr_matrix((30, 6)), library, 1e4)
    spots, expression = Spots(features, Expression.from_dense(genes), codes, counts), Expression.from_dense(genes)
    config = TrainConfig(depth_weights=weighted)
    found = Planner.of(spots, None, n_targets=2, method=method_spec("agl"), config=config).basis
    expected = ridge_basis(features, expression, depth_weights(library, codes) if weighted else None)
    np.testing.assert_allclose(found.singular_values, expected.singular_values)
    np.testing.assert_allclose(np.abs(found.genes), np.abs(expected.genes))


def never(start: LowRank, picked: Choices) -> float:
    raise AssertionError


@pytest.mark.parametrize(
    ("method", "candidates", "best"),
    [("fixed_k", FIXED_CUTOFFS, 0.25), ("target_weight", TARGET_WEIGHTS, 30.0)],
)
def test_the_best_candidate_on_validation_is_taken(method: Method, candidates: tuple[float, ...], best: float) -> None:
    seen = []

    def train(start: LowRank, picked: Choices) -> float:
        value = picked.cutoff if method == "fixed_k" else picked.target_weight
        seen.append(value)
        assert picked.n_epochs == 7
        assert start.head.shape == (picked.rank + N_TARGETS, N_TARGETS + N_AUXILIARY)
        return 1 - float(abs(np.log(value / best)))

    plan = planner(method, max_epochs=7).plan(train)
    assert tuple(seen) == candidates
    assert (plan.choices.cutoff if method == "fixed_k" else plan.choices.target_weight) == best
    assert plan.choices.n_epochs == 0
    assert list(plan.trace) == list(TRACE_COLUMNS)
    assert plan.trace["validation_pearson"].tolist() == pytest.approx([1 - abs(np.log(v / best)) for v in candidates])
    k = [round(v * N_AUXILIARY) for v in candidates] if method == "fixed_k" else [N_AUXILIARY] * len(candidates)
    assert plan.trace["k"].tolist() == k


def test_of_equal_candidates_the_first_is_taken() -> None:
    plan = planner("fixed_k").plan(lambda start, picked: 0.5)
    assert plan.choices.cutoff == FIXED_CUTOFFS[0]


def test_target_weight_reaches_the_closed_form() -> None:
    at = planner("target_weight", rank=3)
    starts = [at.start(Choices(10.0, 3, 1.0, 0, target_weight=weight))[0] for weight in (1.0, 1e6)]
    targets_only = planner("pgl", rank=3).start(Choices(10.0, 3, 0.0, 0))[0]
    features = np.random.default_rng(5).normal(size=(20, 12))
    plain, heavy, alone = (start.predict(features)[:, :N_TARGETS] for start in (*starts, targets_only))
    np.testing.assert_allclose(heavy, alone, atol=1e-4)
    assert np.abs(plain - alone).max() > 1e-2


@pytest.mark.parametrize(("method", "cutoff"), [("pgl", 0.0), ("agl", 1.0), ("uncertainty", 1.0), ("amal", 1.0)])
def test_other_methods_try_nothing(method: Method, cutoff: float) -> None:
    plan = planner(method).plan(never)
    assert plan.choices.cutoff == cutoff
    assert plan.trace.empty
    assert list(plan.trace) == list(TRACE_COLUMNS)


def test_gradient_search_starts_at_its_cutoff_without_trying() -> None:
    plan = planner("dkgsb", search="gradient", start_cutoff=0.3).plan(never)
    assert plan.choices.cutoff == 0.3
    assert plan.trace.empty


@pytest.mark.parametrize("limit", [1.0, 0.4])
def test_race_stays_below_the_limit(limit: float) -> None:
    seen = []

    def train(_: LowRank, picked: Choices) -> float:
        seen.append((picked.cutoff, picked.n_epochs))
        return -abs(picked.cutoff - 0.3)

    plan = planner("dkgsb", search="race", hard_limit=limit, start_cutoff=0.0).plan(train)
    assert {cutoff for cutoff, n in seen if n == 2} == {c for c in RACE_CUTOFFS if c <= limit}
    assert max(seen)[0] <= limit
    assert plan.choices.cutoff == pytest.approx(0.275)
    assert sorted({n for _, n in seen})[:2] == [2, 4]
    assert list(plan.trace) == list(TRACE_COLUMNS)
    assert (plan.trace["k"] == (plan.trace["cutoff"] * N_AUXILIARY).round()).all()


def test_race_below_all_contestants_runs_at_the_limit() -> None:
    assert (
        planner("dkgsb", search="race", hard_limit=0.01, start_cutoff=0.0)
        .plan(lambda start, picked: 0.0)
        .choices.cutoff
        == 0.01
    )


@pytest.mark.parametrize("limit", [1.0, 0.5, 0.01])
def test_path_stays_below_the_limit(limit: float) -> None:
    plan = planner("dkgsb", hard_limit=limit, start_cutoff=0.0).plan(never)
    most = max(round(limit * N_AUXILIARY), 1)
    assert plan.trace["k"].max() == most
    assert plan.trace["cutoff"].max() == pytest.approx(most / N_AUXILIARY)
    np.testing.assert_allclose(plan.trace["cutoff"] * N_AUXILIARY, plan.trace["k"])
    assert 0 <= plan.choices.cutoff <= most / N_AUXILIARY
    assert plan.choices.cutoff in plan.trace["cutoff"].to_numpy()


@pytest.mark.parametrize("seed", range(4))
def test_where_auxiliary_genes_are_loud_noise_dkgsb_starts_as_targets_alone_do(seed: int) -> None:
    """In a trunk with room for the targets alone."""
    noisy = planner("dkgsb", seed=seed, rank=N_TARGETS)
    noisy.basis.genes[:, N_TARGETS:] = 300 * np.random.default_rng(0).normal(size=(len(noisy.basis.genes), N_AUXILIARY))
    alone = replace(noisy, method=method_spec("pgl"), basis=noisy.basis.of_leading(N_TARGETS))
    plans = [at.plan(never) for at in (noisy, alone)]
    assert plans[0].choices == plans[1].choices
    assert plans[0].choices.cutoff == 0
    np.testing.assert_array_equal(plans[0].start.trunk, plans[1].start.trunk)
    np.testing.assert_array_equal(plans[0].start.head[:, :N_TARGETS], plans[1].start.head)


def test_a_given_rank_is_kept_whatever_validation_would_prefer() -> None:
    """Parameters of an earlier fit have it."""
    at = planner("dkgsb")
    preferred = {at.start(Choices(1.0, rank, 0.5, 0), pick_rank=True)[1].rank for rank in (5, 8, 12)}
    assert preferred != {5, 8, 12}
    for rank in (5, 8, 12):
        start, choices = at.start(Choices(1.0, rank, 0.5, 0))
        assert choices.rank == rank == start.trunk.shape[1]


@pytest.mark.parametrize(("method", "search"), [("dkgsb", "path"), ("fixed_k", "path"), ("agl", "path")])
def test_a_plan_is_the_same_after_it_was_saved(method: Method, search: str) -> None:
    at = planner(method, search=search, max_epochs=1)
    plan = at.plan(lambda start, picked: picked.cutoff)
    again = at.saved(plan.plain())
    assert again.choices == plan.choices
    pd.testing.assert_frame_equal(again.trace, plan.trace, check_dtype=len(plan.trace) > 0)
    # Eigenvectors of another number of columns differ in their last digits.
    np.testing.assert_allclose(np.abs(again.start.trunk), np.abs(plan.start.trunk), atol=1e-8)


def test_without_validation_there_is_no_plan() -> None:
    with pytest.raises(ValueError, match="Without validation spots, choices= must say"):
        planner("agl", validated=False).plan(never)
