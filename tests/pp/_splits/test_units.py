"""Units dealt to folds, and what is said of patients."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData, get_pyramid_levels

from agl_sc import pp, tl
from agl_sc._sdata.keys import Keys
from agl_sc._sdata.study import Address, Study
from agl_sc.io import from_anndata
from agl_sc.pp._splits.units import check_patients_named, deal, draw, patient_of, straddling

SECTIONS = ["section_1", "section_2", "section_3"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=30), st.integers(2, 6), st.integers(0, 99))
def test_units_are_dealt_whole_and_evenly(sizes: list[int], n_folds: int, seed: int) -> None:
    units = np.repeat(np.arange(len(sizes)).astype(str), sizes)
    n_folds = min(n_folds, len(sizes))
    fold_of = deal(units, np.zeros(len(units), dtype=str), n_folds=n_folds, generator=np.random.default_rng(seed))
    assert pd.Series(fold_of).groupby(units).nunique().max() == 1
    filled = np.bincount(fold_of, minlength=n_folds)
    assert (filled > 0).all()
    assert np.ptp(filled) <= max(sizes)  # largest first: no fold is ahead by more than one unit


def test_every_fold_gets_its_share_of_every_stratum() -> None:
    strata = np.repeat(["A", "B", "C"], [100, 50, 9])
    units = np.arange(159).astype(str)
    fold_of = deal(units, strata, n_folds=5, generator=np.random.default_rng(0))
    counts = pd.crosstab(strata, fold_of).to_numpy()
    assert (np.ptp(counts, axis=1) <= 1).all()
    assert np.ptp(counts.sum(axis=0)) <= 1


def test_units_of_one_size_are_dealt_at_random() -> None:
    units = np.arange(12).astype(str)
    dealt = {
        tuple(deal(units, np.zeros(12, dtype=str), n_folds=3, generator=np.random.default_rng(seed)))
        for seed in (0, 0, 1, 2)
    }
    assert len(dealt) == 3


def test_draw_takes_whole_units_nearest_to_the_shares() -> None:
    units = np.repeat(np.arange(50).astype(str), 4)
    assigned = draw(units, test=0.2, validation=0.1, generator=np.random.default_rng(0))
    assert {name: int((assigned == name).sum()) for name in ("test", "validation")} == {"test": 40, "validation": 20}
    assert straddling(units, assigned) == {}


def test_straddling_names_the_sets() -> None:
    units = np.array(["A", "A", "A", "B", "B", "C", "C"])
    assigned = np.array(["test", "train", "unused", "unused", "train", "validation", "test"])
    assert straddling(units, assigned) == {"A": ["train", "test"], "C": ["validation", "test"]}


def test_patients_are_named_for_every_spot() -> None:
    table = AnnData(obs=pd.DataFrame({"section": ["C2", "C3", "C3"]}, index=list("abc")))
    with pytest.raises(KeyError, match=r"no column 'patient' \(its columns are section\); add one, e.g. table.obs"):
        patient_of(table)
    table.obs["patient"] = [1, 2, 2]
    assert patient_of(table).tolist() == ["1", "2", "2"]
    table.obs["patient"] = pd.Categorical(["A", None, None])
    with pytest.raises(ValueError, match=r"missing for 2 spots \(of C3\); name the patient of every spot"):
        patient_of(table)


def named(patients: list[str], *, assumed: bool = True, attrs: Any = None) -> Study:
    """Two sections of two spots, on an object of a reader."""
    obs = pd.DataFrame(
        {"region": pd.Categorical(["C2", "C2", "C3", "C3"]), "spot": range(4), "patient": patients}, index=list("abcd")
    )
    table = AnnData(
        obs=obs, uns={"spatialdata_attrs": {"region_key": "region", "instance_key": "spot", "region": ["C2", "C3"]}}
    )
    sdata = SpatialData(attrs={"agl_sc": {"patients_assumed": True}} if assumed else attrs or {})
    sdata.tables["table"] = table
    return Study(sdata, "table", Keys(), Address())


@pytest.mark.parametrize(
    ("patients", "sections"),
    [
        pytest.param(["C2", "C2", "C3", "C3"], r"2 sections \(C2, C3\)", id="all"),
        pytest.param(["Ann", "Ann", "C3", "C3"], r"1 sections \(C3\)", id="one of two"),
        pytest.param(["Ann", "C2", "Ann", "Ann"], r"1 sections \(C2\)", id="a spot"),
    ],
)
def test_patients_that_a_reader_assumed_are_refused(patients: list[str], sections: str) -> None:
    message = rf"nobody named those of {sections}, .*; name them when reading, with patient= of agl_sc.io.read_visium .*, or in the table"
    with pytest.raises(ValueError, match=message):
        check_patients_named(named(patients))
    check_patients_named(named(patients, assumed=False))
    check_patients_named(named(patients, assumed=False, attrs={"agl_sc": {"image_mpp": {}}}))


def test_patients_that_the_user_names_are_not_assumed_any_longer() -> None:
    check_patients_named(named(["Ann", "Ann", "Bea", "Bea"]))
    check_patients_named(named(["Ann"] * 4))


@pytest.mark.parametrize("call", ["split", "folds", "assignments", "cross_validate", "benchmark"])
def test_dividing_by_assumed_patients_is_refused_everywhere(
    *, prepared: SpatialData, call: str, unchanged: Any
) -> None:
    table = prepared["table"]
    prepared.attrs["agl_sc"]["patients_assumed"] = True
    table.obs["patient"] = table.obs["section"].astype(str)
    calls: dict[str, Any] = {
        "split": lambda: pp.split(prepared, by="patient"),
        "folds": lambda: pp.split(prepared, by="patient", n_folds=3),
        "assignments": lambda: pp.split(
            prepared, by="patient", assignments={"section_1": "train", "section_2": "validation", "section_3": "test"}
        ),
        "cross_validate": lambda: tl.cross_validate(prepared, methods="mean", genes=4, by="patient"),
        "benchmark": lambda: tl.benchmark(prepared, methods=["mean"], genes=4, by="patient"),
    }
    with (
        unchanged(prepared),
        pytest.raises(ValueError, match="by='patient' needs patients, and nobody named those of 3"),
    ):
        calls[call]()
    table.obs["patient"] = "patient of " + table.obs["section"].astype(str)
    if call != "assignments":
        calls[call]()
    pp.split(prepared, by="section")


def test_readers_say_so_and_the_toy_names_its_patients(tissue: SpatialData) -> None:
    assert "patients_assumed" not in tissue.attrs["agl_sc"]
    pp.split(tissue, by="patient")
    table = tissue["table"]
    spots = AnnData(table.X, obsm={"spatial": table.obsm["spatial"]}, var=table.var[[]])
    spots.obs["library_id"] = table.obs["section"].to_numpy()
    images = {name: np.asarray(get_pyramid_levels(tissue[f"{name}_image"], n=0)) for name in SECTIONS}
    read = from_anndata(spots.copy(), images, library_key="library_id", technology="visium", image_mpp=1.0)
    with pytest.raises(ValueError, match="by='patient' needs patients"):
        pp.split(read, by="patient")
    patients = {name: f"patient of {name}" for name in SECTIONS}
    told = from_anndata(spots, images, library_key="library_id", technology="visium", image_mpp=1.0, patient=patients)
    pp.split(told, by="patient")
    read["table"].obs["patient"] = read["table"].obs["section"].map(patients)
    pp.split(read, by="patient")
