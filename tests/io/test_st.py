"""Legacy Spatial Transcriptomics."""

import gzip
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from agl_sc.io import _st, read_st
from agl_sc.io._st import read_st_folder

Change = Callable[[pd.DataFrame], None]

PITCH_PX = 50.0
MPP = 200 / PITCH_PX
GENES = ["ACTB", "GAPDH", "FASN"]


def write_section(folder: Path, name: str, *, genes: list[str] | None = None, seed: int = 0) -> pd.DataFrame:
    """Write a 5 x 4 grid: spot 0x0 lacks a position, 4x3 lacks counts, 3x3 is not selected. Returns the counts."""
    rng = np.random.default_rng(seed)
    grid = [(x, y) for x in range(5) for y in range(4)]
    names = [f"{x}x{y}" for x, y in grid]
    counts = pd.DataFrame(rng.poisson(1.5, (20, 3)), index=names, columns=genes or GENES)
    positions = pd.DataFrame(grid, columns=["x", "y"])
    positions["pixel_x"], positions["pixel_y"] = 40.5 + PITCH_PX * positions["x"], 30.25 + PITCH_PX * positions["y"]
    positions["selected"] = (pd.Index(names) != "3x3").astype(int)
    counts = counts.drop("4x3").sample(frac=1, random_state=seed)
    counts.to_csv(folder / f"{name}.tsv.gz", sep="\t")
    positions[1:].to_csv(folder / f"{name}_selection.tsv", sep="\t", index=False)
    Image.fromarray(rng.integers(0, 256, (220, 280, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
    return counts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_section(tmp_path, "A")
    return tmp_path


def edit(path: Path, change: Change) -> None:
    """Rewrite a table of strings."""
    table = pd.read_csv(path, sep="\t", dtype=str, header=None, keep_default_na=False)
    change(table)
    table.to_csv(path, sep="\t", index=False, header=False)


def read_one(folder: Path, **arguments: Any) -> Any:
    arguments = {"image_mpp": MPP, **arguments}
    return read_st(folder / "A.tsv.gz", folder / "A.jpg", folder / "A_selection.tsv", **arguments)


def test_one_section(folder: Path) -> None:
    expected = write_section(folder, "A").drop(["0x0", "3x3"])
    sdata = read_one(folder)
    table = sdata["table"]
    assert table.obs["spot_id"].tolist() == expected.index.tolist()
    assert table.var_names.tolist() == GENES
    np.testing.assert_array_equal(table.X.toarray(), expected.to_numpy())
    xy = np.array([spot.split("x") for spot in expected.index], dtype=float)
    np.testing.assert_allclose(table.obsm["spatial"], xy * PITCH_PX + [40.5, 30.25])
    np.testing.assert_allclose(sdata["A"].get_coordinates(), table.obsm["spatial"])
    assert sdata["A"]["radius"].unique().tolist() == [50 / MPP]
    assert table.obs["patient"].unique().tolist() == ["A"]
    scale = {"image_mpp": {"A_image": MPP}, "technology": {"A": "st"}}
    assert sdata.attrs["agl_sc"] == {**scale, "patients_assumed": True}
    assert sdata["A_image"]["scale0"]["image"].shape == (3, 220, 280)


def test_dropped_spots_are_counted_in_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agl_sc")
    read_one(folder)
    assert "A: 17 spots; dropped 2 without position and 1 without counts" in caplog.text


def test_mpp_from_the_pitch(folder: Path) -> None:
    sdata = read_one(folder, image_mpp=None)
    assert sdata.attrs["agl_sc"]["image_mpp"]["A_image"] == pytest.approx(MPP)


def test_several_sections(folder: Path) -> None:
    write_section(folder, "B", genes=["FASN", "ACTB", "MYC"], seed=1)
    files = ({s: folder / f"{s}{end}" for s in "BA"} for end in (".tsv.gz", ".jpg", "_selection.tsv"))
    sdata = read_st(*files, image_mpp={"A": MPP, "B": MPP * 1.01}, patient={"A": "P1", "B": "P2"})
    table = sdata["table"]
    assert table.obs["section"].cat.categories.tolist() == ["B", "A"]
    assert table.var_names.tolist() == ["FASN", "ACTB", "MYC", "GAPDH"]
    assert table.obs.groupby("section", observed=True)["patient"].first().to_dict() == {"A": "P1", "B": "P2"}
    assert sdata.attrs["agl_sc"]["image_mpp"] == {"A_image": MPP, "B_image": MPP * 1.01}
    assert table.obs_names.is_unique


def test_sequences_of_paths(folder: Path) -> None:
    write_section(folder, "B", seed=1)
    files = ([folder / f"{s}{end}" for s in "AB"] for end in (".tsv.gz", ".jpg", "_selection.tsv"))
    sdata = read_st(*files, image_mpp=None, sections=["first", "second"], patient="P")
    assert set(sdata.shapes) == {"first", "second"}
    assert sdata["table"].obs["patient"].unique().tolist() == ["P"]


def test_sections_choose_from_mappings(folder: Path) -> None:
    write_section(folder, "B", seed=1)
    files = ({s: folder / f"{s}{end}" for s in "AB"} for end in (".tsv.gz", ".jpg", "_selection.tsv"))
    assert set(read_st(*files, image_mpp=None, sections=["B"]).shapes) == {"B"}


def test_no_selected_column(folder: Path) -> None:
    edit(folder / "A_selection.tsv", put(0, 4, "anything"))
    assert "3x3" in set(read_one(folder)["table"].obs["spot_id"])


def test_header_without_corner_cell_and_quotes_as_r_writes_them(folder: Path) -> None:
    expected = read_one(folder)["table"]
    lines = gzip.decompress((folder / "A.tsv.gz").read_bytes()).decode().splitlines()
    quoted = ["\t".join(f'"{gene}"' for gene in GENES)]
    quoted += [f'"{line.split()[0]}"\t' + "\t".join(line.split()[1:]) for line in lines[1:]]
    (folder / "A.tsv").write_text("\r\n".join(quoted) + "\r\n\r\n")
    sdata = read_st(folder / "A.tsv", folder / "A.jpg", folder / "A_selection.tsv", image_mpp=MPP)
    np.testing.assert_array_equal(sdata["table"].X.toarray(), expected.X.toarray())
    assert sdata["table"].var_names.tolist() == GENES
    assert sdata["table"].obs_names.tolist() == expected.obs_names.tolist()


def put(row: int, column: int, value: str) -> Change:
    def change(table: pd.DataFrame) -> None:
        table.iloc[row, column] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(0, 2, "ACTB"), r"gene names of '.*A\.tsv\.gz' must be unique, but 1 appear more than once: ACTB"),
        (put(2, 0, "2x2"), r"spots of '.*A\.tsv\.gz' must be unique, but 1 appear more than once: 2x2"),
        (
            put(1, 1, "-3"),
            r"Section 'A' has 1 values that are not raw counts, e\.g\. -3 for gene 'ACTB' in spot '2x2'",
        ),
        (put(1, 1, "0.25"), r"1 values that are not raw counts, e\.g\. 0\.25"),
        (put(1, 1, "nan"), r"1 values that are not raw counts, e\.g\. nan"),
        (put(1, 1, ""), "Spot '2x2' of .* has an entry that is not a number"),
        (put(1, 1, "many"), "Spot '2x2' of .* has an entry that is not a number .*'many'"),
    ],
    ids=["gene twice", "spot twice", "negative", "normalised", "nan", "empty cell", "word"],
)
def test_counts_that_are_refused(folder: Path, change: Change, message: str) -> None:
    edit(folder / "A.tsv.gz", change)  # the first row, 2x2, is a spot that is kept
    with pytest.raises(ValueError, match=message):
        read_one(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (put(0, 2, "px"), KeyError, r"has no column pixel_x; it has x, y, px, pixel_y, selected"),
        (put(2, 1, "1"), ValueError, r"spots of '.*A_selection\.tsv' must be unique, but 1 appear more than once: 0x1"),
        (put(1, 2, ""), ValueError, r"Column pixel_x of .* has the entry '' for spot '0x1', which is not a number"),
        (
            put(1, 3, "left"),
            ValueError,
            r"Column pixel_y of .* has the entry 'left' for spot '0x1', which is not a number",
        ),
        (put(1, 0, "0.5"), ValueError, "Columns x, y of .* are not whole numbers"),
    ],
    ids=["no column", "spot twice", "empty cell", "word", "fraction"],
)
def test_positions_that_are_refused(folder: Path, *, change: Change, error: type[Exception], message: str) -> None:
    edit(folder / "A_selection.tsv", change)
    with pytest.raises(error, match=message):
        read_one(folder)


