"""Sets that share nothing they should not."""

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from shapely import Point
from spatialdata import SpatialData

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.study import Study
from agl_sc.datasets import toy_tissue
from agl_sc.pp import split
from agl_sc.pp._splits.split import split_of, training_spots

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]


def sets_of_sections(sdata: SpatialData) -> dict[str, set[str]]:
    obs = sdata["table"].obs
    return {name: set(obs["section"][obs["agl_split"] == name]) for name in obs["agl_split"].unique()}


def assigned(sdata: SpatialData) -> NDArray[Any]:
    values: NDArray[Any] = sdata["table"].obs["agl_split"].astype(str).to_numpy()
    return values


@pytest.fixture
def one_section(tissue: SpatialData) -> SpatialData:
    return drop_all_but(tissue, ["section_1"])


def drop_all_but(sdata: SpatialData, names: list[str]) -> SpatialData:
    table = sdata["table"][sdata["table"].obs["section"].isin(names).to_numpy()].copy()
    table.uns["spatialdata_attrs"]["region"] = names
    return SpatialData(
        images={f"{name}_image": sdata[f"{name}_image"] for name in names},
        shapes={name: sdata[name] for name in names},
        tables={"table": table},
        attrs=sdata.attrs,
    )


def test_named_sections(tissue: SpatialData) -> None:
    split(tissue, test="section_2", validation=["section_3"])
    assert sets_of_sections(tissue) == {"train": {"section_1"}, "test": {"section_2"}, "validation": {"section_3"}}
    assert tissue["table"].obs["agl_split"].cat.categories.tolist() == ["train", "validation", "test", "unused"]


@pytest.mark.parametrize("seed", range(5))
def test_fractions_of_sections_are_whole_sections(tissue: SpatialData, seed: int) -> None:
    split(tissue, test=0.3, validation=0.3, seed=seed)
    sets = sets_of_sections(tissue)
    assert sorted(sets) == ["test", "train", "validation"]
    assert [len(names) for names in sets.values()] == [1, 1, 1]
    assert set().union(*sets.values()) == {"section_1", "section_2", "section_3"}


def test_a_named_section_is_not_drawn_again(tissue: SpatialData) -> None:
    for seed in range(6):
        split(tissue, test=0.3, validation="section_1", seed=seed)
        sets = sets_of_sections(tissue)
        assert sets["validation"] == {"section_1"}
        assert len(sets["test"]) == 1
        assert "section_1" not in sets["test"]


def test_seeds_draw_different_sections(tissue: SpatialData) -> None:
    drawn = set()
    for seed in range(10):
        split(tissue, test=0.3, validation=0.3, seed=seed)
        drawn |= sets_of_sections(tissue)["test"]
    assert drawn == {"section_1", "section_2", "section_3"}


