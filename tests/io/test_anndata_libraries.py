"""What ``uns["spatial"]`` holds, under the names that people use."""

from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData
from tests.io.test_anndata import FULL_SIZE, PITCH_PX, level0, make, pixels

from agl_sc.io import from_anndata
from agl_sc.io._anndata_libraries import kind_of, libraries_of, opened

RGB = pixels(0).transpose(2, 0, 1)


@pytest.mark.parametrize("label", [151507, np.int64(151507), 151507.0, np.float32(7.0), "151507", "a"], ids=repr)
def test_numbers_are_names_too(label: Any) -> None:
    adata = make(["s1"])
    adata.uns["spatial"] = {label: adata.uns["spatial"]["s1"]}
    adata.obs["sample"] = label
    name = str(int(label)) if not isinstance(label, str) else label
    given: list[dict[str, Any]] = [{}, {"library_key": "sample"}, {"library_key": "sample", "image_mpp": {label: 3.0}}]
    for options in given:
        sdata = from_anndata(adata.copy(), **options)
        assert sdata.coordinate_systems == [name]
        assert set(sdata["table"].obs["region"]) == {name}
        np.testing.assert_array_equal(level0(sdata, name), RGB)


def test_several_numbered_libraries() -> None:
    parts = {number: make(["s1"]) for number in (151507, 151508)}
    for number, part in parts.items():
        part.uns["spatial"] = {number: part.uns["spatial"]["s1"]}
    both = anndata.concat(parts, label="sample", uns_merge="unique", index_unique="-")
    with pytest.raises(ValueError, match=r"2 libraries \(151507, 151508\); pass library_key="):
        from_anndata(both)
    patients: dict[Any, Any] = {151507: "P", 151508: 4}
    sdata = from_anndata(both, library_key="sample", patient=patients)
    assert sorted(sdata.coordinate_systems) == ["151507", "151508"]
    assert both.obs["patient"].tolist() == ["P"] * 30 + ["4"] * 30


def test_a_number_and_its_text_are_one_name() -> None:
    with pytest.raises(
        ValueError, match=r"libraries of uns\['spatial'\] must be unique, but 1 appear more than once: 1;"
    ):
        libraries_of({"spatial": {1: {}, "1": {}}})


@pytest.mark.parametrize("flag", [True, np.bool_(True), np.array(True), "yes", 1, None], ids=repr)
def test_flags_are_no_libraries(flag: Any) -> None:
    adata = make(["s1"])
    adata.uns["spatial"] = {"is_single": flag, **adata.uns["spatial"]}
    assert from_anndata(adata).coordinate_systems == ["s1"]
    assert adata.uns["spatial"]["is_single"] is flag


def test_no_level_of_libraries() -> None:
    adata = make(["s1"])
    adata.uns["spatial"] = adata.uns["spatial"]["s1"]
    np.testing.assert_array_equal(level0(from_anndata(adata), "section"), RGB)


@pytest.mark.parametrize(
    "stored", [np.zeros((30, 2)), [], "spatial", None], ids=["coordinates", "list", "text", "none"]
)
def test_no_libraries_at_all(stored: Any) -> None:
    adata = make(["s1"])
    adata.uns["spatial"] = stored
    with pytest.raises(
        KeyError, match=r"uns\['spatial'\] has no library 'section' \(it has none\); pass image=, or keep them"
    ):
        from_anndata(adata)
    sdata = from_anndata(adata, pixels(0, FULL_SIZE), technology="ST")
    assert sdata["section"]["radius"].unique() == pytest.approx(PITCH_PX / 4)


