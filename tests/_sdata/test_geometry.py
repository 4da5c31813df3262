"""Physical scale from the spot pitch."""

import logging

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_sc._sdata.geometry import PITCH_UM, Bins, bin_side_um, check_mpp, spot_pitch_px, technology_named

Centres = NDArray[np.float64]


def square_grid(pitch_px: float, n: int = 14) -> Centres:
    columns, rows = np.meshgrid(np.arange(n), np.arange(n))
    return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64) * pitch_px + 100.0


def hexagonal_grid(pitch_px: float, n: int = 14) -> Centres:
    columns, rows = np.meshgrid(np.arange(n, dtype=float), np.arange(n, dtype=float))
    columns[1::2] += 0.5
    return np.stack([columns.ravel(), rows.ravel() * np.sqrt(0.75)], axis=1) * pitch_px + 100.0


GRIDS = [pytest.param("st", square_grid(250.0), id="st"), pytest.param("visium", hexagonal_grid(250.0), id="visium")]


@pytest.mark.parametrize(("technology", "centres"), GRIDS)
def test_pitch_of_a_perfect_grid(technology: str, centres: Centres) -> None:
    assert spot_pitch_px(centres, technology) == pytest.approx(250.0, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("technology", "centres"), GRIDS)
def test_pitch_survives_jitter_and_holes(technology: str, centres: Centres, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = centres[rng.random(len(centres)) < 0.8] + rng.normal(0, 8.0, (1, 2))
    assert spot_pitch_px(kept + rng.normal(0, 8.0, kept.shape), technology) == pytest.approx(250.0, rel=0.02)


def test_diagonal_neighbours_at_the_edge_do_not_count() -> None:
    strip = square_grid(250.0)[:28]  # two rows: every spot is at an edge, and has 3 adjacent neighbours at most
    assert spot_pitch_px(strip, "st") == pytest.approx(250.0, rel=1e-9)


def test_rows_without_position_are_left_out() -> None:
    centres = np.concatenate([square_grid(250.0), [[np.nan, 3.0]]])
    assert spot_pitch_px(centres, "st") == pytest.approx(250.0)


@pytest.mark.parametrize("n_spots", [0, 1])
def test_too_few_spots_have_no_pitch(n_spots: int) -> None:
    assert np.isnan(spot_pitch_px(square_grid(250.0)[:n_spots], "st"))


def test_pitch_of_an_unknown_technology() -> None:
    with pytest.raises(
        ValueError, match=r"technology='slideseq' is unknown; use one of \['st', 'visium', 'visium_hd'\]"
    ):
        spot_pitch_px(square_grid(250.0), "slideseq")


@pytest.mark.parametrize(
    ("technology", "centres", "mpp"), [("st", square_grid(250.0), 0.8), ("visium", hexagonal_grid(250.0), 0.4)]
)
def test_mpp_follows_from_the_pitch(technology: str, centres: Centres, mpp: float) -> None:
    assert check_mpp(None, centres, technology, name="A") == pytest.approx(mpp)


@pytest.mark.parametrize("stated", [0.8 * 0.96, 0.8, 0.8 * 1.04])
def test_stated_mpp_within_five_percent_is_kept(stated: float) -> None:
    assert check_mpp(stated, square_grid(250.0), "st", name="A") == stated


@pytest.mark.parametrize("stated", [0.4, 0.75, 0.86, 1.6])
def test_mpp_that_contradicts_the_pitch(stated: float) -> None:
    with pytest.raises(
        ValueError, match=rf"image_mpp={stated} of 'A' contradicts the st spot pitch of 200 um .*0\.8 um/px"
    ):
        check_mpp(stated, square_grid(250.0), "st", name="A")


def test_mpp_without_technology_is_believed() -> None:
    assert check_mpp(0.5, square_grid(250.0), None, name="A") == 0.5


def test_single_spot_believes_what_is_stated() -> None:
    assert check_mpp(0.5, square_grid(250.0)[:1], "st", name="A") == 0.5


def test_nothing_known() -> None:
    with pytest.raises(ValueError, match="microns per pixel of 'A' are unknown; pass image_mpp="):
        check_mpp(None, square_grid(250.0), None, name="A")


@pytest.mark.parametrize("centres", [square_grid(250.0)[:1], np.ones((5, 2))], ids=["one spot", "one place"])
def test_too_few_spots_to_derive(centres: Centres) -> None:
    with pytest.raises(ValueError, match="'A' has fewer than two distinct spots"):
        check_mpp(None, centres, "st", name="A")


@pytest.mark.parametrize("stated", [0, -0.5, float("nan"), float("inf"), "0.5", True])
def test_mpp_that_is_no_positive_number(stated: float) -> None:
    with pytest.raises(ValueError, match="of 'A' is not a positive number of microns per pixel"):
        check_mpp(stated, square_grid(250.0), "st", name="A")


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("square_008um", 8.0),
        ("sample_square_002um", 2.0),
        ("Visium_HD_square_016um", 16.0),
        ("square_8um", None),
        ("S", None),
    ],
)
def test_the_name_of_a_region_tells_the_side_of_its_bins(name: str, side: float | None) -> None:
    assert bin_side_um(name) == side


