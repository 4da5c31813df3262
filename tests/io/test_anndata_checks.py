"""What from_anndata refuses, says or assumes about spots and names; a refusal leaves the AnnData as it was."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData, read_h5ad
from scipy.sparse import issparse
from tests.io.test_anndata import LIBRARIES, make, pixels, set_obs

from agl_sc.io import from_anndata

Change = Callable[[AnnData], object]


def hexagonal(n: int = 20, *, fraction: float = 1.0) -> AnnData:
    """A Visium section whose pitch is 40 px of the full-resolution image, of which some spots are left: 2.5 um per pixel."""
    row, column = np.divmod(np.arange(n * n), n)
    kept = np.random.default_rng(2).random(n * n) < fraction
    adata = AnnData(np.ones((n * n, 3), dtype=np.float32))
    adata.obs_names = [f"barcode{i}" for i in range(n * n)]
    adata.obs["array_row"], adata.obs["array_col"] = row, 2 * column + row % 2
    adata.obsm["spatial"] = np.column_stack([column + 0.5 * (row % 2) + 1, row * np.sqrt(3) / 2 + 1]) * 40
    factors = {"tissue_hires_scalef": 0.5, "spot_diameter_fullres": 26.0}
    adata.uns["spatial"] = {"s1": {"images": {"hires": pixels(0, (400, 440))}, "scalefactors": factors}}
    return adata[kept].copy()


def mpp_of(adata: AnnData, **options: Any) -> float:
    found: float = from_anndata(adata, **options).attrs["agl_sc"]["image_mpp"]["s1_image"]
    return found


@pytest.mark.parametrize("fraction", [0.01, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("names", [("array_row", "array_col"), ("arrayrow", "arraycol"), ("row", "col")])
@pytest.mark.parametrize("technology", ["visium", "Visium", "10x Visium"])
def test_microns_per_pixel_do_not_depend_on_the_spots_left(
    fraction: float, names: tuple[str, str], technology: str
) -> None:
    adata = hexagonal(fraction=fraction)
    adata.obs = adata.obs.rename(columns=dict(zip(("array_row", "array_col"), names, strict=True)))
    assert mpp_of(adata, technology=technology) == pytest.approx(5.0)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("change", ["dropped", "shuffled"])
def test_without_array_positions_the_scale_is_right_or_asked_for(fraction: float, change: str) -> None:
    adata = hexagonal(fraction=fraction)
    columns = ["array_row", "array_col"]
    if change == "dropped":
        adata.obs = adata.obs.drop(columns=columns)
    else:
        adata.obs[columns] = np.random.default_rng(0).permutation(adata.obs[columns].to_numpy())
    if fraction >= 0.1:
        assert mpp_of(adata.copy(), technology="visium") == pytest.approx(5.0)
    else:
        with pytest.raises(ValueError, match=r"spots of 's1' are too few or too scattered .*pass image_mpp="):
            from_anndata(adata, technology="visium")
    assert mpp_of(adata, technology="visium", image_mpp=5.1) == 5.1


@pytest.mark.parametrize("factor", [3.0, 10.0])
def test_positions_in_pixels_of_another_image(factor: float) -> None:
    adata = hexagonal()
    adata.obsm["spatial"] = adata.obsm["spatial"] / factor
    with pytest.raises(
        ValueError, match=r"spots of 's1' are 13 px wide, but .* px apart|lie in one corner of its image"
    ):
        from_anndata(adata, technology="visium")


def test_positions_beyond_an_image() -> None:
    """Of which nothing else says what size it should be."""
    adata = hexagonal()
    del adata.uns["spatial"]["s1"]["images"]
    with pytest.raises(ValueError, match=r"\d+ of 400 spots of 's1' lie outside its image of 440 x 400 px"):
        from_anndata(adata, pixels(0, (400, 440)), technology="visium")


@pytest.mark.parametrize("gap", [np.nan, None, "", " ", "nan", "NaN", "<NA>", "None", "NA"], ids=repr)
@pytest.mark.parametrize("key", ["section", "patient", "sample"])
@pytest.mark.parametrize("kind", ["object", "category"])
def test_gaps_are_refused_by_name(gap: Any, key: str, kind: Any) -> None:
    adata = make(["s1"])
    adata.obs[key] = pd.Series([gap, "s1", gap] * 10, index=adata.obs_names, dtype=object).astype(kind)
    with pytest.raises(
        ValueError, match=rf"20 spots have no {'library' if key == 'sample' else key} in obs\['{key}'\]"
    ):
        from_anndata(adata, library_key="sample" if key == "sample" else None)


def concatenated(*, shift: float, overlap: int) -> AnnData:
    """Two sections whose library had one name; array positions of ``overlap`` spots are in both."""
    parts = {"A": hexagonal(), "B": hexagonal()[400 - overlap :].copy()}
    parts["B"].obsm["spatial"] = parts["B"].obsm["spatial"] + shift
    return anndata.concat(parts, label="sample", uns_merge="first", index_unique="-")


@pytest.mark.parametrize("technology", [None, "visium"])
@pytest.mark.parametrize(("shift", "what"), [(0.0, "position"), (7.3, "place on the array")])
@pytest.mark.parametrize("overlap", [1, 40, 400])
def test_two_sections_under_one_name(technology: str | None, *, shift: float, what: str, overlap: int) -> None:
    both = concatenated(shift=shift, overlap=overlap)
    with pytest.raises(
        ValueError,
        match=rf"{2 * overlap} of {400 + overlap} spots of 's1' share their {what} .*: library_key='sample' tells",
    ):
        from_anndata(both, technology=technology)
    images = {"A": pixels(1, (800, 880)), "B": pixels(2, (800, 880))}
    if overlap > 1:  # a single spot tells no scale
        sdata = from_anndata(both, images, library_key="sample", technology="visium")
        assert set(sdata.coordinate_systems) == {"A", "B"}


def test_two_sections_that_no_column_tells_apart() -> None:
    both = concatenated(shift=0.0, overlap=40)
    del both.obs["sample"]
    with pytest.raises(ValueError, match=r"80 of 440 spots of 's1' share .*: pass library_key=, a column of obs"):
        from_anndata(both)


def test_two_sections_beside_each_other_without_array_positions_overlap() -> None:
    both = concatenated(shift=7.3, overlap=400)
    both.obs = both.obs[["sample"]]
    with pytest.raises(ValueError, match=r"spots of 's1' are 13 px wide, but 5.* px apart; .*take sections apart"):
        from_anndata(both, technology="visium", image_mpp=5.0)


@pytest.mark.parametrize("kind", ["int", "bool", "float", "str", "category"])
def test_spots_off_tissue_stay_and_are_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    adata = hexagonal()
    inside = np.arange(400) % 4 > 0
    adata.obs["in_tissue"] = pd.Series(inside, index=adata.obs_names).astype(int if kind != "bool" else bool)
    if kind not in {"int", "bool"}:
        adata.obs["in_tissue"] = adata.obs["in_tissue"].astype(kind)
    with caplog.at_level(logging.WARNING, logger="agl_sc"):
        sdata = from_anndata(adata, technology="visium")
    assert "100 of 400 spots lie outside the tissue" in caplog.text
    assert sdata["table"].n_obs == len(sdata["s1"]) == 400


@pytest.mark.parametrize("said", [1, True, np.nan, "yes"], ids=repr)
def test_nothing_is_said_of_spots_that_are_not_said_to_be_off_tissue(
    said: Any, caplog: pytest.LogCaptureFixture
) -> None:
    adata = hexagonal()
    adata.obs["in_tissue"] = said
    from_anndata(adata, technology="visium")
    assert not [
        record for record in caplog.records if record.levelno >= logging.WARNING and record.name.startswith("agl_sc")
    ]


def test_entries_that_cannot_be_stored_are_refused_and_nothing_is_written() -> None:
    adata = hexagonal()
    adata.obs["annotation"] = [{} for _ in range(400)]
    columns = list(adata.obs)
    with pytest.raises(
        TypeError, match=r"A column of obs holds entries that cannot be stored \(.*'dict'.*\); keep numbers"
    ):
        from_anndata(adata, technology="visium")
    assert list(adata.obs) == columns
    assert "spatialdata_attrs" not in adata.uns


def test_what_does_not_say_whether_a_spot_is_on_tissue_is_refused_before_anything_is_written() -> None:
    adata = hexagonal()
    adata.obs["in_tissue"] = np.where(np.arange(400) < 3, "edge", "1")
    columns = list(adata.obs)
    with pytest.raises(ValueError, match=r"obs\['in_tissue'\] holds 'edge' for 3 of 400 spots"):
        from_anndata(adata, technology="visium")
    assert list(adata.obs) == columns


ODD = [
    "B cells_score",
    "CD4+/CD8-",
    "a/b",
    "T cell (%)",
    "µm²/px",
    "__x",
    "_index",
    "..",
    "",
    "Region",
    "PATIENT",
    "Spot_ID",
]


@pytest.mark.parametrize("key", ODD)
def test_columns_that_spatialdata_refuses_are_named_with_a_mend_that_works(key: str) -> None:
    adata = make(["s1"])
    adata.obs[key] = 1.0
    with pytest.raises(ValueError, match="SpatialData cannot store obs") as caught:
        from_anndata(adata)
    assert f"obs[{key!r}]" in str(caught.value)
    if "sanitize_table" in str(caught.value):
        sd.sanitize_table(adata)
    else:
        adata.obs = adata.obs.rename(columns={key: f"my_{key}"})
    assert from_anndata(adata)["table"] is adata


def put(attribute: str, key: str) -> Change:
    values: dict[str, Callable[[AnnData], object]] = {
        "obs": lambda _: 1.0,
        "var": lambda _: 1.0,
        "obsm": lambda adata: np.ones((adata.n_obs, 2)),
        "varm": lambda adata: np.ones((adata.n_vars, 2)),
        "obsp": lambda adata: np.eye(adata.n_obs),
        "varp": lambda adata: np.eye(adata.n_vars),
        "layers": lambda adata: adata.X,
        "uns": lambda _: "x",
    }
    return lambda adata: getattr(adata, attribute).__setitem__(key, values[attribute](adata))


@pytest.mark.parametrize("attribute", ["obs", "var"])
def test_an_index_named_like_another_column_is_refused_before_it_cannot_be_written(
    attribute: str, tmp_path: Path
) -> None:
    adata = make(["s1"])
    frame = getattr(adata, attribute)
    frame["name"] = [f"other{i}" for i in range(len(frame))]
    frame.index.name = "name"
    said = rf"The index of {attribute} is named 'name' as a column .* take the name away: "
    with pytest.raises(ValueError, match=said) as caught:
        from_anndata(adata)
    exec(str(caught.value).split("away: ")[1].rstrip("."), {"adata": adata})
    sdata = from_anndata(adata)
    sdata["table"].write_h5ad(tmp_path / "a.h5ad")
    frame["name"] = frame.index
    frame.index.name = "name"
    assert from_anndata(adata)["table"] is adata


@pytest.mark.parametrize("attribute", ["obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"])
@pytest.mark.parametrize("keys", [("a b",), ("fine", "a+b"), ("one", "ONE")], ids=",".join)
def test_every_part_of_the_table_is_checked_as_spatialdata_does(attribute: str, keys: tuple[str, ...]) -> None:
    adata = make(["s1"])
    for key in keys:
        put(attribute, key)(adata)
    with pytest.raises(ValueError, match=r"SpatialData cannot store \w+\[") as caught:
        from_anndata(adata)
    assert f"{attribute}[{keys[-1]!r}]" in str(caught.value)
    with pytest.raises(
        ValueError, match=r"invalid names|conflicting keys"
    ):  # and no more than what spatialdata refuses
        sd.models.TableModel.parse(adata)
    sd.sanitize_table(adata)
    assert from_anndata(adata)["table"] is adata


def everything(adata: AnnData) -> dict[str, Any]:
    """All that an AnnData holds, by value."""
    parts: dict[str, Any] = {"obs": adata.obs.copy(), "var": adata.var.copy(), "uns": repr(adata.uns)}
    for attribute in ("obsm", "varm", "obsp", "varp", "layers"):
        parts |= {f"{attribute}.{key}": np.array(value) for key, value in getattr(adata, attribute).items() if key}
    parts["X"] = adata.X.toarray() if issparse(adata.X) else np.array(adata.X)
    return parts


def tables_differ(adata: AnnData, before: dict[str, Any]) -> list[str]:
    after = everything(adata)
    same: dict[str, Callable[[Any, Any], bool]] = {
        "obs": lambda a, b: a.equals(b) and list(a.dtypes) == list(b.dtypes),
        "var": lambda a, b: a.equals(b),
        "uns": lambda a, b: a == b,
    }
    assert before.keys() == after.keys()
    return [key for key in before if not same.get(key, np.array_equal)(before[key], after[key])]


def later_rule(adata: AnnData) -> None:
    """A column on which spatialdata's own check fails: its values cannot be counted."""
    adata.obs["lists"] = [[1]] * adata.n_obs


