"""Legacy Spatial Transcriptomics whose spots are named by adjusted coordinates, with positions or without."""

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from agl_sc.io import read_st
from agl_sc.io._st import read_st_folder

PITCH = 6
"""Pixels of a pitch on an image cropped to the frame of 32 x 34 pitches."""
MPP = 200 / PITCH
SIZE = (32 * PITCH, 34 * PITCH)
GENES = ["ACTB", "GAPDH", "FASN"]


def places() -> NDArray[np.float64]:
    """(30, 2), adjusted: near whole numbers, three decimals."""
    x, y = np.meshgrid(np.arange(4, 10), np.arange(20, 25))
    exact = np.column_stack([x.ravel(), y.ravel()])
    return np.asarray(np.round(exact + np.random.default_rng(0).uniform(-0.05, 0.05, exact.shape), 3))


def counts() -> NDArray[np.int64]:
    return np.random.default_rng(1).poisson(2, (30, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = [f"{x}x{y}" for x, y in places().tolist()]
    pd.DataFrame(counts(), index=names, columns=GENES).to_csv(tmp_path / "A_stdata_aligned_counts_IDs.txt", sep="\t")
    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)).save(tmp_path / "A.png")
    table = pd.DataFrame(places(), columns=["x", "y"])
    table[["pixel_x", "pixel_y"]] = (places() - 1) * PITCH
    table.to_csv(tmp_path / "A_spots.tsv", sep="\t", index=False)
    return tmp_path


def read(folder: Path, **arguments: Any) -> Any:
    return read_st(folder / "A_stdata_aligned_counts_IDs.txt", folder / "A.png", **arguments)


def change_positions(folder: Path, **columns: Any) -> None:
    table = pd.read_csv(folder / "A_spots.tsv", sep="\t")
    table.assign(**columns).to_csv(folder / "A_spots.tsv", sep="\t", index=False)


@pytest.mark.parametrize(
    "form", ["x and y", "new_x and new_y", "more decimals", "underscores", "genes in rows", "no file"]
)
@pytest.mark.parametrize("image_mpp", [None, MPP])
def test_fractional_names_in_any_form_are_read_alike(folder: Path, form: str, image_mpp: float | None) -> None:
    path = folder / "A_stdata_aligned_counts_IDs.txt"
    if form == "new_x and new_y":
        x, y = places().T
        change_positions(folder, x=np.rint(x).astype(int), y=np.rint(y).astype(int), new_x=x, new_y=y)
    elif form == "more decimals":
        change_positions(folder, x=[f"{x:.6f}" for x in places()[:, 0]])
    elif form == "underscores":
        path.write_text(path.read_text().replace("x", "_"))
    elif form == "genes in rows":
        pd.read_csv(path, sep="\t", index_col=0).T.to_csv(path, sep="\t")
    sdata = read(folder, spots=None if form == "no file" else folder / "A_spots.tsv", image_mpp=image_mpp)
    table = sdata["table"]
    np.testing.assert_array_equal(table.X.toarray(), counts())
    np.testing.assert_allclose(table.obsm["spatial"], (places() - 1) * PITCH)
    assert table.var_names.tolist() == GENES
    scale = sdata.attrs["agl_sc"]["image_mpp"]["A_stdata_aligned_counts_IDs_image"]
    assert scale == (pytest.approx(MPP, rel=0.02) if image_mpp is None else MPP)


@pytest.mark.parametrize(
    "written", ["{x}-{y}", "{x} x {y}", "{x} {y}", "{x}:{y}", "X{x}x{y}", "{x}X{y}", "A1_{x}x{y}", "B2-{x}x{y}"]
)
@pytest.mark.parametrize("in_columns", [False, True])
def test_spots_named_with_another_mark_are_read_alike(folder: Path, written: str, *, in_columns: bool) -> None:
    names = [written.format(x=x, y=y) for x, y in places().tolist()]
    table = pd.DataFrame(counts(), index=names, columns=GENES)
    (table.T if in_columns else table).to_csv(folder / "A_stdata_aligned_counts_IDs.txt", sep="\t")
    for spots in (None, folder / "A_spots.tsv"):
        read_table = read(folder, spots=spots, image_mpp=MPP)["table"]
        np.testing.assert_array_equal(read_table.X.toarray(), counts())
        np.testing.assert_allclose(read_table.obsm["spatial"], (places() - 1) * PITCH)


