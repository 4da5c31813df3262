"""Splits and folds of the real sections."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

from agl_sc._sdata.study import Study
from agl_sc._sdata.table import section_of
from agl_sc.io._st import read_st_folder
from agl_sc.pp import split
from agl_sc.pp._splits.duplicates import same_profiles
from agl_sc.pp._splits.folds import FoldPlan, make_folds

N_SPOTS = {"B4": 283, "C2": 187, "C3": 180, "C4": 184, "C5": 181, "C6": 178}


@pytest.fixture(scope="module")
def her2st(data_dir: Path) -> SpatialData:
    return read_st_folder(data_dir / "her2st", patient={**{f"C{i}": "C" for i in range(2, 7)}, "B4": "B"})


def test_one_section_is_left_out(her2st: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = her2st["table"]
    with caplog.at_level(logging.WARNING):
        folds = make_folds(Study.of(her2st), FoldPlan())
    assert [fold.name for fold in folds] == list(N_SPOTS)
    for fold in folds:
        counts = pd.Series(fold.assigned).value_counts().to_dict()
        picking = set(table.obs["section"][fold.assigned == "validation"]).pop()
        assert counts == {
            "test": N_SPOTS[fold.name],
            "validation": N_SPOTS[picking],
            "train": 1193 - N_SPOTS[fold.name] - N_SPOTS[picking],
        }
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "Sections of patient 'C' are in training and test (C2, C3, C4, C5, C6)"
    ]


def test_one_patient_is_left_out(her2st: SpatialData) -> None:
    table = her2st["table"]
    folds = make_folds(Study.of(her2st), FoldPlan(by="patient"))
    assert [(fold.name, int((fold.assigned == "test").sum())) for fold in folds] == [("B", 283), ("C", 910)]
    for fold in folds:
        assert set(table.obs["patient"][fold.assigned == "test"]) == {fold.name}
        rest = fold.assigned[table.obs["patient"] != fold.name]
        assert 0.15 < (rest == "validation").mean() < 0.25
        assert not (rest == "test").any()


def test_no_tile_of_a_200_um_grid_shares_pixels(her2st: SpatialData) -> None:
    """Tiles of 112 um on spots 200 um apart: neighbours are correlated, but no pixel is shared."""
    made_from = {"encoder": "x", "weights_digest": "0", "image_mpp": {}, "images": {}, "sections": {}}
    her2st["table"].uns["agl"] = {"features": {**made_from, "tile_px": 224, "mpp": 0.5}}
    split(her2st, by="spot")
    assert her2st["table"].uns["agl"]["split"]["shared_pixels"] == {"test": 0, "validation": 0}


def test_a_section_under_two_names_is_found(her2st: SpatialData) -> None:
    table = her2st["table"]
    names = section_of(table).to_numpy(dtype=str)
    assert same_profiles(table.X, names) == []
    last = np.flatnonzero(names == "C6")
    rows = np.concatenate([np.arange(len(names)), np.random.default_rng(0).permutation(last)])
    renamed = np.concatenate([names, np.full(len(last), "C7")])
    assert same_profiles(table.X[rows], renamed) == [("C6", "C7", 1.0)]