def test_validation_takes_blocks_when_one_section_is_left(
    tissue: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        split(tissue, test=["section_2", "section_3"], validation=0.3, block_um=200, buffer_um=120)
    assert "Only one section is left for training: validation takes spatial blocks of it." in caplog.text
    sets = sets_of_sections(tissue)
    assert sets["test"] == {"section_2", "section_3"}
    assert sets["train"] == sets["validation"] == sets["unused"] == {"section_1"}
    check_buffer(tissue, 120)


def check_buffer(sdata: SpatialData, buffer_um: float) -> None:
    """No training spot near a validation or test spot, no validation spot near a test spot, within each section."""
    table = sdata["table"]
    for name in table.obs["section"].unique():
        inside = (table.obs["section"] == name).to_numpy()
        for weak, strong in (("train", ["validation", "test"]), ("validation", ["test"])):
            first = table.obsm["spatial"][inside & (assigned(sdata) == weak)]  # 1 um per pixel
            second = table.obsm["spatial"][inside & np.isin(assigned(sdata), strong)]
            assert not len(first) or not len(second) or cdist(first, second).min() >= buffer_um


@pytest.mark.parametrize("buffer_um", [0.0, 120.0, 180.0])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_apart_by_the_buffer(tissue: SpatialData, buffer_um: float, seed: int) -> None:
    split(tissue, by="block", test=0.15, validation=0.15, block_um=250, buffer_um=buffer_um, seed=seed)
    check_buffer(tissue, buffer_um)
    assert set(assigned(tissue)) == {"train", "validation", "test"} | ({"unused"} if buffer_um else set())


def test_a_wider_buffer_leaves_out_more_and_moves_no_test_spot(tissue: SpatialData) -> None:
    n_unused, tests = [], []
    for buffer_um in (0.0, 120.0, 180.0):
        split(tissue, by="block", test=0.15, validation=0.15, block_um=250, buffer_um=buffer_um)
        n_unused.append(int((assigned(tissue) == "unused").sum()))
        tests.append(assigned(tissue) == "test")
    assert n_unused[0] == 0 < n_unused[1] < n_unused[2]
    np.testing.assert_array_equal(tests[0], tests[2])


def test_a_block_is_in_one_set(tissue: SpatialData) -> None:
    split(tissue, by="block", test=0.2, validation=0.2, block_um=250, buffer_um=0)
    table = tissue["table"]
    corner = table.obs.groupby("section", observed=True).indices
    for rows in corner.values():
        xy = table.obsm["spatial"][rows]
        block = np.floor((xy - xy.min(axis=0)) / 250).astype(int)
        found = pd.DataFrame({"x": block[:, 0], "y": block[:, 1], "set": assigned(tissue)[rows]})
        assert (found.groupby(["x", "y"])["set"].nunique() == 1).all()


def test_single_spots_work_and_warn(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        split(tissue, by="spot", test=0.25, validation=0.5)
    assert "by='spot' flatters every method" in caplog.text
    n_spots = tissue["table"].n_obs
    counts = pd.Series(assigned(tissue)).value_counts()
    assert abs(counts["test"] - 0.25 * n_spots) < 1
    assert abs(counts["validation"] - 0.5 * n_spots) < 1


@pytest.mark.parametrize("by", ["section", "block", "spot"])
def test_the_same_seed_draws_the_same(tissue: SpatialData, by: Any) -> None:
    drawn = []
    for seed in (3, 3, 4):
        split(tissue, by=by, test=0.3, validation=0.3, block_um=250, seed=seed)
        drawn.append((assigned(tissue), tissue["table"].uns["agl"]["split"]["hash"]))
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1] == drawn[1][1] != drawn[2][1]


def test_a_patient_is_in_one_set(tissue: SpatialData) -> None:
    obs = tissue["table"].obs
    obs["patient"] = np.where(obs["section"] == "section_1", "B", "C")
    for seed in range(6):
        split(tissue, by="patient", test=0.4, validation=0.0, seed=seed)
        assert pd.Series(assigned(tissue)).groupby(obs["patient"].to_numpy()).nunique().max() == 1
        assert set(assigned(tissue)) == {"train", "test"}
    split(tissue, by="patient", test="C", validation=0.3, block_um=200, buffer_um=110)
    assert sets_of_sections(tissue)["test"] == {"section_2", "section_3"}
    assert sets_of_sections(tissue)["train"] == sets_of_sections(tissue)["validation"] == {"section_1"}
    check_buffer(tissue, 110)


def test_patients_that_cannot_be_divided_are_refused(tissue: SpatialData, unchanged: Unchanged) -> None:
    with (
        pytest.raises(KeyError, match="test='section_1' is not a patient; the patients are patient_1"),
        unchanged(tissue),
    ):
        split(tissue, by="patient", test="section_1")
    tissue["table"].obs["patient"] = "C"
    with (
        pytest.raises(ValueError, match=r"only one patient \(C\), .* divide by='section' or 'block'"),
        unchanged(tissue),
    ):
        split(tissue, by="patient")
    del tissue["table"].obs["patient"]
    with pytest.raises(KeyError, match=r"obs has no column 'patient' .* add one"), unchanged(tissue):
        split(tissue, by="patient")


def test_spots_without_a_position_are_in_no_block(tissue: SpatialData) -> None:
    shapes = tissue.shapes["section_2"]
    shapes.loc[shapes.index[:4], "geometry"] = Point()
    split(tissue, by="block", test=0.2, validation=0.2, block_um=200, buffer_um=0)
    lost = (tissue["table"].obs["section"] == "section_2").to_numpy() & tissue["table"].obs["spot_id"].isin(
        shapes.index[:4]
    )
    assert set(assigned(tissue)[lost]) == {"unused"}
    assert "unused" not in assigned(tissue)[~lost]


def test_no_validation_when_none_is_asked_for(tissue: SpatialData) -> None:
    split(tissue, test=["section_2"], validation=0.0)
    assert sets_of_sections(tissue) == {"train": {"section_1", "section_3"}, "test": {"section_2"}}


def test_only_the_declared_slots_are_written(
    tissue: SpatialData, slots: Callable[[SpatialData], dict[str, Any]]
) -> None:
    before = slots(tissue)
    split(tissue, key_added="mine")
    after = slots(tissue)
    assert {name: after[name] for name in before} == before
    settings = {f"uns/mine/split/{name}" for name in ("by", "seed", "block_um", "buffer_um", "hash")}
    shared = {f"uns/mine/split/{name}" for name in ("tile_um", "shared_pixels/test", "shared_pixels/validation")}
    assert after.keys() - before.keys() == {"obs/mine_split"} | settings | shared


def test_a_changed_assignment_is_refused(tissue: SpatialData) -> None:
    split(tissue, test=["section_2"], validation=["section_3"])
    table = tissue["table"]
    assert training_spots(Study.of(tissue)).sum() == (table.obs["section"] == "section_1").sum()
    table.obs.loc[table.obs_names[60], "agl_split"] = "train"
    with pytest.raises(ValueError, match=r"no longer matches its manifest .* run agl_sc.pp.split"):
        split_of(table, Keys())


def test_a_split_of_the_users_own_is_taken_as_it_is(tissue: SpatialData) -> None:
    table = tissue["table"]
    table.obs["agl_split"] = np.where(table.obs["section"] == "section_1", "train", "test")
    assert training_spots(Study.of(tissue)).sum() == 53
    table.obs["agl_split"] = np.where(table.obs["section"] == "section_1", "train", "held out")
    with pytest.raises(ValueError, match="holds 'held out'; the sets are train, validation, test, unused"):
        split_of(table, Keys())


def test_a_missing_split_names_the_function_that_makes_it(tissue: SpatialData) -> None:
    with pytest.raises(KeyError, match=r"agl_split.* is missing; run agl_sc.pp.split"):
        split_of(tissue["table"], Keys())


BAD: list[Any] = [
    pytest.param({"by": "slide"}, ValueError, "by='slide' is not one of 'section', 'patient', 'block', 'spot'", id="by"),
    pytest.param({"test": 1.0}, ValueError, r"test=1.0 is not a fraction in \[0, 1\) nor section names", id="all test"),
    pytest.param({"test": 101}, ValueError, r"test=101 is not a fraction .*; write a name that is a number as text, test='101'", id="a number for a name"),
    pytest.param({"validation": -0.1}, ValueError, r"validation=-0.1 is not a fraction", id="negative"),
    pytest.param({"test": 0.6, "validation": 0.4}, ValueError, "test=0.6 and validation=0.4 leave nothing for training", id="sum"),
    pytest.param({"test": "section_9"}, KeyError, "test='section_9' is not a section; .* did you mean section_", id="section unknown"),
    pytest.param({"test": "section_1", "validation": ["section_1"]}, ValueError, "Section 'section_1' is named for both", id="named twice"),
    pytest.param({"test": ["section_1", "section_2"], "validation": "section_3"}, ValueError, "No spot is left for train", id="no training"),
    pytest.param({"by": "block", "test": "section_1"}, ValueError, "test='section_1' names sections, but by='block'", id="names for blocks"),
    pytest.param({"by": "block", "test": 0.1, "validation": 0.4, "block_um": 2000.0}, ValueError, r"No spot is left for test by blocks of 2000 um .* pass block_um=\d+ and buffer_um=\d+ to agl_sc.pp.split", id="no test block"),
    pytest.param({"by": "block", "block_um": 3000.0, "validation": 0.1}, ValueError, r"No spot is left for validation by blocks of 3000 um", id="no validation block"),
    pytest.param({"by": "block", "block_um": 0.0}, ValueError, "block_um=0.0 is not a positive number of microns", id="no block"),
    pytest.param({"by": "block", "buffer_um": -1.0}, ValueError, "buffer_um=-1.0 is not a number of microns from 0", id="negative buffer"),
    pytest.param({"by": "block", "image_mpp": 2.0}, ValueError, "image_mpp=2 .* contradicts the visium spot pitch", id="scale"),
    pytest.param({"table_key": "tables"}, KeyError, "table_key='tables' is not in sdata", id="table"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_input_is_refused_and_nothing_changed(
    *, tissue: SpatialData, options: dict[str, Any], error: type[Exception], match: str, unchanged: Unchanged
) -> None:
    with pytest.raises(error, match=match), unchanged(tissue):
        split(tissue, **options)


@pytest.mark.parametrize(
    "options",
    [{"by": "block", "validation": 0.1}, {"by": "section", "test": ["section_1", "section_2"], "validation": 0.3}],
)
@pytest.mark.parametrize("microns", [(2000.0, 600.0), (5000.0, 0.0), (3000.0, 1900.0)])
def test_the_blocks_that_a_refusal_names_fill_every_set(
    tissue: SpatialData, options: dict[str, Any], microns: tuple[float, float]
) -> None:
    with pytest.raises(ValueError, match="No spot is left for") as refused:
        split(tissue, **options, block_um=microns[0], buffer_um=microns[1])
    block_um, buffer_um = re.findall(r"pass block_um=(\S+) and buffer_um=(\S+) to", str(refused.value))[0]
    split(tissue, **options, block_um=float(block_um), buffer_um=float(buffer_um))
    assert set(tissue["table"].obs["agl_split"]) >= {"train", "validation", "test"}


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_a_fraction_may_be_of_any_kind_of_number(tissue: SpatialData, kind: type) -> None:
    split(tissue, test=kind(0.25), validation=kind(0.25))
    assert tissue["table"].obs["agl_split"].nunique() == 3


def test_one_section_cannot_be_training_and_test(one_section: SpatialData, unchanged: Unchanged) -> None:
    with (
        pytest.raises(ValueError, match=r"only one section \(section_1\), which cannot be both .* divide by='block'"),
        unchanged(one_section),
    ):
        split(one_section)
    split(one_section, by="block", block_um=250, buffer_um=50)
    assert {"train", "validation", "test"} <= set(assigned(one_section))


def test_one_section_beside_that_for_validation(tissue: SpatialData, unchanged: Unchanged) -> None:
    message = r"only one section \(section_1\) beside validation \(section_2, section_3\), which cannot be both"
    with pytest.raises(ValueError, match=message), unchanged(tissue):
        split(tissue, validation=["section_2", "section_3"])


@pytest.mark.parametrize("make", [np.array, pd.Series, pd.Index, tuple, set, lambda names: dict.fromkeys(names).keys()])
def test_names_may_be_anything_that_holds_them(tissue: SpatialData, make: Any) -> None:
    split(tissue, test=make(["section_3"]), validation=make(["section_1"]))
    found = dict(zip(tissue["table"].obs["section"], assigned(tissue), strict=True))
    assert found == {"section_1": "validation", "section_2": "train", "section_3": "test"}


def test_validation_blocks_are_drawn_where_training_is_left() -> None:
    """Blocks of the test section do not use up the share of validation."""
    sdata = toy_tissue(n_sections=2, n_spots_per_side=10, n_targets=2, n_informative=0, n_auxiliary=0)
    for seed in range(12):
        split(sdata, test=["section_2"], validation=0.3, block_um=200, buffer_um=0, seed=seed)
        in_first = assigned(sdata)[sdata["table"].obs["section"] == "section_1"]
        assert (in_first == "validation").mean() == pytest.approx(0.3, abs=0.03)
        assert set(in_first) == {"train", "validation"}
