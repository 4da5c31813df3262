import json
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import spatialdata
import zarr
from ome_zarr.writer import write_multiscale
from spatialdata.models import Image2DModel
from tests.io.slide_files import painted

from agl_sc.core.tiles.chunks import Chunks
from agl_sc.io import read_slide
from agl_sc.io._ngff import is_ome_zarr, open_ome_zarr

MASK = np.ones((1, 1), dtype=bool)
PIXELS = painted().transpose(2, 0, 1)
BIG = np.random.default_rng(0).integers(0, 256, (3, 4, 2100), dtype=np.uint8)


def write(
    path: Path,
    levels: list[Any],
    *,
    axes: str = "cyx",
    mpp: float | tuple[float, float] = 8.0,
    unit: str | None = "micrometer",
) -> Path:
    """As ome-zarr writes it, units written after it, for some versions drop them; ``mpp`` is of the finest level, (y, x)."""
    sides = dict(zip("yx", np.broadcast_to(mpp, 2).tolist(), strict=True))
    kinds = {"c": {"type": "channel"}, "t": {"type": "time"}}
    stated = [{"name": axis, **kinds.get(axis, {"type": "space", **({"unit": unit} if unit else {})})} for axis in axes]
    scales = [
        [{"type": "scale", "scale": [sides.get(axis, 1.0) * 2**index for axis in axes]}] for index in range(len(levels))
    ]
    write_multiscale(levels, zarr.open_group(path, mode="w"), axes=stated, coordinate_transformations=scales)
    change(path, axes=stated)
    return path


def change(path: Path, **changed: Any) -> None:
    """What the image says of its levels."""
    file = path / "zarr.json"
    said = json.loads(file.read_text())
    said["attributes"]["ome"]["multiscales"][0].update(changed)
    file.write_text(json.dumps(said))


def test_ome_zarr_is_a_slide_with_its_levels_and_its_scale(tmp_path: Path) -> None:
    path = write(tmp_path / "brain.ome.zarr", [PIXELS])
    sdata = read_slide(path)
    assert list(sdata.shapes) == ["brain"]
    assert sdata.attrs["agl_sc"]["image_mpp"] == {"brain_image": 8.0}
    np.testing.assert_array_equal(sdata["brain_image"]["scale0"].image, PIXELS)
    x, y = sdata["table"].obsm["spatial"].T
    assert (x.min() > 44, x.max() < 244, y.min() > 56, y.max() < 184) == (True,) * 4


def test_pixels_stay_in_the_store_and_are_read_past_dask(tmp_path: Path) -> None:
    (image,), _ = open_ome_zarr(write(tmp_path / "s.zarr", [PIXELS]))
    assert isinstance(image, da.Array)
    assert Chunks(image, "s").stored is not None


