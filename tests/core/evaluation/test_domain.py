"""Distances of planted tissue: training-like spots are near, every kind of other tissue is far."""

from collections.abc import Callable

import numpy as np
import pytest

from agl_sc.core.arrays import FloatArray, IntArray
from agl_sc.core.evaluation.domain import BEYOND, Domain, Reference
from agl_sc.core.evaluation.held_out import HeldOutFold

N_FEATURES, N_EACH = 40, 60
MIXING = np.random.default_rng(9).normal(size=(6, N_FEATURES))


def tissue(seed: int, n_sections: int) -> tuple[FloatArray, IntArray]:
    """Spots of a few directions, and sections that differ a little as a whole; one feature never varies."""
    rng = np.random.default_rng(seed)
    sections = np.repeat(np.arange(n_sections), N_EACH)
    values = rng.normal(size=(len(sections), 6)) + 0.4 * rng.normal(size=(n_sections, 6))[sections]
    features = values @ MIXING + 0.3 * rng.normal(size=(len(sections), N_FEATURES))
    features[:, -1] = 5.0
    return features, sections


def by_section(codes: IntArray) -> list[HeldOutFold]:
    return [HeldOutFold(np.flatnonzero(codes != c), np.flatnonzero(codes == c)) for c in np.unique(codes)]


@pytest.fixture(scope="module")
def domain() -> Domain:
    features, sections = tissue(0, 6)
    return Domain.fitted(features, sections, by_section(sections))


def test_other_sections_of_the_same_kind_are_seldom_beyond(domain: Domain) -> None:
    share = domain.distance(*tissue(1, 20))
    assert (share > BEYOND).mean() < 0.1
    assert np.quantile(share, 0.5) == pytest.approx(0.5, abs=0.2)
    assert ((share >= 0) & (share <= 1)).all()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x + 8.0, id="everything moved, as by a stain"),
        pytest.param(lambda x: -x, id="inverted"),
        pytest.param(lambda x: 5.0 * x, id="everything varies more"),
        pytest.param(lambda x: x[:, ::-1], id="features of other places"),
        pytest.param(lambda x: np.where(np.arange(N_FEATURES) == N_FEATURES - 1, 9.0, x), id="a silent feature speaks"),
        pytest.param(lambda x: x + 4 * np.sin(np.arange(N_FEATURES) ** 2), id="a direction that no spot had"),
    ],
)
def test_other_tissue_is_beyond(domain: Domain, change: Callable[[FloatArray], FloatArray]) -> None:
    share = domain.distance(change(tissue(1, 3)[0]), np.arange(3 * N_EACH))
    assert (share > BEYOND).mean() > 0.9


def test_a_constant_place_off_the_middle_is_beyond(domain: Domain) -> None:
    glass = np.tile(tissue(0, 6)[0].mean(axis=0) + 6.0, (30, 1))
    assert (domain.distance(glass, np.arange(30)) == 1).all()


def test_the_share_counts_held_out_spots_that_lie_nearer(domain: Domain) -> None:
    features = tissue(3, 2)[0]
    distances = (domain.reference.parts(features) / domain.units).max(axis=1)
    expected = [(domain.held_out < each).mean() for each in distances]
    np.testing.assert_allclose(domain.distance(features, np.arange(len(features))), expected)


def test_held_out_spots_are_measured_from_the_others() -> None:
    features, sections = tissue(4, 4)
    features[sections == 3] += 30.0
    domain = Domain.fitted(features, sections, by_section(sections))
    one_section_of_four = domain.held_out[len(domain.held_out) * 3 // 4 + 5 :]
    assert one_section_of_four.min() > 10 * np.median(domain.held_out)


def test_sections_count_the_same_whatever_their_size() -> None:
    features, sections = tissue(5, 4)
    features[sections == 3] += 30.0
    kept = (sections != 3) | (np.arange(len(sections)) % 4 == 0)
    domain = Domain.fitted(features[kept], sections[kept], by_section(sections[kept]))
    assert (domain.held_out > 10 * np.median(domain.held_out)).mean() == pytest.approx(0.25, abs=0.02)


def test_spots_without_features_have_no_distance(domain: Domain) -> None:
    features = tissue(6, 1)[0]
    features[3, 0] = np.nan
    assert np.flatnonzero(np.isnan(domain.distance(features, np.zeros(N_EACH, dtype=np.int64)))).tolist() == [3]


def test_a_section_whose_spots_are_each_like_some_lies_beyond_as_a_whole(domain: Domain) -> None:
    features = tissue(7, 2)[0]
    extreme = features[np.argsort((features - features.mean(axis=0)) @ MIXING[0])[-30:]]
    moved = domain.reference.centre + 1.3 * (extreme - domain.reference.centre)
    apart, together = np.arange(30), np.zeros(30, dtype=np.int64)
    assert (domain.distance(moved, apart) > BEYOND).mean() < 0.9
    assert domain.reference.shift(moved) > domain.limit[0]
    assert (domain.distance(moved, together) == 1).all()
    few = slice(0, 19)
    np.testing.assert_array_equal(domain.distance(moved[few], together[few]), domain.distance(moved[few], apart[few]))


def test_the_limit_grows_with_what_training_sections_differ_in() -> None:
    features, sections = tissue(8, 4)
    within = [HeldOutFold(np.flatnonzero(fold), np.flatnonzero(~fold)) for fold in (np.arange(len(sections)) % 2 == 0,)]
    assert Domain.fitted(features, sections, within).limit.tolist() == [1.0]
    features[sections == 2] += 5.0
    folds = by_section(sections)
    domain = Domain.fitted(features, sections, folds)
    shifts = [
        float(np.sqrt((((features[f.held].mean(0) - r.centre) / r.scale) ** 2).mean()))
        for f in folds
        for r in [Reference.fitted(features[f.fit], sections[f.fit])]
    ]
    assert domain.limit[0] == pytest.approx(1.5 * max(shifts))
