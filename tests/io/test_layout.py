"""The SpatialData that every reader writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spatialdata as sd
from scipy.sparse import csr_matrix
from spatialdata import SpatialData, get_element_instances
from spatialdata.transformations import Identity, get_transformation

from agl_sc.core.arguments import label_of
from agl_sc.io import read_hest, read_st, read_visium
from agl_sc.io._layout import (
    SectionData,
    assemble,
    check_centres,
    check_section_names,
    name_after,
    patients_of,
    per_section,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),  # anndata, on every zarr write
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # ome-zarr, on import
]


def section(name: str, genes: list[str], n_spots: int = 4, **changes: Any) -> SectionData:
    rng = np.random.default_rng(len(genes) + n_spots)
    data = SectionData(
        name=name,
        image=rng.integers(0, 256, (3, 60, 80), dtype=np.uint8),
        counts=csr_matrix(rng.integers(0, 4, (n_spots, len(genes)))),
        genes=genes,
        spots=[f"{i}x1" for i in range(n_spots)],
        centres_px=rng.random((n_spots, 2)) * 50,
        radius_px=7.0,
        patient="P",
        image_mpp=0.5,
        technology="st",
    )
    return replace(data, **changes)


@pytest.fixture
def two() -> list[SectionData]:
    return [
        section("A", ["g2", "g1"], 4),
        section("B", ["g1", "g3", "g2"], 3, patient="Q", image_mpp=None, technology=None),
    ]


def check_layout(sdata: SpatialData, sections: list[SectionData]) -> None:
    assert set(sdata.images) == {f"{s.name}_image" for s in sections}
    assert set(sdata.shapes) == {s.name for s in sections}
    assert set(sdata.coordinate_systems) == {s.name for s in sections}
    table = sdata["table"]
    assert table.uns["spatialdata_attrs"]["region_key"] == "region"
    assert table.uns["spatialdata_attrs"]["instance_key"] == "spot_id"
    assert sorted(table.uns["spatialdata_attrs"]["region"]) == sorted(s.name for s in sections)
    for s in sections:
        rows = table[table.obs["region"] == s.name]
        assert rows.obs_names.tolist() == [f"{s.name}_{spot}" for spot in s.spots]
        assert rows.obs["spot_id"].tolist() == get_element_instances(sdata[s.name]).tolist() == list(s.spots)
        assert set(rows.obs["section"]) == {s.name}
        assert set(rows.obs["patient"]) == {s.patient}
        np.testing.assert_array_equal(rows.obsm["spatial"], s.centres_px)
        np.testing.assert_array_equal(sdata[s.name].get_coordinates().to_numpy(), s.centres_px)
        assert set(sdata[s.name]["radius"]) == {s.radius_px}
        np.testing.assert_array_equal(rows[:, list(s.genes)].X.toarray(), s.counts.toarray())
        for element in (sdata[s.name], sdata[f"{s.name}_image"]):
            assert get_transformation(element, get_all=True) == {s.name: Identity()}


def test_layout(two: list[SectionData]) -> None:
    sdata = assemble(two)
    check_layout(sdata, two)
    table = sdata["table"]
    assert isinstance(table.X, csr_matrix)
    assert table.X.dtype == np.float32
    assert table.X.has_sorted_indices
    assert {table.obs[key].dtype.name for key in ("region", "section", "patient")} == {"category"}
    assert sdata.attrs["agl_sc"] == {"image_mpp": {"A_image": 0.5}, "technology": {"A": "st"}}


def test_genes_are_the_union_in_order_of_appearance(two: list[SectionData]) -> None:
    table = assemble(two)["table"]
    assert table.var_names.tolist() == ["g2", "g1", "g3"]
    assert table[table.obs["section"] == "A", "g3"].X.nnz == 0


def test_zarr_round_trip(two: list[SectionData], tmp_path: Path) -> None:
    sdata = assemble(two)
    sdata.write(tmp_path / "a.zarr")
    back = sd.read_zarr(tmp_path / "a.zarr")
    check_layout(back, two)
    assert back.attrs["agl_sc"] == sdata.attrs["agl_sc"]
    np.testing.assert_array_equal(back["A_image"].to_numpy(), two[0].image)


@pytest.mark.parametrize("value", [-1, 0.5, np.nan, np.inf], ids=str)
def test_counts_that_are_not_raw(value: float) -> None:
    counts = np.ones((4, 2))
    counts[2, 1] = value
    with pytest.raises(
        ValueError, match=rf"Section 'A' has 1 values that are not raw counts, e.g. {value} for gene 'g2' in spot '2x1'"
    ):
        section("A", ["g1", "g2"], counts=csr_matrix(counts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genes": ["g1", "g1"]}, "gene names of section 'A' must be unique, but 1 appear more than once: g1;"),
        (
            {"spots": ["a", "b", "b", "a"]},
            "spot names of section 'A' must be unique, but 2 appear more than once: b, a;",
        ),
        ({"genes": ["g1"]}, r"Section 'A' has 4 spots and 1 genes, but counts of shape \(4, 2\)"),
        ({"centres_px": np.ones((3, 2))}, r"centres of shape \(3, 2\)"),
        ({"centres_px": np.full((4, 2), np.nan)}, "4 of 4 spots of 'A' have no finite centre"),
        ({"centres_px": np.full((4, 2), 99.0)}, "No spot of 'A' lies inside its image of 80 x 60 px"),
        ({"image": np.zeros((1, 60, 80), np.uint8)}, "image of 'A' has shape .* must have 3 channels of uint8"),
    ],
)
def test_sections_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(section("A", ["g1", "g2"]), **changes)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "__a"])
def test_names_that_cannot_be_stored(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be stored; use letters, digits, underscores, dots and hyphens"):
        assemble([section(name, ["g1"])])


@pytest.mark.parametrize("other", ["A", "a", "A_image"])
def test_names_that_clash(other: str) -> None:
    with pytest.raises(ValueError, match="element names of the sections must be unique"):
        assemble([section("A", ["g1"]), section(other, ["g1"])])


def test_no_section() -> None:
    with pytest.raises(ValueError, match="No section was given"):
        assemble([])


def test_arguments_given_once_or_per_section() -> None:
    given: Any = {"B": 1, "A": 2, "C": 3}
    assert per_section(0.5, ["A", "B"], argument="mpp") == {"A": 0.5, "B": 0.5}
    assert per_section(given, ["A", "B"], argument="mpp") == {"A": 2, "B": 1}
    with pytest.raises(KeyError, match="mpp has no entry for Y, Z; it has B, A, C"):
        per_section(given, ["A", "Y", "Z"], argument="mpp")


@pytest.mark.parametrize("patients", [(None, None), ("P", None), ("P", "Q")], ids=str)
def test_patients_that_nobody_named_are_marked(
    two: list[SectionData], patients: tuple[str | None, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="agl_sc"):
        sdata = assemble([replace(each, patient=patient) for each, patient in zip(two, patients, strict=True)])
    assumed = [each.name for each, patient in zip(two, patients, strict=True) if patient is None]
    assert sdata.attrs["agl_sc"].get("patients_assumed", False) is bool(assumed)
    assert ("so each section counts as its own: " + ", ".join(assumed) in caplog.text) == bool(assumed)
    expected = [patient or each.name for each, patient in zip(two, patients, strict=True)]
    assert sdata["table"].obs["patient"].tolist() == [expected[0]] * 4 + [expected[1]] * 3


def spread(n_spots: int, width: float, height: float) -> Any:
    return np.random.default_rng(0).random((n_spots, 2)) * (width, height)


@pytest.mark.parametrize(
    ("centres", "message"),
    [
        (
            spread(40, 160, 120),
            r"\d+ of 40 spots of 'A' lie outside its image of 80 x 60 px .*drop them if the image is a crop",
        ),
        (spread(40, 15, 11), "All 40 spots of 'A' lie in one corner of its image of 80 x 60 px"),
        (spread(40, 80, 60) + 100, "No spot of 'A' lies inside its image of 80 x 60 px"),
    ],
    ids=["twice the scale", "a sixth of the scale", "elsewhere"],
)
def test_positions_in_pixels_of_another_image(centres: Any, message: str) -> None:
    with pytest.raises(
        ValueError, match=f"{message}.*; the image, or the scale of the positions, belongs to something else"
    ):
        check_centres(centres, (60, 80), name="A")


@pytest.mark.parametrize(
    "centres",
    [
        spread(40, 80, 60),
        spread(40, 100, 60),
        spread(10, 15, 11),
        spread(40, 15, 11) + np.array([60, 2]),
        spread(40, 15, 60),
    ],
    ids=["all over", "some outside", "few", "another corner", "a strip"],
)
def test_positions_that_may_be_right(centres: Any) -> None:
    check_centres(centres, (60, 80), name="A")


@pytest.mark.parametrize(
    ("key", "label"),
    [
        (3, "3"),
        (3.0, "3"),
        (np.int64(3), "3"),
        (np.float32(3), "3"),
        (3.5, "3.5"),
        ("3.0", "3.0"),
        ("a", "a"),
        (True, "True"),
    ],
    ids=repr,
)
def test_names_of_numbered_sections(key: object, label: str) -> None:
    assert label_of(key) == label
    given: Any = {key: "x"}
    assert per_section(given, [label], argument="patient") == {label: "x"}


@pytest.mark.parametrize("value", [None, 3, b"x", ["x"], {"x"}, object()], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("read", ["visium", "visium, mapping", "hest", "st", "st, image"])
def test_what_is_no_path_is_refused(tmp_path: Path, read: str, value: Any) -> None:
    if read == "st" and isinstance(value, list):  # of one path
        return
    calls: dict[str, Any] = {
        "visium": lambda: read_visium(value),
        "visium, mapping": lambda: read_visium({"A": value}),
        "hest": lambda: read_hest(value),
        "st": lambda: read_st(value, "a.jpg"),
        "st, image": lambda: read_st({"A": tmp_path / "a.tsv"}, {"A": value}),
    }
    with pytest.raises(
        TypeError, match=r"^(path|counts|image)=.* is a .*, not a path; pass a string or a pathlib\.Path\.$"
    ):
        calls[read]()


@pytest.mark.parametrize(
    ("patient", "expected"), [(None, None), ("P", "P"), (3, "3"), (3.0, "3"), (np.int64(7), "7"), ({"A": "x"}, "x")]
)
def test_patients(patient: Any, expected: str | None) -> None:
    assert patients_of(patient, ["A"]) == {"A": expected}


@pytest.mark.parametrize("patient", [True, ["x"], np.array(["x", "y"]), {"A": set()}, b"x"], ids=str)
def test_what_is_no_patient_is_refused(patient: Any) -> None:
    with pytest.raises(TypeError, match=r"patient=.* of 'A' is a .*, not a name; pass one, or a mapping"):
        patients_of(patient, ["A"])


@pytest.mark.parametrize(
    ("file", "name"),
    [("my slide (1)", "my_slide_1"), ("GSM1/a b", "GSM1_a_b"), ("__x", "x"), ("..", "A1"), ("Größe 1", "Größe_1")],
)
def test_a_section_is_named_after_its_file_as_far_as_that_can_be_stored(
    file: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert name_after(file) == name
    assert f"the section of '{file}' is called '{name}'" in caplog.text
    with pytest.raises(ValueError, match=f"cannot be stored; .* such as '{name}'"):
        check_section_names([file])
    check_section_names([name])
    caplog.clear()
    assert [name_after(kept) for kept in ("A-1", "_b.c", "Größe")] == ["A-1", "_b.c", "Größe"]
    assert not caplog.text
