"""Space Ranger folders as people have them: versions, names, layouts, and what only looks like one."""

import ast
import gzip
import io
import json
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import mmwrite
from scipy.sparse import csc_matrix
from tests.io.test_visium import HIRES, N_SPOTS, PITCH_PX, SYMBOLS, centres, counts_of, picture, write_section

from agl_sc.io import read_visium

pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # ome-zarr, on import
]
H5, LIST = "filtered_feature_bc_matrix.h5", "spatial/tissue_positions_list.csv"
COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
MPP = 100 / (PITCH_PX * HIRES)
Change = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the rows and columns of an array as Space Ranger counts them."""
    made = write_section(tmp_path / "A")
    table = pd.read_csv(made / LIST, header=None, names=COLUMNS)
    table["array_col"] = 2 * table["array_col"] + table["array_row"] % 2
    table.to_csv(made / LIST, index=False, header=False)
    return made


def positions(name: str, **options: Any) -> Change:
    """Positions in another form."""

    def change(folder: Path) -> None:
        table = pd.read_csv(folder / LIST, header=None, names=COLUMNS)
        (folder / LIST).unlink()
        table = table[options.pop("columns", COLUMNS)]
        if name.endswith("parquet"):
            table.to_parquet(folder / "spatial" / name)
        else:
            table.to_csv(folder / "spatial" / name, **{"index": False, **options})

    return change


def rename(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        (folder / old).rename(folder / new)

    return change


def flat(folder: Path) -> None:
    """As GEO has it: no folder ``spatial``, and a sample's name in front of every file."""
    for file in [folder / H5, *(folder / "spatial").iterdir()]:
        file.rename(folder / f"GSM1_{file.name}")
    (folder / "spatial").rmdir()


def folder_of_sample(folder: Path) -> None:
    """As some have it on GEO: the sample's name in front of the counts and of the folder, not of the files in it."""
    (folder / H5).rename(folder / f"GSM1_{H5}")
    (folder / "spatial").rename(folder / "GSM1_spatial")


def opaque(folder: Path) -> None:
    path = folder / "spatial/tissue_hires_image.png"
    with Image.open(path) as image:
        image.convert("RGBA").save(path)


def matrix_market(suffix: str) -> Change:
    """Counts as a folder, alone."""

    def change(folder: Path) -> None:
        (folder / H5).unlink()
        unpacked = folder / "filtered_feature_bc_matrix"
        unpacked.mkdir()
        buffer = io.BytesIO()
        mmwrite(buffer, csc_matrix(counts_of(SYMBOLS, 0).T))
        features = "".join(f"{gene}\t{symbol}\tGene Expression\n" for gene, symbol in SYMBOLS.items())
        barcodes = "".join(f"BC{i:02d}-1\n" for i in range(N_SPOTS))
        texts = {"matrix.mtx": buffer.getvalue(), "features.tsv": features.encode(), "barcodes.tsv": barcodes.encode()}
        for name, text in texts.items():
            (unpacked / f"{name}{suffix}").write_bytes(gzip.compress(text) if suffix else text)

    return change


def flat_matrix_market(prefix: str) -> Change:
    """As GEO has it: nothing in a folder, every file after the sample's name."""

    def change(folder: Path) -> None:
        matrix_market(".gz")(folder)
        inner = folder / "filtered_feature_bc_matrix"
        for file in [*inner.iterdir(), *(folder / "spatial").iterdir()]:
            file.rename(folder / f"{prefix}{file.name}")
        inner.rmdir()
        (folder / "spatial").rmdir()

    return change


def packed(folder: Path) -> None:
    """Every file compressed by itself."""
    flat(folder)
    for file in list(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def no_types(folder: Path) -> None:
    with h5py.File(folder / H5, "r+") as file:
        del file["matrix/features/feature_type"]


def factors_as(**changes: Any) -> Change:
    """Scale factors with others, or without those that are None; with the mark that Windows' editors put in front."""

    def change(folder: Path) -> None:
        path = folder / "spatial/scalefactors_json.json"
        found = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in found.items() if value}), encoding="utf-8-sig")

    return change


