"""Which image of a file, and what is refused by its header."""

import logging
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from agl_sc.io._image import open_image, open_levels

Pixels = NDArray[np.uint8]


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)


def write_images(path: Path, *images: NDArray[Any]) -> None:
    with tifffile.TiffWriter(path) as file:
        for image in images:
            file.write(image, photometric="rgb" if image.ndim == 3 else "minisblack", tile=(64, 64), metadata=None)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_the_largest_image_is_taken(
    tmp_path: Path, pixels: Pixels, caplog: pytest.LogCaptureFixture, *, place: int, masked: bool
) -> None:
    """Wherever it is among overviews and labels; a mask of the same size does not count."""
    caplog.set_level(logging.INFO, logger="agl_sc")
    images = [255 - pixels[:70, :90], 255 - pixels[::3, ::2]]
    images.insert(place, pixels)
    if masked:
        images.insert(0, pixels[..., 0])
    write_images(tmp_path / "a.tif", *(image.copy() for image in images))
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif"), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(open_levels(tmp_path / "a.tif")[0], pixels.transpose(2, 0, 1))
    assert f"holds {len(images)} images: took the largest, of 300 x 200 px" in caplog.text


def test_a_small_overview_does_not_stand_for_a_slide_that_is_not_rgb(tmp_path: Path, pixels: Pixels) -> None:
    write_images(tmp_path / "a.tif", pixels[::4, ::4].copy(), np.zeros((400, 400), np.uint16))
    with pytest.raises(ValueError, match=r"has axes YX, shape \(400, 400\) and dtype uint16"):
        open_image(tmp_path / "a.tif")


def write_named(path: Path, images: dict[str, Pixels]) -> None:
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, image in images.items():
            file.write(image, photometric="rgb", tile=(64, 64), metadata={"Name": name} if name else None)


@pytest.mark.parametrize("write", ["named", "stack", "apart"])
def test_of_images_of_one_size_one_is_named(tmp_path: Path, pixels: Pixels, write: str) -> None:
    """By name where the file names them, by number always; the sentence's own mend is followed."""
    images = [pixels, 255 - pixels, pixels[::-1].copy()]
    path = tmp_path / "a.ome.tif"
    if write == "named":
        write_named(path, {"label": pixels[:50, :50].copy(), **dict(zip(("H&E", "IHC", "#3"), images, strict=True))})
        known = {"H&E": images[0], "IHC": images[1], "1": images[0], "3": images[2], "0": pixels[:50, :50]}
    else:
        with tifffile.TiffWriter(path, ome=False) as file:
            for image in images:
                file.write(image, photometric="rgb", tile=(64, 64), metadata={} if write == "apart" else None)
        known = {str(index): image for index, image in enumerate(images)}
    with pytest.raises(
        ValueError, match=r"a\.ome\.tif' has 3 images that are the largest; it has .*: name one by its"
    ) as caught:
        open_image(path)
    mend = str(caught.value).split("'")[-2]
    np.testing.assert_array_equal(open_image(mend), pixels.transpose(2, 0, 1))
    for name, image in known.items():
        np.testing.assert_array_equal(open_image(f"{path}#{name}"), image.transpose(2, 0, 1))
        assert [level.shape for level in open_levels(f"{path}#{name}")] == [(3, *image.shape[:2])]
    with pytest.raises(
        ValueError, match=r"a\.ome\.tif' has no images named 'CD8'; it has 0.*, 1.*, 2.*: name one by its"
    ):
        open_image(f"{path}#CD8")


def test_a_sign_in_the_name_of_a_file_names_no_image(tmp_path: Path, pixels: Pixels) -> None:
    tifffile.imwrite(tmp_path / "a.tif#1", pixels, photometric="rgb")
    tifffile.imwrite(tmp_path / "a.tif", 255 - pixels, photometric="rgb")
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif#1"), pixels.transpose(2, 0, 1))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"a\.png' is no TIFF, so it holds one image and none named 'x'; give the path without '#x'"
    ):
        open_image(tmp_path / "a.png#x")
    with pytest.raises(FileNotFoundError, match=r"The image file '.*b\.tif#1' does not exist"):
        open_image(tmp_path / "b.tif#1")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "strips.tif"])
def test_fourth_channel(tmp_path: Path, pixels: Pixels, name: str) -> None:
    """Dropped where it is opaque, else refused for the first transparent pixel."""

    def write(values: Pixels) -> None:
        if name == "a.png":
            Image.fromarray(values).save(tmp_path / name)
        else:
            tifffile.imwrite(tmp_path / name, values, photometric="rgb", tile=(64, 64) if name == "a.tif" else None)

    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    write(rgba)
    image = open_image(tmp_path / name)
    assert image.chunksize == (3, 200, 300)
    np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))
    rgba[199, 299, 3] = 254
    write(rgba)
    with pytest.raises(ValueError, match=rf"{name}' has .* with transparent pixels, not .*; convert it"):
        open_image(tmp_path / name)


