"""The training loop on small synthetic spots."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from agl_sc.core.arrays import Floats
from agl_sc.core.choices import TRACE_COLUMNS, Choices
from agl_sc.core.config import Method, TrainConfig
from agl_sc.core.linear.choose_by_validation import ALPHAS
from agl_sc.core.linear.closed_form import reduced_rank_ridge, ridge_basis
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots, Validation, section_pearson
from agl_sc.core.training.fit import fit
from agl_sc.core.training.result import FitResult
from agl_sc.core.weighting import method_spec
from agl_sc.core.weighting.gate import n_active

FloatArray = NDArray[np.float64]

CPU = torch.device("cpu")
N_SPOTS, N_FEATURES, N_TARGETS, N_AUXILIARY = 96, 10, 5, 40
N_GENES = N_TARGETS + N_AUXILIARY
METHODS: tuple[Method, ...] = ("pgl", "agl", "dkgsb")


def make_spots(seed: int = 0) -> tuple[Spots, Validation]:
    """Genes of a bent function of two directions in feature space; what ridge leaves is there to be learned."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(2 * N_SPOTS, N_FEATURES))
    bent = features @ rng.normal(size=(N_FEATURES, 3)) / np.sqrt(N_FEATURES)
    bent = np.concatenate([bent, bent**2 - 1], axis=1)
    noise = np.repeat([1.0, 0.3, 3.0], [N_TARGETS, 20, 20])
    expression = bent @ rng.normal(size=(6, N_GENES)) + noise * rng.normal(size=(2 * N_SPOTS, N_GENES))
    expression = (expression - expression.mean(axis=0)) / expression.std(axis=0)
    sections = np.repeat([0, 1], N_SPOTS // 2)
    spots = Spots(features[:N_SPOTS], Expression.from_dense(expression[:N_SPOTS]), sections)
    return spots, Validation(features[N_SPOTS:], expression[N_SPOTS:, :N_TARGETS], sections)


def config(**changes: Any) -> TrainConfig:
    settings = {"rank": 4, "hidden": 16, "lr": 3e-3, "batch_size": 32, "max_epochs": 6, "patience": 6, **changes}
    return TrainConfig.from_plain(settings)


GRADIENT: dict[str, Any] = {
    "search": "gradient", "inner_steps": 3, "outer_lr": 0.05, "temperature": 0.05, "own_directions": False
}  # fmt: skip


def run(method: Method = "pgl", *, seed: int = 0, options: dict[str, Any] | None = None, **changes: Any) -> FitResult:
    spots, validation = make_spots()
    common: dict[str, Any] = {"n_targets": N_TARGETS, "method": method_spec(method), "seed": seed, **(options or {})}
    return fit(spots, validation, config=config(**changes), **common)


def predictions(result: FitResult) -> FloatArray:
    with torch.no_grad():
        predicted = result.network()(torch.from_numpy(make_spots()[1].features.astype(np.float32)))
    doubled: FloatArray = predicted.double().numpy()
    return doubled


def same_bytes(one: FitResult, other: FitResult) -> bool:
    return one.state.keys() == other.state.keys() and all(torch.equal(one.state[k], other.state[k]) for k in one.state)


ARMS = [
    pytest.param("pgl", {}, id="pgl"),
    pytest.param("agl", {}, id="agl"),
    pytest.param("dkgsb", {}, id="dkgsb by path"),
    pytest.param("dkgsb", GRADIENT, id="dkgsb by gradient"),
]


@pytest.mark.parametrize(("method", "changes"), ARMS)
def test_same_seed_same_bytes_and_global_randomness_untouched(method: Method, changes: dict[str, Any]) -> None:
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002  # that nobody touched it is the point
    first = run(method, **changes)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002
    torch.manual_seed(123)
    second = run(method, **changes)
    assert same_bytes(first, second)
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)
    pd.testing.assert_frame_equal(first.cutoff_trace, second.cutoff_trace, check_exact=True)


