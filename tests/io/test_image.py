"""Lazy opening of images and the multiscale element."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import xarray
from numpy.typing import NDArray
from PIL import Image
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, get_transformation

from agl_sc.io import _image
from agl_sc.io._image import image_element, open_image, open_levels, rgb_from_array

Pixels = NDArray[np.uint8]


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (700, 1100, 3), dtype=np.uint8)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files decoded through Pillow, in order."""
    names: list[str] = []
    original = _image._PillowImage.decode

    def spy(self: Any) -> Pixels:
        names.append(self.path.name)
        return original(self)

    monkeypatch.setattr(_image._PillowImage, "decode", spy)
    monkeypatch.setattr(_image, "_last_decoded", _image._LastDecoded())
    return names


def save_png(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(path)


def save_pyramid(path: Path, pixels: Pixels) -> None:
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, subifds=1, tile=(256, 256), photometric="rgb")
        tiff.write(pixels[::2, ::2], subfiletype=1, tile=(256, 256), photometric="rgb")


WRITERS = [
    pytest.param("a.png", save_png, id="png"),
    pytest.param("a.tif", lambda path, p: tifffile.imwrite(path, p, tile=(256, 256), photometric="rgb"), id="tiled"),
    pytest.param("a.tif", lambda path, p: tifffile.imwrite(path, p, rowsperstrip=16, photometric="rgb"), id="strips"),
    pytest.param(
        "a.tif",
        lambda path, p: tifffile.imwrite(path, p.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        id="planar",
    ),
    pytest.param(
        "a.ome.tif",
        lambda path, p: tifffile.imwrite(
            path, p.transpose(2, 0, 1).copy(), photometric="minisblack", metadata={"axes": "CYX"}
        ),
        id="ome",
    ),
    pytest.param("a.ome.tif", save_pyramid, id="pyramid"),
    pytest.param("no_suffix", lambda path, p: tifffile.imwrite(path, p, photometric="rgb"), id="content decides"),
]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_formats_open_as_the_same_array(tmp_path: Path, pixels: Pixels, *, name: str, write: Any) -> None:
    write(tmp_path / name, pixels)
    image = open_image(tmp_path / name)
    assert image.dtype == np.uint8
    assert image.chunksize == (3, 512, 512)
    np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))
    region = pickle.loads(pickle.dumps(image))[:, 600:650, 500:530]
    np.testing.assert_array_equal(region, pixels[600:650, 500:530].transpose(2, 0, 1))


def test_jpeg_equals_pillow(tmp_path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as expected:
        np.testing.assert_array_equal(open_image(tmp_path / "a.jpg"), np.asarray(expected).transpose(2, 0, 1))


def test_opening_decodes_nothing_and_chunks_share_one_decoding(
    tmp_path: Path, pixels: Pixels, decoded: list[str]
) -> None:
    save_png(tmp_path / "a.png", pixels)
    image = open_image(tmp_path / "a.png")
    element = image_element(image, name="A")
    assert decoded == []
    element["scale1"]["image"].compute()
    np.asarray(image[:, :5, :5])
    assert decoded == ["a.png"]


def test_threads_wait_for_one_decoding(tmp_path: Path, pixels: Pixels, decoded: list[str]) -> None:
    save_png(tmp_path / "a.png", pixels)
    image = open_image(tmp_path / "a.png")
    with ThreadPoolExecutor(8) as pool:
        tiles = list(pool.map(lambda i: np.asarray(image[:, i : i + 10, :10]), range(0, 80, 10)))
    assert decoded == ["a.png"]
    np.testing.assert_array_equal(np.concatenate(tiles, axis=1), pixels[:80, :10].transpose(2, 0, 1))


def test_only_the_last_image_is_kept(tmp_path: Path, pixels: Pixels, decoded: list[str]) -> None:
    save_png(tmp_path / "a.png", pixels)
    save_png(tmp_path / "b.png", pixels[::-1])
    first, second = open_image(tmp_path / "a.png"), open_image(tmp_path / "b.png")
    assert not np.array_equal(np.asarray(first[:, :9, :9]), np.asarray(second[:, :9, :9]))
    np.asarray(first[:, :9, :9])
    assert decoded == ["a.png", "b.png", "a.png"]


def test_replaced_file_is_read_again(tmp_path: Path, pixels: Pixels) -> None:
    save_png(tmp_path / "a.png", pixels)
    np.asarray(open_image(tmp_path / "a.png"))
    save_png(tmp_path / "a.png", 255 - pixels)
    os.utime(tmp_path / "a.png", ns=(1, 1))
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), 255 - pixels.transpose(2, 0, 1))


