"""Space Ranger folders."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
import spatialdata as sd
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csc_matrix

from agl_sc.io import read_visium

pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),  # anndata, on every zarr write
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # ome-zarr, on import
    pytest.mark.filterwarnings("ignore::SyntaxWarning:docrep"),  # scanpy's and squidpy's docstrings, on import
]

PITCH_PX = 400.0  # of the full-resolution image
HIRES, LOWRES = 0.1, 0.03
SIZE = (3000, 3200)  # full resolution, y and x
SYMBOLS = {"ENSG1": "TP53", "ENSG2": "SEPT2", "ENSG3": "SEPT2", "ENSG4": "TP53-1"}
N_SPOTS = 30


def centres() -> NDArray[np.int64]:
    """6 columns x 5 rows of a hexagonal grid, x and y."""
    columns, rows = np.meshgrid(np.arange(6), np.arange(5))
    x = (columns + 0.5 * (rows % 2)) * PITCH_PX + 300
    y = rows * PITCH_PX * np.sqrt(0.75) + 250
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)


def picture(scale: float, seed: int = 0) -> NDArray[np.uint8]:
    size = (int(SIZE[0] * scale), int(SIZE[1] * scale), 3)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def counts_of(symbols: dict[str, str], seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).poisson(2, (N_SPOTS, len(symbols)))


def write_counts(path: Path, symbols: dict[str, str], seed: int) -> None:
    matrix = csc_matrix(counts_of(symbols, seed).T.astype(np.int32))
    strings = {
        "barcodes": [f"BC{i:02d}-1" for i in range(N_SPOTS)],
        "features/id": list(symbols),
        "features/name": list(symbols.values()),
        "features/feature_type": ["Gene Expression"] * len(symbols),
        "features/genome": ["GRCh38"] * len(symbols),
        "features/_all_tag_keys": ["genome"],
    }
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = [b"lib"]
        for name, values in {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}.items():
            file[f"matrix/{name}"] = values
        file["matrix/shape"] = np.array(matrix.shape, dtype=np.int32)
        for name, texts in strings.items():
            file[f"matrix/{name}"] = np.array(texts, dtype="S")


def write_section(folder: Path, symbols: dict[str, str] = SYMBOLS, seed: int = 0) -> Path:
    """Write a folder with hires and lowres image; the first spot is not in tissue, positions are in another order."""
    (folder / "spatial").mkdir(parents=True)
    write_counts(folder / "filtered_feature_bc_matrix.h5", symbols, seed)
    rows = [f"BC{i:02d}-1,{int(i > 0)},{i // 6},{i % 6},{y},{x}" for i, (x, y) in enumerate(centres())]
    (folder / "spatial/tissue_positions_list.csv").write_text("\n".join(reversed(rows)) + "\n")
    factors = {"spot_diameter_fullres": 220.0, "tissue_hires_scalef": HIRES, "tissue_lowres_scalef": LOWRES}
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    Image.fromarray(picture(HIRES)).save(folder / "spatial/tissue_hires_image.png")
    Image.fromarray(picture(LOWRES)).save(folder / "spatial/tissue_lowres_image.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_section(tmp_path / "A")


def test_one_section(folder: Path) -> None:
    sdata = read_visium(folder)
    table = sdata["table"]
    assert table.obs["spot_id"].tolist() == [f"BC{i:02d}-1" for i in range(1, N_SPOTS)]
    np.testing.assert_array_equal(table.X.toarray(), counts_of(SYMBOLS, 0)[1:])
    np.testing.assert_allclose(table.obsm["spatial"], centres()[1:] * HIRES)
    np.testing.assert_allclose(sdata["A"].get_coordinates(), centres()[1:] * HIRES)
    assert sdata["A"]["radius"].unique() == pytest.approx(110.0 * HIRES)
    np.testing.assert_array_equal(sdata["A_image"]["scale0"]["image"], picture(HIRES).transpose(2, 0, 1))
    assert sdata.attrs["agl_sc"]["image_mpp"]["A_image"] == pytest.approx(100 / (PITCH_PX * HIRES), rel=5e-3)
    assert sdata.attrs["agl_sc"]["technology"] == {"A": "visium"}


def test_repeated_symbols_are_told_apart_by_gene_id(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agl_sc")
    var = read_visium(folder)["table"].var
    assert var.index.tolist() == ["TP53", "SEPT2", "SEPT2_ENSG3", "TP53-1"]
    assert var["gene_ids"].tolist() == list(SYMBOLS)
    assert "1 genes share their symbol" in caplog.text
    assert "A: dropped 1 spots outside the tissue" in caplog.text


def test_several_sections_agree_on_names(folder: Path) -> None:
    """SEPT2 of the second section is the one that got a suffix in the first."""
    other = write_section(folder.parent / "B", {"ENSG9": "MYC", "ENSG3": "SEPT2", "ENSG1": "P53"}, seed=1)
    folders: Any = {"one": folder, 2: other}  # sections may be numbers
    table = read_visium(folders, patient={"one": "P", "2": "Q"})["table"]
    assert table.var_names.tolist() == ["TP53", "SEPT2", "SEPT2_ENSG3", "TP53-1", "MYC"]
    assert table.var["gene_ids"].tolist() == [*SYMBOLS, "ENSG9"]
    second = table[table.obs["section"] == "2", ["MYC", "SEPT2_ENSG3", "TP53"]]
    np.testing.assert_array_equal(second.X.toarray(), counts_of({"a": "", "b": "", "c": ""}, 1)[1:])
    assert table.obs.groupby("section", observed=True)["patient"].first().to_dict() == {"one": "P", "2": "Q"}
    assert table.obs_names.is_unique


@pytest.mark.parametrize("missing", ["lowres", "hires"])
def test_missing_image_of_one_size(folder: Path, missing: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agl_sc")
    (folder / f"spatial/tissue_{missing}_image.png").unlink()
    kept, scale = ("hires", HIRES) if missing == "lowres" else ("lowres", LOWRES)
    sdata = read_visium(folder)
    np.testing.assert_array_equal(sdata["A_image"]["scale0"]["image"], picture(scale).transpose(2, 0, 1))
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], centres()[1:] * scale)
    assert f"A: keeping the {kept} image" in caplog.text


def test_full_resolution_image(folder: Path) -> None:
    full = picture(1.0, seed=3)
    Image.fromarray(full).save(folder.parent / "full.png", compress_level=0)
    other = write_section(folder.parent / "B")
    sdata = read_visium({"A": folder, "B": other}, fullres_image={"A": folder.parent / "full.png"})
    np.testing.assert_array_equal(sdata["A_image"]["scale0"]["image"], full.transpose(2, 0, 1))
    np.testing.assert_allclose(sdata["A"].get_coordinates(), centres()[1:])
    np.testing.assert_allclose(sdata["B"].get_coordinates(), centres()[1:] * HIRES)
    assert sdata.attrs["agl_sc"]["image_mpp"]["A_image"] == pytest.approx(0.25, rel=5e-3)


def test_space_ranger_2_positions(folder: Path) -> None:
    expected = read_visium(folder)["table"].obsm["spatial"]
    old = folder / "spatial/tissue_positions_list.csv"
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    (folder / "spatial/tissue_positions.csv").write_text(header + old.read_text())
    old.unlink()
    np.testing.assert_array_equal(read_visium(folder)["table"].obsm["spatial"], expected)


def test_name_of_the_section(folder: Path) -> None:
    assert set(read_visium(folder, name="mouse").shapes) == {"mouse"}
    outs = write_section(folder.parent / "sample7" / "outs")
    assert set(read_visium(outs).shapes) == {"sample7"}


def test_the_folder_is_only_read(folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    read_visium(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_zarr_round_trip(folder: Path) -> None:
    sdata = read_visium(folder)
    sdata.write(folder.parent / "a.zarr")
    back = sd.read_zarr(folder.parent / "a.zarr")
    assert back.attrs["agl_sc"] == sdata.attrs["agl_sc"]
    assert back["table"].var["gene_ids"].tolist() == list(SYMBOLS)


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def lose_scale(folder: Path) -> None:
    (folder / "spatial/scalefactors_json.json").write_text('{"spot_diameter_fullres": 220.0}')


def leave_tissue(folder: Path) -> None:
    path = folder / "spatial/tissue_positions_list.csv"
    path.write_text(path.read_text().replace("-1,1,", "-1,0,"))


def grey_image(folder: Path) -> None:
    Image.fromarray(picture(HIRES)).convert("L").save(folder / "spatial/tissue_hires_image.png")


def repeat_gene_id(folder: Path) -> None:
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "r+") as file:
        file["matrix/features/id"][...] = np.array(["ENSG1", "ENSG1", "ENSG3", "ENSG4"], dtype="S")


def unchanged(folder: Path) -> None:
    pass


H5, HIRES_PNG, LOWRES_PNG = (
    "filtered_feature_bc_matrix.h5",
    "spatial/tissue_hires_image.png",
    "spatial/tissue_lowres_image.png",
)
REFUSED: list[Any] = [
    pytest.param(remove(H5), {}, FileNotFoundError, r"filtered_feature_bc_matrix\.h5' does not exist; give the folder", id="no counts"),
    pytest.param(remove("spatial/scalefactors_json.json"), {}, FileNotFoundError, r"scalefactors_json\.json' does not exist", id="no factors"),
    pytest.param(remove("spatial/tissue_positions_list.csv"), {}, FileNotFoundError, "has neither spatial/tissue_positions.csv nor", id="no positions"),
    pytest.param(remove(HIRES_PNG, LOWRES_PNG), {}, FileNotFoundError, "has neither spatial/tissue_hires_image.png nor .*pass fullres_image=", id="no image"),
    pytest.param(unchanged, {"fullres_image": "none.tif"}, FileNotFoundError, r"image file 'none\.tif' does not exist", id="no full image"),
    pytest.param(lose_scale, {}, KeyError, "has no 'tissue_hires_scalef'; it has 'spot_diameter_fullres'", id="no scale"),
    pytest.param(leave_tissue, {}, ValueError, "No spot of section 'A' is in tissue", id="no tissue"),
    pytest.param(grey_image, {}, ValueError, "has mode L, not 8-bit RGB", id="grey"),
    pytest.param(repeat_gene_id, {}, ValueError, "gene ids of section 'A' must be unique, .*: ENSG1", id="gene id twice"),
    pytest.param(unchanged, {"image_mpp": 0.25}, ValueError, "image_mpp=0.25 of 'A' contradicts the visium spot pitch of 100 um", id="mpp"),
    pytest.param(unchanged, {"image_mpp": {"B": 2.5}}, KeyError, "image_mpp has no entry for A; it has B", id="mpp of another"),
    pytest.param(unchanged, {"name": "a b"}, ValueError, "Section name 'a b' cannot be stored", id="name"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "arguments", "error", "message"), REFUSED)
def test_what_is_refused(
    folder: Path, *, change: Callable[[Path], None], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    change(folder)
    with pytest.raises(error, match=message):
        read_visium(folder, **arguments)


def test_folders_that_are_refused(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"The folder '.*none' does not exist"):
        read_visium(folder / "none")
    with pytest.raises(ValueError, match=r"name='x' is for one folder; the keys of path name the sections \(A\)"):
        read_visium({"A": folder}, name="x")