def test_another_seed_gives_another_network_from_the_same_start() -> None:
    first, second = run(), run(seed=1)
    assert not same_bytes(first, second)
    assert first.history["loss"][1] != second.history["loss"][1]
    assert first.history["validation_pearson"][0] == pytest.approx(second.history["validation_pearson"][0], abs=1e-6)


@pytest.mark.parametrize(("method", "changes"), ARMS)
def test_kept_epoch_is_the_best_of_the_history(method: Method, changes: dict[str, Any]) -> None:
    result = run(method, **changes)
    history = result.history
    assert list(history) == ["epoch", "loss", "validation_pearson", "cutoff", "k", "skipped"]
    assert history["epoch"].tolist() == list(range(7))
    assert history["loss"].isna().tolist() == [True] + [False] * 6
    best = int(history["validation_pearson"].to_numpy().argmax())
    assert result.choices.n_epochs == best > 0
    score = make_spots()[1].score(predictions(result)[:, :N_TARGETS])
    assert score == pytest.approx(history["validation_pearson"].max(), abs=1e-6)
    assert result.choices.cutoff == history["cutoff"][best]


def test_training_improves_on_the_closed_form_start() -> None:
    history = run(max_epochs=30, patience=30).history
    assert history["loss"].iloc[-1] < history["loss"][1] - 0.05
    assert history["validation_pearson"].max() > history["validation_pearson"][0] + 0.05


@pytest.mark.parametrize(("method", "changes"), ARMS)
def test_epoch_0_is_the_closed_form(method: Method, changes: dict[str, Any]) -> None:
    spots, validation = make_spots()
    result = run(method, max_epochs=0, **{**changes, "own_directions": True})
    assert result.choices.n_epochs == 0
    basis = ridge_basis(spots.features, spots.expression)
    start = reduced_rank_ridge(basis, result.weights, alpha=result.choices.alpha, rank=4)
    expected = start.predict(validation.features) / 2
    ridge = Ridge(alpha=result.choices.own_alpha, fit_intercept=False)
    ridge.fit(spots.features, spots.expression.columns(0, N_TARGETS))
    expected[:, :N_TARGETS] += ridge.predict(validation.features) / 2
    np.testing.assert_allclose(predictions(result), expected, atol=1e-4)
    assert len(result.history) == 1
    assert result.history["validation_pearson"][0] == pytest.approx(validation.score(expected[:, :N_TARGETS]), abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_penalty_and_rank_are_chosen_on_validation(seed: int) -> None:
    spots, validation = make_spots(seed)
    free = config(rank=None, max_epochs=0)
    result = fit(spots, validation, n_targets=N_TARGETS, method=method_spec("agl"), config=free)
    basis = ridge_basis(spots.features, spots.expression)

    def score(rank: int) -> float:
        start = reduced_rank_ridge(basis, result.weights, alpha=result.choices.alpha, rank=rank)
        return validation.score(start.predict(validation.features)[:, :N_TARGETS])

    assert result.choices.alpha in [pytest.approx(N_FEATURES * alpha) for alpha in ALPHAS]
    assert result.choices.rank == max((4, 8, 10), key=score)  # ten features hold no more
    assert result.state["network.linear.weight"].shape == (result.choices.rank + N_TARGETS, N_FEATURES)
    assert result.choices.own_alpha in [pytest.approx(N_FEATURES * alpha) for alpha in ALPHAS]


def test_without_own_directions_the_shared_trunk_is_all_there_is() -> None:
    spots, validation = make_spots()
    result = run("agl", max_epochs=0, own_directions=False)
    assert result.choices.own_alpha is None
    basis = ridge_basis(spots.features, spots.expression)
    start = reduced_rank_ridge(basis, result.weights, alpha=result.choices.alpha, rank=4)
    np.testing.assert_allclose(predictions(result), start.predict(validation.features), atol=1e-4)


def test_dropout_is_on_in_training_and_off_in_validation() -> None:
    dropped, kept = run(dropout=0.5), run(dropout=0.0)
    assert dropped.history["loss"][1] != kept.history["loss"][1]
    score = make_spots()[1].score(predictions(dropped)[:, :N_TARGETS])
    assert score == pytest.approx(dropped.history["validation_pearson"].max(), abs=1e-6)


def test_rank_beyond_the_data_is_cut() -> None:
    assert run(rank=50, max_epochs=0).choices.rank == N_FEATURES


def test_training_stops_when_patience_is_at_an_end() -> None:
    """On constant targets no epoch is better than the start."""
    spots, validation = make_spots()
    constant = Validation(validation.features, np.zeros_like(validation.targets), validation.sections)
    result = fit(
        spots, constant, n_targets=N_TARGETS, method=method_spec("pgl"), config=config(max_epochs=20, patience=3)
    )
    assert result.history["epoch"].tolist() == [0, 1, 2, 3]
    assert (result.history["validation_pearson"] == 0).all()
    assert result.choices.n_epochs == 0


def test_patience_counts_from_the_best_epoch() -> None:
    result = run(max_epochs=200, patience=2, lr=0.02)
    assert len(result.history) - 1 == result.choices.n_epochs + 2 < 200


def test_on_improvement_is_called_with_every_best_epoch() -> None:
    seen: list[FitResult] = []
    result = run("dkgsb", options={"on_improvement": seen.append})
    scores = result.history["validation_pearson"].to_numpy()
    expected = [0] + [epoch for epoch in range(1, len(scores)) if scores[epoch] > scores[:epoch].max()]
    assert [each.choices.n_epochs for each in seen] == expected
    assert len(expected) > 2
    assert same_bytes(seen[-1], result)
    assert not same_bytes(seen[0], result)  # a copy, not a view of what is being trained
    for each in seen:
        assert len(each.history) == each.choices.n_epochs + 1
        assert len(each.cutoff_trace) == len(result.cutoff_trace) > 0


def test_without_validation_choices_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"Without validation spots, choices= must say which penalty"):
        fit(make_spots()[0], None, n_targets=N_TARGETS, method=method_spec("pgl"), config=config())


