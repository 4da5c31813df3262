"""AnnData in scanpy's and squidpy's layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import spatialdata as sd
from anndata import AnnData, read_h5ad
from anndata.experimental import read_lazy
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_matrix
from spatialdata import SpatialData

from agl_sc._sdata.sections import sections
from agl_sc.io import from_anndata

mpl.use("Agg")
pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),  # anndata, on every zarr write
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # ome-zarr, on import
    pytest.mark.filterwarnings("ignore::SyntaxWarning:docrep"),  # squidpy, on import
]

PITCH_PX = 100.0  # of the full-resolution image, of which uns holds half the size
FULL_SIZE = (700, 800)
LIBRARIES = ["s1", "s2"]


def pixels(seed: int, size: tuple[int, int] = (350, 400)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def make(libraries: list[str]) -> AnnData:
    rng = np.random.default_rng(0)
    columns, rows = np.meshgrid(np.arange(6), np.arange(5))
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1) * PITCH_PX + 150
    n_spots = 30 * len(libraries)
    adata = AnnData(csr_matrix(rng.poisson(2, (n_spots, 7)).astype(np.float32)))
    adata.obs_names = [f"barcode{i}" for i in range(n_spots)]
    adata.var_names = [f"gene{i}" for i in range(7)]
    adata.obs["library"] = np.repeat(libraries, 30)
    adata.obsm["spatial"] = np.concatenate([centres + i for i in range(len(libraries))])
    adata.uns["spatial"] = {
        name: {
            "images": {"hires": pixels(i).astype(np.float32) / np.float32(255), "lowres": pixels(i)[::2, ::2]},
            "scalefactors": {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25, "spot_diameter_fullres": 55.0},
        }
        for i, name in enumerate(libraries)
    }
    return adata


@pytest.fixture
def one() -> AnnData:
    return make(LIBRARIES[:1])


@pytest.fixture
def two() -> AnnData:
    return make(LIBRARIES)


def level0(sdata: SpatialData, library: str) -> NDArray[np.uint8]:
    return np.asarray(sdata[f"{library}_image"]["scale0"]["image"])


def test_one_library(one: AnnData) -> None:
    sdata = from_anndata(one)
    np.testing.assert_array_equal(level0(sdata, "s1"), pixels(0).transpose(2, 0, 1))
    np.testing.assert_allclose(sdata["s1"].get_coordinates(), one.obsm["spatial"] * 0.5)
    assert sdata["s1"].index.tolist() == one.obs_names.tolist()
    assert sdata["s1"]["radius"].unique().tolist() == [55.0 / 4]
    assert sdata.coordinate_systems == ["s1"]
    assert sdata.attrs["agl_sc"] == {"image_mpp": {}, "technology": {}, "patients_assumed": True}


def test_the_same_object_becomes_the_table_and_only_gains_the_declared_slots(one: AnnData) -> None:
    before = one.copy()
    x, spatial = one.X, one.obsm["spatial"]
    sdata = from_anndata(one)
    assert sdata["table"] is one
    assert one.X is x
    assert one.obsm["spatial"] is spatial
    np.testing.assert_array_equal(x.toarray(), before.X.toarray())
    np.testing.assert_array_equal(spatial, before.obsm["spatial"])
    assert set(one.obs) - set(before.obs) == {"region", "spot_id", "section", "patient"}
    assert set(one.uns) - set(before.uns) == {"spatialdata_attrs"}
    assert list(one.var) == []
    assert set(one.layers) <= {None}  # anndata 0.13 lists X under None
    hires = one.uns["spatial"]["s1"]["images"]["hires"]
    np.testing.assert_array_equal(hires, before.uns["spatial"]["s1"]["images"]["hires"])


def test_several_libraries(two: AnnData) -> None:
    sdata = from_anndata(two, library_key="library", patient={"s1": "P", "s2": "Q"})
    assert set(sdata.coordinate_systems) == set(LIBRARIES)
    assert two.obs["region"].tolist() == two.obs["library"].tolist() == two.obs["section"].tolist()
    assert two.obs["patient"].tolist() == ["P"] * 30 + ["Q"] * 30
    for i, name in enumerate(LIBRARIES):
        np.testing.assert_array_equal(level0(sdata, name), pixels(i).transpose(2, 0, 1))
        rows = two.obs["library"] == name
        np.testing.assert_allclose(sdata[name].get_coordinates(), two.obsm["spatial"][rows] * 0.5)
        assert sdata[name].index.tolist() == two.obs_names[rows].tolist()


@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")  # squidpy on new matplotlib
def test_squidpy_draws_a_layer_written_into_the_table(two: AnnData) -> None:
    import squidpy as sq

    sdata = from_anndata(two, library_key="library")
    planted = np.random.default_rng(1).random(two.shape, dtype=np.float32)
    sdata["table"].layers["agl"] = planted
    axes = sq.pl.spatial_scatter(two, color="gene3", layer="agl", library_key="library", return_ax=True)
    drawn = [np.ma.getdata(axis.collections[0].get_array()) for axis in axes]
    np.testing.assert_allclose(np.concatenate(drawn), planted[:, 3])


def test_zarr_round_trip(two: AnnData, tmp_path: Path) -> None:
    sdata = from_anndata(two, library_key="library", technology="st")
    sdata.write(tmp_path / "a.zarr")
    back = sd.read_zarr(tmp_path / "a.zarr")
    assert back.attrs["agl_sc"] == sdata.attrs["agl_sc"]
    assert back["table"].obs["region"].tolist() == two.obs["region"].tolist()
    np.testing.assert_allclose(back["s2"].get_coordinates(), sdata["s2"].get_coordinates())


def test_converting_twice_and_after_h5ad_gives_the_same(two: AnnData, tmp_path: Path) -> None:
    first = from_anndata(two, library_key="library", technology="st")
    two.write_h5ad(tmp_path / "a.h5ad")
    for adata in (two, read_h5ad(tmp_path / "a.h5ad")):
        again = from_anndata(adata, library_key="library", technology="st")
        assert again.attrs == first.attrs
        np.testing.assert_array_equal(level0(again, "s2"), level0(first, "s2"))


def test_lowres_where_there_is_nothing_better_or_by_name(one: AnnData) -> None:
    by_name = from_anndata(one.copy(), image_key="lowres")
    del one.uns["spatial"]["s1"]["images"]["hires"]
    for sdata in (by_name, from_anndata(one)):
        np.testing.assert_array_equal(level0(sdata, "s1"), pixels(0)[::2, ::2].transpose(2, 0, 1))
        np.testing.assert_allclose(sdata["s1"].get_coordinates(), one.obsm["spatial"] * 0.25)


@pytest.mark.parametrize("kind", ["array", "channels first", "path"])
def test_full_resolution_image(one: AnnData, tmp_path: Path, kind: str) -> None:
    full = pixels(7, FULL_SIZE)
    Image.fromarray(full).save(tmp_path / "full.png")
    image = {"array": full, "channels first": full.transpose(2, 0, 1), "path": tmp_path / "full.png"}[kind]
    sdata = from_anndata(one, image)
    np.testing.assert_array_equal(level0(sdata, "s1"), full.transpose(2, 0, 1))
    np.testing.assert_allclose(sdata["s1"].get_coordinates(), one.obsm["spatial"])
    assert sdata["s1"]["radius"].unique().tolist() == [27.5]


def test_full_resolution_images_of_several_libraries(two: AnnData) -> None:
    sdata = from_anndata(two, {name: pixels(i, FULL_SIZE) for i, name in enumerate(LIBRARIES)}, library_key="library")
    np.testing.assert_array_equal(level0(sdata, "s2"), pixels(1, FULL_SIZE).transpose(2, 0, 1))


def test_image_and_technology_are_enough(one: AnnData) -> None:
    del one.uns["spatial"]
    sdata = from_anndata(one, pixels(0, FULL_SIZE), technology="st")
    assert sdata["section"]["radius"].unique() == pytest.approx(PITCH_PX / 4)  # 100 um at a pitch of 200 um


@pytest.mark.parametrize(
    ("arguments", "in_uns", "expected"),
    [
        ({}, None, None),
        ({"technology": "st"}, None, 4.0),
        ({"image_mpp": 3.5}, None, 3.5),
        ({"image_mpp": {"s1": 3.5}}, 2.0, 3.5),
        ({}, 1.5, 3.0),
        ({"technology": "st"}, 2.02, 4.04),
    ],
    ids=["nothing", "pitch", "stated", "stated beats uns", "uns", "uns within 5 % of the pitch"],
)
def test_microns_per_pixel_of_the_image_used(
    one: AnnData, *, arguments: dict[str, Any], in_uns: float | None, expected: float | None
) -> None:
    if in_uns is not None:
        one.uns["spatial"]["s1"]["scalefactors"]["microns_per_pixel"] = in_uns
    found = from_anndata(one, **arguments).attrs["agl_sc"]["image_mpp"].get("s1_image")
    assert found == (None if expected is None else pytest.approx(expected))


def bins_of(*libraries: str) -> AnnData:
    """As a reader of Visium HD leaves it: bins of 8 um that are 100 px wide, with what Space Ranger says of them."""
    adata = make(list(libraries))
    for name in libraries:
        adata.uns["spatial"][name]["scalefactors"] |= {
            "spot_diameter_fullres": PITCH_PX, "microns_per_pixel": 0.08, "bin_size_um": 8.0
        }  # fmt: skip
    return adata


@pytest.mark.parametrize("known", ["argument", "mapping", "scale factors", "name"])
@pytest.mark.parametrize("lacking", [None, "spot_diameter_fullres", "microns_per_pixel"])
def test_bins_of_visium_hd(known: str, lacking: str | None) -> None:
    """The side in microns may come from three places, the scale from two; the boundary sees all of it."""
    name = "mouse_square_008um" if known == "name" else "mouse"
    adata = bins_of(name)
    factors = adata.uns["spatial"][name]["scalefactors"]
    if known != "scale factors":
        del factors["bin_size_um"]
    if lacking:
        del factors[lacking]
    stated: dict[str, Any] = {"argument": 8, "mapping": {"mouse": 8.0}}
    sdata = from_anndata(adata, technology="visium_hd", bin_um=stated.get(known))
    assert sdata.attrs["agl_sc"] == {
        "image_mpp": {f"{name}_image": pytest.approx(0.16)},
        "technology": {name: "visium_hd"},
        "bin_um": {name: 8.0},
        "patients_assumed": True,
    }
    assert sdata[name]["radius"].unique() == pytest.approx([PITCH_PX / 4])
    (section,) = sections(sdata, sdata["table"])
    assert section.technology == "visium_hd"
    assert section.bins is not None
    assert section.bins.side_um == 8.0
    assert section.bins.side_px == pytest.approx(PITCH_PX / 2)
    assert section.mpp() == pytest.approx(0.16)
    with pytest.raises(ValueError, match=f"of '{name}_image' contradicts the visium_hd spot pitch of 8 um"):
        section.mpp(0.2)


def test_bins_of_several_sides_go_through_zarr(tmp_path: Path) -> None:
    adata = bins_of(*LIBRARIES)
    adata.uns["spatial"]["s2"]["scalefactors"] |= {"bin_size_um": 16.0, "microns_per_pixel": 0.16}
    sdata = from_anndata(adata, technology="visium_hd", library_key="library")
    sdata.write(tmp_path / "a.zarr")
    for each in (sdata, sd.read_zarr(tmp_path / "a.zarr")):
        assert [section.mpp() for section in sections(each, each["table"])] == pytest.approx([0.16, 0.32])


def without(*keys: str) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        where = adata.uns["spatial"]["s1"]
        for key in keys[:-1]:
            where = where[key]
        del where[keys[-1]]

    return change


def set_obs(key: str, value: Any) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        adata.obs[key] = value

    return change


def set_image(image: Any) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        adata.uns["spatial"]["s1"]["images"]["hires"] = image

    return change


def unchanged(adata: AnnData) -> None:
    pass


def drop_spatial(adata: AnnData) -> None:
    del adata.obsm["spatial"]


def third_dimension(adata: AnnData) -> None:
    adata.obsm["spatial"] = np.ones((adata.n_obs, 3))


def repeat_name(adata: AnnData) -> None:
    adata.obs_names = ["same", "same", *adata.obs_names[2:]]


def bins_without_side(adata: AnnData) -> None:
    adata.uns["spatial"]["s1"]["scalefactors"]["microns_per_pixel"] = 0.08


def bins_of_no_side(adata: AnnData) -> None:
    adata.uns["spatial"]["s1"]["scalefactors"]["bin_size_um"] = 0.0


def annotate_otherwise(adata: AnnData) -> None:
    adata.uns["spatialdata_attrs"] = {"region": "other", "region_key": "region", "instance_key": "spot_id"}


def far_away(adata: AnnData) -> None:
    adata.obsm["spatial"] += 9000


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_was_read_lazily_is_refused_and_its_memory_is_not(one: AnnData, tmp_path: Path) -> None:
    one.write_zarr(tmp_path / "a.zarr")
    lazy = read_lazy(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match=r"adata was read lazily, .*; pass adata\.to_memory\(\)"):
        from_anndata(lazy)
    np.testing.assert_array_equal(level0(from_anndata(lazy.to_memory()), "s1"), pixels(0).transpose(2, 0, 1))


REFUSED: list[Any] = [
    pytest.param(drop_spatial, {}, KeyError, r"no obsm\['spatial'\] .*; it has no obsm", id="no centres"),
    pytest.param(third_dimension, {}, ValueError, r"shape \(30, 3\); it must be \(n_spots, 2\)", id="3-d"),
    pytest.param(far_away, {}, ValueError, "No spot of 's1' lies inside its image of 400 x 350 px", id="far"),
    pytest.param(repeat_name, {}, ValueError, r"names of the observations must be unique, .*: same; run adata\.obs_names_make_unique\(\)", id="repeated"),
    pytest.param(annotate_otherwise, {}, ValueError, r"already the table .* other regions \(other\)", id="annotated"),
    pytest.param(set_obs("region", "cortex"), {}, ValueError, r"obs\['region'\] already holds something else", id="region"),
    pytest.param(set_obs("patient", "P"), {"patient": "Q"}, ValueError, r"obs\['patient'\] already holds", id="patient"),
    pytest.param(set_obs("a/b", 1), {}, ValueError, "a/b", id="name that spatialdata refuses"),
    pytest.param(set_obs("half", [None] * 9 + ["s1"] * 21), {"library_key": "half"}, ValueError, r"9 spots have no library", id="no library"),
    pytest.param(unchanged, {"library_key": "lib"}, KeyError, "library_key='lib' is not a column of obs, which has library", id="library_key"),
    pytest.param(set_obs("library", "s9"), {"library_key": "library"}, KeyError, r"no library 's9' \(it has s1\); pass image=", id="unknown library"),
    pytest.param(without("images", "hires"), {"image_key": "hires"}, KeyError, "'s1' has no image hires; it has lowres", id="no such image"),
    pytest.param(without("images"), {}, KeyError, "'s1' has no image hires or lowres; it has none", id="no image"),
    pytest.param(without("scalefactors", "tissue_hires_scalef"), {}, KeyError, "lack 'tissue_hires_scalef'", id="no scale"),
    pytest.param(without("scalefactors", "spot_diameter_fullres"), {}, ValueError, "spot size of library 's1' is unknown", id="no size"),
    pytest.param(unchanged, {"image": pixels(0), "image_key": "hires"}, ValueError, "pass one of them", id="two images"),
    pytest.param(unchanged, {"image": [[0]]}, TypeError, "image of 's1' is a list", id="list"),
    pytest.param(unchanged, {"image": {"s2": pixels(0)}}, KeyError, "image has no entry for s1; it has s2", id="image of another"),
    pytest.param(set_image(pixels(0)[..., 0]), {}, ValueError, "must have 3 channels of uint8", id="grey"),
    pytest.param(set_image(pixels(0) * 300.0), {}, ValueError, "dtype float64, but must have 3 channels of uint8", id="float"),
    pytest.param(unchanged, {"technology": "hd"}, ValueError, r"technology='hd' is unknown", id="technology"),
    pytest.param(bins_without_side, {"technology": "visium_hd"}, ValueError, "side of the bins of library 's1' is unknown; pass bin_um=", id="no side of bins"),
    pytest.param(bins_of_no_side, {"technology": "visium_hd"}, ValueError, "bin_um=0.0 of library 's1' is not a positive number", id="bins of no side"),
    pytest.param(unchanged, {"technology": "visium_hd", "bin_um": {"s2": 8}}, KeyError, "bin_um has no entry for s1; it has s2", id="side of another"),
    pytest.param(unchanged, {"technology": "visium_hd", "bin_um": 8, "image_mpp": 2.0}, ValueError, "image_mpp=2 of 's1' contradicts the visium_hd spot pitch of 8 um", id="bins contradict"),
    pytest.param(unchanged, {"technology": "visium", "bin_um": 8}, ValueError, "bin_um=8 is the side of bins, but technology='visium' has none", id="bins of visium"),
    pytest.param(unchanged, {"image_mpp": -1.0}, ValueError, "not a positive number", id="negative mpp"),
    pytest.param(unchanged, {"technology": "st", "image_mpp": 2.0}, ValueError, "image_mpp=2 of 's1' contradicts", id="contradiction"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "arguments", "error", "message"), REFUSED)
def test_what_is_refused_leaves_adata_as_it_was(
    one: AnnData,
    *,
    change: Callable[[AnnData], None],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    change(one)
    obs, uns = one.obs.copy(), set(one.uns)
    with pytest.raises(error, match=message):
        from_anndata(one, **arguments)
    assert one.obs.equals(obs)
    assert set(one.uns) == uns


def test_several_libraries_need_the_key(two: AnnData) -> None:
    with pytest.raises(ValueError, match=r"2 libraries \(s1, s2\); pass library_key="):
        from_anndata(two)


def test_one_image_for_several_libraries(two: AnnData) -> None:
    with pytest.raises(ValueError, match="One image was given for 2 libraries; pass a mapping with the keys s1, s2"):
        from_anndata(two, pixels(0), library_key="library")


def test_view(one: AnnData) -> None:
    with pytest.raises(ValueError, match=r"adata is a view .* pass adata\.copy\(\)"):
        from_anndata(one[:10])


def test_not_an_anndata(one: AnnData) -> None:
    with pytest.raises(TypeError, match="adata is a SpatialData, not an AnnData"):
        from_anndata(from_anndata(one))


def test_the_size_of_spots_goes_where_the_message_says(one: AnnData) -> None:
    """Without any library in ``uns``, as of a technology that nobody names."""
    del one.uns["spatial"]
    with pytest.raises(ValueError, match=r"put it, in full-resolution pixels, into adata\.uns\.setdefault") as caught:
        from_anndata(one, pixels(0, (700, 800)))
    exec(str(caught.value).split("into ")[1].split(", or name")[0] + " = 40.0", {"adata": one})
    assert from_anndata(one, pixels(0, (700, 800)))["section"]["radius"].eq(20.0).all()
