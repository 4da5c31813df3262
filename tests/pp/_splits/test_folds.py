"""Folds in which a test spot shares nothing with what trains: planted units and distances."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from shapely import Point
from spatialdata import SpatialData

from agl_sc._sdata.study import Study
from agl_sc.pp._splits.blocks import Positions
from agl_sc.pp._splits.folds import Fold, FoldPlan, _by_units, _within_sections, make_folds

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]


def check_once(folds: list[Fold], usable: Any = True) -> None:
    """Every usable spot is test in exactly one fold; others are never used."""
    tests = np.sum([fold.assigned == "test" for fold in folds], axis=0)
    np.testing.assert_array_equal(tests, np.broadcast_to(usable, tests.shape).astype(int))
    assert [fold.number for fold in folds] == list(range(len(folds)))


def lattice(n_sections: int, side: int, seed: int) -> Positions:
    """Square sections of pitch 100 um with jitter, each on its own image."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * 100.0
    names = np.repeat([f"S{i}" for i in range(n_sections)], len(grid))
    centres = np.tile(grid, (n_sections, 1)) + rng.uniform(-20, 20, size=(len(names), 2))
    return Positions(centres, names, names)


@settings(max_examples=25, deadline=None)
@given(
    n_sections=st.integers(1, 3), side=st.integers(8, 14), n_folds=st.integers(2, 5), validation=st.sampled_from([0.0, 0.2]),
    buffer_um=st.sampled_from([0.0, 112.0, 150.0]), seed=st.integers(0, 999),
)  # fmt: skip
def test_blocks_share_no_spot_and_keep_the_buffer(
    *, n_sections: int, side: int, n_folds: int, validation: float, buffer_um: float, seed: int
) -> None:
    places = lattice(n_sections, side, seed)
    plan = FoldPlan(by="block", n_folds=n_folds, validation=validation, block_um=200, buffer_um=buffer_um, seed=seed)
    folds = list(_within_sections(places, plan))
    check_once(folds)
    block = places.blocks(200)
    sizes = [int((fold.assigned == "test").sum()) for fold in folds]
    assert max(sizes) - min(sizes) <= n_sections * pd.Series(block).value_counts().max()
    for fold in folds:
        tested = fold.assigned == "test"
        assert not set(block[tested]) & set(block[~tested])
        for weak, strong in (("train", ["validation", "test"]), ("validation", ["test"])):
            first, second = fold.assigned == weak, np.isin(fold.assigned, strong)
            apart = cdist(places.centres_um[first], places.centres_um[second])
            apart[places.sections[first][:, None] != places.sections[second]] = np.inf
            assert apart.min(initial=np.inf) >= buffer_um


