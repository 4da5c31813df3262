"""Half precision where it loses nothing, single where it would."""

import numpy as np
import pytest

from agl_sc.core.spots import half
from agl_sc.core.spots.half import storage_type

FEATURES = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "MOST_SPOTS", 100)


def test_only_many_spots_are_halved() -> None:
    assert storage_type(FEATURES, 100) is np.float32
    assert storage_type(FEATURES, 101) is np.float16


@pytest.mark.parametrize("factor", [1e-2, 1.0, 1e3])
def test_rounding_takes_away_a_small_part_of_the_spread(factor: float) -> None:
    values = (FEATURES * factor).astype(np.float32)
    assert storage_type(values, 300) is np.float16
    error = values.astype(np.float16).astype(float) - values
    assert np.sqrt((error**2).mean(axis=0)).max() < 0.001 * factor


@pytest.mark.parametrize("column", ["far from 0", "too large", "too small", "infinite"])
def test_features_that_rounding_would_spoil_stay(column: str) -> None:
    spoilt = {
        "far from 0": 1000 + FEATURES[:, 0],
        "too large": 3e4 * FEATURES[:, 0],
        "too small": 1e-7 * FEATURES[:, 0],
        "infinite": 1e6 * FEATURES[:, 0],
    }
    values = FEATURES.copy()
    values[:, 2] = spoilt[column]
    assert storage_type(values, 300) is np.float32


def test_constant_features_and_spots_without_any_do_not_count() -> None:
    values = FEATURES.copy()
    values[:, 1] = 0.25
    values[::3] = np.nan
    assert storage_type(values, 300) is np.float16
    assert storage_type(np.full_like(values, np.nan), 300) is np.float32