def as_european(folder: Path) -> None:
    """Saved by a spreadsheet where commas are decimal points."""
    table = pd.read_csv(folder / LIST, header=None, names=COLUMNS)
    (folder / LIST).unlink()
    table.to_csv(folder / "spatial/tissue_positions.csv", index=False, sep=";", decimal=",")


def indexed_parquet(folder: Path) -> None:
    table = pd.read_csv(folder / LIST, header=None, names=COLUMNS)
    (folder / LIST).unlink()
    table.set_index("barcode").to_parquet(folder / "spatial/tissue_positions.parquet")


READ: list[Any] = [
    pytest.param(positions("tissue_positions.csv", header=True), id="2: header"),
    pytest.param(positions("tissue_positions.csv", header=False), id="renamed: no header"),
    pytest.param(positions("tissue_positions_list.csv", header=True), id="renamed: header"),
    pytest.param(positions("tissue_positions.csv", columns=COLUMNS[::-1]), id="columns in another order"),
    pytest.param(positions("tissue_positions.csv", header=["", *COLUMNS[1:]]), id="unnamed barcodes"),
    pytest.param(positions("tissue_positions.csv", quoting=1, encoding="utf-8-sig", lineterminator="\r\n"), id="from Excel"),
    pytest.param(positions("tissue_positions.parquet"), id="parquet"),
    pytest.param(rename(H5, f"Mouse_Brain_{H5}"), id="prefixed counts"),
    pytest.param(flat, id="flat and prefixed"),
    pytest.param(folder_of_sample, id="prefixed folder"),
    pytest.param(opaque, id="opaque RGBA"),
    pytest.param(matrix_market(".gz"), id="matrix market"),
    pytest.param(matrix_market(""), id="matrix market, unpacked"),
    pytest.param(flat_matrix_market("GSM1_A1_"), id="flat matrix market"),
    pytest.param(flat_matrix_market(""), id="flat matrix market, no name in front"),
    pytest.param(no_types, id="no types of features"),
    pytest.param(as_european, id="semicolons and decimal commas"),
    pytest.param(positions("tissue_positions.csv", sep="\t"), id="tabs"),
    pytest.param(indexed_parquet, id="parquet with an index"),
    pytest.param(factors_as(), id="byte order mark in the scale factors"),
    pytest.param(factors_as(spot_diameter_fullres=None), id="no diameter"),
    pytest.param(factors_as(tissue_lowres_scalef=None), id="no factor of the small image"),
]  # fmt: skip


@pytest.mark.parametrize("change", READ)
def test_kinds_of_folders_are_read_alike(folder: Path, change: Change) -> None:
    change(folder)
    sdata = read_visium(folder)
    table = sdata["table"]
    assert table.obs["spot_id"].tolist() == [f"BC{i:02d}-1" for i in range(1, N_SPOTS)]
    np.testing.assert_array_equal(table.X.toarray(), counts_of(SYMBOLS, 0)[1:])
    np.testing.assert_allclose(table.obsm["spatial"], centres()[1:] * HIRES)
    np.testing.assert_array_equal(sdata["A_image"]["scale0"]["image"], picture(HIRES).transpose(2, 0, 1))
    assert table.var["gene_ids"].tolist() == list(SYMBOLS)
    assert sdata.attrs["agl_sc"]["image_mpp"]["A_image"] == pytest.approx(MPP, rel=5e-3)


def test_folder_around_outs(folder: Path) -> None:
    (folder.parent / "sample7").mkdir()
    folder.rename(folder.parent / "sample7" / "outs")
    assert set(read_visium(folder.parent / "sample7").shapes) == {"sample7"}


def test_antibodies_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agl_sc")
    with h5py.File(folder / H5, "r+") as file:
        del file["matrix/features/feature_type"]
        file["matrix/features/feature_type"] = np.array(["Gene Expression", "Antibody Capture"] * 2, dtype="S")
    table = read_visium(folder)["table"]
    assert table.var_names.tolist() == ["TP53", "SEPT2"]
    np.testing.assert_array_equal(table.X.toarray(), counts_of(SYMBOLS, 0)[1:, ::2])
    assert "left out 2 features that are no genes (2 of Antibody Capture)" in caplog.text


