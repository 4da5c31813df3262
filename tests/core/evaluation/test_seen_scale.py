"""The scale at which planted tissue is seen."""

import numpy as np
import pytest

from agl_sc.core.arrays import FloatArray, IntArray
from agl_sc.core.evaluation.seen_scale import STEPS, SeenScale

N_FEATURES, N_EACH = 60, 12
TURNED = np.random.default_rng(3).normal(size=N_FEATURES)
STAIN = np.random.default_rng(4).normal(size=(3, N_FEATURES))


def tiles(step: float, *, stain: float = 0.0, seed: int = 0, n: int = N_EACH) -> FloatArray:
    """Tiles of a section of some stain, at a scale that moves all features a little."""
    generator = np.random.default_rng(seed)
    moved = stain * generator.normal(size=3) @ STAIN
    varied = generator.normal(size=(n, N_FEATURES)) + moved
    return varied + 0.5 * step * TURNED


def training(n_sections: int, steps: tuple[float, ...] = STEPS) -> tuple[FloatArray, IntArray, FloatArray]:
    parts = [(tiles(step, stain=0.3, seed=code), code, step) for code in range(n_sections) for step in (0.0, *steps)]
    codes = np.repeat([code for _, code, _ in parts], N_EACH)
    return np.concatenate([part for part, _, _ in parts]), codes, np.repeat([step for _, _, step in parts], N_EACH)


def folds(n: int) -> list[IntArray]:
    return [np.array([code]) for code in range(n)]


@pytest.fixture(scope="module")
def seen_scale() -> SeenScale:
    found = SeenScale.fitted(*training(6), held=folds(6))
    assert found is not None
    return found


@pytest.mark.parametrize("step", [-2.0, -1.0, 0.0, 1.0, 2.0])
def test_the_scale_of_a_section_of_another_stain_is_told(seen_scale: SeenScale, step: float) -> None:
    mean = tiles(step, stain=0.3, seed=50, n=400).mean(axis=0)
    assert seen_scale.power(mean) == pytest.approx(step, abs=0.4)
    assert seen_scale.is_other(mean) == (step != 0)


def test_a_limit_is_as_wide_as_what_was_held_out_needs() -> None:
    features, sections, steps = training(4)
    features[sections == 3] += TURNED  # a section at four times the scale by mistake
    wide, usual = SeenScale.fitted(features, sections, steps, held=folds(4)), SeenScale.fitted(*training(4))
    assert wide is not None
    assert usual is not None
    assert usual.limit.tolist() == [0.65, 0.65]
    assert wide.limit.min() > 1.2


def test_nothing_is_known_unless_tissue_was_seen_at_another_scale() -> None:
    assert SeenScale.fitted(*training(3, ()), held=folds(3)) is None


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_what_was_seen_on_one_side_is_told_on_that_side_alone(side: float) -> None:
    found = SeenScale.fitted(*training(6, (side, 2 * side)), held=folds(6))
    assert found is not None
    for step in (-2.0, 0.0, 2.0):
        assert found.is_other(tiles(step, stain=0.3, seed=50, n=400).mean(axis=0)) == (step == 2 * side)


def test_a_section_that_is_all_there_is_holds_nothing_out() -> None:
    found = SeenScale.fitted(*training(1), held=[np.array([0]), np.array([], dtype=np.int64)])
    assert found is not None
    assert found.limit.tolist() == [0.65, 0.65]


def test_features_that_never_vary_do_no_harm() -> None:
    features, sections, steps = training(3)
    features[:, :5] = 7.0
    found = SeenScale.fitted(features, sections, steps)
    assert found is not None
    assert np.isfinite(found.slope).all()
    constant = SeenScale.fitted(np.ones_like(features), sections, steps)
    assert constant is not None
    assert constant.power(np.ones(N_FEATURES)) == pytest.approx(0.0)
