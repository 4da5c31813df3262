"""The cutoff against central differences of really training, and what may not happen to it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from agl_sc.core.config import TrainConfig
from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.numerics.losses import pearson_loss
from agl_sc.core.weighting import LearnedCutoff
from agl_sc.core.weighting.gate import scaled_rank, soft_top_k

Make = Callable[..., Bilevel]
EVERYTHING = torch.arange(40)


def learned(training: Bilevel, **changes: Any) -> LearnedCutoff:
    """In float64, its soft edge as wide as to reach all genes."""
    settings = {"temperature": 0.1, "inner_steps": 3, "outer_lr": 0.01, "start_cutoff": 0.4, **changes}
    problem = training.problem
    weighting = LearnedCutoff(problem.n_targets, problem.n_genes, config=TrainConfig.from_plain(settings))
    weighting.at = weighting.at.double()
    weighting.prior_rank = weighting.prior_rank.double()
    weighting._optimizer = torch.optim.Adam([weighting.at], lr=weighting.config.gradient.outer_lr)
    return weighting


def derivative(weighting: LearnedCutoff, training: Bilevel, rows: torch.Tensor | None = None) -> float:
    weighting.step(training, EVERYTHING[5:], rows)
    assert weighting.at.grad is not None
    return float(weighting.at.grad)


def trained(training: Bilevel, config: TrainConfig, shift: float, *, rows: torch.Tensor | None = None) -> float:
    """Validation loss after training a copy with torch's own Adam."""
    problem, at = training.problem, torch.tensor(config.gradient.start_cutoff, dtype=torch.float32).double()
    network = copy.deepcopy(problem.network)
    optimizer = torch.optim.Adam(network.parameters(), lr=training.lr)
    if config.gradient.warm_moments:
        for old, new in zip(problem.network.parameters(), network.parameters(), strict=True):
            optimizer.state[new] = copy.deepcopy(training.optimizer.state[old])

    def weights(c: torch.Tensor) -> torch.Tensor:
        soft = soft_top_k(c, scaled_rank(problem.n_genes - problem.n_targets), config.temperature)
        return torch.cat([torch.ones(problem.n_targets, dtype=torch.float64), soft])

    now = weights(at + shift)
    normalizer = weights(at).sum() if config.gradient.detach_normalizer else now.sum()
    inputs = training.batch(EVERYTHING[5:], problem.n_genes)
    for _ in range(config.gradient.inner_steps):
        optimizer.zero_grad()
        losses = pearson_loss(network(inputs.inputs), inputs.measured, sections=inputs.sections)
        (losses @ now / normalizer).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert problem.validation is not None
    held_out = problem.validation
    chosen = torch.arange(len(held_out.targets)) if rows is None else rows
    features, targets, sections = (
        torch.from_numpy(values)[chosen] for values in (held_out.features, held_out.targets, held_out.sections)
    )
    with torch.no_grad():
        return float(pearson_loss(network(features, problem.n_targets), targets, sections=sections).mean())


@pytest.mark.parametrize("detach_normalizer", [False, True])
@pytest.mark.parametrize("warm_moments", [False, True])
@pytest.mark.parametrize("rows", [None, torch.tensor([3, 1, 12, 20, 21, 22, 27, 8])], ids=["all", "some"])
def test_derivative_is_that_of_really_training(
    make_bilevel: Make, *, detach_normalizer: bool, warm_moments: bool, rows: torch.Tensor | None
) -> None:
    training = make_bilevel()
    weighting = learned(training, detach_normalizer=detach_normalizer, warm_moments=warm_moments)
    found, eps = derivative(weighting, training, rows), 1e-4
    ends = [trained(training, weighting.config, shift, rows=rows) for shift in (-eps, eps)]
    # Validation is measured in float32.
    assert found == pytest.approx((ends[1] - ends[0]) / (2 * eps), rel=1e-4)
    assert abs(found) > 1e-6