@pytest.mark.parametrize("image_key", [None, "hires", "same"])
@pytest.mark.parametrize(
    "key", ["hires", "hires_image", "tissue_hires_image", "image_hires", "Hires", "hi-res", "high_res"]
)
@pytest.mark.parametrize("factor", ["tissue_hires_scalef", "hires", "hires_scalef", "tissue_hires"])
def test_images_by_any_of_their_names(key: str, factor: str, image_key: str | None) -> None:
    adata = make(["s1"])
    library = adata.uns["spatial"]["s1"]
    library["images"] = {"lowres": library["images"]["lowres"], key: library["images"]["hires"]}
    library["scalefactors"] = {factor: 0.5, "tissue_lowres_scalef": 0.25, "spot_diameter_fullres": 55.0}
    sdata = from_anndata(adata, image_key=key if image_key == "same" else image_key)
    np.testing.assert_array_equal(level0(sdata, "s1"), RGB)
    np.testing.assert_allclose(sdata["s1"].get_coordinates(), adata.obsm["spatial"] * 0.5)


@pytest.mark.parametrize("key", ["fullres", "full_res", "full", "fullres_image"])
@pytest.mark.parametrize("factor", [{}, {"tissue_fullres_scalef": 1.0}], ids=["no factor", "factor"])
def test_the_full_resolution_image_goes_first_and_has_factor_one(key: str, factor: dict[str, float]) -> None:
    adata = make(["s1"])
    library = adata.uns["spatial"]["s1"]
    library["images"][key] = pixels(7, FULL_SIZE)
    library["scalefactors"] |= factor
    sdata = from_anndata(adata)
    np.testing.assert_array_equal(level0(sdata, "s1"), pixels(7, FULL_SIZE).transpose(2, 0, 1))
    np.testing.assert_array_equal(sdata["s1"].get_coordinates(), adata.obsm["spatial"])


def only(adata: AnnData, *keys: str) -> None:
    library = adata.uns["spatial"]["s1"]
    library["images"] = dict.fromkeys(keys, library["images"]["hires"])
    library["scalefactors"] = {f"tissue_{key}_scalef": 0.5 for key in keys} | {"spot_diameter_fullres": 55.0}


def test_the_only_image_whatever_it_is_called() -> None:
    adata = make(["s1"])
    only(adata, "0.5_mpp_150_buffer")
    np.testing.assert_allclose(from_anndata(adata)["s1"].get_coordinates(), adata.obsm["spatial"] * 0.5)


def test_several_images_of_other_names_need_the_key() -> None:
    adata = make(["s1"])
    only(adata, "a", "b")
    with pytest.raises(
        KeyError, match="no image hires or lowres; it has a, b; name one of them with image_key=, or pass image="
    ):
        from_anndata(adata)
    np.testing.assert_array_equal(level0(from_anndata(adata, image_key="b"), "s1"), RGB)


@pytest.mark.parametrize("stored", [{}, {"hires": None}], ids=["none", "empty ones"])
@pytest.mark.parametrize("metadata", [{}, {"source_image_path": "/data/slide.tif"}], ids=["no metadata", "metadata"])
def test_the_full_image_is_asked_for_where_none_is_kept(stored: dict[str, None], metadata: dict[str, str]) -> None:
    adata = make(["s1"])
    adata.uns["spatial"]["s1"] |= {"images": stored, "metadata": metadata}
    where = r" \(its metadata say '/data/slide\.tif'\)" if metadata else ""
    said = (
        rf"no image hires or lowres; it has none; pass image=, the one whose pixels obsm\['spatial'\] counts{where}\."
    )
    with pytest.raises(KeyError, match=said):
        from_anndata(adata)
    full = np.zeros((*FULL_SIZE, 3), np.uint8)
    np.testing.assert_allclose(from_anndata(adata, full)["s1"].get_coordinates(), adata.obsm["spatial"])


def test_both_mends_for_a_missing_scale_factor_work() -> None:
    adata = make(["s1"])
    factors = adata.uns["spatial"]["s1"]["scalefactors"]
    scale = factors.pop("tissue_hires_scalef")
    with pytest.raises(
        KeyError,
        match=r"lack 'tissue_hires_scalef'; .*; put it into uns\['spatial'\]\['s1'\]\['scalefactors'\] .*or pass image=",
    ):
        from_anndata(adata)
    assert from_anndata(adata.copy(), np.zeros((*FULL_SIZE, 3), np.uint8)).images
    adata.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"] = scale
    assert from_anndata(adata).images


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), np.array([0.5])], ids=repr)
def test_scale_factors_however_they_are_stored(value: Any) -> None:
    adata = make(["s1"])
    adata.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"] = value
    np.testing.assert_allclose(from_anndata(adata)["s1"].get_coordinates(), adata.obsm["spatial"] * 0.5)


