"""Every problem of a store in one list, in the library's own words."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Translation, get_transformation, set_transformation
from typer.testing import Result

from agl_sc.cli._check import Findings, check_data
from agl_sc.pp._features.tiles import TileSpec

Run = Callable[..., Result]
SPEC = TileSpec(32, 1.0)
TOO_FEW = r"There are \d+ training spots, fewer than batch_size=128"


def no_table(sdata: SpatialData) -> None:
    del sdata.tables["table"]


def region_without_shapes(sdata: SpatialData) -> None:
    del sdata.shapes["section_2"]


def another_system(sdata: SpatialData) -> None:
    set_transformation(sdata["section_2"], {"elsewhere": Identity()}, set_all=True)


def unknown_scale(sdata: SpatialData) -> None:
    sdata.attrs["agl_sc"] = {"image_mpp": {}, "technology": {}}


def wrong_scale(sdata: SpatialData) -> None:
    sdata.attrs["agl_sc"]["image_mpp"]["section_2_image"] = 10.0


def normalised(sdata: SpatialData) -> None:
    sdata["table"].X = sdata["table"].X.multiply(0.5).tocsr()


def gene_twice(sdata: SpatialData) -> None:
    sdata["table"].var_names = ["A", "A", *sdata["table"].var_names[2:]]


def sixteen_bit(sdata: SpatialData) -> None:
    image = sdata["section_2_image"]
    pixels = np.full((3, 700, 700), 9, dtype=np.uint16)
    sdata.images["section_2_image"] = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), transformations=get_transformation(image, get_all=True)
    )


def without_position(sdata: SpatialData) -> None:
    shapes = sdata["section_2"]
    geometry = [shapely.Point(), *shapes.geometry.iloc[1:]]
    frame = gpd.GeoDataFrame({"radius": shapes["radius"].to_numpy()}, geometry=geometry, index=shapes.index)
    frame.attrs = shapes.attrs
    sdata.shapes["section_2"] = frame


def far_away(sdata: SpatialData) -> None:
    moved = Translation([1e5, 0], axes=("x", "y"))
    set_transformation(
        sdata["section_2"], dict.fromkeys(get_transformation(sdata["section_2"], get_all=True), moved), set_all=True
    )


def no_patient(sdata: SpatialData) -> None:
    del sdata["table"].obs["patient"]


PROBLEMS = [
    pytest.param(no_table, "sdata has no table; add one that annotates the spots", id="no table"),
    pytest.param(region_without_shapes, "Region 'section_2' of the table is none of the shapes, points and labels", id="region without shapes"),
    pytest.param(another_system, "No image shares a coordinate system with 'section_2'", id="no image"),
    pytest.param(unknown_scale, "The microns per pixel of 'section_1_image' are unknown; pass image_mpp=", id="mpp unknown"),
    pytest.param(wrong_scale, "image_mpp=10 of 'section_2_image' contradicts the visium spot pitch", id="mpp contradictory"),
    pytest.param(normalised, "X holds values that are not whole numbers, as after normalisation", id="normalised"),
    pytest.param(gene_twice, r"1 gene names stand twice in the table \(A\); make them unique", id="gene twice"),
    pytest.param(sixteen_bit, "Image 'section_2_image' is uint16, not uint8; convert it first", id="uint16"),
]  # fmt: skip
NOTES = [
    pytest.param(without_position, "1 spots of section_2 have no position .* Fix their shapes, or drop them", id="no position"),
    pytest.param(far_away, "53 of 53 spots of section_2 lie outside the image; check its transformation", id="outside"),
    pytest.param(no_patient, "obs has no column 'patient'", id="no patient"),
]  # fmt: skip


def findings_of(sdata: SpatialData) -> Findings:
    findings = Findings()
    check_data(findings, sdata, SPEC)
    return findings


def matching(texts: list[str], pattern: str) -> list[str]:
    return [text for text in texts if re.search(pattern, text)]


@pytest.mark.filterwarnings("ignore:The table is annotating")
@pytest.mark.parametrize(("spoil", "message"), PROBLEMS)
def test_problem(tissue: SpatialData, spoil: Callable[[SpatialData], None], message: str) -> None:
    assert not matching(findings_of(tissue).problems, message)
    spoil(tissue)
    assert len(matching(findings_of(tissue).problems, message)) == 1


@pytest.mark.parametrize(("spoil", "message"), NOTES)
def test_note(tissue: SpatialData, spoil: Callable[[SpatialData], None], message: str) -> None:
    spoil(tissue)
    found = findings_of(tissue)
    assert len(matching(found.notes, message)) == 1
    assert len(found.problems) == 1  # of too few spots, as without the spoil
    assert re.match(TOO_FEW, found.problems[0])


def test_a_slide_without_expression_is_no_problem(tissue: SpatialData) -> None:
    tissue["table"].X = None
    found = findings_of(tissue)
    assert found.problems == []
    assert len(matching(found.notes, "no counts: its spots can be predicted, not trained on")) == 1


def test_sound_tissue_has_too_few_spots_and_no_other_fault(
    tissue: SpatialData, unchanged: Callable[[SpatialData], "object"]
) -> None:
    with unchanged(tissue):  # type: ignore[attr-defined]
        found = findings_of(tissue)
    assert len(found.problems) == 1
    assert re.match(TOO_FEW, found.problems[0])
    # two spots at the rim of the simulated tissue lie on glass, which is a note
    assert len(found.notes) == 1
    assert re.match(r"2 of 53 spots of section_1 lie on glass", found.notes[0])


@pytest.mark.filterwarnings("ignore:The table is annotating")
def test_all_problems_of_a_store_in_one_list(run: Run, tissue: SpatialData, tmp_path: Path) -> None:
    for spoil in (region_without_shapes, normalised, wrong_scale, sixteen_bit, no_patient):
        spoil(tissue)
    sdata = copy.copy(tissue)
    sdata.write(tmp_path / "bad.zarr")
    arguments = ["doctor", tmp_path / "bad.zarr", "--tile-px", 32, "--mpp", 1]
    done = run(*arguments, "--json")
    assert done.exit_code == 2
    report = json.loads(done.stdout)
    expected = ["not whole numbers", "is uint16", "'section_2' of the table is none of the shapes", TOO_FEW]
    assert [matching(report["problems"], each) for each in expected] == [[each] for each in report["problems"]]
    assert len(matching(report["notes"], "no column 'patient'")) == 1
    assert {"torch", "spatialdata", "agl-sc"} <= set(report["versions"])
    assert 0 < report["memory_gb"]["free"] <= report["memory_gb"]["total"]
    assert report["encoder"] == "efficientnet_lite0 loads"
    text = run(*arguments).stdout
    assert all(f"{i}. {problem}\n" in f"{text}\n" for i, problem in enumerate(report["problems"], start=1))


def test_machine_alone_is_fine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    done = run("doctor")
    assert done.exit_code == 0
    assert "efficientnet_lite0 loads" in done.stdout
    assert done.stdout.endswith("no problem\n")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert json.loads(run("doctor", "--json").stdout)["hub_token"] is True