@pytest.mark.parametrize(("mark", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", ",")])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_a_spreadsheet_saved_is_read_alike(folder: Path, *, mark: str, decimal: str, suffix: str) -> None:
    old = folder / "A_stdata_aligned_counts_IDs.txt"
    written: dict[str, Any] = {"sep": mark, "encoding": "utf-8-sig", "lineterminator": "\r\n"}
    pd.read_csv(old, sep="\t", index_col=0).to_csv(folder / f"A.csv{suffix}", **written)
    table = pd.read_csv(folder / "A_spots.tsv", sep="\t")
    table.to_csv(folder / f"spots.csv{suffix}", decimal=decimal, index=False, **written)
    sdata = read_st(folder / f"A.csv{suffix}", folder / "A.png", folder / f"spots.csv{suffix}", image_mpp=MPP)
    np.testing.assert_array_equal(sdata["table"].X.toarray(), counts())
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], (places() - 1) * PITCH)


def test_positions_as_r_writes_them_are_read_alike(folder: Path) -> None:
    """Names of rows with no cell above them, quotes, TRUE and FALSE; and rows whose cells a spreadsheet emptied."""
    table = pd.read_csv(folder / "A_spots.tsv", sep="\t").assign(selected="TRUE")
    text = table.to_csv(sep="\t", quoting=2).removeprefix('""\t')
    (folder / "A_spots.tsv").write_text(text + "\t" * len(table.columns) + "\n")
    sdata = read(folder, spots=folder / "A_spots.tsv", image_mpp=MPP)
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], (places() - 1) * PITCH)


def test_a_quoted_name_may_hold_the_mark_between_cells(folder: Path) -> None:
    table = pd.DataFrame(counts(), index=[f"{x}x{y}" for x, y in places().tolist()], columns=GENES)
    table.rename(columns={GENES[0]: 'pseudo "A", like'}).to_csv(folder / "A_stdata_aligned_counts_IDs.txt")
    read_table = read(folder, spots=folder / "A_spots.tsv", image_mpp=MPP)["table"]
    assert read_table.var_names.tolist() == ['pseudo "A", like', *GENES[1:]]
    np.testing.assert_array_equal(read_table.X.toarray(), counts())


def test_commas_that_may_part_thousands_are_refused(folder: Path) -> None:
    table = pd.read_csv(folder / "A_spots.tsv", sep="\t")
    table["pixel_x"] = [f"{1000 + row:,}" for row in range(len(table))]
    table.to_csv(folder / "A_spots.tsv", sep=";", index=False)
    with pytest.raises(
        ValueError,
        match=r"A_spots\.tsv' has numbers such as '1,000', whose comma may part thousands or decimals; save it",
    ):
        read(folder, spots=folder / "A_spots.tsv", image_mpp=MPP)


def resize(width: float, height: float) -> Any:
    def change(folder: Path) -> None:
        size = (int(SIZE[0] * width), int(SIZE[1] * height))
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(folder / "A.png")

    return change