@pytest.mark.parametrize("key", ["tissue_hires_scalef", "spot_diameter_fullres", "microns_per_pixel"])
@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, "0.5", True, np.array([1.0, 2.0])], ids=repr)
def test_scale_factors_that_are_no_positive_numbers(key: str, value: Any) -> None:
    adata = make(["s1"])
    adata.uns["spatial"]["s1"]["scalefactors"][key] = value
    with pytest.raises(
        ValueError, match=rf"{key}=.* of library 's1' is not a positive number; correct it in uns\['spatial'\]\['s1'\]"
    ):
        from_anndata(adata)


@pytest.mark.parametrize(
    "stored",
    [
        pixels(0), pixels(0) / 255, (pixels(0) / 255).astype(np.float32), pixels(0).astype(float), pixels(0).astype(np.float32),
        pixels(0).astype(np.int64), pixels(0).astype(np.uint16), pixels(0) + 0.3 * (pixels(0) < 255),
    ],
    ids=["bytes", "shares", "float32 shares", "floats to 255", "float32 to 255", "int64", "uint16", "resampled"],
)  # fmt: skip
def test_images_however_their_numbers_are_stored(stored: Any) -> None:
    np.testing.assert_array_equal(opened(stored, "s1"), RGB)


@pytest.mark.parametrize(
    "stored", [pixels(0) * 1.004 / 255, pixels(0) * 257.0, pixels(0).astype(np.int16) - 1, np.full((9, 9, 3), 3)],
    ids=["overshooting shares", "16 bits", "negative", "dark"],
)  # fmt: skip
def test_images_whose_numbers_could_be_anything(stored: Any) -> None:
    with pytest.raises(ValueError, match="must have 3 channels of uint8"):
        opened(stored, "s1")


@pytest.mark.parametrize(
    ("key", "kind"),
    [("hires", "hires"), ("tissue_lowres_scalef", "lowres"), ("tissue_hires_image", "hires"), ("fullres", "fullres"), ("a_b", "a_b"), ("spot_diameter_fullres", "spot_diameter_fullres")],
)  # fmt: skip
def test_kind_of_an_image(key: str, kind: str) -> None:
    assert kind_of(key) == kind


def test_metadata_alone_are_no_library() -> None:
    """As spatialdata-io leaves them beside the libraries that it makes of images."""
    adata = make(["s1"])
    adata.uns["spatial"] = {"sample": {"metadata": {"software_version": "3"}}, **adata.uns["spatial"]}
    assert [*from_anndata(adata).shapes] == ["s1"]


def test_scale_factors_of_one_library_agree() -> None:
    """The hires image of half the size with the factor of the lowres one."""
    adata = make(["s1"])
    adata.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"] = 0.25
    with pytest.raises(
        ValueError,
        match=r"images of library 's1' are of several sizes at full resolution \(hires of 1600 px, lowres of 800 px\); pass the image",
    ):
        from_anndata(adata)
    del adata.uns["spatial"]["s1"]["images"]["lowres"]
    from_anndata(adata)


def test_an_image_of_another_size_than_the_positions_count_is_refused() -> None:
    """Of twice the resolution, which all spots would lie inside of."""
    adata = make(["s1"])
    twice = np.repeat(np.repeat(pixels(7, FULL_SIZE), 2, axis=0), 2, axis=1)
    with pytest.raises(
        ValueError, match=r"several sizes at full resolution \(image= of 1600 px, hires of 800 px, lowres of 800 px\)"
    ):
        from_anndata(adata, twice)
    del adata.uns["spatial"]["s1"]["images"]
    from_anndata(adata, twice)