@settings(max_examples=30, deadline=None)
@given(
    patients=st.lists(st.integers(0, 4), min_size=6, max_size=10), n_folds=st.sampled_from([None, 3]),
    validation=st.sampled_from([0.0, 0.1, 0.2, 0.6]), by=st.sampled_from(["section", "patient"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_no_unit_is_in_two_sets(
    *, patients: list[int], n_folds: int | None, validation: float, by: Any, seed: int
) -> None:
    patients = [0, 1, 2, *patients[3:]]  # at least three units, and two left in every fold
    sections = np.repeat([f"S{i}" for i in range(len(patients))], 5)
    patient = np.repeat([f"P{i}" for i in patients], 5)
    table = AnnData(
        obs=pd.DataFrame({"section": sections, "patient": patient}, index=np.arange(len(sections)).astype(str))
    )
    unit = sections if by == "section" else patient
    plan = FoldPlan(by=by, n_folds=n_folds, validation=validation, seed=seed)
    folds = list(_by_units(table, plan, known=np.ones(len(unit), dtype=bool), places=no_places))
    check_once(folds)
    for fold in folds:
        assert pd.Series(fold.assigned).groupby(unit).nunique().max() == 1
        assert set(fold.assigned) == {"train", "test"} | ({"validation"} if validation else set())
        held_out = set(unit[fold.assigned == "test"])
        assert fold.name == (held_out.pop() if len(held_out) == 1 else f"fold {fold.number}")


def no_places() -> Positions:
    pytest.fail("whole units need no places")


def test_one_fold_per_section_by_name_and_validation_takes_turns(tissue: SpatialData) -> None:
    table = tissue["table"]
    sections = table.obs["section"].to_numpy()
    folds = make_folds(Study.of(tissue), FoldPlan())
    check_once(folds)
    assert [fold.name for fold in folds] == ["section_1", "section_2", "section_3"]
    assert all(set(sections[fold.assigned == "test"]) == {fold.name} for fold in folds)
    picking = [set(sections[fold.assigned == "validation"]) for fold in folds]
    assert set().union(*picking) == set(sections)
    assert all(len(names) == 1 for names in picking)


def test_seeds_choose_other_validation_and_one_seed_the_same(tissue: SpatialData) -> None:
    drawn: dict[int, tuple[str, ...]] = {}
    for seed in (0, 0, 1, 2, 3):
        folds = make_folds(Study.of(tissue), FoldPlan(seed=seed))
        text = tuple("".join(name[0] for name in fold.assigned) for fold in folds)
        assert drawn.setdefault(seed, text) == text
    assert len(set(drawn.values())) == 2  # three units in a cycle: two ways around


def test_all_sections_of_a_patient_are_held_out(tissue: SpatialData) -> None:
    table = tissue["table"]
    table.obs["patient"] = table.obs["section"].map({"section_1": "C", "section_2": "B", "section_3": "C"}).astype(str)
    folds = make_folds(Study.of(tissue), FoldPlan(by="patient", block_um=200, buffer_um=110))
    check_once(folds)
    assert [fold.name for fold in folds] == ["B", "C"]
    for fold in folds:
        rest = (table.obs["patient"] != fold.name).to_numpy()
        assert set(fold.assigned[~rest]) == {"test"}
        assert set(fold.assigned[rest]) == {"train", "validation", "unused"}


def test_sections_of_one_patient_on_both_sides_are_told(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = tissue["table"]
    with caplog.at_level(logging.WARNING):
        make_folds(Study.of(tissue), FoldPlan())
    assert not caplog.records
    table.obs["patient"] = table.obs["section"].map({"section_1": "C", "section_2": "B", "section_3": "C"}).astype(str)
    with caplog.at_level(logging.WARNING):
        make_folds(Study.of(tissue), FoldPlan())
    assert [record.getMessage() for record in caplog.records] == [
        "Sections of patient 'C' are in training and test (section_1, section_3): sections of one tumour are not "
        "independent; divide by='patient' to hold out patients."
    ]


def test_five_folds_of_spots_are_three_to_one_to_one(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        folds = make_folds(Study.of(tissue), FoldPlan(by="spot"))
    assert "by='spot' flatters every method" in caplog.text
    check_once(folds)
    for fold in folds:
        counts = pd.Series(fold.assigned).value_counts()
        assert abs(counts["test"] - 159 / 5) < 1
        assert abs(counts["validation"] - 159 / 5) < 1
        assert pd.crosstab(tissue["table"].obs["section"], fold.assigned)["test"].between(10, 11).all()


@pytest.mark.parametrize("by", ["section", "block", "spot"])
def test_spots_without_a_position_are_unused_everywhere(tissue: SpatialData, by: Any) -> None:
    lost = ["section_1", "section_3"]
    usable = np.ones(159, dtype=bool)
    for name in lost:
        shapes = tissue.shapes[name]
        shapes.loc[shapes.index[3], "geometry"] = Point()
        row = tissue["table"].obs["spot_id"] == shapes.index[3]
        usable &= ~(row & (tissue["table"].obs["section"] == name)).to_numpy()
    assert usable.sum() == 157
    folds = make_folds(Study.of(tissue), FoldPlan(by=by, block_um=200, buffer_um=50))
    check_once(folds, usable)
    assert all((fold.assigned[~usable] == "unused").all() for fold in folds)


def test_a_section_without_training_spots_is_told(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    """With blocks as large as a section they are held out whole."""
    plan = FoldPlan(by="block", n_folds=3, block_um=2000, validation=0)
    with caplog.at_level(logging.WARNING):
        folds = make_folds(Study.of(tissue), plan)
    check_once(folds)
    assert len([r for r in caplog.records if "No training spot of section_" in r.getMessage()]) == 3


def test_one_section_under_two_names_is_told(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = tissue["table"]
    dense = table.X.toarray()
    dense[table.obs["section"] == "section_3"] = dense[table.obs["section"] == "section_2"][::-1]
    table.X = dense
    with caplog.at_level(logging.WARNING):
        make_folds(Study.of(tissue), FoldPlan())
    assert "section_2 and section_3 hold the same spots (100 % have the same expression profile)" in caplog.text


def test_nothing_is_changed(tissue: SpatialData, unchanged: Unchanged) -> None:
    with unchanged(tissue):
        make_folds(Study.of(tissue), FoldPlan(by="block", block_um=200, buffer_um=50))


BAD_PLANS: list[Any] = [
    pytest.param({"by": "slide"}, "by='slide' is not one of 'section', 'patient', 'block', 'spot'", id="by"),
    pytest.param({"n_folds": 1}, "n_folds=1 is not a whole number of at least 2", id="one fold"),
    pytest.param({"n_folds": True}, "n_folds=True is not", id="folds not a number"),
    pytest.param({"n_folds": 2.5}, "n_folds=2.5 is not", id="half a fold"),
    pytest.param({"validation": 1.0}, r"validation=1.0 is not a fraction in \[0, 1\)", id="all validation"),
    pytest.param({"validation": "C3"}, "validation='C3' is not a fraction", id="validation by name"),
    pytest.param({"block_um": 0}, "block_um=0 is not a positive number", id="block"),
    pytest.param({"buffer_um": -1.0}, "buffer_um=-1.0 is not a number of microns from 0", id="buffer"),
    pytest.param({"buffer_um": float("nan")}, "buffer_um=nan is not", id="buffer nan"),
    pytest.param({"seed": -1}, "seed=-1 is not a whole number from 0", id="seed"),
]


@pytest.mark.parametrize(("options", "match"), BAD_PLANS)
def test_a_bad_plan_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FoldPlan(**options)


BAD: list[Any] = [
    pytest.param({"n_folds": 4}, "n_folds=4 needs as many sections, and there are 3; ask for fewer folds, or divide", id="sections"),
    pytest.param({"by": "block", "block_um": 2000}, "n_folds=5 needs as many blocks of 2000 um, and there are 3; .* smaller block_um", id="blocks"),
    pytest.param({"by": "block", "block_um": 200, "buffer_um": 900}, "No spot of 'fold 0' is left for train .*buffer_um=900", id="buffer takes all"),
    pytest.param({"by": "spot", "n_folds": 2, "validation": 0.6}, "No spot of 'fold 0' is left for train .validation=0.6", id="validation takes all"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "match"), BAD)
def test_folds_that_cannot_be_are_refused(tissue: SpatialData, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_folds(Study.of(tissue), FoldPlan(**options))


def test_one_section_or_patient_cannot_be_held_out(tissue: SpatialData) -> None:
    table = tissue["table"]
    table.obs["patient"] = "C"
    with pytest.raises(
        ValueError, match=r"by='patient' holds out whole patients, and there is only one \(C\); divide by='section' or"
    ):
        make_folds(Study.of(tissue), FoldPlan(by="patient"))
    table.obs["section"] = "C2"
    with pytest.raises(ValueError, match=r"holds out whole sections, and there is only one \(C2\); divide by='block'"):
        make_folds(Study.of(tissue), FoldPlan())
    del table.obs["patient"]
    with pytest.raises(KeyError, match="no column 'patient'"):
        make_folds(Study.of(tissue), FoldPlan(by="patient"))


def test_a_table_without_spots_has_no_folds(tissue: SpatialData) -> None:
    dict.__setitem__(tissue.tables.data, "table", tissue["table"][:0].copy())
    with pytest.raises(ValueError, match="There is no section, and folds hold out one after the other"):
        make_folds(Study.of(tissue), FoldPlan())


def test_a_section_without_positions_is_named(tissue: SpatialData) -> None:
    shapes = tissue.shapes["section_2"]
    shapes["geometry"] = [Point()] * len(shapes)
    with pytest.raises(
        ValueError, match="The section 'section_2' has no spot with a position, so a fold would be empty"
    ):
        make_folds(Study.of(tissue), FoldPlan())