def converted(adata: AnnData) -> None:
    from_anndata(adata)
    later_rule(adata)


FAULTS: list[tuple[Change, dict[str, Any]]] = [
    (set_obs("a b", 1), {}),
    (set_obs("section", ["x", ""] * 15), {}),
    (set_obs("patient", [None, "P"] * 15), {}),
    (set_obs("region", "other"), {}),
    (lambda adata: adata.obsm.__setitem__("spatial", np.ones((30, 2)) * 100), {}),
    (lambda adata: adata.obsm.__setitem__("spatial", adata.obsm["spatial"] * 9), {}),
    (lambda adata: adata.obsm.__setitem__("spatial", adata.obsm["spatial"] / 9), {"technology": "st"}),
    (lambda adata: adata.uns["spatial"]["s1"]["images"].clear(), {}),
    (lambda adata: adata.uns["spatial"]["s1"]["scalefactors"].clear(), {}),
    (lambda _: None, {"image_mpp": 1000.0}),
    (lambda _: None, {"technology": "st", "image_mpp": 1.0}),
    (lambda _: None, {"library_key": "none"}),
    (lambda _: None, {"patient": {"other": "P"}}),
    (later_rule, {}),
    (converted, {}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_refusal_changes_nothing(number: int) -> None:
    change, options = FAULTS[number]
    adata = make(["s1"])
    change(adata)
    before = everything(adata)
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_anndata(adata, **options)
    assert tables_differ(adata, before) == []


@pytest.mark.parametrize("n_libraries", [1, 2])
def test_patients_that_nobody_named_are_marked(n_libraries: int, caplog: pytest.LogCaptureFixture) -> None:
    names = LIBRARIES[:n_libraries]

    def marked(adata: AnnData, **options: Any) -> bool:
        attrs = from_anndata(adata, library_key="library", **options).attrs["agl_sc"]
        return bool(attrs.get("patients_assumed", False))

    with caplog.at_level(logging.INFO, logger="agl_sc"):
        adata = make(names)
        assert marked(adata)
    assert f"no patient was named, so each section counts as its own: {', '.join(names)}" in caplog.text
    assert marked(adata)  # the column is now there, but nobody named it
    assert not marked(adata, patient={name: name for name in names})
    assert not marked(make(names), patient="P")
    named = make(names)
    named.obs["patient"] = named.obs["library"]
    assert not marked(named)


def test_a_backed_table(tmp_path: Path) -> None:
    make(["s1"]).write_h5ad(tmp_path / "a.h5ad")
    adata = read_h5ad(tmp_path / "a.h5ad", backed="r")
    sdata = from_anndata(adata, technology="st")
    assert sdata["table"] is adata
    assert adata.isbacked
    expected = from_anndata(make(["s1"]), technology="st")
    assert sdata.attrs == expected.attrs
    np.testing.assert_array_equal(sdata["s1"].get_coordinates(), expected["s1"].get_coordinates())
    adata.file.close()


@pytest.mark.parametrize("fraction", [0.1, 1.0])
@pytest.mark.parametrize("turn", range(4))
def test_positions_as_row_and_column_are_told_and_no_turned_section_is(
    *, fraction: float, turn: int, caplog: pytest.LogCaptureFixture
) -> None:
    adata = hexagonal(fraction=fraction)
    x, y = adata.obsm["spatial"].T
    turned = [(x, y), (860 - y, x), (860 - x, 860 - y), (y, 860 - x)][turn]
    adata.obsm["spatial"] = np.column_stack(turned)
    adata.uns["spatial"]["s1"]["images"]["hires"] = pixels(0, (440, 440))
    from_anndata(adata.copy(), technology="visium")
    assert "(row, column)" not in caplog.text
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    from_anndata(adata, technology="visium")
    assert ("(row, column) instead of (x, y)" in caplog.text) == (turn == 0)
