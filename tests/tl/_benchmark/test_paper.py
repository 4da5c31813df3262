"""The paper's protocol: what it filters, what it chooses, what it never looks at."""

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import spatialdata as sd
from tests.io.hest_files import centres, write_encoder, write_sample

from agl_sc import tl
from agl_sc._sdata.study import Study
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.io import read_hest
from agl_sc.pp._genes.targets_and_ranks import assign_roles
from agl_sc.pp._splits.folds import FoldPlan, make_folds

GENES = [f"GENE{i}" for i in range(30)]
TILES: dict[str, Any] = {"tile_px": 32, "mpp": 3.5, "changes": {"batch_size": 8, "max_epochs": 1}}


@pytest.fixture(scope="session")
def _hest(tmp_path_factory: pytest.TempPathFactory) -> sd.SpatialData:
    """A sample of 41 spots with patches and 30 genes, one of them rare, and a spot with few genes."""
    folder = write_sample(tmp_path_factory.mktemp("hest"), positions=centres(7, 6), genes=GENES)
    sdata = read_hest(folder)
    counts = sdata["table"].X.toarray()
    counts[:, 3] = 0
    counts[[1, 2], 3] = 5
    counts[7, 4:] = 0
    sdata["table"].X = type(sdata["table"].X)(counts)
    return sdata


@pytest.fixture
def hest(_hest: sd.SpatialData) -> sd.SpatialData:
    return own(_hest)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "net.pth")


@pytest.fixture(scope="session")
def finished(_hest: sd.SpatialData, encoder: str) -> tuple[sd.SpatialData, pd.DataFrame]:
    sdata = tl.paper_prepare(_hest, n_targets=5, min_genes=20)
    return sdata, tl.paper_benchmark(sdata, methods=["pgl", "agl"], encoder=encoder, **TILES).results


def own(sdata: sd.SpatialData) -> sd.SpatialData:
    tables = {name: table.copy() for name, table in sdata.tables.items()}
    return sd.SpatialData(
        images=dict(sdata.images), shapes=dict(sdata.shapes), tables=tables, attrs=copy.deepcopy(sdata.attrs)
    )


def test_filters_are_scanpys(hest: sd.SpatialData, unchanged: Any) -> None:
    with unchanged(hest):
        prepared = tl.paper_prepare(hest, n_targets=5, min_genes=20)["table"]
    expected = hest["table"].copy()
    sc.pp.filter_cells(expected, min_genes=20)
    sc.pp.filter_genes(expected, min_cells=3)
    assert prepared.obs_names.tolist() == expected.obs_names.tolist()
    assert prepared.var_names.tolist() == expected.var_names.tolist() == [name for name in GENES if name != "GENE3"]
    np.testing.assert_array_equal(prepared.X.toarray(), expected.X.toarray())
    assert prepared.uns["agl"]["paper"] == {
        "n_targets": 5, "min_genes": 20, "min_spots": 3, "normalize": "log1p", "n_spots_left_out": 1, "n_genes_left_out": 1
    }  # fmt: skip


@pytest.mark.parametrize("n_targets", [25, 50, 75, 100])
def test_targets_are_scanpys(tmp_path: Path, n_targets: int) -> None:
    many = [f"GENE{i}" for i in range(400)]
    table = tl.paper_prepare(read_hest(write_sample(tmp_path, genes=many)), n_targets=n_targets)["table"]
    expected = table.copy()
    sc.pp.log1p(expected)
    sc.pp.highly_variable_genes(expected, n_top_genes=n_targets, flavor="seurat")
    assert table.var["agl_paper_target"].sum() == n_targets
    assert table.var["agl_paper_target"].tolist() == expected.var["highly_variable"].tolist()


