"""From SpatialData to pixels: tiles against crops cut by brute force."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import shapely
import tifffile
import torch
import zarr
from anndata import AnnData
from numpy.typing import NDArray
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, BaseTransformation, Identity, Scale, Sequence, Translation

from agl_sc._sdata.sections import Section, sections
from agl_sc.core.tiles.reader import tile_batches
from agl_sc.io._image import open_image
from agl_sc.pp._features.placed import place_section
from agl_sc.pp._features.tiles import TileSpec

FloatArray = NDArray[np.float64]
UInt8Array = NDArray[np.uint8]
AXES = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
HEIGHT, WIDTH, SIDE = 300, 340, 40


def noise(seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)


def smooth(seed: int = 0) -> UInt8Array:
    """Blobs of some 20 px, over all grey levels."""
    small = np.random.default_rng(seed).integers(0, 256, (3, HEIGHT // 20, WIDTH // 20), dtype=np.uint8)
    pictures = [Image.fromarray(channel).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for channel in small]
    return np.stack([np.asarray(picture) for picture in pictures])


def centres(seed: int, margin: int = 30) -> FloatArray:
    """Quarters of pixels off the middle of a pixel, so that no rounding is a toss-up."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(margin, (WIDTH - margin, HEIGHT - margin), (12, 2))
    found: FloatArray = whole + rng.choice([-0.25, 0.25], (12, 2))
    return found


def random_affine(rng: np.random.Generator) -> FloatArray:
    """A turn by any angle, perhaps a flip, a stretch, a shear and a shift."""
    angle, flip = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([flip, 1])
    matrix = np.eye(3)
    matrix[:2, :2] = turn @ np.array([[rng.uniform(0.2, 5), rng.uniform(-0.5, 0.5)], [0, rng.uniform(0.2, 5)]])
    matrix[:2, 2] = rng.uniform(-1000, 1000, 2)
    return matrix


def apply(matrix: FloatArray, points: FloatArray) -> FloatArray:
    moved: FloatArray = points @ matrix[:2, :2].T + matrix[:2, 2]
    return moved


def table_of(index: "pd.Index[Any]", region: str) -> AnnData:
    obs = pd.DataFrame({"region": pd.Categorical([region] * len(index)), "spot": index}, index=[f"o{i}" for i in index])
    adata = AnnData(scipy.sparse.csr_matrix((len(index), 1), dtype=np.float32), obs=obs)
    return TableModel.parse(adata, region=region, region_key="region", instance_key="spot")


def circles(points: FloatArray, transformation: BaseTransformation, radius: float = 5.0) -> Any:
    frame = gpd.GeoDataFrame({"geometry": shapely.points(points), "radius": radius}, index=np.arange(len(points)))
    return ShapesModel.parse(frame, transformations={"world": transformation})


def squares(points: FloatArray, transformation: BaseTransformation, side: float = 8.0) -> Any:
    boxes = shapely.box(*(points - side / 2).T, *(points + side / 2).T)
    frame = gpd.GeoDataFrame({"geometry": boxes}, index=np.arange(len(points)))
    return ShapesModel.parse(frame, transformations={"world": transformation})


def points_only(points: FloatArray, transformation: BaseTransformation) -> Any:
    return PointsModel.parse(points, transformations={"world": transformation})


def build(
    pixels: UInt8Array, spots: Any, *, to_world: BaseTransformation | None = None, region: str = "S", **options: Any
) -> SpatialData:
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), transformations={"world": to_world or Identity()}, **options
    )
    index = spots.index if isinstance(spots, gpd.GeoDataFrame) else spots.index.compute()
    kind = "shapes" if isinstance(spots, gpd.GeoDataFrame) else "points"
    return SpatialData(images={"picture": image}, tables={"table": table_of(index, region)}, **{kind: {region: spots}})


def section_of(sdata: SpatialData) -> Section:
    (found,) = sections(sdata, sdata["table"])
    return found


def tiles_of(sdata: SpatialData, spec: TileSpec, image_mpp: float | None = None) -> UInt8Array:
    """In the order of the table."""
    section, boxes = place_section(section_of(sdata), spec, image_mpp)
    tiles = torch.zeros((len(section.rows), 3, spec.tile_px, spec.tile_px), dtype=torch.uint8)
    for numbers, batch in tile_batches(boxes, spec.tile_px, 5):
        tiles[torch.from_numpy(numbers)] = batch
    return tiles.numpy()


def crops(pixels: UInt8Array, at: FloatArray, side: int) -> UInt8Array:
    corners = np.round(at - side / 2).astype(int)
    return np.stack([pixels[:, y : y + side, x : x + side] for x, y in corners])