@pytest.mark.parametrize("name", ["A.tsv.gz", "A.jpg", "A_selection.tsv"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"file of section 'A', '.*{name}', does not exist"):
        read_one(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("A.tsv.gz", gzip.compress(b"\tg\n0x1\t1\n")[:-9], "cannot be read as a table"),
        ("A.tsv.gz", b"not gzip", "cannot be read as a table"),
        ("A.tsv.gz", gzip.compress(b""), "has 0 cells of gene names above rows of 0 cells"),
        ("A.tsv.gz", gzip.compress(b"g1|g2\n0x1|1|2\n"), "with tabs, semicolons or commas between"),
        ("A.tsv.gz", gzip.compress(b"\tg1\tg2\n0x1\t1\t2\n0x2\t1\n"), "Row '0x2' of .* has 2 cells, the first has 3"),
        ("A_selection.tsv", b"", "A_selection.tsv' is empty"),
        ("A.jpg", b"\xff\xd8\xff", "cannot be read as an image"),
    ],
    ids=["truncated", "not gzip", "empty", "commas", "ragged", "empty positions", "broken image"],
)
def test_broken_files(folder: Path, *, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_one(folder)


def test_no_spot_in_common_shows_both_sides(folder: Path) -> None:
    def rename(table: pd.DataFrame) -> None:
        table.iloc[1:, 0] = [f"spot{i}" for i in range(len(table) - 1)]

    edit(folder / "A.tsv.gz", rename)
    message = r"No spot of section 'A' has both counts \(spots spot0, spot1, spot2, .*position \(spots 0x1, 0x2, 0x3"
    with pytest.raises(ValueError, match=message):
        read_one(folder)


def test_mpp_that_contradicts_the_pitch_is_found_before_the_image_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_st, "open_image", lambda path: pytest.fail(f"opened {path}"))
    with pytest.raises(ValueError, match=r"image_mpp=0\.5 of 'A' contradicts the st spot pitch .* 4 um/px"):
        read_one(folder, image_mpp=0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image_mpp": {"B": 1.0}}, KeyError, "mpp has no entry for A; it has B"),
        ({"patient": {"B": "P"}}, KeyError, "patient has no entry for A; it has B"),
        ({"sections": ["A", "B"]}, ValueError, r"counts has 1 paths for 2 sections \(A, B\)"),
        ({"sections": []}, ValueError, "No section was given"),
        ({"sections": "a b"}, ValueError, "Section name 'a b' cannot be stored"),
    ],
)
def test_arguments_that_do_not_fit(
    folder: Path, *, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_one(folder, **arguments)


def test_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("C", "B"):
        write_section(folder, name)
    (folder / "C.jpg").unlink()
    assert read_st_folder(folder)["table"].obs["section"].cat.categories.tolist() == ["A", "B"]
    assert "C: left out" in caplog.text
    assert set(read_st_folder(folder, sections=["B"], image_mpp=MPP, patient="P").shapes) == {"B"}


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds no section: .* S\.tsv\.gz, S\.jpg, S_selection\.tsv are needed"
    ):
        read_st_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"The folder '.*none' does not exist"):
        read_st_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="The counts file of section 'Z'"):
        read_st_folder(tmp_path, sections=["Z"])