def test_mpp_of_bins_follows_from_their_side_even_where_most_are_left_out() -> None:
    bins = Bins(side_um=8.0, side_px=16.0)
    sparse = square_grid(48.0)  # every third bin of each axis
    assert check_mpp(None, sparse, "visium_hd", name="A", bins=bins) == pytest.approx(0.5)
    assert check_mpp(0.51, sparse, "visium_hd", name="A", bins=bins) == 0.51
    with pytest.raises(
        ValueError, match=r"image_mpp=0\.25 of 'A' contradicts the visium_hd spot pitch of 8 um \(16\.0 px"
    ):
        check_mpp(0.25, sparse, "visium_hd", name="A", bins=bins)


def test_mpp_of_bins_that_are_points_follows_from_their_grid() -> None:
    bins = Bins(side_um=8.0, side_px=None)
    assert check_mpp(None, square_grid(16.0), "visium_hd", name="A", bins=bins) == pytest.approx(0.5)


@pytest.mark.parametrize("bins", [None, Bins(None, 16.0)], ids=["no bins", "no side"])
def test_bins_of_unknown_side_need_a_stated_mpp(bins: Bins | None) -> None:
    assert check_mpp(0.5, square_grid(16.0), "visium_hd", name="A", bins=bins) == 0.5
    with pytest.raises(
        ValueError, match=r"of 'A' are unknown; pass image_mpp= .*, or name the region .*'square_008um'"
    ):
        check_mpp(None, square_grid(16.0), "visium_hd", name="A", bins=bins)


def left_over(technology: str, fraction: float) -> tuple[Centres, Centres]:
    """Some spots of an array with a pitch of 40 px: centres, and array positions as row and column."""
    n = 30
    centres = (square_grid if technology == "st" else hexagonal_grid)(40.0, n)
    row, column = np.divmod(np.arange(n * n, dtype=float), n)
    array = np.column_stack([row, column if technology == "st" else 2 * column + row % 2])
    kept = np.random.default_rng(3).random(n * n) < fraction
    return centres[kept], array[kept]


@pytest.mark.parametrize("technology", ["st", "visium"])
@pytest.mark.parametrize("fraction", [0.01, 0.03, 0.1, 0.35, 0.9])
def test_a_filtered_section_gives_the_right_scale_or_believes_what_is_stated(technology: str, fraction: float) -> None:
    true = {"st": 5.0, "visium": 2.5}[technology]
    centres, array = left_over(technology, fraction)
    assert check_mpp(None, centres, technology, name="A", array=array) == pytest.approx(true)
    assert check_mpp(true, centres, technology, name="A") == true
    assert check_mpp(true, centres, technology, name="A", array=array) == true
    with pytest.raises(ValueError, match=f"image_mpp={1.2 * true:g} of 'A' contradicts the {technology} spot pitch"):
        check_mpp(1.2 * true, centres, technology, name="A", array=array)


@pytest.mark.parametrize("technology", ["st", "visium"])
def test_spots_that_show_no_lattice_need_a_stated_scale(technology: str) -> None:
    centres, _ = left_over(technology, 0.01)
    with pytest.raises(
        ValueError, match=rf"The {len(centres)} spots of 'A' are too few or too scattered .*; pass mpp= \("
    ):
        check_mpp(None, centres, technology, name="A", argument="mpp")


@pytest.mark.parametrize("stated", [0.049, 1e-9, 50.1, 1e6])
def test_a_scale_that_no_image_has(stated: float) -> None:
    with pytest.raises(ValueError, match=r"mpp=.* of 'A' is outside 0\.05 to 50 microns per pixel"):
        check_mpp(stated, square_grid(250.0), None, name="A", argument="mpp")


@pytest.mark.parametrize("pitch_px", [0.5, 3.0, 1e5])
def test_a_derived_scale_that_no_image_has(pitch_px: float) -> None:
    with pytest.raises(ValueError, match=r"spots of 'A' give .* microns per pixel, outside 0\.05 to 50"):
        check_mpp(None, square_grid(pitch_px), "st", name="A")


