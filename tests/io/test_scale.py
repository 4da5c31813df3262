import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tests.io.slide_files import write_svs

from agl_sc.io._scale import FileScale, agreed_mpp, compare_with_spots, scale_of_properties, scale_of_tiff

PIXELS = np.zeros((16, 16, 3), np.uint8)


def _tiff(path: Path, **options: Any) -> Path:
    file = path / "image.ome.tif" if options.pop("ome", False) else path / "image.tif"
    tifffile.imwrite(file, PIXELS, photometric="rgb", **options)
    return file


@pytest.mark.parametrize(
    ("unit", "side"),
    [("µm", 0.5), ("nm", 500.0), ("mm", 0.0005), (None, 0.5)],
)
def test_ome_states_the_side_of_a_pixel_in_any_unit(tmp_path: Path, unit: str | None, side: float) -> None:
    units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    metadata = {"axes": "YXS", "PhysicalSizeX": side, "PhysicalSizeY": side, **units}
    found = scale_of_tiff(_tiff(tmp_path, ome=True, metadata=metadata))
    assert found is not None
    assert found.mpp == pytest.approx(0.5)
    assert "OME" in found.source


@pytest.mark.parametrize(("per_unit", "unit"), [(20_000, 3), (50_800, 2)])
def test_resolution_tags_state_it_in_centimetres_or_inches(tmp_path: Path, per_unit: float, unit: int) -> None:
    found = scale_of_tiff(_tiff(tmp_path, resolution=(per_unit, per_unit), resolutionunit=unit))
    assert found is not None
    assert found.mpp == pytest.approx(0.5)


def test_resolution_of_a_print_tells_nothing(tmp_path: Path) -> None:
    assert scale_of_tiff(_tiff(tmp_path, resolution=(300, 300), resolutionunit=2)) is None
    assert scale_of_tiff(_tiff(tmp_path)) is None


def test_imagej_states_it_in_its_unit(tmp_path: Path) -> None:
    found = scale_of_tiff(_tiff(tmp_path, imagej=True, resolution=(2.0, 2.0), metadata={"unit": "um"}))
    assert found is not None
    assert found.mpp == pytest.approx(0.5)
    assert found.source == "ImageJ's unit"


def test_aperio_states_it_with_the_magnification(tmp_path: Path) -> None:
    found = scale_of_tiff(write_svs(tmp_path / "slide.svs", np.zeros((96, 96, 3), np.uint8)))
    assert found == FileScale(0.25, 0.25, "Aperio's MPP", 40.0)


def test_openslide_states_it_in_properties() -> None:
    entries = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26", "openslide.objective-power": "40"}
    assert scale_of_properties(entries) == FileScale(0.25, 0.26, "openslide.mpp-x and openslide.mpp-y", 40.0)
    assert scale_of_properties({"openslide.mpp-x": "0"}) is None


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (FileScale(0.025, 0.025, "tag"), r"says 0\.025 um per pixel \(tag\), outside 0\.1 to 20"),
        (FileScale(25, 25, "tag"), r"says 25 um per pixel \(tag\), outside 0\.1 to 20"),
        (FileScale(0.25, 0.5, "tag"), r"says 0\.25 x 0\.5 um per pixel \(tag\), pixels that are not square"),
        (FileScale(2.5, 2.5, "tag", 40), r"says 2\.5 um .* a magnification of 40x, which has about 0\.25"),
    ],
)
def test_what_cannot_be_true_is_refused_and_goes_after_what_is_stated(scale: FileScale, said: str) -> None:
    with pytest.raises(ValueError, match=rf"'slide\.svs' {said}.*; pass image_mpp="):
        agreed_mpp(None, scale, Path("slide.svs"), name="S", on_conflict="refuse")
    assert agreed_mpp(0.25, scale, Path("slide.svs"), name="S", on_conflict="refuse") == 0.25


def test_scanners_of_any_make_are_believed() -> None:
    for scale in (
        FileScale(0.2204, 0.2217, "tag", 40),
        FileScale(0.5, 0.5, "tag", 20),
        FileScale(0.35, 0.35, "tag", 40),
    ):
        assert agreed_mpp(None, scale, Path("slide.svs"), name="S", on_conflict="refuse") == pytest.approx(scale.mpp)