@pytest.mark.parametrize(
    ("photometric", "message"),
    [("separated", r"\(SEPARATED\), not 3 channels"), ("miniswhite", r"\(MINISWHITE\), not 3 channels")],
)
def test_other_colours(tmp_path: Path, pixels: Pixels, *, photometric: Any, message: str) -> None:
    values = np.dstack([pixels, pixels[..., :1]]) if photometric == "separated" else pixels
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, planarconfig="contig")
    with pytest.raises(ValueError, match=message):
        open_image(tmp_path / "a.tif")


def png_of(width: int, height: int) -> bytes:
    """A black image that compresses to nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj()
    rows = b"".join(packer.compress(bytes(3 * width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def with_memory(monkeypatch: pytest.MonkeyPatch, n_bytes: float) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes, total=n_bytes))


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(3000, 2000))
    assert path.stat().st_size < 30_000
    with_memory(monkeypatch, 59.9e6)
    with pytest.raises(
        ValueError,
        match=r"Decoding the 3,000 x 2,000 px of '.*bomb\.png' takes 0\.1 GB of memory, and 0\.1 GB are available; save",
    ):
        open_image(path)
    with_memory(monkeypatch, 60e6)
    image = open_image(path)
    with_memory(monkeypatch, 1e6)
    with pytest.raises(ValueError, match=r"0\.1 GB of memory, and 0\.0 GB are available"):
        np.asarray(image)


def test_one_strip_for_all_is_refused_and_tiles_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((2000, 3000, 3), np.uint8)
    tifffile.imwrite(tmp_path / "strip.tif", values, photometric="rgb", compression="zlib", rowsperstrip=2000)
    tifffile.imwrite(tmp_path / "tiles.tif", values, photometric="rgb", compression="zlib", tile=(512, 512))
    with_memory(monkeypatch, 20e6)
    with pytest.raises(
        ValueError, match=r"Decoding a strip of 3,000 x 2,000 px of '.*strip\.tif' takes 0\.0 GB .* save it in tiles"
    ):
        open_image(tmp_path / "strip.tif")
    assert open_image(tmp_path / "tiles.tif").shape == (3, 2000, 3000)


def test_running_out_of_memory_is_not_a_broken_image(
    tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(MemoryError):
        np.asarray(image)


def test_an_image_marked_to_be_turned_is_refused(tmp_path: Path, pixels: Pixels) -> None:
    """Both mends of the sentence are followed: one gives the pixels as viewers show them, the other as they are stored."""
    stored = np.ascontiguousarray(np.rot90(pixels))
    marked = Image.Exif()
    marked[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    for name in ("a.png", "a.jpg", "a.tif"):
        path = tmp_path / name
        Image.fromarray(stored).save(path, exif=marked)
        with pytest.raises(
            ValueError,
            match=rf"{name}' is marked to be shown turned or mirrored \(orientation 6\), .*; save it as shown, .*, or as stored",
        ):
            open_image(path)
        ImageOps.exif_transpose(Image.open(path)).save(tmp_path / "shown.png")
        assert open_image(tmp_path / "shown.png").shape == (3, 200, 300)
        if name == "a.tif":
            with tifffile.TiffFile(path, mode="r+") as file:
                for page in file.pages:
                    page.aspage().tags["Orientation"].overwrite(1)
        else:
            Image.open(path).save(tmp_path / "stored.png", exif=b"")
            path = tmp_path / "stored.png"
        assert open_image(path).shape == (3, 300, 200)
        if name != "a.jpg":
            np.testing.assert_array_equal(open_image(path), stored.transpose(2, 0, 1))
            np.testing.assert_array_equal(open_image(tmp_path / "shown.png"), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", [1, 0, None])
def test_metadata_that_turn_nothing_do_not_matter(tmp_path: Path, pixels: Pixels, orientation: int | None) -> None:
    said = Image.Exif()
    said[ExifTags.Base.Make] = "a microscope"
    if orientation is not None:
        said[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=said)
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), pixels.transpose(2, 0, 1))


def test_colours_of_printers_are_converted_as_told(tmp_path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "a.tif")
    with pytest.raises(
        ValueError, match=r"a\.tif' .*\(SEPARATED\), not 3 channels of uint8; convert it .*PIL\.Image\.open\(path\)"
    ):
        open_image(tmp_path / "a.tif")
    Image.open(tmp_path / "a.tif").convert("RGB").save(tmp_path / "rgb.tif")
    np.testing.assert_array_equal(open_image(tmp_path / "rgb.tif"), pixels.transpose(2, 0, 1))