@pytest.mark.parametrize("n_epochs", [0, 4])
def test_without_validation_the_last_of_the_given_epochs_is_kept(n_epochs: int) -> None:
    choices = Choices(alpha=10.0, rank=3, cutoff=0.5, n_epochs=n_epochs)
    spots, _ = make_spots()
    common: dict[str, Any] = {"n_targets": N_TARGETS, "method": method_spec("dkgsb"), "choices": choices}
    result = fit(spots, None, config=config(rank=None, **GRADIENT), **common)
    assert result.choices == choices
    assert len(result.history) == n_epochs + 1
    assert result.history["validation_pearson"].isna().all()
    assert (result.history["cutoff"] == 0.5).all()
    assert result.cutoff_trace.empty
    assert list(result.cutoff_trace) == list(TRACE_COLUMNS)
    assert result.state["network.head.weight"].shape == (N_GENES, 3)


@pytest.mark.parametrize(("method", "changes"), ARMS)
def test_weights_of_the_arms(method: Method, changes: dict[str, Any]) -> None:
    result = run(method, max_epochs=2, **changes)
    assert result.weights.shape == (N_GENES,)
    assert (result.weights[:N_TARGETS] == 1).all()
    auxiliary = result.weights[N_TARGETS:]
    if method == "dkgsb":
        assert (np.diff(auxiliary) <= 0).all()
        assert auxiliary[0] > auxiliary[-1]
        assert (auxiliary >= 0.5).sum() == result.history["k"][result.choices.n_epochs]
    else:
        assert (auxiliary == (method == "agl")).all()
        assert result.cutoff_trace.empty


