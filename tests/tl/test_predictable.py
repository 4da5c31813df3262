"""Which genes H&E shows: planted ones are found, folds share nothing, and test spots are not looked at."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

from agl_sc import datasets, pp, tl
from agl_sc._sdata.keys import Keys
from agl_sc._sdata.records import PredictableRecord, remembered
from agl_sc._sdata.study import Study
from agl_sc.core.evaluation.gene_scores import COLUMNS
from agl_sc.tl._model.held_out import held_out_of

Slots = Callable[[SpatialData], dict[str, Any]]
TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}


@pytest.fixture(scope="module")
def large() -> SpatialData:
    sdata = datasets.toy_tissue(n_sections=3, n_spots_per_side=12, n_targets=6, n_informative=10, n_auxiliary=40)
    pp.embed(sdata, **TILES)
    return sdata


def test_genes_that_morphology_shows_come_first(large: SpatialData) -> None:
    found = tl.predictable_genes(large)
    assert list(found) == list(COLUMNS)
    assert found["pearson"].is_monotonic_decreasing
    assert found.index.is_unique
    truth = large["table"].var["truth_prior"].reindex(found.index)
    assert found["pearson"].corr(truth, method="spearman") > 0.5
    assert found["q_value"].iloc[0] < 0.2
    assert (found["q_value"].iloc[20:] > 0.5).all()
    assert (found["pearson_of_ceiling"].dropna() < 1).all()
    assert (found["n_sections"] == 3).all()


def test_only_its_slots_are_written(prepared: SpatialData, slots: Slots) -> None:
    before = slots(prepared)
    found = tl.predictable_genes(prepared, min_spots=3)
    after = slots(prepared)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name.split("/")[1] for name in changed if name.startswith("var/")} == {
        f"agl_predictable_{name}" for name in COLUMNS
    }
    assert all(name.startswith(("var/agl_predictable", "uns/agl/predictable")) for name in changed)
    written = prepared["table"].var["agl_predictable_pearson"]
    pd.testing.assert_series_equal(
        written.dropna(), found["pearson"].dropna().reindex(written.dropna().index), check_names=False
    )


def test_test_spots_are_not_looked_at(prepared: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = tl.predictable_genes(prepared, min_spots=3)
    assert "are left out" in caplog.text
    table = prepared["table"]
    test = (table.obs["agl_split"] == "test").to_numpy()
    counts = table.X.toarray()
    counts[test] = counts[test][:, ::-1]
    table.X = counts
    pd.testing.assert_frame_equal(first, tl.predictable_genes(prepared, min_spots=3))
    said = remembered(table, Keys(), PredictableRecord)
    assert said is not None
    assert said.values["sections"] == ["section_1", "section_2"]


def test_folds_are_of_patients_sections_or_blocks(large: SpatialData) -> None:
    study, usable = Study.of(large), np.ones(large["table"].n_obs, dtype=bool)
    by_section = held_out_of(study, usable, by="section")
    assert by_section.by == "section"
    assert by_section.words == "3 sections, each predicted from the others"
    for fold in by_section.folds:
        assert len(set(by_section.sections[fold.held])) == 1
        assert not set(by_section.sections[fold.held]) & set(by_section.sections[fold.fit])
    one = study.section_names == "section_1"
    within = held_out_of(study, one)
    assert within.by == "block"
    held = np.concatenate([fold.held for fold in within.folds])
    assert sorted(held) == list(range(one.sum()))
    centres = study.positioned[0].centres * study.positioned[0].mpp()
    for fold in within.folds:
        apart = np.linalg.norm(centres[fold.fit][:, None] - centres[fold.held][None], axis=2)
        assert apart.min() >= 150
    assert "blocks of section_1" in within.words


def test_three_patients_are_held_out_by_patient(large: SpatialData) -> None:
    table = large["table"]
    before = table.obs["patient"].copy() if "patient" in table.obs else None
    try:
        table.obs["patient"] = table.obs["section"].astype(str).to_numpy()
        study = Study.of(large)
        assert held_out_of(study, np.ones(table.n_obs, dtype=bool)).by == "patient"
        table.obs["patient"] = "one"
        assert held_out_of(study, np.ones(table.n_obs, dtype=bool)).by == "section"
        with pytest.raises(ValueError, match=r"by='patient' holds out whole patients, and there is only one \(one\)"):
            held_out_of(study, np.ones(table.n_obs, dtype=bool), by="patient")
    finally:
        table.obs = table.obs.drop(columns="patient") if before is None else table.obs.assign(patient=before)


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"by": "spot"}, r"by='spot' is not one of 'patient', 'section', 'block'"),
        (ValueError, {"min_spots": 0}, r"min_spots=0 is not a positive number of spots"),
        (ValueError, {"min_spots": 10**6}, r"No gene is detected in min_spots=1000000 of the 106 spots"),
        (ValueError, {"seed": -1}, r"seed=-1 is not a whole number"),
        (KeyError, {"layer": "raw"}, r"layer='raw' is not in the table"),
    ],
)
def test_refusals(
    prepared: SpatialData,
    unchanged: Callable[[SpatialData], AbstractContextManager[None]],
    *,
    error: type[Exception],
    arguments: dict[str, Any],
    message: str,
) -> None:
    with unchanged(prepared), pytest.raises(error, match=message):
        tl.predictable_genes(prepared, **arguments)
