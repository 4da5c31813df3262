from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile
from matplotlib.contour import QuadContourSet
from PIL import Image
from scipy.spatial import cKDTree
from tests.io.slide_files import painted, write_svs

from agl_sc import pl
from agl_sc.io import _openslide, read_slide
from agl_sc.io._slide import lattice_points

MASK = np.zeros((24, 30), dtype=bool)
MASK[6:18, 5:24] = True


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_svs(tmp_path_factory.mktemp("slides") / "slide.svs", painted(), mpp=8, magnification=1.25)


def test_a_slide_becomes_image_mask_spots_and_a_table_without_genes(svs: Path) -> None:
    sdata = read_slide(svs, patient="P")
    table = sdata["table"]
    assert list(sdata.images) == ["slide_image"]
    assert list(sdata.labels) == ["slide_tissue"]
    assert list(sdata.shapes) == ["slide"]
    assert table.n_vars == 0
    assert table.X is None
    assert set(table.obs["section"]) == {"slide"}
    assert set(table.obs["patient"]) == {"P"}
    assert sdata.attrs["agl_sc"]["image_mpp"] == {"slide_image": 8.0}
    np.testing.assert_allclose(table.obsm["spatial"], sdata["slide"].geometry.get_coordinates().to_numpy())
    x, y = table.obsm["spatial"].T
    assert x.min() > 48 - 4
    assert x.max() < 240 + 4
    assert y.min() > 60 - 4
    assert y.max() < 180 + 4
    assert len(table) == pytest.approx(120 * 190 * 64 / (100**2 * np.sqrt(3) / 2), rel=0.15)
    assert (table.obs["tissue_share"] >= 0.5).all()
    assert (table.obs["dark_share"] == 0).all()


def test_image_stays_in_the_file_with_the_levels_that_it_has(svs: Path) -> None:
    image = read_slide(svs, tissue=MASK)["slide_image"]
    assert [level.image.shape for level in image.children.values()] == [(3, 240, 300), (3, 120, 150), (3, 60, 75)]


@pytest.mark.parametrize(("lattice", "n_neighbours"), [("hex", 6), ("square", 4)])
def test_spots_of_a_lattice_are_as_far_apart_as_asked_for(lattice: Any, n_neighbours: int) -> None:
    places, centres = lattice_points((1000, 1200), 50.0, lattice, name="S")
    assert len({tuple(place) for place in places}) == len(centres)
    distances, _ = cKDTree(centres).query(centres, k=7)
    inner = ((centres > 100) & (centres < (1100, 900))).all(axis=1)
    np.testing.assert_allclose(distances[inner, 1 : n_neighbours + 1], 50.0)
    assert (distances[inner, n_neighbours + 1 :] > 60).all()
    assert ((centres >= 0) & (centres <= (1200, 1000))).all()


def test_several_slides_become_one_with_their_own_scales_and_masks(svs: Path, tmp_path: Path) -> None:
    Image.fromarray(painted()[:200]).save(tmp_path / "other.png")
    sdata = read_slide(
        {"A": svs, "B": tmp_path / "other.png"},
        image_mpp={"A": 8.0, "B": 10.0},
        tissue={"A": MASK, "B": np.ones((1, 1), bool)},
        spacing_um=200,
        lattice="square",
    )
    assert sdata.attrs["agl_sc"]["image_mpp"] == {"A_image": 8.0, "B_image": 10.0}
    assert sdata["table"].obs["section"].value_counts().to_dict() == {"A": 8 * 5, "B": 15 * 10}
    assert sdata["B"]["radius"].unique() == pytest.approx([0.275 * 200 / 10])


def test_store_comes_back_the_same(svs: Path, tmp_path: Path) -> None:
    import spatialdata

    sdata = read_slide(svs, tissue=MASK)
    sdata.write(tmp_path / "slide.zarr")
    again = spatialdata.read_zarr(tmp_path / "slide.zarr")
    assert again["table"].shape == sdata["table"].shape
    np.testing.assert_array_equal(again["slide_image"]["scale0"].image, sdata["slide_image"]["scale0"].image)


