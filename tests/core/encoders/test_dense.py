"""Features by maps: exact sums, whatever the field; those of tiles where a network knows no borders."""

from dataclasses import replace
from typing import Any

import dask.array
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from agl_sc.core.arrays import Float32Array, FloatArray, Floats
from agl_sc.core.encoders import dense
from agl_sc.core.encoders.dense import Fields, Pass, box_sums, field_blocks, field_rows, n_windows, overlaps
from agl_sc.core.encoders.encode import Recipe
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.encoders.maps import Centred, Maps, maps_of
from agl_sc.core.encoders.stages import WithStages
from agl_sc.core.tiles.reader import Boxes, read_boxes, resize, tile_batches

BACKGROUND = np.array([240, 230, 220], dtype=np.uint8)


class Patches(nn.Module):
    """Two stages without padding, 4 and 8 px a side: nothing sees across its own square."""

    feature_info = ({"num_chs": 3, "reduction": 4}, {"num_chs": 5, "reduction": 8})
    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse = nn.Conv2d(3, 3, 4, stride=4), nn.Conv2d(3, 5, 2, stride=2)

    def forward_intermediates(self, tiles: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        fine = self.fine(tiles).relu()
        coarse = self.coarse(fine)
        return coarse, [fine, coarse]

    def forward_head(self, last: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        assert pre_logits
        return last.mean(dim=(2, 3))


def encoder() -> Encoder:
    module = WithStages(Patches()).eval()
    return Encoder("patches", module, (0.7, 0.6, 0.5), (0.2, 0.3, 0.4), module.num_features, digest="")


def small(network: Encoder, *, core_px: int = 32, halo_px: int = 8) -> Maps:
    maps = maps_of(network)
    assert maps is not None
    return Maps(maps.network, maps.layers, window_px=core_px + 2 * halo_px, halo_px=halo_px, local=maps.local)


def passing(network: Encoder, ways: dense.Ways = ((False, 0),), *, at_once: int = 3, **geometry: int) -> Pass:
    return Pass(network, small(network, **geometry), ways, at_once, torch.device("cpu"), torch.float32)


def fields_at(centres: Floats, side: float, *, ratio: float = 1.0, px: int = 150) -> Fields:
    pixels = np.random.default_rng(0).integers(0, 256, (3, px, px + 17), dtype=np.uint8)
    image: Any = dask.array.from_array(pixels, chunks=(3, 64, 50))  # type: ignore[no-untyped-call]
    return Fields(image, centres.astype(np.float64), side, ratio, BACKGROUND, "", "image")


def features_of(how: Pass, fields: Fields, size: int = 7) -> Float32Array:
    rows = field_rows(how.maps, fields, size)
    features = np.full((len(fields.centres), how.maps.n_features), np.nan, dtype=np.float32)
    for block, values in field_blocks(how, fields, rows=rows, blocks=range(len(rows))):
        features[rows[block]] = values
    return features


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_box_sums_are_those_of_brute_force_on_a_finer_grid(seed: int, n_y: int, n_x: int) -> None:
    """Edges at eighths of a cell: there every cell is 8 x 8 whole squares."""
    randomness = np.random.default_rng(seed)
    cells = randomness.standard_normal((n_y, 2, n_x)).astype(np.float32)
    edges = randomness.integers(-20, 8 * max(n_y, n_x) + 20, (4, 2, 2))
    low, high = np.minimum(edges[..., 0], edges[..., 1]), np.maximum(edges[..., 0], edges[..., 1])
    y, x = (
        torch.from_numpy(overlaps(low[:, i] / 2, high[:, i] / 2, np.linspace(0, 4 * n, n + 1)))
        for i, n in enumerate((n_y, n_x))
    )
    fine = cells.repeat(8, axis=0).repeat(8, axis=2)
    for i, sums in enumerate(box_sums(torch.from_numpy(cells), y, x)):
        (top, left), (bottom, right) = np.maximum(low[i], 0), np.maximum(high[i], 0)
        expected = fine[top:bottom, :, left:right].sum(axis=(0, 2)) / 4
        np.testing.assert_allclose(sums, expected, atol=1e-3, rtol=1e-4)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(1.0, 90.0), st.floats(0.6, 1.9))
def test_fields_are_exact_means_over_the_maps_of_all_windows(seed: int, side: float, ratio: float) -> None:
    how = passing(encoder())
    centres = np.random.default_rng(seed).uniform(-20, 170, (3, 2))
    fields = fields_at(centres, side, ratio=ratio)
    found, expected = features_of(how, fields), by_brute_force(how, fields)
    np.testing.assert_allclose(found[:, :13], expected[:, :13], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        found[:, 13:] ** 2, expected[:, 13:] ** 2, rtol=1e-3, atol=1e-3
    )  # the root magnifies rounding


def shared(low: float, high: float, edges: FloatArray) -> torch.Tensor:
    """What an interval has in common with each of some cells."""
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return torch.tensor([max(0.0, min(high, end) - max(low, start)) for start, end in pairs], dtype=torch.float64)


def by_brute_force(how: Pass, fields: Fields) -> Float32Array:
    """Every value of every window's core, times the area that it shares with the field."""
    grid = dense.Grid.of(how.maps, fields)
    pixel, core = grid.side / grid.window_px, grid.core_px
    features = []
    for centre in fields.centres:
        low, high = (centre - fields.side / 2) / pixel, (centre + fields.side / 2) / pixel
        total: list[Any] = [0.0 for _ in how.maps.layers]
        rows, columns = (range(int(a // core), int(b // core) + 1) for a, b in zip(low, high, strict=True))
        for window in ((row, column) for row in rows for column in columns):
            boxes = replace(grid.boxes(fields, np.array([window])), within=np.zeros((0, 2), dtype=np.int64))
            tile = torch.from_numpy(next(iter(read_boxes(boxes, 1)))[1])
            if not grid.touch_image(fields, np.array([window]))[0]:  # whose resized halo may see the image
                tile = torch.from_numpy(np.broadcast_to(BACKGROUND[:, None, None], tile.shape).copy())
            cells = dense.window_cells(how, resize(tile, grid.window_px))
            for i, (layer, part) in enumerate(zip(how.maps.layers, cells, strict=True)):
                edges = np.arange(0.0, core + 1, layer.cell_px)
                y, x = (shared(low[k] - window[k] * core, high[k] - window[k] * core, edges) for k in (0, 1))
                total[i] = total[i] + torch.einsum("ycx,y,x->c", part[0].double(), y, x).float()
        area = float((high - low).prod())
        with torch.inference_mode():
            features.append(how.maps.features([each[None] / area for each in total]).numpy()[0])
    return np.stack(features)


@pytest.mark.parametrize("way", [(False, 0), (False, 2), (True, 1)])
def test_of_a_network_without_borders_features_are_those_of_tiles(way: tuple[bool, int]) -> None:
    """Tiles that begin where cells begin: what they see is the same, however they lie."""
    network = encoder()
    how = passing(network, (way,))
    centres = np.random.default_rng(0).integers(-2, 10, (20, 2)) * 16.0 + 16
    fields = fields_at(centres, 32.0)
    boxes = Boxes(
        fields.image, (centres - 16).astype(np.int64), 32, 1.0, BACKGROUND, "", "image", np.zeros((0, 2), int)
    )
    expected = np.empty((20, network.n_features), dtype=np.float32)
    with torch.inference_mode():
        for numbers, tiles in read_boxes(boxes, 4):
            laid = torch.from_numpy(tiles).flip(3) if way[0] else torch.from_numpy(tiles)
            expected[numbers] = network(torch.rot90(laid, way[1], (2, 3)))
    np.testing.assert_allclose(features_of(how, fields), expected, atol=1e-5)


def test_sums_over_several_ways_are_their_means() -> None:
    network = encoder()
    fields = fields_at(np.random.default_rng(0).uniform(0, 150, (9, 2)), 41.3)
    ways = [(mirrored, turns) for mirrored in (False, True) for turns in range(4)]
    each = [features_of(passing(network, (way,)), fields) for way in ways]
    together = features_of(passing(network, ways), fields)
    np.testing.assert_allclose(together[:, :13], np.mean(each, axis=0)[:, :13], atol=1e-5)


def test_a_block_is_the_same_bytes_alone_and_with_other_batches() -> None:
    fields = fields_at(np.random.default_rng(0).uniform(-30, 180, (40, 2)), 37.0, ratio=1.3)
    how = passing(encoder())
    rows = field_rows(how.maps, fields, 7)
    assert sorted(np.concatenate(rows)) == list(range(40))
    together = dict(field_blocks(how, fields, rows=rows, blocks=range(len(rows))))
    for block, values in together.items():
        ((number, alone),) = field_blocks(how, fields, rows=rows, blocks=[block])
        assert number == block
        np.testing.assert_array_equal(alone, values)


def test_a_field_does_not_depend_on_which_others_there_are() -> None:
    fields = fields_at(np.random.default_rng(0).uniform(-30, 180, (40, 2)), 60.0)
    how = passing(encoder())
    some = replace(fields, centres=fields.centres[::3])
    np.testing.assert_array_equal(features_of(how, fields)[::3], features_of(how, some))


def test_every_window_is_read_and_passed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = fields_at(np.random.default_rng(0).uniform(0, 150, (60, 2)), 50.0)
    how = passing(encoder(), at_once=1)
    seen: list[tuple[int, ...]] = []

    def counted(boxes: Boxes, *args: Any) -> Any:
        for numbers, tiles in tile_batches(boxes, *args):
            seen.extend(tuple(origin) for origin in boxes.origins[numbers].tolist())
            yield numbers, tiles

    monkeypatch.setattr(dense, "tile_batches", counted)
    features_of(how, fields)
    assert len(seen) == len(set(seen)) == n_windows(how.maps, fields) - 1  # those beyond the image are not read


def test_a_field_beyond_the_image_is_background() -> None:
    fields = fields_at(np.array([[75.0, 75.0], [-500.0, 75.0], [900.0, 900.0]]), 40.0)
    features = features_of(passing(encoder()), fields)
    np.testing.assert_allclose(features[1], features[2], atol=1e-4)
    assert not np.allclose(features[0], features[1], atol=1e-2)


def test_a_field_wider_than_the_image_is_the_mean_of_image_and_background() -> None:
    centre = np.array([[75.0, 83.5]])
    how = passing(encoder())
    wide, inner, empty = (
        features_of(how, fields_at(c, s))[0, :13] for c, s in ((centre, 600.0), (centre, 320.0), (centre - 900, 9.0))
    )
    share = (320 / 600) ** 2
    np.testing.assert_allclose(wide, share * inner + (1 - share) * empty, atol=1e-4)


def of_size(px: int, ratio: float) -> Fields:
    image: Any = dask.array.zeros((3, px, px), dtype=np.uint8)
    return Fields(image, np.zeros((0, 2)), 1.0, ratio, BACKGROUND, "", "image")


def test_windows_shrink_where_the_level_is_far_too_fine_and_are_refused_beyond() -> None:
    maps = Maps(encoder().module, small(encoder()).layers, window_px=576, halo_px=64, local=True)
    large = 448 * 100
    assert dense.Grid.of(maps, of_size(8 * large, 8.0)) == dense.Grid(4608, 3584.0, 512.0, 576, 448)
    far = dense.Grid.of(maps, of_size(20 * large, 20.0))
    assert (far.window_px, far.core_px) == (304, 176)
    assert dense.Grid.of(maps, of_size(60 * large, 60.0)).window_px == 144
    with pytest.raises(ValueError, match=r"sees 100 pixels of the image as one.* pass maps='none' to agl_sc.pp.embed"):
        dense.Grid.of(maps, of_size(100 * large, 100.0))


@pytest.mark.parametrize(("px", "core_px", "n"), [(13_000, 512, 26), (6_500, 512, 13), (1_625, 416, 4), (100, 112, 1)])
def test_windows_of_a_local_network_divide_the_image_so_that_little_is_passed_beside_it(
    px: int, core_px: int, n: int
) -> None:
    maps = Maps(encoder().module, small(encoder()).layers, window_px=576, halo_px=32, local=True)
    maps = replace_unit(maps, 32) if px > 100 else maps
    grid = dense.Grid.of(maps, of_size(px, 1.0))
    assert (grid.core_px, int(np.ceil(px / grid.core_px))) == (core_px, n)


def replace_unit(maps: Maps, stride_px: int) -> Maps:
    """The same with a coarser map, whose values windows must hold whole."""
    layers = (replace(maps.layers[0], stride_px=stride_px), *maps.layers[1:])
    changed = Maps(maps.network, maps.layers, window_px=maps.window_px, halo_px=maps.halo_px, local=True)
    changed.layers = layers
    return changed


def test_what_lies_beyond_the_image_is_passed_once_and_as_background() -> None:
    how = passing(encoder())
    far = fields_at(np.array([[-500.0, 75.0], [900.0, 900.0], [75.0, 2000.0]]), 40.0)
    assert n_windows(how.maps, far) == 1
    plain = np.full((3, 60, 60), BACKGROUND[:, None, None], dtype=np.uint8)
    image: Any = dask.array.from_array(plain, chunks=(3, 30, 30))  # type: ignore[no-untyped-call]
    inside = replace(far, image=image, centres=np.array([[30.0, 30.0]]))
    np.testing.assert_allclose(features_of(how, far), np.repeat(features_of(how, inside), 3, axis=0), atol=1e-5)


@pytest.mark.parametrize("of_tiles", [None, 1, 2])
def test_the_tiles_themselves_are_laid_in_as_many_ways_as_asked(of_tiles: int | None) -> None:
    network = encoder()
    recipe = Recipe(network, 32, 4, maps=small(network), tile_orientations=of_tiles, wider_halo_px=8)
    wide = fields_at(np.full((1, 2), 70.0), 32.0)
    boxes = Boxes(wide.image, np.zeros((5, 2), dtype=np.int64), 32, 1.0, BACKGROUND, "", "image")
    n_windows_of_one = recipe.n_passes(wide) / 4
    assert len(recipe.ways_of(wide)) == 4
    assert [len(recipe.ways_of(seen)) for seen in (replace(wide, wider=False), boxes)] == [of_tiles or 4] * 2
    assert recipe.n_passes(replace(wide, wider=False)) == pytest.approx(n_windows_of_one * (of_tiles or 4), abs=1)
    assert recipe.n_passes(boxes) == 5 * (of_tiles or 4)


@pytest.mark.parametrize(("side", "tile_px"), [(32, 160), (20, 152)])
def test_the_middle_of_a_tile_is_the_mean_over_its_pixels(side: int, tile_px: int) -> None:
    maps, low = small(encoder()), (tile_px - side) // 2
    centred = Centred(maps, side)
    tiles = torch.randn(2, 3, tile_px, tile_px, generator=torch.Generator().manual_seed(side))
    assert centred.tile_px == tile_px
    means = []
    with torch.inference_mode():
        for values, layer in zip(maps(tiles), maps.layers, strict=True):
            pixels = values.repeat_interleave(layer.stride_px, 2).repeat_interleave(layer.stride_px, 3)
            middle = pixels[..., low : low + side, low : low + side]
            means.append(torch.cat([middle, middle**2] if layer.squares else [middle], dim=1).mean(dim=(2, 3)))
        torch.testing.assert_close(centred(tiles), maps.features(means), atol=1e-5, rtol=1e-4)


def test_maps_of_wider_fields_have_a_halo_of_their_own() -> None:
    """Of a network that sees nothing across its own squares the same means; of one that sees far nothing changes."""
    network = encoder()
    recipe = Recipe(network, 32, maps=small(network, core_px=48), wider_halo_px=16)
    wide = fields_at(np.array([[60.0, 75.5], [20.0, 10.0]]), 90.0)
    maps = recipe.maps_of(wide)
    assert (maps.halo_px, maps.core_px, maps.network) == (16, 32, recipe.mapped.network)
    assert recipe.maps_of(replace(wide, wider=False)) is recipe.mapped
    own, other = (features_of(replace(passing(network), maps=each), wide) for each in (recipe.mapped, maps))
    np.testing.assert_allclose(own, other, atol=1e-3)
    far = Maps(maps.network, maps.layers, window_px=64, halo_px=16, local=False)
    assert far.with_halo(8) is far
