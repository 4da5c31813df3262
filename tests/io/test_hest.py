"""HEST-1k folders."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
import spatialdata as sd
from anndata import read_h5ad
from tests.io.hest_files import GENES, SIDE_PX, SLIDE_MPP, SLIDE_SIDE_PX, centres, counts, slide, write_sample
from xarray import DataTree

from agl_sc import pp
from agl_sc.io import read_hest

pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),  # anndata, on every zarr write
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # ome-zarr, on import
]
N_SPOTS = len(centres())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sample(tmp_path / "hest")


def pixels(sdata: sd.SpatialData, name: str = "TENX152") -> Any:
    image = sdata[f"{name}_image"]
    # zarr drops a pyramid of one level
    return (image["scale0"]["image"] if isinstance(image, DataTree) else image).to_numpy()


def patches(folder: Path, name: str = "TENX152") -> dict[str, Any]:
    with h5py.File(folder / "patches" / f"{name}.h5") as file:
        return dict(zip([b.decode() for b in file["barcode"][:, 0]], file["img"][:], strict=True))


def test_whole_slide_image(folder: Path) -> None:
    write_sample(folder, wsi=True)
    sdata = read_hest(folder, "TENX152")
    table = sdata["table"]
    np.testing.assert_array_equal(pixels(sdata), slide(0).transpose(2, 0, 1))
    np.testing.assert_array_equal(table.X.toarray(), counts(N_SPOTS, 0).toarray())
    np.testing.assert_allclose(table.obsm["spatial"], centres())
    assert table.var_names.tolist() == GENES
    assert sdata["TENX152"]["radius"].unique() == pytest.approx(27.5 / SLIDE_MPP)
    assert sdata.attrs["agl_sc"] == {"image_mpp": {"TENX152_image": SLIDE_MPP}, "technology": {"TENX152": "visium"}}
    assert table.obs["patient"].unique().tolist() == ["Patient 1 of A study"]


def test_slide_from_patches(folder: Path) -> None:
    """Every tile is its patch where no neighbour is nearer, and positions differ from the true ones by half a pixel at most."""
    sdata = read_hest(folder)
    table = sdata["table"]
    mpp = SLIDE_SIDE_PX / SIDE_PX * SLIDE_MPP
    assert sdata.attrs["agl_sc"]["image_mpp"] == {"TENX152_image": mpp}
    assert sdata.attrs["agl_sc"]["patch_px"] == {"TENX152_image": SIDE_PX}
    np.testing.assert_array_equal(table.X.toarray(), counts(N_SPOTS, 0).toarray()[:-1])
    true = centres()[:-1] * SLIDE_MPP / mpp
    offset = table.obsm["spatial"] - true
    assert np.ptp(offset, axis=0).max() <= 1
    image, crops = pixels(sdata), patches(folder)
    seen = np.zeros(image.shape[1:], dtype=bool)
    for spot, (x, y) in zip(table.obs["spot_id"], table.obsm["spatial"], strict=True):
        left, top = int(x - SIDE_PX / 2), int(y - SIDE_PX / 2)
        tile = image[:, top : top + SIDE_PX, left : left + SIDE_PX].transpose(1, 2, 0).astype(int)
        np.testing.assert_array_equal(tile[8:24, 8:24], crops[spot][8:24, 8:24])
        assert (
            np.abs(tile - crops[spot].astype(int)).max() < 25
        )  # overlaps come from neighbours, a pixel beside at most
        seen[top : top + SIDE_PX, left : left + SIDE_PX] = True
    assert (image[:, ~seen] == 255).all()
    assert (~seen).any()


def test_patches_that_do_not_overlap_are_exact(tmp_path: Path) -> None:
    grid = np.stack(np.meshgrid(np.arange(3) * 114.3 + 50, np.arange(2) * 114.3 + 50), axis=-1).reshape(-1, 2)
    known: dict[str, Any] = {"st_technology": "Spatial Transcriptomics", "inter_spot_dist": 200, "spot_diameter": 100}
    folder = write_sample(tmp_path, "SPA1", positions=grid, **known)
    sdata = read_hest(folder)
    assert sdata.attrs["agl_sc"]["technology"] == {"SPA1": "st"}
    image, crops = pixels(sdata, "SPA1"), patches(folder, "SPA1")
    for spot, centre in zip(sdata["table"].obs["spot_id"], sdata["table"].obsm["spatial"], strict=True):
        left, top = (centre - SIDE_PX / 2).astype(int)
        np.testing.assert_array_equal(
            image[:, top : top + SIDE_PX, left : left + SIDE_PX].transpose(1, 2, 0), crops[spot]
        )


def test_tiles_of_patches_and_of_the_slide_agree(folder: Path) -> None:
    """Features by either image are nearly the same; a wider field of view is refused where it would see gaps."""
    write_sample(folder, wsi=True)
    features = []
    for kind in ("wsi", "patches"):
        sdata = read_hest(folder, image=kind)
        pp.embed(sdata, tile_px=SIDE_PX, mpp=3.5, context=())
        features.append(sdata["table"].obsm["agl_features"][: N_SPOTS - 1])
    correlation = [np.corrcoef(one, other)[0, 1] for one, other in zip(*features, strict=True)]
    assert min(correlation) > 0.95
    with pytest.raises(
        ValueError, match=r"A field of view of 224 um is wider than the patches of 112 um that 'TENX152_image'"
    ):
        pp.embed(sdata, tile_px=SIDE_PX, mpp=3.5, context=(2,))
    with pytest.raises(ValueError, match="wider than the patches of 112 um"):
        pp.embed(sdata, tile_px=64, mpp=3.5, context=())


def test_chunks_equal_the_whole(folder: Path) -> None:
    lazy = read_hest(folder)["TENX152_image"]["scale0"]["image"].data
    whole = lazy.compute()
    np.testing.assert_array_equal(lazy.rechunk((3, 17, 23)).compute(), whole)
    np.testing.assert_array_equal(lazy[1:, 5:60, 9:100].compute(), whole[1:, 5:60, 9:100])


def test_several_samples(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agl_sc")
    write_sample(folder, "INT1", seed=1, genes=[*GENES[:5], "OTHER"], patient=float("nan"), dataset_title="B study")
    write_sample(folder, "INT2", seed=2, patient=None, dataset_title="B study", spot_diameter=float("nan"))
    sdata = read_hest(folder)
    assert list(sdata.shapes) == ["INT1", "INT2", "TENX152"]
    assert sdata["table"].var_names.tolist() == [*GENES[:5], "OTHER", *GENES[5:]]
    assert set(sdata["table"].obs["patient"]) == {"? of B study", "Patient 1 of A study"}
    assert "INT1: dropped 1 of 12 spots without a patch" in caplog.text
    assert set(read_hest(folder, ["INT1", "INT2"], patient={"INT1": "P", "INT2": "Q"})["table"].obs["patient"]) == {
        "P",
        "Q",
    }


def test_zarr_round_trip(folder: Path) -> None:
    sdata = read_hest(folder)
    sdata.write(folder / "a.zarr")
    back = sd.read_zarr(folder / "a.zarr")
    assert back.attrs["agl_sc"] == sdata.attrs["agl_sc"]
    np.testing.assert_array_equal(pixels(back), pixels(sdata))


def test_early_files_without_coordinates(folder: Path) -> None:
    """Then a patch is 112 um wide."""
    expected = read_hest(folder)
    with h5py.File(folder / "patches/TENX152.h5", "r+") as file:
        del file["coords"]
    again = read_hest(folder)
    assert again.attrs == expected.attrs
    np.testing.assert_array_equal(pixels(again), pixels(expected))


def test_patches_of_no_spot_are_dropped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with h5py.File(folder / "patches/TENX152.h5", "r+") as file:
        file["barcode"][0] = b"NOBODY-1"
    assert read_hest(folder)["table"].n_obs == N_SPOTS - 2
    assert "TENX152: dropped 1 patches that belong to no spot" in caplog.text


def test_the_scale_of_the_spots_goes_before_that_of_the_image(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agl_sc")
    write_sample(folder, pixel_size_um_embedded=0.2646)
    assert read_hest(folder).attrs["agl_sc"]["image_mpp"] == {"TENX152_image": 3.5}
    assert "TENX152: 1.75 um per pixel by the spots, not 0.2646 as its image states" in caplog.text


def test_technology_without_pitch(folder: Path) -> None:
    """Xenium is pooled to squares, whose radius is half the grid; the argument settles what the metadata do not."""
    xenium: dict[str, Any] = {
        "st_technology": "Xenium",
        "inter_spot_dist": None,
        "spot_diameter": None,
        "pixel_size_um_embedded": 2.0,
    }
    write_sample(folder, **xenium)
    sdata = read_hest(folder, image_mpp=1.75)
    assert sdata.attrs["agl_sc"]["technology"] == {}
    assert sdata["TENX152"]["radius"].iloc[0] == pytest.approx(50 / 3.5, rel=0.03)
    with pytest.raises(
        ValueError, match=r"state 1\.75 um per pixel as estimated and 2 as embedded .*pass image_mpp=1\.75"
    ):
        read_hest(folder)


ENSG = [f"ENSG{i:011d}" for i in range(12)]


def test_ensembl_ids(folder: Path) -> None:
    write_sample(folder, genes=ENSG)
    with pytest.raises(
        ValueError, match=r"names its genes by Ensembl ids \(ENSG00000000000\).*gene_names=\{'ENSG...': 'symbol'"
    ):
        read_hest(folder)
    assert read_hest(folder, gene_names="index")["table"].var_names.tolist() == ENSG
    named = read_hest(folder, gene_names={ENSG[0]: "TP53", ENSG[1]: "MYC"})["table"].var_names
    assert named.tolist() == ["TP53", "MYC", *ENSG[2:]]


def test_symbols_of_a_column(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agl_sc")
    write_sample(folder, genes=ENSG)
    path = folder / "st/TENX152.h5ad"
    table = read_h5ad(path)
    table.var["gene_symbol"] = ["TP53", "MYC", "MYC", None, *GENES[4:]]
    table.write_h5ad(path)
    with pytest.raises(ValueError, match="gene_names='gene_symbol' takes the symbols of that column"):
        read_hest(folder)
    names = read_hest(folder, gene_names="gene_symbol")["table"].var_names
    assert names.tolist() == ["TP53", "MYC", "MYC-1", ENSG[3], *GENES[4:]]
    assert "1 gene names repeat and got a suffix" in caplog.text
    with pytest.raises(
        KeyError, match="gene_names='symbols' is not a column of var of TENX152, which has feature_types"
    ):
        read_hest(folder, gene_names="symbols")


def test_the_same_sample_twice(folder: Path) -> None:
    """As TENX128 and TENX155, even with its genes in another order and some spots cut off."""
    genes = [f"GENE{i}" for i in range(20)]
    write_sample(folder, genes=genes)
    table = read_h5ad(folder / "st/TENX152.h5ad")
    write_sample(folder, "TENX128", genes=genes[::-1])
    table[:9, ::-1].copy().write_h5ad(folder / "st/TENX128.h5ad")
    with pytest.raises(ValueError, match=r"TENX128 and TENX152 hold the same profiles .*leave one out of ids"):
        read_hest(folder)
    assert read_hest(folder, "TENX152")["table"].n_obs == N_SPOTS - 1


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edit_patches(**entries: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with h5py.File(folder / "patches/TENX152.h5", "r+") as file:
            for name, values in entries.items():
                attributes = dict(file[name].attrs)
                del file[name]
                if values is not None:
                    file[name] = values
                    file[name].attrs.update(attributes)

    return change


def lose_positions(folder: Path) -> None:
    with h5py.File(folder / "st/TENX152.h5ad", "r+") as file:
        del file["obsm/spatial"]


def normalise(folder: Path) -> None:
    table = read_h5ad(folder / "st/TENX152.h5ad")
    table.X = table.X * 0.3
    table.write_h5ad(folder / "st/TENX152.h5ad")


def lose_scale(folder: Path) -> None:
    path = folder / "metadata/TENX152.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "st_technology": "Xenium", "pixel_size_um_estimated": None}))


def unchanged(folder: Path) -> None:
    pass


N = N_SPOTS - 1
REFUSED: list[Any] = [
    pytest.param(cut("st/TENX152.h5ad"), {}, ValueError, r"TENX152\.h5ad' cannot be read .*half-way: delete the file", id="half a table"),
    pytest.param(cut("patches/TENX152.h5"), {"image": "patches"}, ValueError, r"patches/TENX152\.h5' cannot be read .*half-way", id="half the patches"),
    pytest.param(cut("metadata/TENX152.json"), {}, ValueError, r"TENX152\.json' cannot be read .*half-way", id="half the metadata"),
    pytest.param(cut("wsis/TENX152.tif"), {"image": "wsi"}, ValueError, r"TENX152\.tif' .*is the file complete", id="half the slide"),
    pytest.param(remove("patches/TENX152.h5"), {"image": "patches"}, FileNotFoundError, r"TENX152 has no '.*patches/TENX152\.h5'; download with `agl-sc hest download TENX152`", id="no patches"),
    pytest.param(remove("wsis/TENX152.tif"), {"image": "wsi"}, FileNotFoundError, r"TENX152 has no '.*wsis/TENX152\.tif'", id="no slide"),
    pytest.param(remove("metadata/TENX152.json"), {}, FileNotFoundError, r"TENX152 has no '.*metadata/TENX152\.json'", id="no metadata"),
    pytest.param(lambda folder: shutil.rmtree(folder / "st"), {}, FileNotFoundError, "has no folder 'st'; give the one that holds st/", id="no st"),
    pytest.param(unchanged, {"ids": ["TENX512"]}, KeyError, "TENX512 is not in .*which holds TENX152; did you mean TENX152; download with", id="unknown id"),
    pytest.param(unchanged, {"image": "tiles"}, ValueError, "image='tiles' is not one of 'wsi', 'patches'", id="kind of image"),
    pytest.param(unchanged, {"image_mpp": 2.0}, ValueError, "image_mpp=2 of 'TENX152' contradicts the visium spot pitch of 100 um", id="mpp"),
    pytest.param(lose_scale, {}, ValueError, "microns per pixel of 'TENX152' are unknown; pass image_mpp=", id="no mpp"),
    pytest.param(lose_positions, {}, KeyError, "TENX152.h5ad' has no 'obsm/spatial'; it has", id="no positions"),
    pytest.param(normalise, {}, ValueError, "Section 'TENX152' has .* values that are not raw counts", id="normalised"),
    pytest.param(edit_patches(img=None), {"image": "patches"}, KeyError, "TENX152.h5' has no 'img'; it has 'barcode', 'coords'", id="no img"),
    pytest.param(edit_patches(img=np.zeros((N, 32, 16, 3), np.uint8)), {"image": "patches"}, ValueError, r"have shape \(11, 32, 16, 3\) and dtype uint8", id="not square"),
    pytest.param(edit_patches(img=np.zeros((N, 32, 32, 3), np.float32)), {"image": "patches"}, ValueError, "dtype float32; they must be", id="not uint8"),
    pytest.param(edit_patches(img=np.zeros((3, 32, 32, 3), np.uint8)), {"image": "patches"}, ValueError, "has 3 patches and 11 barcodes", id="few patches"),
    pytest.param(edit_patches(barcode=np.array([[b"A"]] * N)), {"image": "patches"}, ValueError, "barcodes of .* must be unique", id="barcode twice"),
    pytest.param(edit_patches(barcode=np.arange(N)[:, None].astype("S")), {"image": "patches"}, ValueError, "No patch of .* belongs to a spot", id="other barcodes"),
    pytest.param(edit_patches(coords=np.zeros((N, 2), int)), {"image": "patches"}, ValueError, "patches of TENX152 lie .* px beside its spots", id="other places"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "arguments", "error", "message"), REFUSED)
def test_what_is_refused(
    folder: Path, *, change: Callable[[Path], None], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    write_sample(folder, wsi=True)
    change(folder)
    with pytest.raises(error, match=message):
        read_hest(folder, **{"ids": "TENX152", **arguments})


def test_the_folder_is_only_read(folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    pixels(read_hest(folder))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