def test_kept_chunk_does_not_keep_the_slide(tmp_path: Path, pixels: Pixels) -> None:
    save_png(tmp_path / "a.png", pixels)
    tile: Any = np.asarray(open_image(tmp_path / "a.png")[:, :8, :8])
    while tile.base is not None:
        tile = tile.base
    assert tile.nbytes <= 3 * 512 * 512


def test_pillow_limit_on_pixels_is_neither_applied_nor_changed(
    tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_png(tmp_path / "a.png", pixels)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("a.png", "a.jpg"):
        assert np.asarray(open_image(tmp_path / name)).shape == (3, 700, 1100)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize(
    ("name", "mode", "found"),
    [
        ("a.png", "L", "L"),
        ("a.png", "P", "P"),
        ("a.png", "RGBA", "RGBA"),
        ("a.jpg", "CMYK", "CMYK"),
        ("a.png", "I;16", "I;16"),
    ],
)
def test_modes_that_are_refused(tmp_path: Path, pixels: Pixels, *, name: str, mode: str, found: str) -> None:
    image = Image.new(mode, (9, 9)) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    if mode == "RGBA":
        image.putpixel((600, 699), (1, 2, 3, 254))
    image.save(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}' has mode {found}.* not 8-bit RGB; convert it .*convert\('RGB'\)"):
        open_image(tmp_path / name)


def test_16_bit_rgb_png_is_refused_though_pillow_calls_it_rgb(tmp_path: Path, pixels: Pixels) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels.astype(np.uint16) * 200))
    with pytest.raises(ValueError, match=r"has mode RGB;16B \(16 bit\), not 8-bit RGB"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda p: p[..., 0], r"axes YX, shape \(700, 1100\) and dtype uint8"),
        (lambda p: p.astype(np.uint16), "dtype uint16"),
        (lambda p: np.dstack([p, p[..., :1]]), r"shape \(700, 1100, 4\)"),
    ],
    ids=["grey", "16 bit", "rgba"],
)
def test_tiffs_that_are_refused(tmp_path: Path, pixels: Pixels, *, change: Any, found: str) -> None:
    changed = change(pixels)
    tifffile.imwrite(tmp_path / "a.tif", changed, photometric="rgb" if changed.ndim == 3 else "minisblack")
    with pytest.raises(ValueError, match=rf"{found}.* not 3 channels of uint8; convert it"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is not a JPEG, PNG or TIFF image"),
        (b"", "is not a JPEG, PNG or TIFF image"),
        (b"\xff\xd8\xff\xe0\x00", "cannot be read as an image .* is the file complete"),
        (b"\x89PNG\r\n\x1a\n\x00", "cannot be read as an image .* is the file complete"),
        (b"II*\x00\x01", "cannot be read as a TIFF .* is the file complete"),
    ],
    ids=["text", "empty", "jpeg", "png", "tiff"],
)
def test_files_that_are_broken(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.img").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_image(tmp_path / "a.img")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image file '.*no\.png' does not exist"):
        open_image(tmp_path / "no.png")


@pytest.mark.parametrize(
    ("size", "n_levels"), [((1023, 5), 1), ((1024, 5), 2), ((5, 2047), 2), ((5, 2048), 3)], ids=str
)
def test_levels_go_down_below_1024_px(size: tuple[int, int], n_levels: int) -> None:
    element = image_element(da.zeros((3, *size), dtype=np.uint8), name="A")
    assert len(element.children) == n_levels


def test_element_of_an_array(pixels: Pixels) -> None:
    image = pixels.transpose(2, 0, 1)
    element = image_element(image, name="A")
    level0, level1 = element["scale0"]["image"], element["scale1"]["image"]
    assert level0.dims == ("c", "y", "x")
    assert level0.coords["c"].to_numpy().tolist() == ["r", "g", "b"]
    assert level0.data.chunksize == (3, 512, 512)
    assert isinstance(level1.data, da.Array)
    assert float(level0.coords["x"][0]) == 0.5
    assert get_transformation(element, get_all=True) == {"A": Identity()}
    np.testing.assert_array_equal(level0.to_numpy(), image)


