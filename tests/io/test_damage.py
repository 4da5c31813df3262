"""Damaged folders: every file in many ways, and every reader reads what is right or says which file is wrong."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
import tifffile
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData
from tests.io.damage import WRONG_KINDS, Damage, be_folder, become, cut, damaged, flip, put, refusal, swap
from tests.io.hest_files import write_sample
from tests.io.test_st import MPP
from tests.io.test_st import write_section as write_st
from tests.io.test_visium import write_section as write_visium
from xarray import DataTree

from agl_sc.io import read_hest, read_st, read_visium
from agl_sc.io._image import open_image

CUTS: dict[str, Damage] = {f"cut {share}": cut(share) for share in (0.03, 0.2, 0.6, 0.95, 1)}
FLIPS: dict[str, Damage] = {f"flip {seed}": flip(seed, 1 + 7 * (seed % 2)) for seed in range(8)}
PICTURES: dict[str, Damage] = {name: become(content) for name, content in WRONG_KINDS.items()}
KINDS: dict[str, Damage] = {**PICTURES, "folder": be_folder}


def set_entry(name: str, values: Any) -> Damage:
    """Change a dataset of an HDF5 file, by a function or to an array; None takes it out."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            old: Any = file[name][()] if name in file and isinstance(file[name], h5py.Dataset) else None
            if name in file:
                del file[name]
            if values is not None:
                file[name] = values(old.copy()) if callable(values) else values

    return change


def with_value(value: float, place: int = -1) -> Callable[[Any], Any]:
    """A number of an array replaced."""

    def change(old: Any) -> Any:
        new = old.astype(np.result_type(old.dtype, type(value)))
        new[place] = value
        return new

    return change


TENX: dict[str, Damage] = {
    **{f"no {name}": set_entry(f"matrix/{name}", None) for name in ("data", "indptr", "shape", "barcodes", "features", "features/id")},
    **{f"{name} {value}": set_entry(f"matrix/{name}", with_value(value)) for name in ("indices", "indptr", "shape") for value in (-7, 10**6)},
    **{f"data {value}": set_entry("matrix/data", with_value(value)) for value in (-7, 0.5, np.nan, np.inf)},
    "words": set_entry("matrix/data", np.array([b"many"] * 99)),
    "numbers for barcodes": set_entry("matrix/barcodes", np.arange(30)),
    "barcode twice": set_entry("matrix/barcodes", lambda old: np.repeat(old[::2], 2)),
    "other barcodes": set_entry("matrix/barcodes", lambda old: np.array([b"X" + name for name in old])),
    "no text": set_entry("matrix/features/name", np.array([b"\xff\xfe"] * 4)),
    "no genes": set_entry("matrix/features/feature_type", np.array([b"Antibody Capture"] * 4)),
    "group": set_entry("matrix", np.zeros(3)),
}  # fmt: skip
FACTORS: dict[str, Damage] = (
    {
        f"{key} {value!r}": put(key, value)
        for key in ("tissue_hires_scalef", "spot_diameter_fullres")
        for value in (0, -1, float("nan"), float("inf"), "0.1", None, [0.1], True)
    }
    | {"no diameter": put("spot_diameter_fullres", ...)}
    | {name: become(text) for name, text in {"list": b"[1]", "number": b"3", "null": b"null", "text": b'"a"'}.items()}
)


def rewrite(change: Callable[[str], str]) -> Damage:
    def rewritten(path: Path) -> None:
        path.write_text(change(path.read_text()))

    return rewritten


def edit_text(old: str, new: str, count: int = -1) -> Damage:
    return rewrite(lambda text: text.replace(old, new, count))


POSITIONS: dict[str, Damage] = {
    "words": edit_text(",1,", ",left,", 1),
    "empty cell": edit_text(",1,", ",,", 1),
    "no number": edit_text(",1,", ",nan,", 1),
    "semicolons": edit_text(",", ";"),
    "twice": rewrite(lambda text: text * 2),
    "other header": rewrite(lambda text: "a,b,c,d,e,f\n" + text),
    "two digits more": rewrite(lambda text: text.strip() + "99"),
    "no rows": become(b"barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"),
}
H5 = "filtered_feature_bc_matrix.h5"
LIST = "spatial/tissue_positions_list.csv"
HIRES = "spatial/tissue_hires_image.png"
SCALES = "spatial/scalefactors_json.json"


