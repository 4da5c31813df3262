"""Readers on the real sections."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from agl_sc._sdata.geometry import spot_pitch_px
from agl_sc.io import _image, read_st, read_visium
from agl_sc.io._st import read_st_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # ome-zarr, on import
    pytest.mark.filterwarnings("ignore::SyntaxWarning:docrep"),  # scanpy's and squidpy's docstrings, on import
]


def test_her2st_reads_lazily(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_image._PillowImage, "decode", lambda self: pytest.fail(f"decoded {self.path}"))
    sdata = read_st_folder(data_dir / "her2st", patient={**{f"C{i}": "C" for i in range(2, 7)}, "B4": "B"})
    table = sdata["table"]
    n_spots = {"B4": 283, "C2": 187, "C3": 180, "C4": 184, "C5": 181, "C6": 178}
    assert table.obs["section"].value_counts(sort=False).to_dict() == n_spots
    assert table.obs["patient"].value_counts().to_dict() == {"C": 910, "B": 283}
    assert table.shape == (1193, 17597)
    assert (table.X.data == np.floor(table.X.data)).all()
    for mpp in sdata.attrs["agl_sc"]["image_mpp"].values():
        assert mpp == pytest.approx(0.690, rel=0.015)


def test_one_jpeg_is_decoded_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    original = _image._PillowImage.decode

    def spy(self: Any) -> NDArray[np.uint8]:
        decoded.append(self.path.name)
        return original(self)

    monkeypatch.setattr(_image._PillowImage, "decode", spy)
    monkeypatch.setattr(_image, "_last_decoded", _image._LastDecoded())
    sdata = read_st_folder(data_dir / "her2st", sections=["B4"], image_mpp=0.69)
    image = sdata["B4_image"]["scale0"]["image"].data
    image[:, :64, :64].compute()
    assert image[:, 5000:5600, 5000:5600].compute().std() > 5  # tissue, not background
    assert decoded == ["B4.jpg"]


def test_spots_lie_on_tissue(data_dir: Path) -> None:
    """Tissue is darker than the glass; swapped or mirrored centres land on both."""
    sdata = read_st_folder(data_dir / "her2st", sections=["C6"])
    level = sdata["C6_image"]["scale4"]["image"].to_numpy().mean(axis=0)
    x, y = (sdata["table"].obsm["spatial"] / 16).astype(int).T
    (height, width), on_tissue = level.shape, level[y, x].mean()
    mirrored = (level[y, width - 1 - x], level[height - 1 - y, x], level[x.clip(0, height - 1), y.clip(0, width - 1)])
    assert on_tissue < min(values.mean() for values in mirrored) - 10


@pytest.mark.parametrize("section", ["B4", "C2", "C6"])
def test_adjusted_names_tell_the_places_without_positions(data_dir: Path, tmp_path: Path, section: str) -> None:
    """As aligned count files have them: on an image cropped to the frame they are where ST Spot Detector put them."""
    folder = data_dir / "her2st"
    table = pd.read_csv(folder / f"{section}_selection.tsv", sep="\t", dtype={"new_x": str, "new_y": str})
    adjusted = {f"{row.x}x{row.y}": f"{row.new_x}x{row.new_y}" for row in table.itertuples()}
    lines = gzip.decompress((folder / f"{section}.tsv.gz").read_bytes()).decode().splitlines()
    named = [line.split("\t", 1) for line in lines[1:]]
    renamed = [f"{adjusted[name]}\t{rest}" for name, rest in named if name in adjusted]
    (tmp_path / "A.tsv").write_text("\n".join([lines[0], *renamed]))
    image = folder / f"{section}.jpg"
    without = read_st(tmp_path / "A.tsv", image)
    joined = read_st(tmp_path / "A.tsv", image, folder / f"{section}_selection.tsv")
    known = read_st_folder(folder, sections=[section])
    for sdata in (without, joined):
        np.testing.assert_array_equal(sdata["table"].X.toarray(), known["table"].X.toarray())
        np.testing.assert_allclose(sdata["table"].obsm["spatial"], known["table"].obsm["spatial"], atol=0.006)
    assert without.attrs["agl_sc"]["image_mpp"]["A_image"] == pytest.approx(0.689, rel=0.01)


def test_visium_mouse_brain(data_dir: Path) -> None:
    sdata = read_visium(data_dir / "visium" / "mousebrain_V10F24-078_A1", name="A1")
    table = sdata["table"]
    assert table.shape == (2399, 31053)
    assert sdata.attrs["agl_sc"]["image_mpp"]["A1_image"] == pytest.approx(4.14, rel=0.015)
    assert spot_pitch_px(table.obsm["spatial"], "visium") == pytest.approx(23.9, rel=0.01)
    assert sdata["A1_image"]["scale0"]["image"].shape == (3, 1937, 2000)
    assert table.var_names.is_unique
    assert not table.var_names[table.var["gene_ids"] == "ENSMUSG00000051951"].str.contains("_").any()


def test_visium_sections_with_different_genes(data_dir: Path) -> None:
    folder = data_dir / "visium"
    names = {"A1": "mousebrain_V10F24-078_A1", "K": "kidneyorganoid_V19D02-085_B1"}
    table = read_visium({name: folder / path for name, path in names.items()})["table"]
    assert table.obs["section"].value_counts().to_dict() == {"A1": 2399, "K": 413}
    assert table.var["gene_ids"].is_unique
    human = table.var["gene_ids"].str.startswith("ENSG").to_numpy()
    assert table[table.obs["section"] == "A1", human].X.nnz == 0
    assert table[table.obs["section"] == "K", human].X.nnz > 100_000