@pytest.mark.parametrize("method", METHODS)
def test_first_loss_is_the_weighted_mean_over_genes_at_the_closed_form(method: Method) -> None:
    """With one batch of all spots, whose loss is that before the first step."""
    spots, _ = make_spots()
    whole = config(batch_size=N_SPOTS, dropout=0.0, temperature=0.1)
    choices = Choices(alpha=10.0, rank=4, cutoff=0.4, n_epochs=1)
    common: dict[str, Any] = {"n_targets": N_TARGETS, "method": method_spec(method), "config": whole}
    result = fit(spots, None, choices=choices, **common)
    weights = method_spec(method).gene_weights(0.4, n_targets=N_TARGETS, n_genes=N_GENES, temperature=0.1)
    np.testing.assert_array_equal(result.weights, weights)
    start = reduced_rank_ridge(ridge_basis(spots.features, spots.expression), weights, alpha=10.0, rank=4)
    losses = 1 - section_pearson(spots.expression.columns(0, N_GENES), start.predict(spots.features), spots.sections)
    assert result.history["loss"][1] == pytest.approx(np.average(losses, weights=weights), abs=1e-5)


@pytest.mark.parametrize("k", [1, 3, 20, 39, 40])
def test_cutoff_k_over_n_selects_k_genes(k: int) -> None:
    weights = method_spec("dkgsb").gene_weights(k / 40, n_targets=3, n_genes=43, temperature=0.01)
    assert (weights[3:] >= 0.5).sum() == k
    assert (weights[3 + n_active(k / 40, 40) :] == 0).all()
    assert weights.shape == (43,)


@pytest.mark.parametrize("cutoff", [0.0, 0.5])
def test_training_leaves_the_heads_of_inactive_genes_alone(cutoff: float) -> None:
    """Without weight decay; their outputs are not even computed."""
    choices = Choices(alpha=10.0, rank=4, cutoff=cutoff, n_epochs=3)
    spots, _ = make_spots()
    common: dict[str, Any] = {
        "n_targets": N_TARGETS,
        "method": method_spec("dkgsb"),
        "config": config(weight_decay=0),
    }
    start = fit(spots, None, choices=Choices(10.0, 4, cutoff, 0), **common)
    trained = fit(spots, None, choices=choices, **common)
    n = N_TARGETS + (n_active(cutoff, N_AUXILIARY) if cutoff else 0)
    assert n < N_GENES
    head, before = trained.state["network.head.weight"], start.state["network.head.weight"]
    assert torch.equal(head[n:], before[n:])
    assert ((head[:n] - before[:n]).abs() > 1e-5).any(dim=1).all()


def test_inactive_genes_do_not_change_the_training_of_the_others() -> None:
    spots, _ = make_spots()
    choices = Choices(alpha=10.0, rank=4, cutoff=0.3, n_epochs=3)
    common: dict[str, Any] = {"n_targets": N_TARGETS, "method": method_spec("dkgsb"), "config": config()}
    first = fit(spots, None, choices=choices, **common)
    spots.expression.scale[:, N_TARGETS + n_active(0.3, N_AUXILIARY) :] = np.inf
    second = fit(spots, None, choices=choices, **common)
    assert torch.equal(first.state["network.linear.weight"], second.state["network.linear.weight"])


@pytest.mark.parametrize("start", [0.0, 0.4, 1.0])
def test_gradient_search_moves_the_cutoff_and_keeps_it_in_range(start: float) -> None:
    result = run("dkgsb", **{**GRADIENT, "outer_lr": 0.3, "start_cutoff": start})
    trace = result.cutoff_trace
    assert list(trace) == list(TRACE_COLUMNS)
    assert trace["step"].tolist() == result.history["epoch"].tolist()
    assert trace["cutoff"].between(0, 1).all()
    assert trace["cutoff"][:2].tolist() == pytest.approx(
        [start, start]
    )  # the first epoch warms the optimiser's moments
    assert trace["cutoff"].nunique() > 1
    np.testing.assert_array_equal(trace["cutoff"], result.history["cutoff"])


