"""What the features of a section are centred on does not depend on which of its spots the table holds."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spatialdata
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation
from tests.conftest import duplicate

from agl_sc._sdata.study import Study
from agl_sc.pp import embed
from agl_sc.pp._features import reference as module
from agl_sc.pp._features.context import MapsOf
from agl_sc.pp._features.reference import FEWEST_TILES, reference_of, reference_spots, spread_over

TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}


def rows_of(sdata: SpatialData, region: str) -> NDArray[np.int64]:
    return np.flatnonzero((sdata["table"].obs["region"] == region).to_numpy())


def cut(sdata: SpatialData, rows: NDArray[np.int64]) -> SpatialData:
    """The same with some rows of the table, and all shapes."""
    part = duplicate(sdata)
    table = part["table"][rows].copy()
    table.uns["spatialdata_attrs"]["region"] = sorted(set(table.obs["region"]))
    part.tables["table"] = table
    return part


def means_in(sdata: SpatialData) -> dict[str, NDArray[np.float64]]:
    return dict(sdata["table"].uns["agl"]["reference"]["means"])


def test_it_is_the_mean_over_the_spots_of_the_region(prepared: SpatialData) -> None:
    table = prepared["table"]
    for region, mean in means_in(prepared).items():
        rows = rows_of(prepared, region)
        np.testing.assert_allclose(mean, table.obsm["agl_features"][rows].mean(axis=0), atol=1e-5)
        assert table.uns["agl"]["reference"]["n_tiles"][region] == len(rows)


@pytest.mark.parametrize("n_rows", [1, 5])
def test_a_part_of_a_section_has_the_reference_of_the_whole(
    prepared: SpatialData, n_rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    part = cut(prepared, rows_of(prepared, "section_2")[:n_rows])
    n_spots = len(part.shapes["section_2"])
    del part["table"].obsm["agl_features"], part["table"].uns["agl"]
    with caplog.at_level(logging.INFO):
        embed(part, **TILES)
    assert f"Encoding {n_spots - n_rows} tiles more, of spots that have no row in the table" in caplog.text
    assert list(means_in(part)) == ["section_2"]
    np.testing.assert_allclose(means_in(part)["section_2"], means_in(prepared)["section_2"], atol=1e-5)
    assert part["table"].uns["agl"]["reference"]["n_tiles"] == {"section_2": n_spots}


def test_wider_fields_and_neighbours_have_theirs(tissue: SpatialData) -> None:
    whole, part = duplicate(tissue), cut(tissue, rows_of(tissue, "section_1")[:3])
    for sdata in (whole, part):
        embed(sdata, **{**TILES, "context": (2,), "neighbors": 1})
    own, wider, around = np.split(means_in(part)["section_1"], 3)
    np.testing.assert_array_equal(own, around)
    assert not np.allclose(own, wider)
    np.testing.assert_allclose(means_in(part)["section_1"], means_in(whole)["section_1"], atol=1e-5)


def test_features_in_place_keep_it(prepared: SpatialData) -> None:
    part = cut(prepared, np.arange(20))
    embed(part, **TILES)
    assert all(np.array_equal(mean, means_in(prepared)[name]) for name, mean in means_in(part).items())


def test_another_image_has_another(prepared: SpatialData) -> None:
    whole = duplicate(prepared)
    image = whole["section_1_image"]["scale0"]["image"]
    transformations = get_transformation(whole["section_1_image"], get_all=True)
    whole.images["section_1_image"] = Image2DModel.parse(
        255 - image.to_numpy(), dims=("c", "y", "x"), transformations=transformations
    )
    embed(whole, **TILES)
    assert not np.allclose(means_in(whole)["section_1"], means_in(prepared)["section_1"], atol=1e-3)


def test_spots_off_the_tissue_and_off_the_image_are_not_of_it(tissue: SpatialData) -> None:
    table = tissue["table"]
    table.obs["in_tissue"] = 1
    off = rows_of(tissue, "section_1")[:4]
    table.obs.iloc[off, table.obs.columns.get_loc("in_tissue")] = 0
    study = Study.of(tissue)
    section = next(each for each in study.imaged if each.name == "section_1")
    rows, _ = reference_spots(study, section)
    np.testing.assert_array_equal(rows, rows_of(tissue, "section_1")[4:])
    table.obs["in_tissue"] = 0  # of all of them: then it says nothing
    rows, _ = reference_spots(study, section)
    np.testing.assert_array_equal(rows, rows_of(tissue, "section_1"))


def test_of_many_spots_some_are_taken_that_lie_evenly(monkeypatch: pytest.MonkeyPatch, tissue: SpatialData) -> None:
    monkeypatch.setattr(module, "MOST_TILES", 10)
    embed(tissue, **TILES)
    assert tissue["table"].uns["agl"]["reference"]["n_tiles"] == dict.fromkeys(sorted(tissue.shapes), 10)
    part = cut(tissue, rows_of(tissue, "section_3")[5:7])
    whole, section = Study.of(tissue), Study.of(part).imaged[0]
    _, expected = reference_spots(whole, whole.imaged[2])
    _, found = reference_spots(Study.of(part), section)
    np.testing.assert_array_equal(found, expected)


@given(st.integers(1, 60), st.integers(1, 20), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_which_are_taken_goes_by_their_positions(n_points: int, most: int, random: Any) -> None:
    points = np.random.default_rng(random.randrange(2**32)).uniform(-50, 50, (n_points, 2))
    taken = spread_over(points, most)
    assert len(set(taken.tolist())) == min(most, n_points)
    order = np.array(random.sample(range(n_points), n_points))
    again = spread_over(points[order], most)
    assert {tuple(point) for point in points[order][again]} == {tuple(point) for point in points[taken]}


def test_they_are_spread_over_the_area() -> None:
    y, x = np.mgrid[0:40, 0:40]
    points = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    taken = points[spread_over(points, 100)]
    in_quarters = np.unique(taken // 10, axis=0, return_counts=True)[1]
    assert len(in_quarters) == 16
    assert in_quarters.min() >= 4
    assert in_quarters.max() <= 9


def test_points_on_a_line_and_no_points() -> None:
    line = np.column_stack([np.arange(9.0), np.zeros(9)])
    np.testing.assert_array_equal(spread_over(line, 3), [1, 4, 7])
    assert not len(spread_over(np.empty((0, 2)), 3))


def test_features_older_than_the_reference_are_centred_on_their_spots(
    prepared: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    del prepared["table"].uns["agl"]["reference"]
    features = prepared["table"].obsm["agl_features"]
    features[3] = np.nan
    with caplog.at_level(logging.INFO):
        found = reference_of(Study.of(prepared))
    told = 'uns["agl"] holds no reference of section_1, section_2, section_3: features are centred on the mean over the spots'
    assert told in caplog.text
    rows = rows_of(prepared, "section_1")
    np.testing.assert_allclose(found["section_1"], features[rows[rows != 3]].mean(axis=0), atol=1e-5)


def test_too_little_tissue_is_refused_by_name(prepared: SpatialData) -> None:
    few = cut(prepared, np.concatenate([rows_of(prepared, "section_1"), rows_of(prepared, "section_2")[:7]]))
    del few["table"].uns["agl"]["reference"]
    message = rf"Region 'section_2' has 7 tiles of tissue, and what its features are centred on takes {FEWEST_TILES} or more: add spots"
    with pytest.raises(ValueError, match=message):
        reference_of(Study.of(few))
    few["table"].obsm["agl_features"][-7:] = np.nan  # nothing is to be centred
    np.testing.assert_array_equal(reference_of(Study.of(few))["section_2"], 0)


def test_it_goes_with_a_store(prepared: SpatialData, tmp_path: Path) -> None:
    prepared.write(tmp_path / "store.zarr")
    again = spatialdata.read_zarr(tmp_path / "store.zarr")
    found = reference_of(Study.of(again))
    assert {name: mean.tobytes() for name, mean in found.items()} == {
        name: mean.tobytes() for name, mean in means_in(prepared).items()
    }


def test_it_goes_with_tables_that_are_put_together(prepared: SpatialData) -> None:
    """Where records are merged; spatialdata drops them otherwise, and the features are known to nobody."""
    parts = []
    for name in ("section_1", "section_3"):
        table = cut(prepared, rows_of(prepared, name))["table"]
        table.uns["agl"] = {**table.uns["agl"], "reference": _only(table.uns["agl"]["reference"], name)}
        parts.append(SpatialData(shapes={name: prepared.shapes[name]}, tables={"table": table}))
    both = spatialdata.concatenate(parts, concatenate_tables=True, uns_merge="unique")
    found = reference_of(Study.of(both))
    assert {name: mean.tobytes() for name, mean in found.items()} == {
        name: means_in(prepared)[name].tobytes() for name in ("section_1", "section_3")
    }


def _only(record: dict[str, dict[str, Any]], region: str) -> dict[str, dict[str, Any]]:
    return {name: {region: values[region]} for name, values in record.items()}


def test_features_older_than_it_get_it_without_being_computed_again(prepared: SpatialData) -> None:
    before, features = means_in(prepared), prepared["table"].obsm["agl_features"].copy()
    del prepared["table"].uns["agl"]["reference"]
    embed(prepared, **TILES)
    np.testing.assert_array_equal(prepared["table"].obsm["agl_features"], features)
    assert all(np.array_equal(mean, means_in(prepared)[name]) for name, mean in before.items())


def test_tissue_that_is_added_to_a_small_region_is_taken(prepared: SpatialData) -> None:
    few = cut(prepared, rows_of(prepared, "section_1")[:7])
    whole = few.shapes["section_1"]
    few.shapes["section_1"] = whole.loc[few["table"].obs["spot_id"]]
    embed(few, **TILES, key_added="other")
    with pytest.raises(
        ValueError, match=r"add spots over the rest of its tissue to sdata.shapes\['section_1'\] and run"
    ):
        reference_of(Study.of(few, key_added="other"))
    few.shapes["section_1"] = whole
    embed(few, **TILES, key_added="other")
    found = reference_of(Study.of(few, key_added="other"))["section_1"]
    np.testing.assert_allclose(found, means_in(prepared)["section_1"], atol=1e-5)


@pytest.mark.parametrize("maps", ["none", "wider", "all"])
@pytest.mark.parametrize("n_rows", [1, 3, 9])
def test_features_of_a_part_are_the_same_bytes_as_those_of_the_whole(
    prepared: SpatialData, maps: MapsOf, n_rows: int
) -> None:
    tiles: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (2,), "orientations": 1, "maps": maps}
    rows = rows_of(prepared, "section_1")
    whole, part = cut(prepared, rows), cut(prepared, rows[::2][:n_rows])
    for each in (whole, part):
        del each["table"].obsm["agl_features"], each["table"].uns["agl"]
        embed(each, **tiles)
    expected = whole["table"][part["table"].obs_names].obsm["agl_features"]
    np.testing.assert_array_equal(part["table"].obsm["agl_features"], expected)