def name_first(name: str) -> Any:
    def change(folder: Path) -> None:
        path = folder / "A_stdata_aligned_counts_IDs.txt"
        path.write_text(path.read_text().replace(f"{places()[0, 0]}x{places()[0, 1]}", name))

    return change


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (resize(1, 0.8), {}, r"A\.png' of 192 x 163 px is not cropped to the frame .* give spots=, a tab-separated table with the columns x, y"),
        (resize(1, 1), {"image_mpp": 20.0}, r"image_mpp=20 of .* contradicts its image, .*33\.33 um per pixel; correct image_mpp, or give spots="),
        (resize(1, 1), {"image_mpp": -1.0}, r"image_mpp=-1\.0 of .* is not a positive number"),
        (name_first("spot1"), {}, r"Spot 'spot1' of '.*txt' is not named by its array coordinates, as in '3\.942x25\.915'; give spots="),
        (name_first("40.2x3.1"), {}, r"Spot '40\.2x3\.1' of '.*txt' lies beyond an array of 33 x 35 spots; give spots="),
    ],
    ids=["cropped otherwise", "scale of another", "negative scale", "barcode", "another array"],
)  # fmt: skip
def test_names_that_do_not_tell_where(folder: Path, change: Any, arguments: dict[str, Any], *, message: str) -> None:
    change(folder)
    with pytest.raises(ValueError, match=message):
        read(folder, **arguments)


def test_positions_of_other_spots_say_which_columns_are_needed(folder: Path) -> None:
    change_positions(folder, x=np.arange(30) + 0.5)
    with pytest.raises(ValueError, match=r"No spot of section .* the columns x and y, or new_x and new_y"):
        read(folder, spots=folder / "A_spots.tsv")


def test_many_dropped_spots_are_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = (folder / "A_spots.tsv").read_text().splitlines()
    (folder / "A_spots.tsv").write_text("\n".join(lines[:21]))
    assert read(folder, spots=folder / "A_spots.tsv")["table"].n_obs == 20
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "20 spots; dropped 10 without position and 0 without counts" in caplog.text


def test_a_lost_digit_puts_a_spot_off_the_grid(folder: Path) -> None:
    pixels = (places()[:, 0] - 1) * PITCH
    pixels[3] = pixels[3] * 10
    change_positions(folder, pixel_x=pixels)
    with pytest.raises(
        ValueError, match=r"1 of 30 spots of '.*A_spots\.tsv' lie far from where .* is the file complete"
    ):
        read(folder, spots=folder / "A_spots.tsv")


def test_duplicate_genes_are_summed_on_demand(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agl_sc")
    path = folder / "A_stdata_aligned_counts_IDs.txt"
    path.write_text(path.read_text().replace("FASN", "ACTB"))
    with pytest.raises(ValueError, match=r"gene names of .* must be unique, .*: ACTB; pass sum_duplicate_genes=True"):
        read(folder)
    table = read(folder, sum_duplicate_genes=True)["table"]
    assert table.var_names.tolist() == ["ACTB", "GAPDH"]
    np.testing.assert_array_equal(table.X.toarray(), np.column_stack([counts()[:, 0] + counts()[:, 2], counts()[:, 1]]))
    assert "1 genes are sums of columns that share a name" in caplog.text


@pytest.mark.parametrize("old", [MPP, None])
def test_former_name_of_the_scale(folder: Path, old: float | None) -> None:
    with pytest.warns(FutureWarning, match="mpp= is named image_mpp= now"):
        former = read(folder, spots=folder / "A_spots.tsv", mpp=old)
    assert former.attrs == read(folder, spots=folder / "A_spots.tsv", image_mpp=old).attrs
    with pytest.raises(ValueError, match=r"mpp=.* is the former name of image_mpp=5\.0; give image_mpp alone"):
        read(folder, mpp=old, image_mpp=5.0)


def test_former_name_of_the_scale_for_folders(folder: Path) -> None:
    text = (folder / "A_stdata_aligned_counts_IDs.txt").read_bytes()
    (folder / "A.tsv.gz").write_bytes(gzip.compress(text))
    (folder / "A_spots.tsv").rename(folder / "A_selection.tsv")
    with Image.open(folder / "A.png") as image:
        image.save(folder / "A.jpg")
    with pytest.warns(FutureWarning, match="mpp= is named image_mpp= now"):
        former = read_st_folder(folder, mpp=MPP)
    assert former.attrs == read_st_folder(folder, image_mpp=MPP).attrs