@pytest.mark.parametrize("n_spots", [2, 5, 12])
def test_the_whole_array_tells_the_scale(folder: Path, n_spots: int) -> None:
    """However few spots are in tissue."""
    table = pd.read_csv(folder / LIST, header=None, names=COLUMNS)
    table["in_tissue"] = table["barcode"].isin(table["barcode"].sample(n_spots, random_state=0)).astype(int)
    table.to_csv(folder / LIST, index=False, header=False)
    sdata = read_visium(folder)
    assert sdata["table"].n_obs == n_spots
    assert sdata.attrs["agl_sc"]["image_mpp"]["A_image"] == pytest.approx(MPP, rel=5e-3)


@pytest.mark.parametrize("kept", [1, 7, 29])
def test_barcodes_without_a_row_are_not_outside_the_tissue(folder: Path, kept: int) -> None:
    lines = (folder / LIST).read_text().splitlines(keepends=True)
    (folder / LIST).write_text("".join(lines[:kept]))
    said = rf"{N_SPOTS - kept} of 30 barcodes of '.*{H5}' \(the first is 'BC.*'\) have no row in '.*{LIST}', which has {kept} \(.*is the file complete"
    with pytest.raises(ValueError, match=said):
        read_visium(folder)


def transparent(folder: Path) -> None:
    opaque(folder)
    path = folder / "spatial/tissue_hires_image.png"
    with Image.open(path) as image:
        image.putpixel((319, 299), (0, 0, 0, 0))
        image.save(path)


def image_as(mode: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / "spatial/tissue_hires_image.png"
        with Image.open(path) as image:
            image.convert(mode).save(path)

    return change


def two_counts(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}_{H5}").write_bytes((folder / H5).read_bytes())
    (folder / H5).unlink()


def make(name: str) -> Change:
    return lambda folder: (folder / name).mkdir()


def named_like(pattern: str) -> Change:
    def change(folder: Path) -> None:
        with h5py.File(folder / H5, "r+") as file:
            del file["matrix/barcodes"]
            file["matrix/barcodes"] = np.array([pattern.format(i) for i in range(N_SPOTS)], dtype="S")
        path = folder / LIST
        table = pd.read_csv(path, header=None, names=COLUMNS)
        table.assign(barcode=[pattern.format(i) for i in range(N_SPOTS)]).to_csv(path, header=False, index=False)

    return change


bins, cells = named_like("s_008um_{:05d}_00000-1"), named_like("cellid_{:09d}-1")


def probes(folder: Path) -> None:
    with h5py.File(folder / H5, "r+") as file:
        file["matrix/features/gene_id"] = file["matrix/features/id"][:]


def version_2(folder: Path) -> None:
    with h5py.File(folder / H5, "w") as file:
        file.create_group("GRCh38")


def half_scale(folder: Path) -> None:
    path = folder / "spatial/scalefactors_json.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tissue_hires_scalef": HIRES * 2}))


