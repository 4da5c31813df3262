"""Which method is written out of fold, what of it is told, and folds of the user's own."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

from agl_sc import pl
from agl_sc.pp import split
from agl_sc.tl import TrainConfig, benchmark, cross_validate, evaluate

GENES = ["G0001", "G0002", "G0003", "G0004"]
SECTION = "section_1"


@pytest.fixture
def single(prepared: SpatialData) -> SpatialData:
    """One section, in quarters."""
    table = prepared["table"][(prepared["table"].obs["section"] == SECTION).to_numpy()].copy()
    table.uns["spatialdata_attrs"] = {**table.uns["spatialdata_attrs"], "region": SECTION}
    table.obs["region"] = table.obs["region"].cat.remove_unused_categories()
    table.obs["quarter"] = pd.Series(np.arange(len(table)) % 4, index=table.obs_names).where(np.arange(len(table)) > 2)
    return SpatialData(
        images={f"{SECTION}_image": prepared[f"{SECTION}_image"]},
        shapes={SECTION: prepared[SECTION]},
        tables={"table": table},
        attrs=prepared.attrs,
    )


@pytest.mark.parametrize("call", [cross_validate, benchmark])
@pytest.mark.parametrize(("asked", "written", "label"), [(None, "mean", "training mean"), ("ridge", "ridge", "ridge")])
def test_the_method_that_is_written_is_chosen_and_recorded(
    *, prepared: SpatialData, call: Any, asked: str | None, written: str, label: str, caplog: pytest.LogCaptureFixture
) -> None:
    cross_validate(prepared, methods=written, genes=GENES)
    expected = prepared["table"].layers["agl_oof"].copy()
    with caplog.at_level(logging.INFO):
        call(prepared, methods=["mean", "ridge"], genes=GENES, predictions=asked, seeds=1)
    np.testing.assert_array_equal(prepared["table"].layers["agl_oof"], expected)
    assert prepared["table"].uns["agl"]["cross_validation"]["predictions"] == written
    assert f'Wrote layers["agl_oof"] and obs["agl_fold"]: out-of-fold predictions of {label}.' in caplog.messages


def test_a_method_that_is_not_fitted_is_refused(prepared: SpatialData, unchanged: Any) -> None:
    message = "predictions='agl' is not among the methods that are fitted: mean, ridge"
    for call in (cross_validate, benchmark):
        with unchanged(prepared), pytest.raises(ValueError, match=message):
            call(prepared, methods=["mean", "ridge"], genes=GENES, predictions="agl")


def test_scores_and_figures_name_the_method(
    prepared: SpatialData, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    cross_validate(prepared, methods=["mean", "weighted_ridge"], genes=GENES, predictions="weighted_ridge")
    prepared.write(tmp_path / "sections.zarr")
    for sdata in (prepared, SpatialData.read(tmp_path / "sections.zarr")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            evaluate(sdata, prediction="oof", metrics=["pearson"])
        assert "Evaluating the out-of-fold predictions of ridge, weighted by depth." in caplog.messages
        axes = pl.spatial_pred(sdata, GENES[0], prediction="oof", show=False)
        assert " ".join(axes[0, 1].get_title().split()).endswith("(out of fold, ridge, weighted by depth)")
        (drawn,) = pl.calibration(sdata, GENES[0], prediction="oof", show=False)
        bars = pl.gene_metrics(sdata, prediction="oof", against=None, show=False)
        assert bars.get_ylabel() == "out-of-fold Pearson r of ridge, weighted by depth"
        assert drawn.get_title().endswith("159 spots, out of fold, 3 folds, ridge, weighted by depth")


def test_older_records_name_the_first_method(prepared: SpatialData) -> None:
    cross_validate(prepared, methods=["ridge", "mean"], genes=GENES)
    record = prepared["table"].uns["agl"]["cross_validation"]
    del record["label"], record["predictions"]
    axes = pl.spatial_pred(prepared, GENES[0], prediction="oof", show=False)
    assert " ".join(axes[0, 1].get_title().split()).endswith("(out of fold, ridge)")
    del prepared["table"].uns["agl"]["cross_validation"]
    axes = pl.spatial_pred(prepared, GENES[0], prediction="oof", show=False)
    assert " ".join(axes[0, 1].get_title().split()).endswith("(out of fold)")


def test_what_is_written_to_copies_is_not_told_and_warnings_are(
    prepared: SpatialData, config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    table = prepared["table"]
    dense = table.X.toarray()
    dense[60] = 0  # a spot of section_2 without a count
    table.X = dense
    once = replace(config, max_epochs=0, refit=False)
    with caplog.at_level(logging.INFO):
        cross_validate(prepared, methods=["dkgsb_mean", "ridge", "random_k"], genes=4, config=once)
    assert [text for text in caplog.messages if text.startswith("Wrote")] == [
        'Wrote layers["agl_oof"] and obs["agl_fold"]: out-of-fold predictions of DkGSB, ranked by mean.'
    ]
    assert "1 training or validation spots have no tile or no counts and are left out." in caplog.messages


@pytest.mark.parametrize("way", ["column", "list"])
def test_quarters_of_one_section(*, single: SpatialData, way: str) -> None:
    table = single["table"]
    quarter = table.obs["quarter"].to_numpy()
    sets: Any = [
        np.where(np.isnan(quarter), "unused", np.where(quarter == number, "test", np.where(quarter == (number + 1) % 4, "validation", "train")))
        for number in range(4)
    ]  # fmt: skip
    found = cross_validate(
        single, methods=["ridge", "mean"], genes=GENES, folds="quarter" if way == "column" else sets, metrics=["mse"]
    )
    names = list("0123") if way == "column" else [f"fold {number}" for number in range(4)]
    assert list(dict.fromkeys(found.results["fold"])) == names
    assert found.provenance["cross_validation"]["by"] == "own"
    assert [str(name) for name in table.obs["agl_fold"]] == [
        "nan" if np.isnan(each) else names[int(each)] for each in quarter
    ]
    known = np.isfinite(table.layers["agl_oof"]).any(axis=1)
    np.testing.assert_array_equal(known, ~np.isnan(quarter))
    compared = found.compare("ridge")
    assert compared.differences[["unit", "n_units"]].to_numpy().tolist() == [["fold", 4]]
    assert "4 folds" in compared.to_markdown()
    made = benchmark(single, methods=["ridge", "mean"], genes=GENES, folds="quarter", metrics=["mse"], seeds=1)
    assert made.differences["unit"].tolist() == ["fold"]


def test_own_folds_beside_a_split_in_place(single: SpatialData) -> None:
    single["table"].obs["sets"] = np.where(np.arange(len(single["table"])) % 3 == 0, "test", "train")
    split(single, assignments="sets", by="spot")
    found = cross_validate(single, methods="mean", genes=GENES, folds="quarter", by=None, metrics=["mse"])
    assert len(set(found.results["fold"])) == 4


def test_own_folds_of_three_sections_have_sections_for_units(prepared: SpatialData) -> None:
    prepared["table"].obs["half"] = np.arange(159) % 2
    found = cross_validate(prepared, methods=["ridge", "mean"], genes=GENES, folds="half", metrics=["mse"])
    assert found.compare().differences[["unit", "n_units"]].to_numpy().tolist() == [["section", 3]]


REFUSED: list[Any] = [
    pytest.param({"folds": "quartr"}, KeyError, "folds='quartr' is not a column of obs; .*quarter", id="column"),
    pytest.param({"folds": "quarter", "n_folds": 2}, ValueError, "n_folds=2 says how to divide, but folds= gives", id="both"),
    pytest.param({"folds": [["train"] * 30 + ["test"] * 23], "methods": "agl"}, ValueError, "'fold 0' has no two validation spots .*; give it some in folds=", id="no validation"),
    pytest.param({"folds": [["train"] * 53]}, ValueError, r"folds\[0\] has no test spot", id="no test"),
    pytest.param({"folds": 4}, TypeError, "folds= holds 4, a int", id="number"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED)
def test_refusals_of_own_folds(
    *, single: SpatialData, config: TrainConfig, unchanged: Any, arguments: Any, error: type[Exception], message: str
) -> None:
    with unchanged(single), pytest.raises(error, match=message):
        cross_validate(single, **{"methods": "ridge", "genes": GENES, "config": config, **arguments})


def test_folds_in_place_without_validation_are_mended_where_they_were_made(
    single: SpatialData, config: TrainConfig
) -> None:
    split(single, by="block", n_folds=2, validation=0.0, block_um=150, buffer_um=0)
    with pytest.raises(
        ValueError, match=r"picks by Pearson on them; run agl_sc\.pp\.split\(sdata, n_folds=5, validation=0\.2\)"
    ):
        cross_validate(single, methods="agl", genes=GENES, by=None, config=config)


@pytest.mark.parametrize("column", ["gene_ids", "feature_name"])
def test_genes_are_named_by_either_naming(prepared: SpatialData, column: str, caplog: pytest.LogCaptureFixture) -> None:
    cross_validate(prepared, methods="ridge", genes=GENES)
    expected = prepared["table"].layers["agl_oof"].copy()
    names = [f"ENSG0000000{name.removeprefix('G')}.4" for name in prepared["table"].var_names]
    prepared["table"].var[column] = names
    with caplog.at_level(logging.INFO):
        found = cross_validate(prepared, methods="ridge", genes=[name.partition(".")[0] for name in names[:4]])
    np.testing.assert_allclose(prepared["table"].layers["agl_oof"], expected, rtol=1e-5)
    assert set(found.results["gene"]) == set(GENES)
    assert sum("were found by" in text for text in caplog.messages) == 1
    axes = pl.spatial_pred(prepared, names[0], prediction="oof", show=False)
    assert "measured G0001" in axes[0, 0].get_title().replace("\n", " ")
    with pytest.raises(KeyError, match="1 target genes are missing: ENSG99999999999 not in the table"):
        cross_validate(prepared, methods="ridge", genes=["ENSG99999999999"])