@pytest.mark.parametrize("size", [(700, 1100), (2051, 1037), (1031, 9)], ids=str)
def test_coarser_levels_are_those_of_spatialdata(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    element, n_levels = image_element(image, name="A"), int(np.log2(max(size) / 512))
    chunks, colours = (3, 512, 512), ["r", "g", "b"]
    expected = Image2DModel.parse(
        da.from_array(image, chunks=chunks),  # type: ignore[no-untyped-call]
        dims=("c", "y", "x"), c_coords=colours, scale_factors=[2] * n_levels, chunks=chunks, transformations={"A": Identity()},
    )  # fmt: skip
    assert set(element.children) == set(expected.children)
    for level in expected.children:
        found, other = element[level]["image"], expected[level]["image"]
        assert found.data.chunks == other.data.chunks
        xarray.testing.assert_allclose(found, other, rtol=0, atol=1e-9)
        assert found.dtype == other.dtype
        placed: list[Any] = [get_transformation(each, "A") for each in (found, other)]
        matrix, expected_matrix = (each.to_affine_matrix(("y", "x"), ("y", "x")) for each in placed)
        np.testing.assert_allclose(matrix, expected_matrix, atol=1e-12)


def test_float_pixels_become_the_bytes_they_were(pixels: Pixels) -> None:
    as_read: tuple[NDArray[Any], ...] = (pixels / np.float32(255), pixels / 255)
    for floats in as_read:
        converted = rgb_from_array(floats, name="A")
        np.testing.assert_array_equal(converted, pixels.transpose(2, 0, 1))


def test_channels_may_come_first(pixels: Pixels) -> None:
    for same in (pixels.transpose(2, 0, 1), pixels[:, :, None], pixels[None]):  # squidpy has an axis of one z
        np.testing.assert_array_equal(rgb_from_array(same, name="A"), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("as_float", [False, True])
def test_opaque_alpha_is_dropped(pixels: Pixels, as_float: bool) -> None:
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    converted = rgb_from_array(rgba / np.float32(255) if as_float else rgba, name="A")
    np.testing.assert_array_equal(converted, pixels.transpose(2, 0, 1))


def test_dask_stays_lazy(pixels: Pixels) -> None:
    lazy: Any = da
    converted = rgb_from_array(lazy.from_array(pixels), name="A")
    assert isinstance(converted, da.Array)
    np.testing.assert_array_equal(converted, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.astype(np.uint16),
        lambda p: p.astype(np.float32),
        lambda p: np.where(p > 9, np.nan, 0.5),
        lambda p: p[..., 0],
        lambda p: p[..., :2],
        lambda p: np.dstack([p, p[..., :1]]),
        lambda p: p[:0],
        lambda p: p > 9,
    ],
    ids=["uint16", "float beyond 1", "NaN", "grey", "two channels", "transparent", "empty", "bool"],
)
def test_arrays_that_are_refused(pixels: Pixels, *, change: Any) -> None:
    with pytest.raises(ValueError, match=r"image of 'A' has shape .* must have 3 channels of uint8"):
        rgb_from_array(change(pixels), name="A")


def test_lists_are_no_images() -> None:
    with pytest.raises(TypeError, match="image of 'A' is a list; give a path, a numpy array or a dask array"):
        rgb_from_array([[1, 2, 3]], name="A")


@pytest.mark.parametrize("name", ["a.png", "flat.tif", "pyramid.ome.tif"])
def test_levels_of_the_file_are_read_not_computed(tmp_path: Path, pixels: Pixels, name: str) -> None:
    """Down to the first below 1,024 px; coordinates and transformations are those of a computed pyramid."""
    write: Any = {"a.png": save_png, "flat.tif": tifffile.imwrite}.get(name, save_pyramid)
    write(tmp_path / name, pixels)
    levels = open_levels(tmp_path / name)
    assert len(levels) == (2 if "pyramid" in name else 1)
    np.testing.assert_array_equal(levels[0], pixels.transpose(2, 0, 1))
    element = image_element(levels[0], name="S", coarser=levels[1:])
    computed = image_element(levels[0], name="S")
    assert list(element) == list(computed) == ["scale0", "scale1"]
    for scale in element:
        one, other = element[scale]["image"], computed[scale]["image"]
        assert repr(get_transformation(one, get_all=True)) == repr(get_transformation(other, get_all=True))
        for axis in "cyx":
            np.testing.assert_array_equal(one.coords[axis], other.coords[axis])
    if "pyramid" in name:
        np.testing.assert_array_equal(element["scale1"]["image"], pixels[::2, ::2].transpose(2, 0, 1))


def test_file_that_ends_early(tmp_path: Path, pixels: Pixels) -> None:
    """Its directory comes first, as in most files, and its pixels are cut."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"a\.tif' ends before its pixels do \(\d+ of \d+ bytes\); is the file complete"
    ):
        open_image(path)