REFUSED: list[Any] = [
    pytest.param(transparent, "has mode RGBA with transparent pixels, not 8-bit RGB; .*alpha_composite", id="transparent"),
    pytest.param(image_as("P"), "has mode P, not 8-bit RGB; convert it", id="palette"),
    pytest.param(image_as("LA"), "has mode LA, not 8-bit RGB; convert it", id="grey"),
    pytest.param(two_counts, rf"holds 2 files that may be {H5} \(a_{H5}, b_{H5}\); name the counts of one sample with counts_file=", id="two count files"),
    pytest.param(make("binned_outputs"), r"is of Visium HD; read it with spatialdata_io\.visium_hd\('.*A', dataset_id=", id="HD"),
    pytest.param(make("square_008um"), r"is of Visium HD; .*table_key='square_008um'", id="HD, inner folder"),
    pytest.param(bins, r"is of Visium HD", id="HD, by its barcodes"),
    pytest.param(cells, r"is of Visium HD; .*load_segmentations_only=True.*image_key=", id="HD, by its cells"),
    pytest.param(make("segmented_outputs"), r"is of Visium HD; .*visium_hd\('.*A', .*load_segmentations_only=True", id="HD, cells alone"),
    pytest.param(probes, r"matrix\.h5' counts probes, not genes; give the filtered", id="probes"),
    pytest.param(version_2, r"matrix\.h5' has no 'matrix/data' \(it has 'GRCh38'\); give the filtered", id="older counts"),
    pytest.param(half_scale, r"spots in tissue of section 'A' lie outside '.*hires_image\.png' of 320 x 300 px", id="scale of another"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_refused(folder: Path, change: Change, message: str) -> None:
    change(folder)
    with pytest.raises((ValueError, KeyError), match=message):
        read_visium(folder)


def test_count_files_that_are_there_are_named(folder: Path) -> None:
    (folder / H5).rename(folder / "raw_feature_bc_matrix.h5")
    with pytest.raises(FileNotFoundError, match=r"with counts_file= \(raw_feature_bc_matrix\.h5\)"):
        read_visium(folder)
    assert read_visium(folder, counts_file="raw_feature_bc_matrix.h5")["table"].n_obs == N_SPOTS - 1


@pytest.mark.parametrize("mtx", [False, True])
def test_of_several_samples_in_one_folder_the_named_one_is_read(folder: Path, *, mtx: bool) -> None:
    together = folder.parent / "GSE1"
    together.mkdir()
    for sample, shift in (("GSM1_A", 0), ("GSM2_B", 7)):
        part = write_section(folder.parent / sample)
        table = pd.read_csv(part / LIST, header=None, names=COLUMNS)
        table.assign(pxl_row_in_fullres=table["pxl_row_in_fullres"] + shift).to_csv(
            part / LIST, index=False, header=False
        )
        if mtx:
            flat_matrix_market(f"{sample}_")(part)
        else:
            flat(part)
        for file in part.iterdir():
            file.rename(together / f"{sample}_{file.name.removeprefix(f'{sample}_').removeprefix('GSM1_')}")
    name = "matrix.mtx.gz" if mtx else H5
    with pytest.raises(
        ValueError, match=r"holds 2 files that may be .*name the counts of one sample with counts_file="
    ):
        read_visium(together)
    found = [read_visium(together, name="A", counts_file=f"{sample}_{name}") for sample in ("GSM1_A", "GSM2_B")]
    places = [sdata["table"].obsm["spatial"] for sdata in found]
    np.testing.assert_allclose(places[1] - places[0], np.tile([0, 7 * HIRES], (N_SPOTS - 1, 1)))


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".jpg", ".jpeg"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_converted_image_is_not_passed_over_for_a_coarser_one(folder: Path, suffix: str, *, alone: bool) -> None:
    path = folder / "spatial/tissue_hires_image.png"
    with Image.open(path) as image:
        image.save(path.with_suffix(suffix))
    path.unlink()
    if alone:
        (folder / "spatial/tissue_lowres_image.png").unlink()
    assert read_visium(folder).attrs["agl_sc"]["image_mpp"]["A_image"] == pytest.approx(MPP, rel=5e-3)


def test_the_image_that_has_a_factor_is_taken(folder: Path) -> None:
    path = folder / "spatial/scalefactors_json.json"
    lowres = json.loads(path.read_text())["tissue_lowres_scalef"]
    factors_as(tissue_hires_scalef=None)(folder)
    found = read_visium(folder).attrs["agl_sc"]["image_mpp"]["A_image"]
    assert found == pytest.approx(MPP * HIRES / lowres, rel=5e-3)


def test_spots_of_no_stated_diameter_are_55_um_wide(folder: Path) -> None:
    factors_as(spot_diameter_fullres=None)(folder)
    assert read_visium(folder).shapes["A"]["radius"].iloc[0] == pytest.approx(27.5 / MPP, rel=5e-3)


def archived(part: str, *, prefix: str) -> Change:
    """A folder as 10x offers it for download: packed into an archive beside the rest."""

    def change(folder: Path) -> None:
        with tarfile.open(folder / f"{prefix}{part}.tar.gz", "w:gz") as archive:
            archive.add(folder / part, part)
        shutil.rmtree(folder / part)

    return change


@pytest.mark.parametrize("part", ["spatial", "filtered_feature_bc_matrix"])
@pytest.mark.parametrize("prefix", ["", "V1_Breast_Cancer_"])
def test_the_mend_for_archives_works(folder: Path, part: str, prefix: str) -> None:
    matrix_market(".gz")(folder)
    archived(part, prefix=prefix)(folder)
    with pytest.raises(FileNotFoundError, match=r"does not exist; unpack it: tar -xf") as caught:
        read_visium(folder)
    subprocess.run(str(caught.value).rstrip(".").split("it: ")[1], shell=True, check=True)
    assert read_visium(folder)["table"].n_obs == N_SPOTS - 1


@pytest.mark.parametrize("inner", ["raw_feature_bc_matrix", "filtered_gene_bc_matrices/GRCh38"])
def test_counts_in_another_folder_are_named_and_the_mend_works(folder: Path, inner: str) -> None:
    matrix_market("")(folder)
    (folder / inner).parent.mkdir(exist_ok=True)
    (folder / "filtered_feature_bc_matrix").rename(folder / inner)
    with pytest.raises(FileNotFoundError, match=rf"with counts_file= \({inner}\)\."):
        read_visium(folder)
    assert read_visium(folder, counts_file=inner)["table"].n_obs == N_SPOTS - 1


def test_a_folder_of_several_samples_names_them_and_the_mend_works(folder: Path) -> None:
    (folder.parent / "all").mkdir()
    write_section(folder.parent / "all" / "B" / "outs")
    folder.rename(folder.parent / "all" / "A")
    with pytest.raises(FileNotFoundError, match=r"or several such folders by name, path=\{'A'") as caught:
        read_visium(folder.parent / "all")
    named = str(caught.value).split("path=")[1].rstrip(".")
    assert set(read_visium(ast.literal_eval(named)).shapes) == {"A", "B"}


def test_a_full_resolution_image_of_no_section_is_not_passed_over(folder: Path) -> None:
    Image.fromarray(picture(1.0)).save(folder.parent / "full.png", compress_level=0)
    with pytest.raises(
        ValueError, match=r"fullres_image has an entry for 'a' and none for 'A'; the sections are A: name"
    ):
        read_visium(folder, fullres_image={"a": folder.parent / "full.png"})
    both: dict[str, str | Path] = {"A": folder.parent / "full.png", "B": "not there"}
    assert read_visium(folder, fullres_image=both).attrs["agl_sc"]["image_mpp"]["A_image"] == pytest.approx(
        MPP * HIRES, rel=5e-3
    )


def test_home_is_a_folder_and_an_address_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert set(read_visium("~/A").shapes) == {"A"}
    with pytest.raises(ValueError, match=r"path='https://x\.org/A' is an address, .*; download it"):
        read_visium("https://x.org/A")
    with pytest.raises(ValueError, match=r"path='file:///A' is an address, .*; download it, unless it is there"):
        read_visium("file:///A")
    with pytest.raises(ValueError, match=r"fullres_image='s3://x/a\.tif' is an address, .*; download it"):
        read_visium(folder, fullres_image="s3://x/a.tif")


def test_the_mend_for_compressed_files_works(folder: Path) -> None:
    packed(folder)
    with pytest.raises(
        ValueError, match=r"/A/GSM1_filtered_feature_bc_matrix\.h5\.gz' is compressed; unpack it first"
    ) as caught:
        read_visium(folder)
    subprocess.run(str(caught.value).rstrip(".").split(": ")[1], shell=True, check=True)
    assert read_visium(folder)["table"].n_obs == N_SPOTS - 1


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.1])
def test_full_resolution_image_of_another_size(folder: Path, scale: float) -> None:
    Image.fromarray(picture(scale)).save(folder.parent / "full.png", compress_level=0)
    with pytest.raises(ValueError, match=r"fullres_image='.*full\.png' has \d+ x \d+ px, but .* about 3200 x 3000 px"):
        read_visium(folder, fullres_image=folder.parent / "full.png")