@pytest.mark.parametrize("start", [0.2, 0.4, 0.8])
def test_first_step_goes_against_the_derivative_by_the_learning_rate(make_bilevel: Make, start: float) -> None:
    training = make_bilevel()
    weighting = learned(training, start_cutoff=start)
    found = derivative(weighting, training)
    assert weighting.cutoff == pytest.approx(start - 0.01 * (1 if found > 0 else -1), abs=1e-5)


def test_value_is_the_validation_loss_after_the_inner_steps(make_bilevel: Make) -> None:
    training = make_bilevel()
    weighting = learned(training)
    value = weighting.step(training, EVERYTHING[5:])
    assert value == pytest.approx(trained(training, weighting.config, 0.0), abs=1e-6)
    assert abs(value - trained(training, learned(training, inner_steps=1).config, 0.0)) > 1e-4


def test_without_hessian_is_another_derivative_nearby(make_bilevel: Make) -> None:
    training = make_bilevel()
    exact, short = (derivative(learned(training, hessian=hessian), training) for hessian in (True, False))
    assert 1e-4 < abs(short / exact - 1) < 0.3


@pytest.mark.parametrize("start", [0.0, 0.3, 0.7])
def test_cutoff_stays_between_0_and_the_limit(make_bilevel: Make, start: float) -> None:
    training = make_bilevel()
    weighting = learned(training, outer_lr=5.0, hard_limit=0.7, start_cutoff=start)
    seen = set()
    for _ in range(4):
        weighting.step(training, EVERYTHING)
        seen.add(round(weighting.cutoff, 6))
    assert seen <= {0.0, 0.7}


def test_genes_beyond_the_active_ones_do_not_matter(make_bilevel: Make) -> None:
    cutoffs = []
    for spoilt in (False, True):
        training = make_bilevel(n_auxiliary=30)
        weighting = learned(training, temperature=0.01)
        assert weighting.n_active < training.problem.n_genes - 5
        if spoilt:
            vars(training.problem.expression)["values"][:, weighting.n_active :] = torch.nan
        weighting.step(training, EVERYTHING)
        assert weighting.n_skipped == 0
        cutoffs.append(weighting.at)
    assert torch.equal(*cutoffs)
    assert cutoffs[0] != pytest.approx(0.4, abs=1e-4)


