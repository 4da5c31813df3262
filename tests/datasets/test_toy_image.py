"""The drawing: looks like stained tissue, shows its fields, and nothing else."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_sc.datasets._toy_image import VISIBLE_FIELDS, ToySection, draw_section

FloatArray = NDArray[np.float64]


@pytest.fixture(scope="module")
def section() -> ToySection:
    return draw_section(np.random.default_rng(3), 18)


def tiles(section: ToySection, half_px: int) -> list[FloatArray]:
    """Square crops around the spots, each (3, 2 half_px, 2 half_px)."""
    image = section.image.astype(float)
    corners = np.round(section.centres).astype(int) - half_px
    return [image[:, y : y + 2 * half_px, x : x + 2 * half_px] for x, y in corners]


def test_every_tile_lies_in_the_image(section: ToySection) -> None:
    assert section.image.dtype == np.uint8
    assert section.image.shape[0] == 3
    assert (section.centres >= 56).all()
    assert (section.centres <= section.image.shape[1] - 56).all()


def test_spots_lie_on_tissue_and_the_corners_are_glass(section: ToySection) -> None:
    corners = [section.image[:, y, x] for y in (slice(30), slice(-30, None)) for x in (slice(30), slice(-30, None))]
    assert min(corner.min() for corner in corners) > 225
    stained = np.array([(tile.min(axis=0) < 225).mean() for tile in tiles(section, 28)])
    assert np.median(stained) > 0.9
    assert (stained > 0.02).mean() > 0.97


def test_grid_is_hexagonal(section: ToySection) -> None:
    distance = np.linalg.norm(section.centres[:, None] - section.centres, axis=-1)
    n_neighbours = (np.abs(distance - 100) < 1e-6).sum(axis=1)
    assert n_neighbours.max() == 6
    assert (n_neighbours == 6).mean() > 0.6
    assert distance[distance > 0].min() == pytest.approx(100)


def test_tissue_is_pink_and_purple(section: ToySection) -> None:
    red, green, blue = section.image.astype(int)
    stained = green < 200
    assert (red[stained] > green[stained]).mean() > 0.9
    assert (blue[stained] > green[stained]).mean() > 0.9
    assert 0.05 < ((red < 130) & stained).sum() / stained.sum() < 0.6, "share of nuclei"


def test_fields_are_standard_and_uncorrelated_over_spots(section: ToySection) -> None:
    values = np.column_stack([section.fields, section.invisible])
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-8)
    np.testing.assert_allclose(values.T @ values / len(values), np.eye(len(VISIBLE_FIELDS) + 1), atol=1e-8)


def test_fields_are_smooth_over_the_tissue(section: ToySection) -> None:
    distance = np.linalg.norm(section.centres[:, None] - section.centres, axis=-1)
    values = np.column_stack([section.fields, section.invisible])
    near, far = (np.nonzero(mask) for mask in ((distance > 0) & (distance < 110), (distance > 600) & (distance < 700)))
    assert ((values[near[0]] * values[near[1]]).mean(axis=0) > 0.6).all()
    assert ((values[far[0]] * values[far[1]]).mean(axis=0) < 0.3).all()


def test_morphology_shows_the_visible_fields_only(section: ToySection) -> None:
    crops = tiles(section, 56)
    red_cells = [((tile[0] - tile[2] > 60) & (tile[1] < 130)).mean() for tile in crops]
    signs = {
        "epithelium": [(tile[0] < 150).mean() for tile in crops],
        "lymphocytes": [(tile[0] < 95).mean() for tile in crops],
        "adipose": [(tile.min(axis=0) > 225).mean() for tile in crops],
        "haemorrhage": red_cells,
    }
    for name, sign in signs.items():
        assert np.corrcoef(sign, section.fields[:, VISIBLE_FIELDS.index(name)])[0, 1] > 0.4, name
        assert abs(np.corrcoef(sign, section.invisible)[0, 1]) < 0.25, name


def test_collagen_makes_stroma_pinker(section: ToySection) -> None:
    epithelium, lymphocytes, collagen, adipose, blood = section.fields.T
    stroma = (epithelium < 0) & (adipose < 0.5) & (blood < 1) & (lymphocytes < 0.5)
    green = np.array([np.median(tile[1]) for tile in tiles(section, 28)])
    assert np.corrcoef(green[stroma], collagen[stroma])[0, 1] < -0.6


def test_stain_offset_moves_colour_alone() -> None:
    plain, blue = (draw_section(np.random.default_rng(0), 7, stain_offset=offset) for offset in (0.0, 0.5))
    np.testing.assert_array_equal(plain.fields, blue.fields)
    np.testing.assert_array_equal(plain.centres, blue.centres)
    ratio = [np.log(245 / image.astype(float).mean(axis=(1, 2))) for image in (plain.image, blue.image)]
    assert ratio[1][0] > 1.2 * ratio[0][0], "haematoxylin absorbs red"
    assert ratio[1][1] < 1.2 * ratio[0][1], "eosin, which absorbs green, is paler"