def test_prepared_round_trip(hest: sd.SpatialData, tmp_path: Path) -> None:
    prepared = tl.paper_prepare(hest, n_targets=5, min_genes=20)
    prepared.write(tmp_path / "a.zarr")
    back = sd.read_zarr(tmp_path / "a.zarr")
    assert back["table"].uns["agl"]["paper"] == prepared["table"].uns["agl"]["paper"]
    assert back["table"].var["agl_paper_target"].tolist() == prepared["table"].var["agl_paper_target"].tolist()
    assert back.attrs == prepared.attrs


REFUSED: list[Any] = [
    pytest.param({"n_targets": 0}, "n_targets=0 is not a whole number of at least 1; the paper has n_targets=50", id="targets"),
    pytest.param({"min_genes": 0}, "min_genes=0 is not a whole number of at least 1", id="genes"),
    pytest.param({"min_spots": -1}, "min_spots=-1 is not a whole number of at least 1", id="spots"),
    pytest.param({}, r"0 spots with 200 genes and 0 genes in 3 of them are left, fewer than n_targets=50; lower min_genes", id="nothing left"),
    pytest.param({"min_genes": 20}, r"and 29 genes in 3 of them are left, fewer than n_targets=50", id="few genes"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_preparations_that_are_refused(hest: sd.SpatialData, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tl.paper_prepare(hest, **arguments)


def test_five_spot_folds_of_three_to_one_to_one(finished: tuple[sd.SpatialData, pd.DataFrame]) -> None:
    sdata, results = finished
    table = sdata["table"]
    assert results["fold"].unique().tolist() == [f"fold {i}" for i in range(5)]
    assert results["metric"].unique().tolist() == ["mse", "pearson", "pearson_beyond_depth", "spearman"]
    assert results["method"].unique().tolist() == ["pgl", "agl"]
    assert set(table.obs["agl_fold"].value_counts()) == {8}
    for fold in folds_of(sdata):
        sizes = pd.Series(fold.assigned).value_counts()
        assert sizes.to_dict() == {"train": 24, "validation": 8, "test": 8}
    said = table.uns["agl"]["cross_validation"]
    assert (said["normalize"], said["finetune"], said["choose_by"]) == ("log1p", True, "dispersion")
    assert said["config"]["inner_steps"] == 2
    assert np.isfinite(table.layers["agl_oof"]).sum() == 5 * 40


def folds_of(sdata: sd.SpatialData) -> Any:
    return make_folds(Study.of(sdata), FoldPlan("spot", 5, 0.2))


def test_targets_are_those_of_the_training_spots(finished: tuple[sd.SpatialData, pd.DataFrame]) -> None:
    sdata, results = finished
    table = sdata["table"]
    expression = normalize_counts(table.X, "log1p")
    chosen = []
    for fold in folds_of(sdata):
        role = assign_roles(expression[fold.assigned == "train"], table.var_names, genes=5, choose_by="dispersion")
        chosen.append(set(table.var_names[role == "target"]))
        assert set(results.loc[results["fold"] == fold.name, "gene"]) == chosen[-1]
    assert len({frozenset(genes) for genes in chosen}) > 1


def test_targets_of_all_spots_on_request(
    finished: tuple[sd.SpatialData, pd.DataFrame], encoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    sdata = own(finished[0])
    results = tl.paper_benchmark(sdata, methods="pgl", encoder=encoder, targets_on="all", **TILES).results
    targets = set(sdata["table"].var_names[sdata["table"].var["agl_paper_target"]])
    assert {frozenset(genes) for _, genes in results.groupby("fold")["gene"]} == {frozenset(targets)}
    assert "Targets were chosen on all spots, test spots included" in caplog.text


def test_leave_one_patient_out(tmp_path: Path, encoder: str) -> None:
    for number, name in enumerate(["INT1", "INT2", "INT3"]):
        write_sample(tmp_path, name, number, positions=centres(5, 4), genes=GENES, patient=f"Patient {number}")
    sdata = tl.paper_prepare(read_hest(tmp_path), n_targets=5, min_genes=20)
    results = tl.paper_benchmark(sdata, methods="pgl", n_targets=4, encoder=encoder, **TILES).results
    assert results["fold"].unique().tolist() == [f"Patient {number} of A study" for number in range(3)]
    assert results.groupby("fold")["gene"].nunique().tolist() == [4, 4, 4]
    assert (results.groupby("fold")["section"].first() == ["INT1", "INT2", "INT3"]).all()


BENCHMARKS: list[Any] = [
    pytest.param({"targets_on": "test"}, ValueError, "targets_on='test' is not one of 'training', 'all'", id="where"),
    pytest.param({"preset": "draft"}, ValueError, "preset='draft' is not one of 'paper', 'released', 'warmstart'", id="preset"),
    pytest.param({"methods": "mlp"}, ValueError, "'mlp' is not a method; the methods are", id="method"),
    pytest.param({"targets_on": "all", "n_targets": 6}, ValueError, "n_targets=6 contradicts the 5 targets", id="number"),
    pytest.param({"changes": {"batch_size": 100}}, ValueError, "has 24 training spots, fewer than batch_size=100", id="batch"),
    pytest.param({"tile_px": 64}, ValueError, "wider than the patches of 112 um", id="tile"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), BENCHMARKS)
def test_benchmarks_that_are_refused(
    hest: sd.SpatialData,
    encoder: str,
    unchanged: Any,
    *,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    sdata = tl.paper_prepare(hest, n_targets=5, min_genes=20)
    with unchanged(sdata), pytest.raises(error, match=message):
        tl.paper_benchmark(sdata, **{"encoder": encoder, **TILES, **arguments})


def test_targets_of_all_spots_need_a_preparation(hest: sd.SpatialData) -> None:
    with pytest.raises(
        KeyError, match=r'takes var\["agl_paper_target"\], which is missing; run agl_sc.tl.paper_prepare'
    ):
        tl.paper_benchmark(hest, targets_on="all")


def test_summary_is_over_folds() -> None:
    values = {"a": [1.0, 2.0, 4.0, np.nan], "b": [0.0, 0.0, 3.0, 5.0]}
    rows = [
        {"method": method, "fold": f"fold {i // 2}", "seed": 0, "section": "S", "gene": f"G{i % 2}", "metric": "pearson", "value": value}
        for method, each in values.items()
        for i, value in enumerate(each)
    ]  # fmt: skip
    summary = tl.paper_summary(pd.DataFrame(rows))
    assert summary.columns.equals(pd.MultiIndex.from_tuples([("pearson", "mean"), ("pearson", "sd")]))
    np.testing.assert_allclose(summary.loc["a"], [np.mean([1.5, 4.0]), np.std([1.5, 4.0], ddof=1)])
    np.testing.assert_allclose(summary.loc["b"], [np.mean([0.0, 4.0]), np.std([0.0, 4.0], ddof=1)])
    with pytest.raises(KeyError, match="results has no column 'fold'"):
        tl.paper_summary(pd.DataFrame(rows).drop(columns="fold"))


def test_summary_of_a_run(finished: tuple[sd.SpatialData, pd.DataFrame]) -> None:
    summary = tl.paper_summary(finished[1])
    assert summary.index.tolist() == ["pgl", "agl"]
    assert list(summary.columns.get_level_values(0)) == [
        name for name in ("mse", "pearson", "pearson_beyond_depth", "spearman") for _ in range(2)
    ]
    assert np.isfinite(summary.to_numpy()).all()


def test_log_says_what_random_spots_are(hest: sd.SpatialData, encoder: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="agl_sc")
    sdata = tl.paper_prepare(hest, n_targets=5, min_genes=20)
    with pytest.raises(ValueError, match="batch_size=100"):
        tl.paper_benchmark(sdata, encoder=encoder, tile_px=32, mpp=3.5, changes={"batch_size": 100})
    assert "flatters every method" in caplog.text