@pytest.mark.parametrize("technology", ["st", "visium"])
@pytest.mark.parametrize("stated", [None, 1.0])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 1.0])
def test_spots_wider_than_their_pitch(technology: str, stated: float | None, fraction: float) -> None:
    """A diameter in pixels of the full image beside positions in those of a small one."""
    centres, array = left_over(technology, fraction)
    with pytest.raises(ValueError, match=r"spots of 'A' are 900 px wide, but .* px apart; spots do not overlap"):
        check_mpp(stated, centres, technology, name="A", array=array, diameter_px=900.0)


@pytest.mark.parametrize(("technology", "ratios"), [("st", (0.35, 0.5, 0.65)), ("visium", (0.4, 0.55, 0.65, 0.7))])
def test_usual_diameters_change_nothing(
    technology: str, ratios: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    centres, array = left_over(technology, 1.0)
    for ratio in ratios:
        known = {
            check_mpp(None, centres, technology, name="A", array=each, diameter_px=40 * ratio) for each in (array, None)
        }
        assert known == {check_mpp(None, centres, technology, name="A")}
    assert not caplog.records


@pytest.mark.parametrize("technology", ["st", "visium"])
def test_a_lattice_with_every_second_row_and_column_left_out_is_given_away_by_the_diameter(technology: str) -> None:
    """Such spots look like a complete lattice of twice the pitch, and only their size tells."""
    true, diameter = {"st": (5.0, 20.0), "visium": (2.5, 22.0)}[technology]
    coarse = (square_grid if technology == "st" else hexagonal_grid)(80.0, 12)
    with pytest.raises(
        ValueError, match=r"spots of 'A' are 2. px wide and 80 px apart, 0\.2.* of their pitch .*pass image_mpp="
    ):
        check_mpp(None, coarse, technology, name="A", diameter_px=diameter)
    assert check_mpp(true, coarse, technology, name="A", diameter_px=diameter) == true
    with pytest.raises(ValueError, match="contradicts"):
        check_mpp(true, coarse, technology, name="A")


def test_an_odd_diameter_beside_array_positions_is_only_said(caplog: pytest.LogCaptureFixture) -> None:
    centres, array = left_over("visium", 1.0)
    with caplog.at_level(logging.WARNING, logger="agl_sc"):
        assert check_mpp(None, centres, "visium", name="A", array=array, diameter_px=4.0) == pytest.approx(2.5)
    assert "A: spots are said to be 4 px wide, 0.1 of their pitch, where those of visium are 0.55" in caplog.text


def test_a_stated_scale_that_neither_lattice_nor_diameter_bears_out_is_refused() -> None:
    centres, _ = left_over("visium", 1.0)
    with pytest.raises(ValueError, match=r"image_mpp=1\.25 of 'A' contradicts the visium spot pitch"):
        check_mpp(1.25, centres, "visium", name="A", diameter_px=4.0)


def test_bins_beside_array_positions_of_another_scale() -> None:
    row, column = np.divmod(np.arange(400.0), 20)
    array, centres = np.column_stack([row, column]), np.column_stack([column, row]) * 16.0
    bins = Bins(side_um=8.0, side_px=16.0)
    assert check_mpp(None, centres[::7], "visium_hd", name="A", bins=bins, array=array[::7]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"The bins of 'A' are 16 px wide, but 32 px apart by their array positions"):
        check_mpp(None, 2 * centres, "visium_hd", name="A", bins=bins, array=array)


@pytest.mark.parametrize(
    ("said", "known"),
    [
        *(
            (name, "visium")
            for name in ("visium", "Visium", "VISIUM", "10x Visium", "10x-visium", "10X Genomics Visium")
        ),
        *((name, "visium_hd") for name in ("visium_hd", "Visium HD", "visium-hd", "VisiumHD", "10x Visium HD")),
        *((name, "st") for name in ("st", "ST", "Spatial Transcriptomics", "spatial_transcriptomics", "legacy ST")),
        *((name, None) for name in ("hd", "xenium", "", "Visium v3", None, 3)),
    ],
)
def test_technology_by_its_usual_names(said: object, known: str | None) -> None:
    assert technology_named(said) == known


@pytest.mark.parametrize("technology", ["st", "visium"])
def test_cells_are_not_the_spots_of_a_technology(technology: str) -> None:
    """Where neither array nor lattice tell a pitch; a few that lie far apart are believed."""
    cells = np.random.default_rng(0).uniform(0, 2000, (4000, 2))
    with pytest.raises(
        ValueError,
        match=rf"'A' are \d+\.?\d* px apart, where those of {technology} would be {PITCH_UM[technology]:g} px by image_mpp; correct",
    ):
        check_mpp(1.0, cells, technology, name="A")
    assert check_mpp(1.0, cells[:60], technology, name="A") == 1.0
    assert check_mpp(1.0, cells, None, name="A") == 1.0
