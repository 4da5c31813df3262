from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from spatialdata import SpatialData, get_pyramid_levels

from agl_sc import pl

TILES: dict[str, Any] = {"tile_px": 20, "mpp": 10.0}
"""Of the image's own resolution."""


def boxes(ax: Axes) -> list[tuple[float, float, float]]:
    """Left, top and side."""
    return [(p.get_x(), p.get_y(), p.get_width()) for p in ax.patches if isinstance(p, Rectangle)]


def image_of(sdata: SpatialData, section: str) -> Any:
    return np.asarray(get_pyramid_levels(sdata.images[f"{section}_image"], n=0)).transpose(1, 2, 0)


def test_every_tile_is_what_its_box_encloses(sdata: SpatialData) -> None:
    section, *sheet = pl.tiles(sdata, n=8, **TILES)
    image, found = image_of(sdata, "C2"), boxes(section)
    assert len(sheet) == len(found) == 8
    for ax, (left, top, side) in zip(sheet, found, strict=True):
        assert side == 20
        cut = image[int(top) : int(top + side), int(left) : int(left + side)]
        np.testing.assert_array_equal(ax.images[0].get_array(), cut)


def test_boxes_are_centred_on_spots_and_numbered_as_the_tiles(sdata: SpatialData) -> None:
    section, *sheet = pl.tiles(sdata, section="C6", n=6, **TILES)
    centres = {tuple(c) for c in sdata.tables["table"].obsm["spatial"][30:].tolist()}
    assert {(left + 10, top + 10) for left, top, _ in boxes(section)} <= centres
    assert [text.get_text() for text in section.texts][:6] == [ax.get_title() for ax in sheet] == list("123456")


def test_all_spots_are_outlined_over_the_image(sdata: SpatialData) -> None:
    section = pl.tiles(sdata, **TILES)[0]
    (spots,) = section.collections
    np.testing.assert_allclose(np.asarray(spots.get_offsets()), sdata.tables["table"].obsm["spatial"][:30])
    assert spots.get_linewidths() == [0.6]
    assert section.images
    assert section.get_title() == "C2 · 30 spots\n12 tiles of 200 µm (20 px at 10 µm/px)"
    assert section.texts[-1].get_text() == "200 µm"


def test_tiles_are_resampled_as_the_encoder_sees_them(sdata: SpatialData) -> None:
    from agl_sc.core.tiles.reader import resize

    section, tile = pl.tiles(sdata, n=1, tile_px=16, mpp=20.0)
    ((left, top, side),) = boxes(section)
    assert side == 32
    cut = image_of(sdata, "C2")[int(top) : int(top + side), int(left) : int(left + side)]
    import torch

    expected = resize(torch.from_numpy(cut.transpose(2, 0, 1).copy())[None], 16)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(tile.images[0].get_array(), expected)


def test_view_holds_tiles_wider_than_the_spots(sdata: SpatialData) -> None:
    section = pl.tiles(sdata, tile_px=60, mpp=10.0)[0]
    left, right = section.get_xlim()
    assert all(left <= x and x + side <= right for x, _, side in boxes(section))


def test_tile_beyond_the_image_is_called_padded(sdata: SpatialData) -> None:
    _, *sheet = pl.tiles(sdata, n=30, tile_px=80, mpp=10.0)
    titles = [ax.get_title() for ax in sheet]
    assert "1 (padded)" in titles
    assert any("padded" not in title for title in titles)


def test_same_seed_same_tiles(sdata: SpatialData) -> None:
    first, again, other = (boxes(pl.tiles(sdata, n=5, seed=seed, **TILES)[0]) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("n", [1, 5, 30, 99])
def test_number_of_tiles(sdata: SpatialData, n: int) -> None:
    assert pl.tiles(sdata, n=n, **TILES).shape == (1 + min(n, 30),)


def test_axes_of_the_user(sdata: SpatialData, tmp_path: Path) -> None:
    figure, axes = plt.subplots(1, 4)
    assert [*pl.tiles(sdata, n=3, ax=axes, save=tmp_path / "tiles.png", **TILES)] == [*axes]
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match=r"shape \(1, 4\), but \(1, 3\) \(section and tiles\)"):
        pl.tiles(sdata, n=2, ax=axes, **TILES)


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"n": 0}, "n=0 is not a positive number of tiles"),
        (KeyError, {"section": "c2"}, "Section 'c2' is not among .* did you mean C2"),
        (ValueError, {"tile_px": 2}, "tile_px=2 is not"),
        (ValueError, {"mpp": 1.0}, "needs 10.0x up-sampling"),
        (ValueError, {"image_mpp": 5.0}, "contradicts the st spot pitch"),
    ],
)
def test_bad_arguments(*, sdata: SpatialData, error: type[Exception], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(error, match=message):
        pl.tiles(sdata, **TILES | arguments)
    assert not plt.get_fignums()


def test_section_without_image_has_no_tiles(sdata: SpatialData) -> None:
    del sdata.images["C2_image"]
    with pytest.raises(ValueError, match="No image shares a coordinate system with 'C2'"):
        pl.tiles(sdata, section="C2", **TILES)


def test_no_text_overlaps_another(sdata: SpatialData) -> None:
    section, *sheet = pl.tiles(sdata, n=12, tile_px=8, mpp=10.0)
    figure = section.figure.canvas.figure
    figure.draw_without_rendering()
    texts = [section.title, *section.texts, *(ax.title for ax in sheet)]
    extents = [text.get_window_extent() for text in texts]
    for i, box in enumerate(extents):
        assert not [texts[j].get_text() for j in range(i) if box.overlaps(extents[j])], texts[i].get_text()
