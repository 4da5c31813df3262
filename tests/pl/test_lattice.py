import numpy as np
import pytest
from numpy.typing import NDArray

from agl_sc.pl._lattice import cells_of

FloatArray = NDArray[np.float64]
TURN = 0.1
ROTATION = np.array([[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]])
SHEAR = np.array([[1.0, 0.1], [0.0, 0.9]])
PITCH = 16.0


def grid(n_rows: int = 40, n_columns: int = 30, affine: FloatArray | None = None) -> FloatArray:
    """Centres row by row, from (100, 200) on."""
    rows, columns = np.divmod(np.arange(n_rows * n_columns), n_columns)
    steps = PITCH * (np.eye(2) if affine is None else affine)
    return np.column_stack([columns, rows]) @ steps.T + [100.0, 200.0]


@pytest.mark.parametrize(
    "affine",
    [np.eye(2), ROTATION, SHEAR, ROTATION @ SHEAR, np.diag([1.0, -1.0])],
    ids=["as is", "turned", "sheared", "both", "mirrored"],
)
@pytest.mark.parametrize("share", [1.0, 0.8], ids=["full", "holes"])
def test_every_spot_is_found_back_at_its_place(affine: FloatArray, share: float) -> None:
    kept = np.random.default_rng(0).random(1200) < share
    centres = grid(affine=affine)[kept]
    cells = cells_of(centres, radius=PITCH / 2)
    assert cells is not None
    image = cells.image(np.arange(len(centres), dtype=float))
    rows, columns = np.nonzero(np.isfinite(image))
    placed = np.column_stack([columns, rows, np.ones(len(rows))]) @ cells.matrix.T
    numbers = image[rows, columns].astype(int)
    assert sorted(numbers) == list(range(len(centres)))
    np.testing.assert_allclose(placed[:, :2], centres[numbers], atol=1e-6)


def test_no_fault_adds_up_over_many_cells() -> None:
    centres = np.round(grid(600, 4), 1)
    cells = cells_of(centres, radius=PITCH / 2)
    assert cells is not None
    assert cells.image(np.zeros(2400)).shape in {(600, 4), (4, 600)}


def test_spots_without_a_position_are_left_out() -> None:
    centres = grid()
    centres[7] = np.nan
    cells = cells_of(centres, radius=PITCH / 2)
    assert cells is not None
    image = cells.image(np.arange(1200.0))
    assert np.isnan(image).sum() == 1
    assert 7 not in image


def _hexagonal() -> FloatArray:
    rows, columns = np.divmod(np.arange(900), 30)
    return np.column_stack([columns + rows % 2 / 2, rows * np.sqrt(0.75)]) * PITCH


@pytest.mark.parametrize(
    ("centres", "radius"),
    [
        (grid(), PITCH / 4),
        (_hexagonal(), PITCH / 2),
        (np.random.default_rng(0).uniform(0, 500, (900, 2)), 8.0),
        (np.zeros((30_000, 2)), 8.0),
        (np.concatenate([grid(), grid()[:1]]), PITCH / 2),
        (grid(2, 2), PITCH / 2),
        (grid() + np.where(np.arange(1200)[:, None] == 600, 0.4 * PITCH, 0), PITCH / 2),
        (np.concatenate([grid(3, 3), grid(3, 3) + 500 * PITCH]), PITCH / 2),
    ],
    ids=["discs far apart", "hexagonal", "random", "one place", "two in a cell", "few", "one beside", "mostly holes"],
)
def test_what_is_no_tiling_is_drawn_as_discs(centres: FloatArray, radius: float) -> None:
    assert cells_of(centres, radius) is None
