"""Counts of test spots reach nothing: no role, no rank, no scale, no weight, no prediction."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from spatialdata import SpatialData

from agl_sc.model import Model
from agl_sc.pp import rank_auxiliary, split, target_genes
from agl_sc.tl import GradientSearch, TrainConfig, evaluate, train

Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]
COLUMNS = ["agl_role", "agl_prior_rank", "agl_weight", "agl_selected"]


def set_counts(sdata: SpatialData, rows: NDArray[np.bool_], change: Change) -> None:
    dense = sdata["table"].X.toarray()
    dense[rows] = change(dense[rows])
    sdata["table"].X = scipy.sparse.csr_matrix(dense)


def run(sdata: SpatialData, config: TrainConfig, **options: Any) -> tuple[Model, dict[str, Any]]:
    """Everything that is fitted, as bytes."""
    target_genes(sdata, genes=4)
    rank_auxiliary(sdata)
    model = train(sdata, config=config, **options)
    table = sdata["table"]
    return model, {
        "tensors": {name: tensor.numpy().tobytes() for name, tensor in model.tensors.items()},
        "genes": model.genes,
        "weights": model.weights.tobytes(),
        "history": model.history.to_json(),
        "trace": model.cutoff_trace.to_json(),
        "var": table.var[COLUMNS].to_json(),
        "predictions": table.layers["agl"].tobytes(),
    }


def rows_of(sdata: SpatialData, *names: str) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = sdata["table"].obs["agl_split"].isin(names).to_numpy()
    return rows


CHANGES: dict[str, Change] = {
    "spots permuted": lambda counts: np.random.default_rng(0).permutation(counts),
    "genes permuted": lambda counts: np.random.default_rng(0).permuted(counts, axis=1),
    "a thousandfold": lambda counts: counts * 1000,
    "all the same": lambda counts: np.zeros_like(counts) + 1,
    "one gene per spot": lambda counts: np.eye(*counts.shape, dtype=np.float32) * 9999,
}


@pytest.mark.parametrize("search", ["path", "gradient"])
def test_counts_of_test_spots_change_nothing(*, prepared: SpatialData, config: TrainConfig, search: Any) -> None:
    settings = replace(config, search=search, gradient=GradientSearch(inner_steps=2), max_epochs=2)
    original = prepared["table"].X.copy()
    _, before = run(prepared, settings)
    for name, change in CHANGES.items():
        prepared["table"].X = original.copy()
        set_counts(prepared, rows_of(prepared, "test"), change)
        _, after = run(prepared, settings)
        assert [part for part in before if after[part] != before[part]] == [], name


@pytest.mark.parametrize("method", ["pgl", "agl"])
def test_counts_of_test_spots_within_training_sections_change_nothing(
    *, prepared: SpatialData, config: TrainConfig, method: Any
) -> None:
    """Blocks of the same sections, where centring per section could reach across."""
    split(prepared, by="block", test=0.2, validation=0.2, block_um=250, buffer_um=110)
    _, before = run(prepared, config, method=method)
    set_counts(prepared, rows_of(prepared, "test", "unused"), lambda counts: np.zeros_like(counts) + 7)
    _, after = run(prepared, config, method=method)
    assert [part for part in before if after[part] != before[part]] == []


def test_counts_of_test_spots_change_nothing_when_the_encoder_is_trained(
    prepared: SpatialData, config: TrainConfig
) -> None:
    settings = replace(config, max_epochs=1)
    _, before = run(prepared, settings, method="pgl", finetune=True)
    set_counts(prepared, rows_of(prepared, "test"), lambda counts: counts * 0 + 3)
    _, after = run(prepared, settings, method="pgl", finetune=True)
    assert [part for part in before if after[part] != before[part]] == []


@pytest.mark.parametrize(("name", "parts"), [("train", {"tensors", "predictions"}), ("validation", {"history"})])
def test_counts_of_other_spots_do_matter(
    *, prepared: SpatialData, config: TrainConfig, name: str, parts: set[str]
) -> None:
    """The tests above can fail."""
    _, before = run(prepared, config)
    set_counts(prepared, rows_of(prepared, name), lambda counts: np.random.default_rng(0).permutation(counts))
    _, after = run(prepared, config)
    assert parts <= {part for part in before if after[part] != before[part]}


def test_validation_picks_but_does_not_fit_without_refit(prepared: SpatialData, config: TrainConfig) -> None:
    """Roles and ranks are of training spots alone, and so are the parameters at a given epoch, rank and penalty."""
    target_genes(prepared, genes=4)
    rank_auxiliary(prepared)
    before = prepared["table"].var[["agl_role", "agl_prior_rank"]].copy()
    set_counts(prepared, rows_of(prepared, "validation"), lambda counts: counts[::-1] * 3)
    target_genes(prepared, genes=4)
    rank_auxiliary(prepared)
    assert prepared["table"].var[["agl_role", "agl_prior_rank"]].equals(before)


def test_a_gene_that_knows_the_test_spots_is_not_predictable(prepared: SpatialData, config: TrainConfig) -> None:
    """Noise in training, the position of the spot along the section in test: only a leak could find it."""
    table = prepared["table"]
    gene = table.var_names.get_loc("G0001")
    rng = np.random.default_rng(0)
    test = rows_of(prepared, "test")
    dense = table.X.toarray()
    dense[:, gene] = rng.permutation(np.where(test, 0, rng.poisson(200, len(test))))
    dense[test, gene] = np.argsort(np.argsort(table.obsm["spatial"][test, 0])) * 20
    table.X = scipy.sparse.csr_matrix(dense)
    target_genes(prepared, genes=["G0001"])
    rank_auxiliary(prepared)
    train(prepared, config=config)
    result = evaluate(prepared)
    assert abs(result["pearson"].item()) < 0.35
    train_rows = evaluate(prepared, on="train")
    assert train_rows["pearson"].item() > abs(result["pearson"].item())
