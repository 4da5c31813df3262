"""Sets that the user gives, taken as they are or refused by name."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

from agl_sc._sdata.keys import Keys
from agl_sc.pp import split
from agl_sc.pp._splits.split import split_of

SETS = {"section_1": "train", "section_2": "validation", "section_3": "test"}


def test_a_mapping_from_section(tissue: SpatialData) -> None:
    split(tissue, assignments=SETS)
    table = tissue["table"]
    assert split_of(table, Keys()).tolist() == [SETS[name] for name in table.obs["section"]]
    manifest = table.uns["agl"]["split"]
    assert (manifest["by"], manifest["assignments"]) == ("section", "mapping")


def test_sections_may_be_numbers(tissue: SpatialData) -> None:
    """Also in the mapping of scales, as the readers take them."""
    table = tissue["table"]
    table.obs["section"] = table.obs["section"].astype(str).str.replace("section_", "15150")
    numbers = {151501: "train", 151502.0: "validation", np.int64(151503): "test"}
    split(tissue, assignments=numbers, image_mpp=dict.fromkeys(numbers, 1.0))  # type: ignore[arg-type]
    assert table.obs["agl_split"].tolist() == [numbers[int(name)] for name in table.obs["section"]]


def test_a_mapping_from_patient(tissue: SpatialData) -> None:
    patients = {"patient_1": "test", "patient_2": "unused", "patient_3": "train"}
    split(tissue, by="patient", assignments=patients)
    table = tissue["table"]
    assert split_of(table, Keys()).tolist() == [patients[name] for name in table.obs["patient"]]


def test_a_column(tissue: SpatialData) -> None:
    table = tissue["table"]
    table.obs["mine"] = pd.Categorical([SETS[name] for name in table.obs["section"]])
    split(tissue, assignments="mine")
    assert table.obs["agl_split"].tolist() == table.obs["mine"].tolist()
    assert table.obs["agl_split"].cat.categories.tolist() == ["train", "validation", "test", "unused"]
    assert table.uns["agl"]["split"]["assignments"] == "mine"


@pytest.mark.parametrize("by", ["section", "patient"])
def test_a_patient_in_two_sets_is_refused(
    tissue: SpatialData, by: Any, unchanged: Callable[[SpatialData], AbstractContextManager[None]]
) -> None:
    table = tissue["table"]
    table.obs["patient"] = np.where(table.obs["section"] == "section_2", "B", "C")
    table.obs["mine"] = [SETS[name] for name in table.obs["section"]]
    with (
        pytest.raises(ValueError, match="Patient 'C' is in train and test; give all spots of a patient one set"),
        unchanged(tissue),
    ):
        split(tissue, by=by, assignments="mine")


@pytest.mark.parametrize("by", ["block", "spot"])
def test_a_patient_divided_on_purpose_is_told(tissue: SpatialData, by: Any, caplog: pytest.LogCaptureFixture) -> None:
    table = tissue["table"]
    table.obs["mine"] = np.where(np.arange(table.n_obs) % 53 < 20, "train", "test")
    with caplog.at_level(logging.WARNING):
        split(tissue, by=by, assignments="mine")
    assert "Patient 'patient_2' is in train and test: its spots are not independent." in caplog.text
    assert (table.obs["agl_split"] == table.obs["mine"]).all()


BAD: list[Any] = [
    pytest.param({"assignments": SETS | {"section_3": "held out"}}, ValueError, "assignments holds 'held out'; the sets are train, validation, test, unused", id="set"),
    pytest.param({"assignments": {"section_1": "train"}}, KeyError, "assignments has no set for the section 'section_2'", id="section missing"),
    pytest.param({"assignments": SETS | {"sektion_1": "test"}}, KeyError, "assignments names 'sektion_1', which is not a section; .* did you mean section_1", id="section unknown"),
    pytest.param({"assignments": SETS, "by": "patient"}, KeyError, "names 'section_1', which is not a patient; the patients are patient_1, patient_2", id="sections for patients"),
    pytest.param({"assignments": SETS, "by": "spot"}, ValueError, "maps sections or patients to sets, but by='spot'", id="mapping by spot"),
    pytest.param({"assignments": "min"}, KeyError, "assignments='min' is not a column of obs; they are .*did you mean mine", id="column"),
    pytest.param({"assignments": "mine"}, ValueError, r"obs\['mine'\] holds 'nan'; the sets are", id="missing values"),
    pytest.param({"assignments": ["train"]}, TypeError, "assignments is a list, neither a mapping", id="type"),
    pytest.param({"assignments": SETS, "test": "section_1"}, ValueError, "test='section_1' is not used with assignments", id="test too"),
    pytest.param({"assignments": SETS, "n_folds": 3}, ValueError, r"assignments=.* is not used with n_folds=3; leave one of the two out", id="folds too"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_other_assignments_are_refused(
    *,
    tissue: SpatialData,
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    unchanged: Callable[[SpatialData], AbstractContextManager[None]],
) -> None:
    tissue["table"].obs["mine"] = pd.Series([np.nan] * 159, index=tissue["table"].obs_names, dtype=object)
    with pytest.raises(error, match=match), unchanged(tissue):
        split(tissue, **options)
