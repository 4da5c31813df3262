"""Folds of the user's own: a column of obs, or a list of splits."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

from agl_sc._sdata.study import Address, Study
from agl_sc.pp._splits.folds import FoldPlan
from agl_sc.pp._splits.own_folds import own_folds

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
QUARTERS = np.arange(159) % 4


def quartered(tissue: SpatialData, values: Any, *, gaps: int = 0) -> Study:
    column = pd.Series(values, index=tissue["table"].obs_names)
    tissue["table"].obs["quarter"] = column.mask(np.arange(159) < gaps) if gaps else column
    return Study.of(tissue)


KINDS: dict[str, Any] = {
    "names": np.array(["NE", "NW", "SE", "SW"])[QUARTERS],
    "numbers": QUARTERS,
    "floats": QUARTERS.astype(float),
    "categories": pd.Categorical(np.array(["NE", "NW", "SE", "SW"])[QUARTERS], categories=["SW", "SE", "NW", "NE", "none left"]),
}  # fmt: skip


@pytest.mark.parametrize("gaps", [0, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_a_column_is_held_out_once(tissue: SpatialData, kind: str, gaps: int) -> None:
    study = quartered(tissue, KINDS[kind], gaps=gaps)
    folds = own_folds(study, "quarter", FoldPlan(validation=0.3))
    held_out = sorted(map(str, pd.Series(KINDS[kind]).unique()))
    held_out = [name.removesuffix(".0") for name in held_out]
    assert [fold.name for fold in folds] == held_out
    assert [fold.number for fold in folds] == [0, 1, 2, 3]
    named = np.arange(159) >= gaps
    tests = np.array([fold.assigned == "test" for fold in folds])
    np.testing.assert_array_equal(tests.sum(axis=0), named)
    for fold in folds:
        assert (fold.assigned[~named] == "unused").all()
        units = pd.DataFrame({"unit": QUARTERS[named], "set": fold.assigned[named]}).groupby("unit")["set"]
        assert units.nunique().max() == 1  # whole values pick, as whole values are tested
        assert set(fold.assigned[named]) == {"train", "validation", "test"}


@pytest.mark.parametrize("empty", ["", " ", "nan", "None", "<NA>", None])
def test_spots_without_a_name_are_in_no_set(tissue: SpatialData, empty: Any) -> None:
    values = KINDS["names"].astype(object)
    values[:20] = empty
    for fold in own_folds(quartered(tissue, values), "quarter", FoldPlan()):
        assert (fold.assigned[:20] == "unused").all()
        assert (fold.assigned[20:] != "unused").all()


def test_with_one_value_left_validation_takes_blocks_of_it(tissue: SpatialData) -> None:
    sections = tissue["table"].obs["section"].astype(str)
    study = quartered(tissue, np.where(sections == "section_1", "left", "right"))
    plan = FoldPlan(validation=0.3, block_um=200, buffer_um=110)
    for fold, size in zip(own_folds(study, "quarter", plan), (53, 106), strict=True):
        assert (fold.assigned == "test").sum() == size
        assert {"train", "validation", "unused"} <= set(fold.assigned)


def test_spots_off_tissue_and_of_other_regions_are_in_no_fold(tissue: SpatialData) -> None:
    obs = tissue["table"].obs
    obs["in_tissue"] = (np.arange(159) > 4).astype(int)
    quartered(tissue, KINDS["names"])
    study = Study.of(tissue, Address(shapes_key=["section_1", "section_2"]))
    tested = np.sum([fold.assigned == "test" for fold in own_folds(study, "quarter", FoldPlan())], axis=0)
    np.testing.assert_array_equal(tested, (obs["section"] != "section_3").to_numpy() & (np.arange(159) > 4))


def split_of(seed: int, test: slice) -> list[str]:
    sets = np.random.default_rng(seed).choice(["train", "validation", "unused"], 159)
    sets[test] = "test"
    return list(map(str, sets))


@pytest.mark.parametrize("kind", [list, np.array, pd.Series, pd.Categorical])
def test_a_list_of_splits_is_taken_as_it_is(tissue: SpatialData, kind: Any) -> None:
    given = [split_of(0, slice(0, 30)), split_of(1, slice(30, 90))]
    folds = own_folds(Study.of(tissue), [kind(sets) for sets in given], FoldPlan())
    assert [fold.assigned.tolist() for fold in folds] == given
    assert [fold.name for fold in folds] == ["fold 0", "fold 1"]


def test_what_the_folds_share_is_told(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    tissue["table"].obs["patient"] = "C"
    with caplog.at_level(logging.WARNING):
        own_folds(quartered(tissue, KINDS["names"]), "quarter", FoldPlan())
    assert "Sections of patient 'C' are in training and test" in caplog.text


def without(sets: list[str], name: str) -> list[str]:
    return ["unused" if each == name else each for each in sets]


GOOD = split_of(0, slice(0, 30))
REFUSED: list[Any] = [
    pytest.param("quartr", KeyError, "folds='quartr' is not a column of obs; they are .*; did you mean quarter", id="column"),
    pytest.param([], ValueError, "folds= is empty; give the sets of at least one fold", id="none"),
    pytest.param([GOOD[1:]], ValueError, r"folds\[0\] has 158 entries for 159 spots; give the set of every spot", id="length"),
    pytest.param([GOOD, ["training", *GOOD[1:]]], ValueError, r"folds\[1\] holds 'training'; the sets are train, validation, test, unused", id="set"),
    pytest.param([[None, *GOOD[1:]]], ValueError, r"folds\[0\] holds 'None'; the sets are", id="missing"),
    pytest.param([without(GOOD, "train")], ValueError, r"folds\[0\] has no train spot", id="no training"),
    pytest.param([without(GOOD, "test")], ValueError, r"folds\[0\] has no test spot", id="no test"),
    pytest.param([GOOD, split_of(1, slice(20, 40))], ValueError, "10 spots are test in several folds=", id="test twice"),
    pytest.param(5, TypeError, "folds= holds 5, a int; give the name of a column of obs", id="number"),
    pytest.param(GOOD, TypeError, "folds= holds 'test', a str; give the name of a column", id="one split"),
]  # fmt: skip


@pytest.mark.parametrize(("folds", "error", "message"), REFUSED)
def test_refusals(
    *, tissue: SpatialData, folds: Any, error: type[Exception], message: str, unchanged: Unchanged
) -> None:
    study = quartered(tissue, KINDS["names"])
    with unchanged(tissue), pytest.raises(error, match=message):
        own_folds(study, folds, FoldPlan())


@pytest.mark.parametrize(
    ("value", "said"), [("A", r"only one value of obs\['quarter'\] \(A\)"), (None, r"no value of obs\['quarter'\]")]
)
def test_one_value_is_no_fold(tissue: SpatialData, value: Any, said: str) -> None:
    study = quartered(tissue, [value] * 159)
    message = rf"There is {said}, and folds hold out one after the other; name more"
    with pytest.raises(ValueError, match=message):
        own_folds(study, "quarter", FoldPlan())
