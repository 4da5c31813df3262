"""Every method through the training loop, and what is refused there."""

from typing import Any, get_args

import numpy as np
import pytest
import scipy.sparse
import torch

from agl_sc.core.choices import Choices
from agl_sc.core.config import LossName, Method, TrainConfig
from agl_sc.core.spots.counts import Counts
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.fit import fit
from agl_sc.core.training.result import FitResult
from agl_sc.core.weighting import method_spec
from agl_sc.core.weighting.fixed import FIXED_CUTOFFS, TARGET_WEIGHTS

N_TARGETS, N_GENES, N_SPOTS = 4, 24, 72
METHODS = get_args(Method)


def make_spots() -> tuple[Spots, Validation]:
    """Two sections of counts, a gene of the second one missing; expression is log-normalised and scaled."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2 * N_SPOTS, 8))
    sections = np.arange(2 * N_SPOTS) % 2
    rate = np.exp(features @ rng.normal(size=(8, N_GENES)) / 4)
    counts = rng.poisson(rate * rng.gamma(5, 1, size=(2 * N_SPOTS, 1))).astype(float)
    counts[sections == 1, N_GENES - 2] = 0
    library = counts.sum(axis=1)
    values = np.log1p(counts / library[:, None] * 100)
    for code in (0, 1):
        values[sections == code] -= values[sections == code][:N_SPOTS].mean(axis=0)
    expression = Expression.fitted(scipy.sparse.csr_matrix(values[:N_SPOTS]), sections[:N_SPOTS])
    raw = Counts(scipy.sparse.csr_matrix(counts[:N_SPOTS]), library[:N_SPOTS], 100.0)
    spots = Spots(features[:N_SPOTS], expression, sections[:N_SPOTS], raw)
    return spots, Validation(features[N_SPOTS:], values[N_SPOTS:, :N_TARGETS], sections[N_SPOTS:])


def config(**changes: Any) -> TrainConfig:
    small = {"rank": 3, "hidden": 8, "lr": 3e-3, "batch_size": 24, "max_epochs": 3, "patience": 3, "inner_steps": 2}
    return TrainConfig.from_plain({**small, **changes})


def run(method: Method, **changes: Any) -> FitResult:
    spots, validation = make_spots()
    return fit(spots, validation, n_targets=N_TARGETS, method=method_spec(method), config=config(**changes))


@pytest.mark.parametrize("loss", get_args(LossName))
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_every_loss_has_finite_results(method: Method, loss: LossName) -> None:
    result = run(method, loss=loss, search="gradient", outer_lr=0.05)
    assert result.weights.shape == result.selected.shape == (N_GENES,)
    assert ((result.weights >= 0) & (result.weights <= 1)).all()
    assert result.selected.dtype == bool
    assert result.selected[:N_TARGETS].all()
    assert all(value.isfinite().all() for value in result.state.values())
    assert np.isfinite(result.history["loss"][1:]).all()
    assert result.history["validation_pearson"].between(-1, 1).all()
    assert len(result.history) == 4
    if method not in ("dkgsb", "amal"):
        assert result.selected.all() == (method not in ("pgl", "denoiser", "fixed_k"))


@pytest.mark.parametrize("loss", get_args(LossName))
@pytest.mark.parametrize("start", ["closed_form", "random"])
def test_every_loss_learns(loss: LossName, start: str) -> None:
    history = run("agl", loss=loss, start=start, max_epochs=12, patience=12, dropout=0.0, lr=1e-2).history
    assert history["loss"][12] < history["loss"][1]
    first, best = history["validation_pearson"][0], history["validation_pearson"].max()
    assert best > 0.3
    assert (first > 0.25) == (start == "closed_form")


@pytest.mark.parametrize(
    ("method", "name", "candidates"),
    [("fixed_k", "cutoff", FIXED_CUTOFFS), ("target_weight", "target_weight", TARGET_WEIGHTS)],
)
def test_best_candidate_by_training_is_trained(method: Method, name: str, candidates: tuple[float, ...]) -> None:
    result = run(method, lr=1e-2)
    scores = result.cutoff_trace["validation_pearson"]
    assert len(scores) == len(candidates)
    assert scores.nunique() > 1
    assert getattr(result.choices, name) == candidates[int(scores.argmax())]
    assert result.score == scores.max()
    k = round(result.choices.cutoff * (N_GENES - N_TARGETS))
    assert result.selected.sum() == N_TARGETS + k == (result.weights == 1).sum()
    assert (result.history["k"] == k).all()


def test_target_weight_is_kept_without_validation() -> None:
    spots, _ = make_spots()
    common: dict[str, Any] = {
        "n_targets": N_TARGETS,
        "method": method_spec("target_weight"),
        "config": config(dropout=0.0),
    }
    few, many = (fit(spots, None, choices=Choices(10.0, 3, 1.0, 2, weight), **common) for weight in (1.0, 100.0))
    assert few.choices.target_weight == 1
    assert many.choices.target_weight == 100
    assert not torch.equal(few.state["network.linear.weight"], many.state["network.linear.weight"])


@pytest.mark.parametrize("method", METHODS)
def test_without_auxiliary_genes_every_method_is_targets_only(method: Method) -> None:
    spots, validation = make_spots()
    few = Spots(spots.features, Expression.from_dense(spots.expression.columns(0, N_TARGETS)), spots.sections)
    common: dict[str, Any] = {"n_targets": N_TARGETS, "config": config(search="gradient")}
    found, plain = (fit(few, validation, method=method_spec(m), **common) for m in (method, "pgl"))
    assert all(torch.equal(found.state[k], plain.state[k]) for k in plain.state)
    assert found.choices.cutoff == 0
    assert found.weights.tolist() == [1.0] * N_TARGETS


@pytest.mark.parametrize("sections", [[0], [0, 1, 2]])
def test_validation_without_two_spots_of_a_section_is_refused(sections: list[int]) -> None:
    spots, validation = make_spots()
    few = Validation(validation.features[: len(sections)], validation.targets[: len(sections)], np.array(sections))
    with pytest.raises(
        ValueError, match=r"at least two validation spots of a section; .* agl_sc.pp.split\(sdata, validation"
    ):
        fit(spots, few, n_targets=N_TARGETS, method=method_spec("agl"), config=config())


def test_two_validation_spots_of_one_section_are_enough() -> None:
    spots, validation = make_spots()
    few = Validation(validation.features[:3], validation.targets[:3], np.array([0, 1, 1]))
    result = fit(spots, few, n_targets=N_TARGETS, method=method_spec("dkgsb"), config=config(search="gradient"))
    assert np.isfinite(result.score)


def test_a_likelihood_without_counts_is_refused() -> None:
    spots, validation = make_spots()
    bare = Spots(spots.features, spots.expression, spots.sections)
    with pytest.raises(ValueError, match=r"loss='poisson' needs raw counts; pass Spots with counts"):
        fit(bare, validation, n_targets=N_TARGETS, method=method_spec("agl"), config=config(loss="poisson"))


@pytest.mark.parametrize("method", METHODS)
def test_a_training_set_in_which_no_gene_varies_trains_nothing_and_harms_nothing(method: Method) -> None:
    spots, validation = make_spots()
    flat = Spots(spots.features, Expression.from_dense(np.zeros(spots.expression.shape)), spots.sections)
    common: dict[str, Any] = {"n_targets": N_TARGETS, "config": config(start="random", search="gradient", dropout=0.0)}
    result = fit(flat, validation, method=method_spec(method), **common)
    assert all(value.isfinite().all() for value in result.state.values())
    assert np.isfinite(result.weights).all()
    if method not in ("uncertainty", "auxilearn"):  # theirs is no mean of losses
        assert result.history["loss"][1:].tolist() == pytest.approx([1.0] * 3)
    # Weight decay alone moves the parameters, and the correlation does not see a common factor.
    scores = result.history["validation_pearson"]
    np.testing.assert_allclose(scores, scores[0], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bytes_whatever_the_global_randomness(method: Method) -> None:
    before = torch.get_rng_state()
    first = run(method)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    second = run(method)
    assert all(torch.equal(first.state[k], second.state[k]) for k in first.state)
    np.testing.assert_array_equal(first.weights, second.weights)
