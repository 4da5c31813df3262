"""Folds and splits read back from a file are those that were written, or are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from spatialdata import SpatialData

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.study import Study
from agl_sc.pp import split
from agl_sc.pp._splits.folds import FoldPlan, folds_of, make_folds
from agl_sc.pp._splits.split import split_of

Back = Callable[[SpatialData, Path], AnnData]


def by_h5ad(sdata: SpatialData, folder: Path) -> AnnData:
    sdata["table"].write_h5ad(folder / "table.h5ad")
    return ad.read_h5ad(folder / "table.h5ad")


def by_zarr(sdata: SpatialData, folder: Path) -> AnnData:
    sdata.write(folder / "tissue.zarr")
    table: AnnData = SpatialData.read(folder / "tissue.zarr", selection=("shapes", "tables"))["table"]
    return table


@pytest.mark.parametrize("back", [by_h5ad, by_zarr])
def test_folds_come_back(tissue: SpatialData, tmp_path: Path, back: Back) -> None:
    table = tissue["table"]
    made = make_folds(Study.of(tissue), FoldPlan(by="block", n_folds=3, block_um=200, buffer_um=120, seed=4))
    split(tissue, by="block", n_folds=3, block_um=200, buffer_um=120, seed=4)
    for source in (table, back(tissue, tmp_path)):
        found = folds_of(source, Keys())
        assert [(fold.number, fold.name) for fold in found] == [(0, "fold 0"), (1, "fold 1"), (2, "fold 2")]
        for fold, expected in zip(found, made, strict=True):
            np.testing.assert_array_equal(fold.assigned, expected.assigned)


@pytest.mark.parametrize("back", [by_h5ad, by_zarr])
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_a_split_comes_back(*, tissue: SpatialData, tmp_path: Path, back: Back, given: bool) -> None:
    assignments: Any = {"section_1": "train", "section_2": "test", "section_3": "unused"} if given else None
    split(tissue, assignments=assignments)
    table = tissue["table"]
    again = back(tissue, tmp_path)
    np.testing.assert_array_equal(split_of(again, Keys()), split_of(table, Keys()))
    with pytest.raises(ValueError, match="no longer matches its manifest"):
        split_of(again[:-1].copy(), Keys())


def test_the_number_of_a_fold_is_written(tissue: SpatialData, slots: Callable[[SpatialData], dict[str, Any]]) -> None:
    before = slots(tissue)
    split(tissue, n_folds=3, key_added="mine")
    after = slots(tissue)
    assert {name: after[name] for name in before} == before
    written = {name.removeprefix("uns/mine/split/") for name in after.keys() - before.keys()}
    assert written == {
        "obs/mine_split", "by", "n_folds", "validation", "block_um", "buffer_um", "seed", "hash", "names", "sets", "tile_um",
        "shared_pixels/test", "shared_pixels/validation",
    }  # fmt: skip
    column = tissue["table"].obs["mine_split"]
    assert column.cat.categories.tolist() == ["0", "1", "2"]
    folds = folds_of(tissue["table"], Keys("mine"))
    assert [folds[int(number)].assigned[i] for i, number in enumerate(column)] == ["test"] * 159
    assert set(tissue["table"].obs["section"][folds[1].assigned == "test"]) == {folds[1].name}


def test_folds_are_no_split_and_a_split_no_folds(tissue: SpatialData) -> None:
    table = tissue["table"]
    with pytest.raises(KeyError, match=r"agl_split.* is missing; run agl_sc.pp.split"):
        folds_of(table, Keys())
    split(tissue, n_folds=3)
    with pytest.raises(
        ValueError, match=r'obs\["agl_split"\] holds 3 folds, not one split; run agl_sc.tl.cross_validate'
    ):
        split_of(table, Keys())
    split(tissue)
    with pytest.raises(ValueError, match=r'obs\["agl_split"\] holds no folds; run agl_sc.pp.split\(sdata, n_folds=5\)'):
        folds_of(table, Keys())


def test_folds_that_were_changed_are_refused(tissue: SpatialData) -> None:
    split(tissue, n_folds=3)
    table = tissue["table"]
    table.uns["agl"]["split"]["sets"][0, 0] = 0
    with pytest.raises(ValueError, match="no longer matches its manifest"):
        folds_of(table, Keys())
    split(tissue, n_folds=3)
    table.obs.loc[table.obs_names[0], "agl_split"] = "2" if table.obs["agl_split"].iloc[0] != "2" else "1"
    with pytest.raises(ValueError, match="no longer matches its manifest"):
        folds_of(table, Keys())


BAD: list[Any] = [
    pytest.param({"test": "section_1"}, "test='section_1' is not used with n_folds=3", id="test by name"),
    pytest.param({"validation": "section_1"}, "validation='section_1' is not a fraction", id="validation by name"),
    pytest.param({"n_folds": 1}, "n_folds=1 is not a whole number of at least 2", id="one fold"),
]


@pytest.mark.parametrize(("options", "match"), BAD)
def test_what_folds_do_not_use_is_refused(tissue: SpatialData, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        split(tissue, **{"n_folds": 3, **options})