def pixels(sdata: SpatialData, name: str) -> Any:
    image = sdata[f"{name}_image"]
    return (image["scale0"]["image"] if isinstance(image, DataTree) else image).to_numpy()


def same_values(found: AnnData, expected: AnnData) -> None:
    """Every spot that was read has the counts and the place it has in the whole folder."""
    of_spot = {spot: row for row, spot in enumerate(expected.obs["spot_id"])}
    rows = [of_spot[spot] for spot in found.obs["spot_id"]]
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray()[rows])
    np.testing.assert_allclose(found.obsm["spatial"], expected.obsm["spatial"][rows])
    assert found.var_names.tolist() == expected.var_names.tolist()


def check(read: Callable[[Path], SpatialData], folder: Path, changes: dict[str, dict[str, Damage]]) -> list[str]:
    """Names of the damages that were read all the same, and rightly; flipped bytes may be anything that has the right form."""
    name = "A"
    expected = read(folder)
    whole = pixels(expected, name)
    accepted = []
    for case, copy, file in damaged(folder, folder.parent, changes):
        sdata, said = refusal(lambda copy=copy: (found := read(copy), pixels(found, name))[0])  # type: ignore[misc]
        if said:
            assert Path(file).name in said or f"'{name}'" in said, f"{case}: {said}"
            assert "\n" not in said, f"{case}: {said}"
            continue
        accepted.append(case)
        if "flip" not in case:
            same_values(sdata["table"], expected["table"])
            np.testing.assert_array_equal(pixels(sdata, name), whole)
    return accepted


pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),  # anndata, on every zarr write
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # ome-zarr, on import
]


def test_visium(tmp_path: Path) -> None:
    folder = write_visium(tmp_path / "whole")
    changes = {
        H5: CUTS | KINDS | TENX,
        LIST: CUTS | FLIPS | KINDS | POSITIONS | {"scales": swap("scalefactors_json.json")},
        SCALES: CUTS | FLIPS | KINDS | FACTORS,
        HIRES: CUTS | FLIPS | PICTURES | {"lowres": swap("tissue_lowres_image.png")},
    }
    accepted = check(lambda copy: read_visium(copy, name="A"), folder, changes)
    # A line break less, or a byte of a checksum behind all pixels.
    assert [case for case in accepted if "flip" not in case] == [
        f"{LIST}: cut 1",
        f"{LIST}: semicolons",
        f"{SCALES}: no diameter",
        f"{HIRES}: cut 1",
    ]


