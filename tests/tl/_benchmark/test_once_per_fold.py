"""What no seed changes is made once per fold, and nothing comes out otherwise for it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from spatialdata import SpatialData

from agl_sc.core.config import Denoise
from agl_sc.core.linear import closed_form
from agl_sc.core.once import Once
from agl_sc.core.training import plan, recipe
from agl_sc.pp._genes import targets_and_ranks
from agl_sc.tl import TrainConfig, cross_validate

SECTIONS, SETS = ("section_1", "section_2", "section_3"), ("train", "validation", "test")
COUNTED = [
    (closed_form, "_decompose"), (plan, "ridge_basis"), (plan, "choose_alpha"), (plan, "own_penalty"), (plan, "in_basis"),
    (plan, "path_search"), (plan, "reduced_rank_ridge"), (recipe, "choose_denoising"), (targets_and_ranks, "_scores"),
]  # fmt: skip


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each is called from now on."""
    calls: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for module, name in COUNTED:
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return calls


def run(sdata: SpatialData, config: TrainConfig, *methods: str, seeds: int = 3) -> tuple[pd.DataFrame, bytes]:
    """One fold: the first section trains, the second picks."""
    sets = sdata["table"].obs["section"].map(dict(zip(SECTIONS, SETS, strict=False))).astype(str).tolist()
    found = cross_validate(sdata, methods=list(methods), folds=[sets], genes=4, seeds=seeds, config=config)
    return found.results, sdata["table"].layers["agl_oof"].tobytes()


def test_seeds_and_arms_of_a_fold_share_closed_forms_searches_and_ranks(
    prepared: SpatialData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, methods = replace(config, max_epochs=1), ("agl", "uncertainty", "dkgsb", "dkgsb_mean")
    calls = counted(monkeypatch)
    run(prepared, short, *methods)
    of_all_seeds = calls.copy()
    assert calls.pop("reduced_rank_ridge") < 2 * len(methods) * 3  # agl and uncertainty start alike
    assert dict(calls) == {
        "_decompose": 3,  # of the training spots for the ranks and for training, and with the validation spots
        "ridge_basis": 4,  # of genes in two orders
        "choose_alpha": 4,  # of all genes and of the targets alone
        "own_penalty": 2,
        "in_basis": 1,
        "path_search": 2,
        "_scores": 2,
    }
    calls.clear()
    run(prepared, short, *methods, seeds=1)
    assert calls == of_all_seeds


def test_the_targets_alone_are_projected_on_what_all_genes_are(
    prepared: SpatialData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    run(prepared, replace(config, max_epochs=1), "pgl", "agl")
    assert calls["_decompose"] == 3
    assert calls["in_basis"] == 1


def test_denoising_is_chosen_once(prepared: SpatialData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    denoise = Denoise(genes=(8,), components=(2,), mix=(0.5,))
    run(prepared, replace(config, max_epochs=0, denoise=denoise), "agl_denoised", "dkgsb_denoised")
    assert calls["choose_denoising"] == 1


def test_runs_come_out_as_they_do_alone(
    prepared: SpatialData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, methods = replace(config, max_epochs=1), ("pgl", "dkgsb", "dkgsb_mean", "random_k", "agl_denoised")
    shared = run(prepared, short, *methods, seeds=2)
    monkeypatch.setattr(Once, "of", lambda _, key, make: make())
    alone = run(prepared, short, *methods, seeds=2)
    pd.testing.assert_frame_equal(shared[0], alone[0], check_exact=True)
    assert shared[1] == alone[1]