def test_levels_end_where_they_are_small(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", [BIG[..., ::step] for step in (1, 2, 4, 8)])
    assert [level.shape[2] for level in open_ome_zarr(path)[0]] == [2100, 1050, 525]


@pytest.mark.parametrize(
    ("axes", "stored"),
    [
        ("cyx", PIXELS),
        ("yxc", PIXELS.transpose(1, 2, 0)),
        ("czyx", PIXELS[:, None]),
        ("tczyx", PIXELS[None, :, None]),
    ],
)
def test_any_order_of_axes_is_read(tmp_path: Path, axes: str, stored: Any) -> None:
    path = tmp_path / "s.zarr"
    write(path, [PIXELS])
    zarr.open_group(path, mode="r+").create_array("s0", data=stored, overwrite=True)
    kinds = {axis: {"name": axis, "type": "space", "unit": "nanometer"} for axis in axes}
    scale = [{"type": "scale", "scale": [500.0 if axis in "yx" else 1.0 for axis in axes]}]
    datasets = [{"path": "s0", "coordinateTransformations": scale}]
    change(path, axes=list(kinds.values()), datasets=datasets)
    (image,), scale_found = open_ome_zarr(path)
    np.testing.assert_array_equal(image, PIXELS)
    assert scale_found is not None
    assert scale_found.mpp == pytest.approx(0.5)


def test_scale_of_the_image_goes_on_top_of_that_of_its_level(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", [PIXELS], mpp=1.0)
    change(path, coordinateTransformations=[{"type": "scale", "scale": [1.0, 4.0, 4.0]}])
    assert read_slide(path, tissue=MASK).attrs["agl_sc"]["image_mpp"] == {"s_image": 4.0}


@pytest.mark.parametrize("unit", [None, "parsec", "pixel"])
def test_without_a_unit_of_length_the_scale_is_asked_for(tmp_path: Path, unit: str | None) -> None:
    path = write(tmp_path / "s.zarr", [PIXELS], unit=None)
    axes = [{"name": "c"}, {"name": "y", "unit": unit}, {"name": "x", "unit": unit}]
    change(path, axes=axes)
    with pytest.raises(ValueError, match=r"does not say how many microns a pixel has; pass image_mpp="):
        read_slide(path, tissue=MASK)
    assert read_slide(path, tissue=MASK, image_mpp=2.0).attrs["agl_sc"]["image_mpp"] == {"s_image": 2.0}


@pytest.mark.parametrize(("mpp", "said"), [(50.0, "outside 0.1 to 20"), ((1.0, 2.0), "pixels that are not square")])
def test_scales_that_cannot_be_are_refused(tmp_path: Path, mpp: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_slide(write(tmp_path / "s.zarr", [PIXELS], mpp=mpp), tissue=MASK)


def test_image_of_a_spatialdata_store_is_read_and_asked_for_its_scale(tmp_path: Path) -> None:
    small = Image2DModel.parse(PIXELS[:, :9, :9], dims=("c", "y", "x"))
    image = Image2DModel.parse(PIXELS, dims=("c", "y", "x"), scale_factors=[2])
    spatialdata.SpatialData(images={"he": image, "if": small}).write(tmp_path / "store.zarr")
    for path in (tmp_path / "store.zarr", tmp_path / "store.zarr/images/he"):
        with pytest.raises(ValueError, match=r"does not say how many microns a pixel has"):
            read_slide(path, tissue=MASK)
        found = read_slide(path, name="A", tissue=MASK, image_mpp=8.0)
        np.testing.assert_array_equal(found["A_image"]["scale0"].image, PIXELS)
    assert not is_ome_zarr(tmp_path / "store.zarr")
    assert is_ome_zarr(tmp_path / "store.zarr/images/he")


def test_of_the_series_of_bioformats2raw_the_largest_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "slide.zarr"
    zarr.open_group(path, mode="w").attrs["bioformats2raw.layout"] = 3
    write(path / "0", [PIXELS[:, :50, :50]], mpp=3.0)
    write(path / "1", [PIXELS])
    assert is_ome_zarr(path)
    assert open_ome_zarr(path)[0][0].shape == PIXELS.shape
    write(path / "2", [PIXELS])
    with pytest.raises(ValueError, match=r"has 2 images that are the largest \('.*1', '.*2'\); give one of these"):
        read_slide(path)


@pytest.mark.parametrize("pixels", [PIXELS.astype(np.uint16), np.concatenate([PIXELS, PIXELS[:1]])])
def test_images_that_are_not_rgb_of_8_bits_are_refused(tmp_path: Path, pixels: Any) -> None:
    with pytest.raises(ValueError, match=r"not 3 channels of uint8; save it as 8-bit RGB first"):
        read_slide(write(tmp_path / "s.zarr", [pixels]))


def test_opaque_fourth_channel_is_dropped(tmp_path: Path) -> None:
    pixels = np.concatenate([PIXELS, np.full_like(PIXELS[:1], 255)])
    np.testing.assert_array_equal(open_ome_zarr(write(tmp_path / "s.zarr", [pixels]))[0][0], PIXELS)


def test_damaged_and_other_stores_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", [PIXELS])
    change(path, datasets=[{"path": "gone"}])
    with pytest.raises(ValueError, match=r"s\.zarr' cannot be read as OME-Zarr \(.*gone.*\); is the file complete\?"):
        read_slide(path)
    (path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"s\.zarr' cannot be read as OME-Zarr"):
        read_slide(path)
    assert not is_ome_zarr(path)
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    with pytest.raises(ValueError, match=r"no OME-Zarr with an image in colour; give the file"):
        read_slide(tmp_path / "empty.zarr")