def test_tiles_are_drawn_with_the_outline_of_the_mask(svs: Path) -> None:
    axes = pl.tiles(read_slide(svs, tissue=MASK), n=2, tile_px=16, mpp=8.0)
    (outline,) = [found for found in axes[0].collections if isinstance(found, QuadContourSet)]
    left, top, right, bottom = np.array(outline.get_paths()[0].get_extents().extents)
    np.testing.assert_allclose((left, top, right, bottom), (50, 60, 240, 180), atol=5)


def test_without_openslide_a_slide_that_is_a_tiff_is_read_and_another_names_the_extra(
    svs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_openslide, "has_openslide", lambda: False)
    assert read_slide(svs, tissue=MASK)["slide_image"]["scale0"].image.shape == (3, 240, 300)
    Image.fromarray(painted()).save(tmp_path / "slide.mrxs", format="JPEG")
    with pytest.raises(ValueError, match=r"slide\.mrxs' is opened by OpenSlide, .*pip install 'agl-sc\[slides\]'"):
        read_slide(tmp_path / "slide.mrxs", image_mpp=0.5)


def test_scale_that_the_file_contradicts_is_refused_or_on_demand_taken(svs: Path) -> None:
    with pytest.raises(ValueError, match=r"image_mpp=4 of 'slide' contradicts .*pass trust_file=False"):
        read_slide(svs, image_mpp=4.0, tissue=MASK)
    sdata = read_slide(svs, image_mpp=4.0, tissue=MASK, trust_file=False)
    assert sdata.attrs["agl_sc"]["image_mpp"] == {"slide_image": 4.0}


def test_scale_that_nobody_knows_is_asked_for(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", painted(), photometric="rgb")
    with pytest.raises(ValueError, match=r"x\.tif' does not say how many microns a pixel has; pass image_mpp="):
        read_slide(tmp_path / "x.tif")


def test_tissue_that_no_spot_fits_on_is_refused(svs: Path) -> None:
    small = np.zeros((240, 300), bool)
    small[100:103, 100:103] = True
    with pytest.raises(ValueError, match=r"tissue of 'slide' \(0\.00058 mm2\) is too small .* smaller spacing_um="):
        read_slide(svs, tissue=small, spacing_um=500)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"spacing_um": 0}, r"spacing_um=0 is not a positive number of microns; 100"),
        ({"spacing_um": "x"}, r"spacing_um='x' is not a positive number of microns; 100"),
        ({"lattice": "cubic"}, r"lattice='cubic' is not one of hex, square"),
        ({"spacing_um": 0.01}, r"has [\d,]+ spots, more than 2,000,000; pass a larger spacing_um="),
    ],
)
def test_lattices_that_cannot_be_are_refused(svs: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_slide(svs, tissue=MASK, **changed)


def test_paths_that_lead_nowhere_are_refused(svs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"The slide '.*none\.svs' does not exist"):
        read_slide(tmp_path / "none.svs")
    with pytest.raises(ValueError, match=r"is a folder, not a slide, and no OME-Zarr .*; give the file"):
        read_slide(tmp_path)
    with pytest.raises(ValueError, match=r"name='A' is for one slide; the keys of path name the sections \(B\)"):
        read_slide({"B": svs}, name="A")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"patient": True}, r"patient=True of 'slide' is a bool, not a name"),
        ({"name": 3}, r"name=3"),
        ({"trust_file": "no"}, r"trust_file='no'"),
    ],
)
def test_arguments_of_another_kind_are_refused(svs: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        read_slide(svs, tissue=MASK, **changed)
    with pytest.raises(TypeError, match=r"path=None is a NoneType, not a path"):
        read_slide(cast("Any", None))


def test_patients_may_be_numbers(svs: Path) -> None:
    sdata = read_slide(svs, tissue=MASK, patient=cast("Any", 0))
    assert set(sdata["table"].obs["patient"]) == {"0"}
