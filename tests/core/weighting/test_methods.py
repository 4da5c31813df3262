"""The table of methods, and rows and weightings of the user's own."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.core.training.test_fit_methods import N_GENES, N_TARGETS, config, make_spots

from agl_sc.core.choices import Choices
from agl_sc.core.config import Method
from agl_sc.core.training.checkpoint import Checkpoint
from agl_sc.core.training.fit import fit
from agl_sc.core.training.result import FitResult
from agl_sc.core.weighting import METHODS, MethodSpec, Uncertainty, Weighting, method_spec, with_auxiliary


class Halved(Weighting):
    """Auxiliary genes count half, and how often it was asked is learned."""

    n_asked: torch.Tensor
    selects = False

    def __init__(self, n_targets: int, n_genes: int, weight: float = 0.5) -> None:
        super().__init__(n_targets, n_genes)
        self.weight = weight
        self.register_buffer("n_asked", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        self.n_asked += 1
        weights = torch.from_numpy(self.weights()).float()
        return (weights * losses).sum() / weights.sum()

    def weights(self) -> NDArray[np.float64]:
        return np.where(np.arange(self.n_genes) < self.n_targets, 1.0, self.weight)


@dataclass(frozen=True)
class HalvedBy:
    """Makes weightings, and is none."""

    weight: float

    def __call__(self, n_targets: int, n_genes: int) -> Weighting:
        return Halved(n_targets, n_genes, self.weight)


def half(cutoff: float, n_auxiliary: int, temperature: float) -> NDArray[np.float64]:
    del cutoff, temperature
    return np.full(n_auxiliary, 0.5)


def trained(spec: MethodSpec, checkpoint: Checkpoint | None = None, **changes: Any) -> FitResult:
    spots, validation = make_spots()
    settings = config(**{"start": "random", **changes})
    return fit(spots, validation, n_targets=N_TARGETS, method=spec, config=settings, checkpoint=checkpoint)


def same(one: FitResult, other: FitResult) -> bool:
    tensors = all(torch.equal(one.state[name], other.state[name]) for name in other.state)
    return tensors and np.array_equal(one.weights, other.weights) and one.choices == other.choices


def test_the_table_has_the_names_of_the_type_and_labels_of_their_own() -> None:
    assert tuple(METHODS) == get_args(Method)
    assert all(METHODS[name].name == name for name in METHODS)
    assert len({row.label for row in METHODS.values()}) == len(METHODS)
    assert [name for name in METHODS if METHODS[name].has_cutoff] == ["dkgsb", "fixed_k"]
    assert [name for name in METHODS if METHODS[name].searches] == ["dkgsb"]
    assert [name for name in METHODS if not METHODS[name].uses_auxiliary] == ["pgl", "denoiser"]
    assert [name for name in METHODS if not METHODS[name].sees_auxiliary] == ["pgl"]
    assert [name for name in METHODS if METHODS[name].relearns] == ["uncertainty", "cosine"]


@pytest.mark.parametrize("search", ["path", "gradient", "race"])
@pytest.mark.parametrize("method", get_args(Method))
def test_a_row_is_all_that_sets_a_method_apart(method: Method, search: str) -> None:
    """The same row by another name trains to the same bytes."""
    own = replace(METHODS[method], name="own", label="own")
    assert same(trained(own, search=search), trained(METHODS[method], search=search))


@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(Halved, "Halved", id="a class"),
        pytest.param(partial(Halved, weight=0.5), "Halved", id="a partial function"),
        pytest.param(HalvedBy(0.5), "HalvedBy", id="an object that makes it"),
        pytest.param(MethodSpec("own", "own", Halved), "own", id="a row"),
    ],
)
def test_a_weighting_of_the_users_is_trained_with(method: Any, name: str) -> None:
    spec = method_spec(method)
    assert spec.name == name
    result = trained(spec)
    assert result.weights.tolist() == [1.0] * N_TARGETS + [0.5] * (N_GENES - N_TARGETS)
    assert result.selected.all()
    assert same(result, trained(MethodSpec("fixed", "fixed", auxiliary_weights=half), start="random"))
    assert not same(result, trained(METHODS["agl"]))


def test_its_buffers_are_in_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state")
    first = trained(method_spec(Halved), checkpoint, max_epochs=2, patience=9)
    read = checkpoint.read()
    assert read is not None
    assert int(read[0]["weighting.n_asked"]) == 6
    whole, again = trained(method_spec(Halved), patience=9), trained(method_spec(Halved), checkpoint, patience=9)
    assert len(first.history) < len(again.history) == len(whole.history)
    assert same(again, whole)


def test_candidates_are_every_pair_of_cutoff_and_target_weight() -> None:
    first = Choices(1.0, 4, cutoff=1.0, n_epochs=0)
    both = replace(METHODS["fixed_k"], name="both", cutoffs=(0.1, 0.2), target_weights=(1.0, 3.0))
    pairs = [(each.cutoff, each.target_weight) for each in both.candidates(first)]
    assert pairs == [(0.1, 1.0), (0.1, 3.0), (0.2, 1.0), (0.2, 3.0)]
    assert METHODS["agl"].candidates(first) == []


@pytest.mark.parametrize("method", get_args(Method))
def test_without_auxiliary_genes_every_method_is_targets_only_and_says_so(
    method: Method, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert with_auxiliary(METHODS[method], 0) is METHODS["pgl"]
    told = [f"There are no auxiliary genes: method={method!r} becomes 'pgl'."]
    assert [record.getMessage() for record in caplog.records] == ([] if method == "pgl" else told)
    assert with_auxiliary(METHODS[method], 1) is METHODS[method]


class NoForward(Weighting):
    """Forgets the loss."""

    def weights(self) -> NDArray[np.float64]:
        return np.ones(self.n_genes)


class NoWeights(Weighting):
    """Forgets the weights."""


def undefined(n_targets: int) -> Weighting:
    return Halved(n_targets, n_targets)


REFUSED: list[Any] = [
    pytest.param("dgksb", ValueError, r"method='dgksb' is not one of 'pgl', 'agl', 'dkgsb'", id="no such name"),
    pytest.param(None, TypeError, r"method=None is neither the name of a method nor a subclass", id="nothing"),
    pytest.param(3, TypeError, r"method=3 is neither the name of a method", id="a number"),
    pytest.param(dict, TypeError, r"method=<class 'dict'> is neither the name of a method", id="another class"),
    pytest.param(
        Halved(2, 3), TypeError, r"is made already, .*pass its class, or functools.partial", id="made already"
    ),
    pytest.param(undefined, TypeError, r"cannot be called with the number of targets and .*too many", id="one number"),
    pytest.param(lambda n, m: Halved(n, m), TypeError, r"has no name; pass agl_sc.tl.MethodSpec", id="no name"),
    pytest.param(MethodSpec("agl", "mine"), ValueError, r"is called 'agl' as one of the package's own is", id="taken"),
    pytest.param(
        type("pgl", (Halved,), {}), ValueError, r"is called 'pgl' as one of the package's own is", id="taken by a class"
    ),
]


@pytest.mark.parametrize(("method", "error", "message"), REFUSED)
def test_what_is_no_method_is_refused(method: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        method_spec(method)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: MethodSpec("", "own"), r"name='' is not a name; models and tables call the method by it", id="name"
        ),
        pytest.param(lambda: MethodSpec("own", "own", 3), r"weighting=3 is neither the name", id="weighting"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_row_is_refused_when_it_is_made(make: Callable[[], MethodSpec], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        pytest.param(MethodSpec("own", "own", NoForward), NotImplementedError, r"NoForward does not define forward\(losses\)", id="no loss"),
        pytest.param(MethodSpec("own", "own", NoWeights), NotImplementedError, r"NoWeights does not define weights\(\)", id="no weights"),
        pytest.param(MethodSpec("own", "own", lambda n, m: torch.nn.Linear(n, m)), TypeError, r"method 'own' makes a Linear, not an agl_sc.tl.Weighting", id="another module"),  # type: ignore[arg-type,return-value]
        pytest.param(MethodSpec("own", "own", lambda n, m: Halved(n, m - 1)), ValueError, r"weights\(\) of method 'own' has shape \(23,\).* has to be of shape \(24,\), in \[0, 1\]", id="shape"),
        pytest.param(MethodSpec("own", "own", lambda n, m: Halved(n, m, 1.5)), ValueError, r"values from 1.0 to 1.5; it has to be", id="above 1"),
        pytest.param(MethodSpec("own", "own", lambda n, m: Halved(n, m, float("nan"))), ValueError, r"weights\(\) of method 'own' .* in \[0, 1\]", id="unknown"),
        pytest.param(MethodSpec("own", "own", auxiliary_weights=lambda c, n, t: np.ones(n + 1)), ValueError, r"auxiliary_weights of method 'own' has shape \(21,\).* \(20,\)", id="rule"),
    ],
)  # fmt: skip
def test_a_weighting_that_keeps_to_no_rule_is_refused(spec: MethodSpec, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trained(spec)


def test_a_weighting_that_learns_from_training_spots_learns_again() -> None:
    """As a row says; the weights that were found are kept otherwise."""
    assert replace(METHODS["uncertainty"], name="own").relearns
    assert not method_spec(Uncertainty).relearns