@pytest.mark.parametrize("kind", [circles, squares, points_only], ids=["circles", "squares", "points"])
@pytest.mark.parametrize("seed", range(6))
def test_tiles_are_the_crops_under_random_affine_transforms(kind: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image_to_world, spots_to_world, pixels, at = random_affine(rng), random_affine(rng), noise(seed), centres(seed)
    own = apply(np.linalg.inv(spots_to_world) @ image_to_world, at)
    turned, moved = Affine(image_to_world, **AXES), Affine(spots_to_world, **AXES)
    shift = Translation([3.0, -4.0], axes=("x", "y"))
    sdata = build(pixels, kind(own - [3, -4], Sequence([shift, moved])), to_world=turned)
    np.testing.assert_array_equal(tiles_of(sdata, TileSpec(SIDE, "image"), 1.0), crops(pixels, at, SIDE))


@pytest.mark.parametrize("mpp", [0.6, 1.3, 1.7, 2.0, 3.1])
@pytest.mark.parametrize("seed", range(2))
def test_resampled_tiles_are_within_one_grey_level_of_the_field_of_view(mpp: float, seed: int) -> None:
    """Pillow's, from the finest level, whatever level ours come from; the field lies around the spot, to half a pixel."""
    pixels, at, spec = smooth(seed), centres(seed, margin=70), TileSpec(SIDE, mpp)
    sdata = build(pixels, circles(at, Identity()), scale_factors=[2, 2])
    _, boxes = place_section(section_of(sdata), spec, 1.0)
    scale = WIDTH / boxes.image.shape[2]
    corners, side = boxes.origins[:, ::-1] * scale, boxes.side * scale
    assert np.abs(corners + side / 2 - at).max() <= scale / 2
    assert side == pytest.approx(SIDE * mpp, abs=scale / 2)
    picture = Image.fromarray(pixels.transpose(1, 2, 0))
    fields = [(x, y, x + side, y + side) for x, y in corners]
    exact = [picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=field) for field in fields]
    error = np.stack([np.asarray(tile) for tile in exact]).transpose(0, 3, 1, 2).astype(float) - tiles_of(
        sdata, spec, 1.0
    )
    assert np.abs(error).mean() < 1


LATTICES = [
    pytest.param("st", np.array([[1, 0], [0, 1]]), 200.0, id="st"),
    pytest.param("visium", np.array([[1, 0], [0.5, np.sqrt(0.75)]]), 100.0, id="visium"),
]


@pytest.mark.parametrize(("technology", "basis", "pitch_um"), LATTICES)
def test_the_scale_of_st_and_visium_follows_from_their_grid(
    technology: str, basis: FloatArray, pitch_um: float
) -> None:
    grid = np.array([[i, j] for i in range(-12, 12) for j in range(12)]) @ basis * 25.0
    grid = grid[(grid[:, 0] >= 30) & (grid[:, 0] <= WIDTH - 30)] + [0.25, 30.25]
    grid = grid[grid[:, 1] <= HEIGHT - 30]
    pixels = noise()
    sdata = build(pixels, circles(grid, Identity()))
    sdata.attrs["agl_sc"] = {"technology": {"S": technology}, "image_mpp": {}}
    assert section_of(sdata).mpp() == pytest.approx(pitch_um / 25)
    np.testing.assert_array_equal(tiles_of(sdata, TileSpec(32, "image")), crops(pixels, grid, 32))


@pytest.mark.parametrize("kept", [1.0, 0.1], ids=["all bins", "a tenth of the bins"])
@pytest.mark.parametrize("kind", ["squares", "circles"])
def test_the_scale_of_visium_hd_follows_from_the_name_and_the_side_of_its_bins(kind: str, kept: float) -> None:
    """As spatialdata-io reads them: squares, or circles that touch."""
    grid = np.array([[x, y] for x in range(40, 300, 16) for y in range(40, 260, 16)]) + 0.25
    grid = grid[np.random.default_rng(0).random(len(grid)) < kept]
    scale, pixels = Scale([0.5, 0.5], axes=("x", "y")), noise()
    spots = squares(2 * grid, scale, 32.0) if kind == "squares" else circles(2 * grid, scale, 16.0)
    sdata = build(pixels, spots, region="mouse_square_008um")
    section = section_of(sdata)
    assert section.technology == "visium_hd"
    assert section.mpp() == pytest.approx(0.5)
    np.testing.assert_array_equal(tiles_of(sdata, TileSpec(32, 0.5)), crops(pixels, grid, 32))
    with pytest.raises(ValueError, match="image_mpp=1 of 'picture' contradicts the visium_hd spot pitch of 8 um"):
        section.mpp(1.0)


def test_points_have_half_their_spacing_as_radius() -> None:
    grid = np.array([[x, y] for x in range(40, 300, 20) for y in range(40, 260, 20)], dtype=float)
    assert section_of(build(noise(), points_only(grid, Identity()))).radius == pytest.approx(10)


def test_a_shape_without_place_gets_no_tile() -> None:
    at = centres(0)
    frame = gpd.GeoDataFrame({"geometry": [shapely.Polygon(), *shapely.box(*(at - 4).T, *(at + 4).T)]})
    sdata = build(pixels := noise(), ShapesModel.parse(frame, transformations={"world": Identity()}))
    section, _ = place_section(section_of(sdata), TileSpec(32, "image"), 1.0)
    assert section.rows.tolist() == list(range(1, 13))
    assert section.radius == pytest.approx(8 / np.sqrt(np.pi))
    np.testing.assert_array_equal(tiles_of(sdata, TileSpec(32, "image"), 1.0), crops(pixels, at, 32))


