from typing import Any

import dask.array as da
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from agl_sc._sdata.sections import Section
from agl_sc.pl._tissue import draw_scale_bar, draw_spots, view_of


def make_section(centres: NDArray[np.float64], *, width: int = 8000, height: int = 6000, n_levels: int = 4) -> Section:
    """A section whose image holds the number of its level in every pixel."""
    full: Any = da.full
    levels = tuple(
        full((3, height >> level, width >> level), level, dtype=np.uint8, chunks=512) for level in range(n_levels)
    )
    return Section(
        name="S",
        rows=np.arange(len(centres)),
        image_key="S_image",
        levels=levels,
        centres=centres,
        radius=50.0,
        image_mpp=None,
        technology=None,
    )


@pytest.mark.parametrize(
    ("far", "level", "factor"),
    [(7000.0, 2, 4), (3900.0, 1, 2), (1800.0, 0, 1), (300.0, 0, 1)],
    ids=["whole slide", "half", "corner", "smaller than wanted"],
)
def test_coarsest_level_with_a_thousand_pixels_along_the_crop(far: float, level: int, factor: int) -> None:
    view = view_of(make_section(np.array([[200.0, 200.0], [far, 400.0]])), size=1.0)
    assert (view.pixels == level).all()
    assert view.pixels.shape == (400 // factor, (far - 200 + 200) // factor, 3)
    assert view.extent == (100, far + 100, 500, 100)


def test_extent_covers_the_crop_in_whole_pixels_of_the_level() -> None:
    view = view_of(make_section(np.array([[203.0, 201.0], [7001.0, 5001.0]])), size=1.0)
    left, right, bottom, top = view.extent
    assert (left, right, bottom, top) == (100, 7104, 5104, 100)  # multiples of 4, outside 103, 7101, 5101, 101
    assert view.pixels.shape[:2] == ((bottom - top) / 4, (right - left) / 4)
    np.testing.assert_array_equal([view.low, view.high], [[103, 101], [7101, 5101]])


def test_level_of_an_odd_size_keeps_its_true_scale() -> None:
    section = make_section(np.array([[200.0, 200.0], [2900.0, 2900.0]]), width=3001, height=3001, n_levels=2)
    view = view_of(section, size=1.0)
    left, right, _, _ = view.extent
    assert (right - left) / view.pixels.shape[1] == pytest.approx(3001 / 1500)


def test_crop_stops_at_the_border_of_the_image_but_the_view_does_not() -> None:
    view = view_of(make_section(np.array([[20.0, 30.0], [900.0, 40.0]])), size=1.0)
    assert view.extent == (0, 1000, 140, 0)
    assert tuple(view.low) == (-80, -70)


def test_large_spots_widen_the_view() -> None:
    view = view_of(make_section(np.array([[1000.0, 1000.0]])), size=3.0)
    assert tuple(view.high - view.low) == (600, 600)
    assert view.height_per_width == 1


def test_spots_beside_the_image_are_refused() -> None:
    section = make_section(np.array([[9000.0, 100.0], [9100.0, 100.0]]))
    with pytest.raises(ValueError, match="No spot of section 'S' lies on its image 'S_image'"):
        view_of(section, size=1.0)


@pytest.mark.parametrize(
    ("mpp", "length_px", "label"),
    [
        (1.0, 2000, "2 mm"),
        (0.7, 1000 / 0.7, "1 mm"),
        (0.1, 2000, "200 µm"),
        (5.0, 2000, "10 mm"),
        (1e-4, 2000, "0.2 µm"),
    ],
)
def test_scale_bar_has_a_round_length(mpp: float, length_px: float, label: str) -> None:
    view = view_of(make_section(np.array([[100.0, 100.0], [7900.0, 5900.0]])), size=1.0)
    ax = plt.figure().add_subplot()
    draw_scale_bar(ax, view, mpp=mpp, fontsize=7)
    (bar,) = ax.lines
    assert float(np.ptp(np.asarray(bar.get_xdata()))) == pytest.approx(length_px)
    assert [text.get_text() for text in ax.texts] == [label]


@pytest.mark.parametrize(("n_spots", "expected"), [(20_000, False), (20_001, True)])
def test_very_many_spots_are_rasterised(n_spots: int, expected: bool) -> None:
    section: Any = make_section(np.zeros((n_spots, 2)))
    ax = plt.figure().add_subplot()
    draw_spots(ax, section, np.zeros(n_spots), size=1.0, cmap=plt.get_cmap("viridis"), norm=Normalize(0, 1))
    assert bool(ax.collections[0].get_rasterized()) is expected
