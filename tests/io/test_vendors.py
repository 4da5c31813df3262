"""Slides in the formats of scanners: level by level, pixel by pixel, and from the file to spots on tissue."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.io.slide_files import painted
from tests.io.vendor_files import write_czi, write_dicom, write_mrxs, write_ndpi, write_scn

from agl_sc.io import _openslide, read_slide
from agl_sc.io._openslide import vendor_of
from agl_sc.io._slide import is_slide, open_slide

pytest.importorskip("openslide", reason="the extra slides is not installed")

Pixels = NDArray[np.uint8]
SKIPPED = {(row, column) for row in range(8) for column in range(8) if row > 3 or column > 4} | {(0, 3)}
"""Photos beside the tissue of :func:`painted`, and one of glass between."""

# where each puts the pixels (x, y), and the size (width, height) that it takes of them
WRITERS: dict[str, tuple[Callable[..., Path], dict[str, Any], tuple[int, int], tuple[int, int]]] = {
    "hamamatsu": (lambda folder, *a, **o: write_ndpi(folder / "S.ndpi", *a, **o), {}, (0, 0), (512, 256)),
    "leica": (
        lambda folder, *a, **o: write_scn(folder / "S.scn", *a, **o),
        {"glass_px": (800, 1200), "at_px": (200, 600)},
        (200, 600),
        (512, 256),
    ),
    "mirax": (lambda folder, *a, **o: write_mrxs(folder / "S.mrxs", *a, **o), {}, (0, 0), (484, 244)),
    "dicom": (lambda folder, *a, **o: write_dicom(folder / "S", *a, **o), {}, (0, 0), (512, 256)),
    "zeiss": (lambda folder, *a, **o: write_czi(folder / "S.czi", *a, **o), {}, (0, 0), (512, 256)),
}


@pytest.mark.parametrize("vendor", WRITERS)
def test_levels_scale_and_pixels_are_those_of_the_file(tmp_path: Path, vendor: str) -> None:
    write, options, (left, top), (width, height) = WRITERS[vendor]
    down, across = np.mgrid[:256, :512]
    waves = 128 + 100 * np.sin((down + 2 * across) / 30)
    pixels = np.stack([down, across / 2, waves], axis=-1).astype(np.uint8)  # the same nowhere, smooth enough for JPEG
    path = write(tmp_path, pixels, **options)
    assert vendor_of(path) == vendor
    levels, scale = open_slide(path)
    assert scale is not None
    assert (scale.x, scale.y, scale.magnification) == pytest.approx((0.5, 0.5, 20))
    for step, level in zip((1, 2, 4), levels, strict=False):
        part = np.asarray(level[:, top // step : (top + height) // step, left // step : (left + width) // step])
        expected = pixels[:height:step, :width:step].transpose(2, 0, 1)
        assert np.abs(part.astype(int) - expected).mean() < 4
        whole = np.asarray(level)
        assert (whole[:, : max(0, top // step - 8)] == 255).all()
        np.testing.assert_array_equal(whole[:, 5:70, 30:90], np.asarray(level[:, 5:70, 30:90]))


@pytest.mark.parametrize(
    ("vendor", "options"),
    [("leica", {}), ("mirax", {"skipped": SKIPPED}), ("dicom", {"skipped": SKIPPED})],
    ids=["a glass with a scan on it", "photos never taken", "frames never taken"],
)
def test_spots_lie_on_tissue_and_fat_alone_whatever_the_scanner_left_out(
    tmp_path: Path, vendor: str, options: dict[str, Any]
) -> None:
    write, placed, (left, top), _ = WRITERS[vendor]
    sdata = read_slide(write(tmp_path, painted(512, 512), mpp=8, **placed, **options), name="S", spacing_um=200)
    x, y = (sdata["table"].obsm["spatial"] - (left, top)).T
    assert ((x > 45) & (x < 245) & (y > 55) & (y < 185)).all()
    assert (x < 150).sum() > 15
    assert (x > 150).sum() > 12
    assert sdata["S_tissue"].shape[0] * 2 > sdata["S_image"]["scale0"].image.shape[1]


def test_a_folder_with_one_dicom_series_is_a_slide_and_one_with_two_is_asked_about(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "series", painted(256, 512))
    levels, scale = open_slide(tmp_path / "series")
    assert [level.shape for level in levels] == [(3, 256, 512), (3, 128, 256), (3, 64, 128)]
    assert scale == open_slide(file)[1]
    assert is_slide(file)
    assert is_slide(file.parent)
    assert not is_slide(tmp_path)
    write_dicom(tmp_path / "series", painted(256, 512), series=2)
    with pytest.raises(
        ValueError, match=r"series' holds 2 DICOM series; give a file of the one to read, such as '.*dcm'"
    ):
        open_slide(tmp_path / "series")
    assert [level.shape for level in open_slide(file)[0]] == [level.shape for level in levels]


def test_a_folder_without_a_slide_is_no_slide(tmp_path: Path) -> None:
    (tmp_path / "other.dcm").write_bytes(b"\x00" * 200)
    with pytest.raises(ValueError, match=r"OME-Zarr"):
        open_slide(tmp_path)


def test_formats_that_need_openslide_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_dicom(tmp_path / "series", painted(256, 512))
    monkeypatch.setattr(_openslide, "has_openslide", lambda: False)
    for path in (file, file.parent, write_mrxs(tmp_path / "S.mrxs", painted(256, 512)), write_czi(tmp_path / "S.czi", painted(256, 512))):  # fmt: skip
        with pytest.raises(ValueError, match=r"is opened by OpenSlide, which is not installed; pip install"):
            open_slide(path)


def test_a_mrxs_without_its_folder_is_named(tmp_path: Path) -> None:
    path = write_mrxs(tmp_path / "S.mrxs", painted(256, 512))
    shutil.rmtree(tmp_path / "S")
    with pytest.raises(
        ValueError, match=r"S\.mrxs' is only the preview of a slide, whose pixels are in the folder 'S' beside it"
    ):
        open_slide(path)