def test_contradictions_are_refused_with_both_numbers_unless_the_file_is_not_trusted() -> None:
    scale = FileScale(0.25, 0.25, "tag")
    with pytest.raises(
        ValueError, match=r"image_mpp=0\.5 of 'S' contradicts 'x\.svs', which says 0\.25 um per pixel \(tag\)"
    ):
        agreed_mpp(0.5, scale, Path("x.svs"), name="S", on_conflict="refuse")
    assert agreed_mpp(0.5, scale, Path("x.svs"), name="S", on_conflict="stated") == 0.5
    assert agreed_mpp(0.26, scale, Path("x.svs"), name="S", on_conflict="refuse") == 0.26


def test_nothing_known_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"'x\.png' does not say how many microns a pixel has; pass image_mpp="):
        agreed_mpp(None, None, Path("x.png"), name="S", on_conflict="refuse")


@pytest.mark.parametrize("stated", [0.0, -1, 0.05, 21, float("nan"), True, "x"])
def test_what_is_stated_must_be_possible(stated: Any) -> None:
    with pytest.raises(ValueError, match=r"image_mpp=.* of 'S' is no number of microns per pixel from 0\.1 to 20"):
        agreed_mpp(stated, None, Path("x.png"), name="S", on_conflict="refuse")


def test_a_file_that_contradicts_its_spots_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = _tiff(tmp_path, resolution=(20_000, 20_000), resolutionunit=3)
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    with caplog.at_level(logging.WARNING):
        for path, mpp in ((file, 0.5), (file, 0.52), (tmp_path / "x.png", 3.0)):
            compare_with_spots(path, mpp, name="S")
        assert not caplog.records
        compare_with_spots(file, 1.0, name="S")
    assert f"S: '{file}' says 0.5 um per pixel (TIFF resolution tags), its spots 1, which is taken" in caplog.text


def test_readers_compare_the_scale_of_the_file_with_the_spots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pandas as pd
    from anndata import AnnData

    from agl_sc.io import from_anndata, read_st

    pixels = np.full((340, 320, 3), 200, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "C5.tif", pixels, photometric="rgb", resolution=(20_000, 20_000), resolutionunit=3)
    counts = pd.DataFrame({"FN1": [3, 0, 5], "CD74": [2, 4, 0]}, index=["10x10", "11x10", "10x11"])
    counts.to_csv(tmp_path / "C5.tsv.gz", sep="\t")
    adata = AnnData(np.ones((2, 2), np.float32), obsm={"spatial": np.array([[100.0, 100.0], [200.0, 100.0]])})
    adata.uns["spatial"] = {"L": {"scalefactors": {"spot_diameter_fullres": 50.0}}}
    with caplog.at_level(logging.WARNING):
        read_st(tmp_path / "C5.tsv.gz", tmp_path / "C5.tif", patient="C")
        from_anndata(adata, image=tmp_path / "C5.tif", image_mpp=2.0)
    told = [record.getMessage() for record in caplog.records if "which is taken" in record.getMessage()]
    assert [message.split(":")[0] for message in told] == ["C5", "L"]


def test_of_several_images_the_scale_is_that_of_the_one_named(tmp_path: Path) -> None:
    file = tmp_path / "several.ome.tif"
    with tifffile.TiffWriter(file, ome=True) as tiff:
        for side, mpp in ((64, 0.5), (32, 2.0)):
            sides = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            tiff.write(np.zeros((side, side, 3), np.uint8), photometric="rgb", metadata={"axes": "YXS", **sides})
    found = [scale_of_tiff(file, name) for name in ("", "0", "1")]
    assert [each and each.mpp for each in found] == [0.5, 0.5, 2.0]


def test_images_of_one_size_and_several_scales_tell_nothing(tmp_path: Path) -> None:
    file = tmp_path / "several.ome.tif"
    with tifffile.TiffWriter(file, ome=True) as tiff:
        for mpp in (0.5, 2.0):
            sides = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            tiff.write(PIXELS, photometric="rgb", metadata={"axes": "YXS", **sides})
    assert scale_of_tiff(file, "1") is None