def test_gradient_search_does_not_train_the_network() -> None:
    """A search that does not move the cutoff leaves training as it is without one.

    The search draws batches from the epoch's generator; with one batch of all spots, that changes their order alone,
    and Pearson does not depend on it.
    """
    spots, validation = make_spots()
    common: dict[str, Any] = {"n_targets": N_TARGETS, "method": method_spec("dkgsb")}
    still = config(**{**GRADIENT, "outer_lr": 1e-12, "dropout": 0.0, "batch_size": N_SPOTS})
    searched = fit(spots, validation, config=still, **common)
    choices = Choices(searched.choices.alpha, 4, 0.5, still.max_epochs)
    given = fit(spots, validation, config=still, choices=choices, **common)
    assert (searched.history["cutoff"] == 0.5).all()
    for column in ("loss", "validation_pearson"):
        np.testing.assert_allclose(searched.history[column], given.history[column], atol=1e-5)
    assert given.history["loss"][1] - given.history["loss"][6] > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_gene_that_is_constant_does_no_harm(method: Method) -> None:
    spots, validation = make_spots()
    spots.expression.scale[:, [1, N_TARGETS + 2]] = np.inf
    validation.targets[:, 2] = 0.0
    result = fit(spots, validation, n_targets=N_TARGETS, method=method_spec(method), config=config(max_epochs=3))
    assert all(value.isfinite().all() for value in result.state.values())
    assert result.history["loss"][1:].between(0, 2).all()


class Mapped:
    """Features through a linear encoder that is trained too."""

    def __init__(self, features: Floats, encoder: torch.nn.Module) -> None:
        self.features = torch.from_numpy(features.astype(np.float32))
        self.encoder: torch.nn.Module | None = encoder
        self.map = encoder
        self.n_epochs = 0
        self.sizes: list[int] = []

    def __len__(self) -> int:
        return len(self.features)

    def inputs(self, index: torch.Tensor, randomness: torch.Generator) -> torch.Tensor:
        del randomness
        self.sizes.append(len(index))
        mapped: torch.Tensor = self.map(self.features[index])
        return mapped

    def all_inputs(self) -> Iterator[torch.Tensor]:
        for features in torch.split(self.features, 50):
            yield self.map(features)

    def begin_epoch(self) -> None:
        self.n_epochs += 1


@pytest.mark.parametrize(
    ("n_spots", "batch_size", "sizes"),
    [
        pytest.param(96, 32, [32, 32, 32], id="even"),
        pytest.param(95, 29, [29, 29, 29, 8], id="eight are enough"),
        pytest.param(94, 29, [29, 29, 29], id="seven are dropped"),
        pytest.param(6, 8, [6], id="all there is"),
    ],
)
def test_a_small_last_batch_is_dropped(n_spots: int, batch_size: int, sizes: list[int]) -> None:
    spots, validation = make_spots()
    expression = Expression.from_dense(spots.expression.columns(0, N_GENES)[:n_spots])
    few = Spots(spots.features[:n_spots], expression, spots.sections[:n_spots])
    source = Mapped(few.features, torch.nn.Identity())
    settings = config(batch_size=batch_size, max_epochs=2)
    common: dict[str, Any] = {"n_targets": N_TARGETS, "method": method_spec("pgl"), "config": settings}
    fit(few, validation, sources=(source, Mapped(validation.features, torch.nn.Identity())), **common)
    assert source.sizes == 2 * sizes


def test_an_encoder_is_trained_and_kept_under_its_own_name() -> None:
    encoder = torch.nn.Linear(N_FEATURES, N_FEATURES, bias=False)
    torch.nn.init.eye_(encoder.weight)
    spots, validation = make_spots()
    sources = Mapped(spots.features, encoder), Mapped(validation.features, encoder)
    result = run(options={"sources": sources}, encoder_lr=1e-2, max_epochs=3)
    assert [source.n_epochs for source in sources] == [3, 0]
    assert set(result.state) > {"encoder.weight", "network.linear.weight"}
    assert not torch.equal(result.state["encoder.weight"], torch.eye(N_FEATURES))
    assert result.history["validation_pearson"][0] == pytest.approx(run().history["validation_pearson"][0], abs=1e-5)
    mapped = sources[1].features @ result.state["encoder.weight"].T
    with torch.no_grad():
        score = validation.score(result.network()(mapped)[:, :N_TARGETS].double().numpy())
    assert score == pytest.approx(result.history["validation_pearson"].max(), abs=1e-5)
