"""The spot pitch from array positions, or from the lattice that the spots left show: right to 2 %, or unknown."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_sc._sdata.geometry import known_pitch_px, spot_pitch_px
from agl_sc._sdata.pitch import array_pitch_px, lattice_pitch_px

Centres = NDArray[np.float64]
Chosen = NDArray[np.bool_]
Generator = np.random.Generator
TECHNOLOGIES = ["st", "visium"]


def grid(technology: str, n: int) -> tuple[Centres, NDArray[np.int64]]:
    """Centres in pitches and array positions (row, column) of a complete array."""
    row, column = np.divmod(np.arange(n * n), n)
    if technology == "visium":
        return np.column_stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2]), np.column_stack(
            [row, 2 * column + row % 2]
        )
    return np.column_stack([column, row]).astype(float), np.column_stack([row, column])


def near_some(centres: Centres, rng: Generator, *, n: int, reach: float) -> Chosen:
    """Spots within ``reach`` of ``n`` of them."""
    middles = centres[rng.integers(len(centres), size=n)]
    distances = np.linalg.norm(centres[:, None] - middles, axis=2)
    chosen: Chosen = (distances < reach).any(axis=1)
    return chosen


def every_second_row(centres: Centres, rng: Generator) -> Chosen:
    number = np.unique(centres[:, 1], return_inverse=True)[1]
    kept: Chosen = (number % 2 == 0) & (rng.random(len(centres)) < rng.uniform(0.3, 1))
    return kept


def some_rows(centres: Centres, rng: Generator) -> Chosen:
    rows, number = np.unique(centres[:, 1], return_inverse=True)
    kept: Chosen = (rng.random(len(rows)) < rng.uniform(0.05, 0.9))[number]
    return kept


WAYS: dict[str, Callable[[Centres, Generator], Chosen]] = {
    "few": lambda centres, rng: rng.random(len(centres)) < rng.choice([0.02, 0.05, 0.1, 0.2]),
    "many": lambda centres, rng: rng.random(len(centres)) < rng.choice([0.35, 0.5, 0.8, 1.0]),
    "cluster": lambda centres, rng: near_some(centres, rng, n=1, reach=rng.uniform(1, 6)),
    "clusters": lambda centres, rng: near_some(centres, rng, n=int(rng.integers(2, 8)), reach=rng.uniform(0.5, 2.5)),
    "cluster and few": lambda centres, rng: near_some(centres, rng, n=1, reach=2) | (rng.random(len(centres)) < 0.05),
    "every second row": every_second_row,
    "some rows": some_rows,
}


def subset(technology: str, way: str, seed: int) -> tuple[Centres, NDArray[np.int64], float, float]:
    """Some spots of an array, turned and jittered: centres in pixels, array positions, pitch and jitter (in pitches)."""
    rng = np.random.default_rng([seed, len(way)])
    centres, array = grid(technology, int(rng.choice([8, 14, 20, 33])))
    kept = WAYS[way](centres, rng)
    pitch, jitter, angle = (
        float(rng.choice([4.0, 23.7, 290.0, 1500.0])),
        float(rng.choice([0, 0.02, 0.04])),
        rng.uniform(0, 6.28),
    )
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = (centres[kept] + rng.normal(0, jitter, (int(kept.sum()), 2))) @ turn
    return places * pitch + rng.uniform(0, 1e4, 2), array[kept], pitch, jitter


@pytest.mark.parametrize("technology", TECHNOLOGIES)
@pytest.mark.parametrize("way", WAYS)
def test_a_lattice_tells_the_right_pitch_or_none(technology: str, way: str) -> None:
    n_known = 0
    for seed in range(60):
        centres, _, pitch, _ = subset(technology, way, seed)
        found = lattice_pitch_px(centres, technology)
        assert np.isnan(found) or found == pytest.approx(pitch, rel=0.02), f"seed {seed}, {len(centres)} spots"
        n_known += bool(np.isfinite(found))
    assert n_known >= {"few": 15, "many": 50, "some rows": 20}.get(way, 30)  # it is no use to know nothing


@pytest.mark.parametrize("technology", TECHNOLOGIES)
@pytest.mark.parametrize("way", WAYS)
def test_array_positions_tell_the_pitch_whatever_is_left(technology: str, way: str) -> None:
    for seed in range(60):
        centres, array, pitch, jitter = subset(technology, way, seed)
        found = array_pitch_px(centres, array, technology)
        assert (found == pytest.approx(pitch, rel=0.01 + 3 * jitter)) == (len(centres) >= 2), f"seed {seed}"


@pytest.mark.parametrize("technology", TECHNOLOGIES)
@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.1, 0.3, 1.0])
def test_the_plain_distance_of_spots_left_is_not_the_pitch(technology: str, fraction: float) -> None:
    """What it is compared with: distances of spots left are up to four times too long, and array positions mend it."""
    centres, array = grid(technology, 40)
    kept = np.random.default_rng(0).random(len(centres)) < fraction
    assert known_pitch_px(centres[kept] * 40, technology, array=array[kept]) == pytest.approx(40, rel=1e-9)
    if fraction <= 0.1:
        assert spot_pitch_px(centres[kept] * 40, technology) > 50


@pytest.mark.parametrize("technology", [*TECHNOLOGIES, "visium_hd"])
def test_a_complete_section_keeps_the_median_distance_to_the_last_digit(technology: str) -> None:
    rng = np.random.default_rng(1)
    centres, array = grid(technology, 30)
    centres = (centres + rng.normal(0, 0.03, centres.shape)) * 273
    kept = rng.random(len(centres)) < 0.85
    plain = spot_pitch_px(centres[kept], technology)
    assert known_pitch_px(centres[kept], technology) == plain
    assert known_pitch_px(centres[kept], technology, array=array[kept]) == plain


@pytest.mark.parametrize("technology", TECHNOLOGIES)
@pytest.mark.parametrize("n_spots", [8, 40, 400, 3000])
def test_spots_anywhere_lie_on_no_lattice(technology: str, n_spots: int) -> None:
    for seed in range(20):
        assert np.isnan(lattice_pitch_px(np.random.default_rng(seed).random((n_spots, 2)) * 1000, technology))


def test_two_sections_on_one_image_lie_on_no_lattice() -> None:
    centres, _ = grid("visium", 20)
    assert np.isnan(lattice_pitch_px(np.vstack([centres, centres + np.array([0.31, 0.17])]) * 100, "visium"))


@pytest.mark.parametrize(("technology", "other"), [("st", "visium"), ("visium", "st")])
def test_a_lattice_of_the_other_kind_is_not_taken(technology: str, other: str) -> None:
    assert np.isnan(lattice_pitch_px(grid(other, 20)[0] * 100, technology))


def test_what_array_positions_may_look_like() -> None:
    centres, array = grid("visium", 20)
    line = array[:, 0] == 4
    assert array_pitch_px(centres[line] * 40, array[line], "visium") == pytest.approx(40)
    assert array_pitch_px(centres * 40, array[:, ::-1], "visium") == pytest.approx(40)  # column first
    assert array_pitch_px(centres * (-40, 40), array, "visium") == pytest.approx(40)  # mirrored
    square, places = grid("st", 20)
    jitter = np.random.default_rng(0).normal(0, 0.05, square.shape)
    assert array_pitch_px((square + jitter) * 40, places + jitter[:, ::-1], "st") == pytest.approx(
        40, rel=1e-9
    )  # fractional
    wrong = places.copy()
    wrong[::20] = wrong[::-20]
    assert array_pitch_px(square * 40, wrong, "st") == pytest.approx(40)  # a few mixed up
    unknown = places.astype(float)
    unknown[3:9] = np.nan
    assert array_pitch_px(square * 40, unknown, "st") == pytest.approx(40)


def test_array_positions_that_tell_nothing() -> None:
    centres, array = grid("visium", 20)
    shuffled = np.random.default_rng(0).permutation(array)
    assert np.isnan(array_pitch_px(centres * 40, shuffled, "visium"))
    assert np.isnan(array_pitch_px(centres * 40, array // (1, 2), "visium"))  # columns not counted in twos
    assert np.isnan(array_pitch_px(centres * 40, centres * 40_000, "st"))  # pixels
    assert np.isnan(array_pitch_px(centres[:1] * 40, array[:1], "visium"))
    assert np.isnan(array_pitch_px(np.repeat(centres[:1], 5, axis=0), np.repeat(array[:1], 5, axis=0), "visium"))
    assert known_pitch_px(centres * 40, "visium", array=shuffled) == pytest.approx(40)  # the lattice still does