def test_st(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    write_st(folder, "A")
    counts = gzip.decompress((folder / "A.tsv.gz").read_bytes())
    for name, old, new in [("commas", b"\t", b","), ("nan", b"\t1", b"\tnan"), ("less", b"\t1", b"\t-1"), ("half", b"\t1", b"\t1.5")]:  # fmt: skip
        KINDS_ST[name] = become(gzip.compress(counts.replace(old, new)))
    changes = {
        "A.tsv.gz": CUTS | FLIPS | KINDS | KINDS_ST,
        "A.jpg": CUTS | FLIPS | KINDS | {"counts": swap("A.tsv.gz")},
        "A_selection.tsv": CUTS | FLIPS | KINDS | {"words": edit_text("\t1", "\tone", 1), "commas": edit_text("\t", ","), "counts": swap("A.tsv.gz")},
    }  # fmt: skip
    accepted = check(
        lambda copy: read_st(copy / "A.tsv.gz", copy / "A.jpg", copy / "A_selection.tsv", image_mpp=MPP),
        folder,
        changes,
    )
    # Commas for tabs are read as what they are.
    others = [case for case in accepted if "flip" not in case and "selection.tsv: cut" not in case]
    assert others == ["A.tsv.gz: commas", "A_selection.tsv: commas"]


KINDS_ST: dict[str, Damage] = {}
META: dict[str, Damage] = {
    "list": become(b"[1]"),
    **{f"scale {value!r}": put("pixel_size_um_estimated", value) for value in (0, -1, "a", 3.5, float("inf"))},
}
H5AD: dict[str, Damage] = {
    **{f"no {name}": set_entry(name, None) for name in ("X", "obs", "var", "obsm/spatial", "X/data", "obs/_index")},
    **{
        f"X/{name} {value}": set_entry(f"X/{name}", with_value(value))
        for name in ("indices", "indptr")
        for value in (-7, 10**6)
    },
    **{f"X/data {value}": set_entry("X/data", with_value(value, 0)) for value in (-7, 0.5, np.nan)},
    "no place": set_entry("obsm/spatial", np.full((12, 2), np.nan)),
    "few places": set_entry("obsm/spatial", np.zeros((3, 2))),
    "words": set_entry("obsm/spatial", np.array([[b"a", b"b"]] * 12)),
}
PATCHES: dict[str, Damage] = {
    **{f"no {name}": set_entry(name, None) for name in ("img", "barcode")},
    "flat": set_entry("img", np.zeros((11, 32, 32), np.uint8)),
    "no side": set_entry("img", np.zeros((11, 0, 0, 3), np.uint8)),
    "nowhere": set_entry("coords", np.full((11, 2), np.nan)),
    "no text": set_entry("barcode", np.array([[b"\xff"]] * 11)),
}


@pytest.mark.parametrize("kind", ["wsi", "patches"])
def test_hest(tmp_path: Path, kind: Any) -> None:
    folder = write_sample(tmp_path / "whole", "A", wsi=True)
    wsi = {"wsis/A.tif": CUTS | FLIPS | KINDS, "metadata/A.json": CUTS | FLIPS | KINDS | META}
    patches = {"patches/A.h5": CUTS | KINDS | PATCHES, "st/A.h5ad": CUTS | KINDS | H5AD}
    accepted = check(lambda copy: read_hest(copy, "A", image=kind), folder, wsi if kind == "wsi" else patches)
    # The coarser level alone is lost, or the pitch of the spots tells the scale that the metadata do not.
    may_be_read = (
        "patches/A.h5: nowhere",
        "wsis/A.tif: cut 0.95",
        "wsis/A.tif: cut 1",
        *(f"metadata/A.json: scale {x!r}" for x in (0, -1, "a", float("inf"))),
    )
    assert {case for case in accepted if "flip" not in case} <= {*may_be_read}


def as_tiff(**options: Any) -> Callable[[Path, Any], Any]:
    return lambda path, values: tifffile.imwrite(path, values, photometric="rgb", **options)


FORMATS: list[Any] = [
    pytest.param("a.png", lambda path, values: Image.fromarray(values).save(path), id="png"),
    pytest.param("a.jpg", lambda path, values: Image.fromarray(values).save(path), id="jpeg"),
    pytest.param("a.tif", as_tiff(tile=(32, 32), compression="zlib"), id="tiles"),
    pytest.param("a.tif", as_tiff(rowsperstrip=8), id="strips"),
    pytest.param("a.tif", as_tiff(tile=(32, 32), bigtiff=True, compression="jpeg"), id="jpeg tiles"),
]


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_images(tmp_path: Path, name: str, write: Any) -> None:
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole" / name, np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    expected = np.asarray(open_image(tmp_path / "whole" / name))
    ways = CUTS | KINDS | {f"flip {seed}": flip(seed, 1 + seed % 5) for seed in range(60)}
    for case, copy, file in damaged(tmp_path / "whole", tmp_path, {name: ways}):
        found, said = refusal(lambda path=copy / file: np.asarray(open_image(path)))  # type: ignore[misc]
        assert said or "flip" in case or np.array_equal(found, expected), case
        assert not said or file in said, f"{case}: {said}"


def test_metadata_that_is_json_but_no_mapping(tmp_path: Path) -> None:
    """The sentence names the file and the mend."""
    folder = write_sample(tmp_path, "A")
    (folder / "metadata/A.json").write_text(json.dumps([1]))
    with pytest.raises(
        ValueError, match=r"metadata/A\.json' holds a list, not what is known of a sample by name; .*download it again"
    ):
        read_hest(folder, "A")