def test_the_training_under_way_is_left_alone(make_bilevel: Make) -> None:
    training = make_bilevel(dropout=0.5)
    problem = training.problem

    def everything() -> list[torch.Tensor]:
        moments = [v for state in training.optimizer.state.values() for v in state.values()]
        return [v.clone() for v in (*problem.state().values(), *moments, torch.get_rng_state())]

    before = everything()
    weighting = learned(training, validation_batch_size=10)
    weighting.search(training)
    assert all(torch.equal(*pair) for pair in zip(before, everything(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in problem.network.parameters())
    assert weighting.cutoff != pytest.approx(0.4, abs=1e-5)


def test_search_takes_a_step_per_batch_of_the_sizes_asked_for(
    make_bilevel: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make_bilevel()
    training.batches = list(torch.split(torch.randperm(40, generator=torch.Generator().manual_seed(1)), 20))
    seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def note(_: Bilevel, index: torch.Tensor, rows: torch.Tensor | None) -> float:
        seen.append((index, rows))
        return float(len(seen))

    for changes, sizes, n_rows in (
        ({}, [20, 20], None),
        ({"outer_batch_size": 16, "validation_batch_size": 12}, [16, 16, 8], 12),
        ({"outer_batch_size": 18, "validation_batch_size": 400}, [18, 18], 30),  # four spots are too few
        ({"outer_batch_size": 100}, [40], None),
    ):
        weighting = learned(training, **changes)
        monkeypatch.setattr(weighting, "step", note)
        seen.clear()
        assert weighting.search(training) == (len(sizes) + 1) / 2
        assert [len(index) for index, _ in seen] == sizes
        assert len(set(torch.cat([index for index, _ in seen]).tolist())) == sum(sizes)
        assert [rows if rows is None else len(set(rows.tolist())) for _, rows in seen] == [n_rows] * len(sizes)
        assert len(sizes) < 2 or n_rows is None or not torch.equal(*(rows for _, rows in seen[:2]))  # type: ignore[arg-type]


def test_epochs_that_warm_up_and_trainings_without_validation_do_not_search(make_bilevel: Make) -> None:
    training = make_bilevel()
    weighting = learned(training, warmup_epochs=2)
    for epoch in (0, 1):
        weighting.before_epoch(training, epoch)
    assert weighting.at.grad is None
    weighting.before_epoch(training, 2)
    assert weighting.at.grad is not None
    object.__setattr__(training.problem, "validation", None)
    weighting.at.grad = None
    weighting.before_epoch(training, 3)
    assert weighting.at.grad is None


def spoil(training: Bilevel, kind: str) -> Callable[[], None]:
    """Make steps fail; the way back."""
    group, value = training.optimizer.param_groups[0], float(vars(training.problem.expression)["values"][0, 0])

    lr = group["lr"]

    def back() -> None:
        group["lr"] = lr
        vars(training.problem.expression)["values"][0, 0] = value

    if kind == "lr":
        group["lr"] = 1e200
    else:
        vars(training.problem.expression)["values"][0, 0] = torch.nan
    return back


@pytest.mark.parametrize("kind", ["lr", "nan"])
def test_a_step_that_is_not_finite_is_left_out(make_bilevel: Make, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    training = make_bilevel()
    weighting = learned(training)
    weighting.step(training, EVERYTHING)
    state = {k: v.clone() for k, v in weighting._optimizer.state[weighting.at].items()}
    before = weighting.cutoff
    spoil(training, kind)
    for n in (1, 2):
        weighting.step(training, EVERYTHING)
        assert weighting.cutoff == before
        assert weighting.n_skipped == n
    after = weighting._optimizer.state[weighting.at]
    assert all(torch.equal(state[k], after[k]) for k in state)
    assert "An outer step was left out: its 3 inner steps did not stay finite." in caplog.text
    with pytest.raises(
        FloatingPointError, match=r"3 outer steps in a row .* use a smaller lr or fewer than inner_steps=3"
    ):
        weighting.step(training, EVERYTHING)


def test_a_finite_step_ends_the_row(make_bilevel: Make) -> None:
    training = make_bilevel()
    weighting = learned(training)
    for n in (2, 4, 6):
        back = spoil(training, "nan")
        for _ in range(2):
            weighting.step(training, EVERYTHING)
        back()
        before = weighting.cutoff
        weighting.step(training, EVERYTHING)
        assert weighting.cutoff != before
        assert weighting.n_skipped == n


def test_a_search_with_skipped_steps_is_judged_by_the_others(make_bilevel: Make) -> None:
    training = make_bilevel()
    weighting = learned(training, outer_batch_size=20)
    spoil(training, "nan")
    value = weighting.search(training)
    assert weighting.n_skipped == 1
    assert 0 < value < 2


def test_weights_and_active_genes_follow_the_cutoff(make_bilevel: Make) -> None:
    training = make_bilevel(n_auxiliary=101)
    weighting = learned(training, temperature=0.01, start_cutoff=0.5)
    losses = torch.linspace(0.1, 1, weighting.n_active, dtype=torch.float64)
    weights = weighting.weights()
    assert (weights >= 0.5).sum() == 3 + 51
    assert (weights[weighting.n_active :] == 0).all()
    soft = soft_top_k(weighting.at, scaled_rank(101), 0.01)
    expected = torch.cat([torch.ones(3), soft])[: weighting.n_active]
    assert float(weighting(losses)) == pytest.approx(float(losses @ expected / expected.sum()), rel=1e-6)
