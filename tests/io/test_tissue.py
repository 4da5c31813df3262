from collections.abc import Callable
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.io.slide_files import GLASS, painted

from agl_sc.io._tissue import DARK, Tissue, find_tissue, given_tissue

TISSUE, FAT = np.s_[65:175, 55:145], np.s_[65:175, 155:232]

from_array: Callable[..., da.Array] = da.from_array


def _found(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    level = from_array(pixels.transpose(2, 0, 1), chunks=(3, 100, 100))
    return find_tissue([level], 8.0, name="S").labels


@pytest.fixture(scope="module")
def clean() -> NDArray[np.uint8]:
    return _found(painted())


def test_tissue_and_fat_are_in_and_glass_is_out(clean: NDArray[np.uint8]) -> None:
    assert (clean[TISSUE] > 0).mean() > 0.99
    assert (clean[FAT] > 0).mean() > 0.99
    outside = np.ones(clean.shape, dtype=bool)
    outside[50:190, 40:250] = False
    assert not clean[outside].any()


def test_nothing_of_a_clean_slide_is_dark(clean: NDArray[np.uint8]) -> None:
    assert not (clean == DARK).any()


def test_ink_black_borders_and_smears_are_left_out_and_folds_flagged() -> None:
    rng = np.random.default_rng(1)
    pixels = painted()
    pixels[:, -30:] = 5  # black, to the edge and over two corners
    pixels[190:230, 60:120] = (20, 60, 190)  # ink beside the tissue
    pixels[100:120, 60:80] = (30, 150, 90)  # and over it
    pixels[20:55, 100:200] = rng.normal((236, 205, 226), 1, (35, 100, 3))  # stain on glass
    pixels[140:152, 60:140] = rng.normal((60, 20, 60), 10, (12, 80, 3)).clip(0, 255)  # a fold
    labels = _found(pixels)
    for part in (np.s_[:, -30:], np.s_[190:230, 60:120], np.s_[102:118, 62:78], np.s_[22:50, 102:198]):
        assert (labels[part] > 0).mean() < 0.02
    assert (labels[142:150, 65:135] == DARK).mean() > 0.9
    assert (labels[65:95, 60:140] == 1).mean() > 0.99
    assert (labels[FAT] > 0).mean() > 0.99


@pytest.mark.parametrize("strip", [1, 2, 12])
@pytest.mark.parametrize("level", [0, 70], ids=["glass as usual", "grey glass"])
def test_white_that_fills_an_image_up_is_no_example_of_glass(level: int, strip: int) -> None:
    """As Space Ranger shrinks them: a frame of 2,000 px, the picture grey, what is left of the frame white."""
    pixels = (painted().astype(int) - level).clip(0, 254).astype(np.uint8)
    expected = _found(pixels)
    pixels[-strip:] = pixels[:, :strip] = 255
    labels = _found(pixels)
    assert not labels[-strip:].any()
    assert not labels[:, :strip].any()
    assert (labels[TISSUE] > 0).mean() > 0.99
    assert ((labels > 0) == (expected > 0)).mean() > 0.98


def test_of_a_brain_on_grey_glass_in_a_frame_of_dots_the_brain_is_found(data_dir: Path) -> None:
    """Space Ranger's own image, with strips of white of 4 px and fiducials; its 2,478 spots on tissue, 100 um apart, cover 21.5 mm2."""
    with Image.open(data_dir / "visium/mousebrain_V10F24-078_B1/spatial/tissue_hires_image.png") as image:
        pixels = np.asarray(image)[..., :3]
    found = find_tissue([from_array(pixels.transpose(2, 0, 1), chunks=(3, 500, 500))], 4.18, name="B1")
    area = (found.labels > 0).sum() * np.prod(found.factor) * 4.18**2 / 1e6
    assert 20 < area < 25


@pytest.mark.parametrize("side", [300, 512, 900])
def test_how_much_glass_there_is_beside_it_does_not_matter(side: int) -> None:
    labels = _found(painted(side, side))
    assert (labels[TISSUE] > 0).mean() > 0.99
    assert (labels[FAT] > 0).mean() > 0.99
    labels[50:190, 40:250] = 0
    assert not labels.any()


def test_white_where_nothing_was_scanned_is_no_tissue_whatever_its_outline() -> None:
    pixels = painted(400, 500)
    expected = _found(pixels)
    pixels[240:, 60:200] = pixels[300:, :280] = pixels[:200, 330:] = 255  # to the edge, in steps
    pixels[210:250, 280:320] = 255  # and in the middle
    labels = _found(pixels)
    assert ((labels > 0) == (expected > 0)).mean() > 0.99
    assert (labels[FAT] > 0).mean() > 0.99


def test_white_glass_is_glass() -> None:
    pixels = painted()
    pixels[np.abs(pixels.astype(int) - np.array(GLASS)).max(axis=2) < 12] = 255
    labels = _found(pixels)
    assert (labels[TISSUE] > 0).mean() > 0.99
    assert not labels[:40].any()


def test_tissue_in_every_corner_but_with_glass_between_is_found() -> None:
    pixels = painted()
    turned = np.roll(pixels, (120, 150), axis=(0, 1))  # now tissue is in the corners
    labels = _found(turned)
    expected = np.roll(np.pad(np.ones((120, 190), bool), ((60, 60), (50, 60))), (120, 150), axis=(0, 1))
    assert ((labels > 0) == expected).mean() > 0.95


def test_glass_alone_and_tissue_alone_are_refused() -> None:
    rng = np.random.default_rng(0)
    glass = (GLASS + rng.normal(0, 1, (240, 240, 3))).astype(np.uint8)
    with pytest.raises(ValueError, match=r"No tissue was found on 'S'.*pass tissue= a mask"):
        _found(glass)
    tissue = rng.normal((150, 90, 150), 25, (240, 240, 3)).clip(0, 255).astype(np.uint8)
    with pytest.raises(
        ValueError, match=r"All of 'S' was taken for tissue.*tissue=numpy\.ones\(\(1, 1\), dtype=bool\)"
    ):
        _found(tissue)


def test_shares_count_the_square_around_a_place() -> None:
    labels = np.zeros((10, 20), np.uint8)
    labels[:, 10:] = 1
    labels[:5, 15:] = DARK
    tissue = Tissue(labels, (4.0, 2.0))
    centres = np.array([[20.0, 20.0], [30.0, 20.0], [2.0, 20.0], [36.0, 8.0], [500.0, 0.0]])
    np.testing.assert_allclose(
        tissue.shares(centres, 4.0), np.array([[0.5, 0], [1, 0.25], [0, 0], [1, 1], [0, 0]]), atol=0.13
    )


def test_a_given_mask_covers_the_image_at_any_resolution() -> None:
    tissue = given_tissue(np.array([[0, 7], [0, 7]]), (100, 60), name="S")
    assert tissue.factor == (50.0, 30.0)
    np.testing.assert_array_equal(tissue.labels, [[0, 1], [0, 1]])


@pytest.mark.parametrize("mask", [np.zeros((0, 3), bool), np.ones(3, bool), np.ones((2, 2)), "mask"])
def test_masks_of_another_kind_are_refused(mask: object) -> None:
    with pytest.raises(ValueError, match=r"tissue= of 'S' is .*pass an array \(y, x\)"):
        given_tissue(mask, (10, 10), name="S")


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tissue= of 'S' is empty"):
        given_tissue(np.zeros((2, 2), bool), (10, 10), name="S")