def stored(path: Path, pixels: UInt8Array, at: FloatArray) -> SpatialData:
    build(pixels, circles(at, Identity()), chunks=(3, 64, 64), scale_factors=[2]).write(path)
    return SpatialData.read(path)


@pytest.fixture
def slide(tmp_path: Path) -> tuple[Path, SpatialData, UInt8Array]:
    """A spot in the chunk of row 2 and column 3, and one in that of row 1 and column 1."""
    pixels = np.maximum(smooth(), 1)
    return (
        tmp_path / "s.zarr",
        stored(tmp_path / "s.zarr", pixels, np.array([[224.25, 160.25], [96.25, 96.25]])),
        pixels,
    )


def chunk_file(path: Path, *place: int, level: int = 0) -> Path:
    return path.joinpath("images", "picture", f"s{level}", "c", "0", *map(str, place))


def test_a_slide_on_disk_is_read_straight_from_zarr(slide: tuple[Path, SpatialData, UInt8Array]) -> None:
    _, sdata, pixels = slide
    at = np.array([[224.25, 160.25], [96.25, 96.25]])
    np.testing.assert_array_equal(tiles_of(sdata, TileSpec(32, "image"), 1.0), crops(pixels, at, 32))


def test_a_corrupt_chunk_names_image_level_and_place(slide: tuple[Path, SpatialData, UInt8Array]) -> None:
    path, sdata, _ = slide
    chunk_file(path, 2, 3).write_bytes(b"no chunk")
    with pytest.raises(
        OSError,
        match=r"^Chunk \(row 2, column 3\) of image 'picture' \(level 0\) cannot be decoded .*copy the image again from",
    ):
        tiles_of(sdata, TileSpec(32, "image"), 1.0)


def test_a_missing_chunk_under_a_spot_is_not_taken_for_black(slide: tuple[Path, SpatialData, UInt8Array]) -> None:
    path, sdata, _ = slide
    chunk_file(path, 2, 3).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"Chunk \(row 2, column 3\) of image 'picture' \(level 0\) is not in its"
    ):
        tiles_of(sdata, TileSpec(32, "image"), 1.0)


def test_a_black_margin_that_zarr_left_out_is_black(tmp_path: Path) -> None:
    """Its chunks are absent by right: no spot lies in them, though a tile reaches there."""
    pixels = np.maximum(smooth(), 1)
    pixels[:, :, 256:] = 0
    at = np.array([[248.25, 100.25]])
    sdata = stored(tmp_path / "s.zarr", pixels, at)
    assert not chunk_file(tmp_path / "s.zarr", 1, 4).exists()
    np.testing.assert_array_equal(tiles_of(sdata, TileSpec(32, "image"), 1.0), crops(pixels, at, 32))


def test_a_corrupt_overview_names_its_level(slide: tuple[Path, SpatialData, UInt8Array]) -> None:
    path, sdata, _ = slide
    chunk_file(path, 0, 0, level=1).write_bytes(b"no chunk")
    with pytest.raises(OSError, match=r"Chunk \(row 0, column 0\) of image 'picture' \(level 1\) cannot be decoded"):
        tiles_of(sdata, TileSpec(32, "image"), 1.0)


@pytest.mark.parametrize("suffix", [".tif", ".svs"])
def test_a_pyramidal_tiff_is_read_by_its_tiles(tmp_path: Path, suffix: str) -> None:
    pixels, at = noise(), centres(0)
    with tifffile.TiffWriter(tmp_path / f"slide{suffix}") as tiff:
        tiff.write(pixels.transpose(1, 2, 0), subifds=1, tile=(64, 64), photometric="rgb")
        tiff.write(pixels.transpose(1, 2, 0)[::2, ::2], subfiletype=1, tile=(64, 64), photometric="rgb")
    lazy: Any = open_image(tmp_path / f"slide{suffix}")
    sdata = build(lazy, circles(at, Identity()))
    np.testing.assert_array_equal(tiles_of(sdata, TileSpec(SIDE, "image"), 1.0), crops(pixels, at, SIDE))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_both_formats_of_zarr_are_read(tmp_path: Path, zarr_format: Any) -> None:
    import dask.array as da

    pixels, at = noise(), centres(0)
    zarr.create_array(tmp_path / "z", data=pixels, chunks=(1, 64, 64), zarr_format=zarr_format)
    lazy: Any = da.from_zarr(tmp_path / "z")  # type: ignore[no-untyped-call]
    sdata = build(lazy, circles(at, Identity()))
    np.testing.assert_array_equal(tiles_of(sdata, TileSpec(SIDE, "image"), 1.0), crops(pixels, at, SIDE))
