"""Distances of planted tissue: training-like spots are near, every kind of other tissue is far."""

from collections.abc import Callable
from dataclasses import replace

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


def means_of(features: FloatArray, codes: IntArray) -> dict[int, FloatArray]:
    return {int(c): features[codes == c].mean(axis=0) for c in np.unique(codes)}


def fitted(features: FloatArray, codes: IntArray, folds: list[HeldOutFold] | None = None) -> Domain:
    return Domain.fitted(features, codes, folds or by_section(codes), means=means_of(features, codes))


def distance(domain: Domain, features: FloatArray, mean: FloatArray | None = None) -> FloatArray:
    """Of spots of one section, in the middle of the training tissue unless its mean is given."""
    means = {0: domain.reference.centre if mean is None else mean}
    return domain.distance(features, np.zeros(len(features), dtype=np.int64), means=means)


@pytest.fixture(scope="module")
def domain() -> Domain:
    features, sections = tissue(0, 6)
    return fitted(features, sections)


def test_other_sections_of_the_same_kind_are_seldom_beyond(domain: Domain) -> None:
    features, sections = tissue(1, 20)
    share = domain.distance(features, sections, means=means_of(features, sections))
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
    share = distance(domain, change(tissue(1, 3)[0]))
    assert (share > BEYOND).mean() > 0.9


def test_a_constant_place_off_the_middle_is_beyond(domain: Domain) -> None:
    glass = np.tile(tissue(0, 6)[0].mean(axis=0) + 6.0, (30, 1))
    assert (distance(domain, glass) == 1).all()


def test_the_share_counts_held_out_spots_for_which_less_is_as_rare(domain: Domain) -> None:
    features = tissue(3, 2)[0]
    assert domain.neighbours is not None
    assert domain.measures is not None
    both = ((domain.reference.parts(features) / domain.units).max(axis=1), domain.neighbours.ratios(features))
    rarer = [
        max((known < own[spot]).mean() for own, known in zip(both, domain.measures, strict=True))
        for spot in range(len(features))
    ]
    np.testing.assert_allclose(distance(domain, features), [(domain.held_out < each).mean() for each in rarer])


def test_older_models_measure_by_two_mean_squares(domain: Domain) -> None:
    features = tissue(3, 2)[0]
    distances = (domain.reference.parts(features) / domain.units).max(axis=1)
    older = replace(domain, neighbours=None, measures=None, held_out=np.sort(distances)[::2])
    expected = [(older.held_out < each).mean() for each in distances]
    np.testing.assert_allclose(distance(older, features), expected)


def test_features_after_those_that_it_knows_do_not_count(domain: Domain) -> None:
    features, sections = tissue(3, 2)
    wider = np.hstack([features, np.random.default_rng(0).normal(size=features.shape)])
    found = domain.distance(wider, sections, means=means_of(wider, sections))
    np.testing.assert_array_equal(found, domain.distance(features, sections, means=means_of(features, sections)))


def test_held_out_spots_are_measured_from_the_others() -> None:
    features, sections = tissue(4, 4)
    features[sections == 3] += 30.0
    domain = fitted(features, sections)
    assert domain.measures is not None
    for known in domain.measures:
        one_section_of_four = known[len(known) * 3 // 4 + 5 :]
        assert one_section_of_four.min() > 2 * np.median(known)


def test_sections_count_the_same_whatever_their_size() -> None:
    features, sections = tissue(5, 4)
    features[sections == 3] += 30.0
    kept = (sections != 3) | (np.arange(len(sections)) % 4 == 0)
    domain = fitted(features[kept], sections[kept])
    assert domain.measures is not None
    for known in domain.measures:
        assert (known > 2 * np.median(known)).mean() == pytest.approx(0.25, abs=0.02)


def test_spots_without_features_have_no_distance(domain: Domain) -> None:
    features = tissue(6, 1)[0]
    features[3, 0] = np.nan
    assert np.flatnonzero(np.isnan(distance(domain, features))).tolist() == [3]


def test_a_section_whose_spots_are_each_like_some_lies_beyond_as_a_whole(domain: Domain) -> None:
    features = tissue(7, 2)[0]
    extreme = features[np.argsort((features - features.mean(axis=0)) @ MIXING[0])[-30:]]
    moved = domain.reference.centre + 1.3 * (extreme - domain.reference.centre)
    mean = moved.mean(axis=0)
    assert (distance(domain, moved) > BEYOND).mean() < 0.9
    assert (domain.reference.shifts(mean) > domain.limit).any()
    assert (distance(domain, moved, mean) == 1).all()
    assert (distance(domain, moved[:1], mean) == 1).all()  # whatever else is passed


def test_the_limit_grows_with_what_training_sections_differ_in() -> None:
    features, sections = tissue(8, 4)
    within = [HeldOutFold(np.flatnonzero(fold), np.flatnonzero(~fold)) for fold in (np.arange(len(sections)) % 2 == 0,)]
    assert fitted(features, sections, within).limit.tolist() == [1.0, 0.8]
    features[sections == 2] += 5.0
    folds = by_section(sections)
    domain = fitted(features, sections, folds)
    shifts = []
    for fold in folds:
        reference = Reference.fitted(features[fold.fit], sections[fold.fit])
        moved = (features[fold.held].mean(axis=0) - reference.centre) / reference.scale
        along = reference.axes @ moved / reference.spread
        shifts.append([np.linalg.norm(moved) / np.sqrt(N_FEATURES), np.linalg.norm(along) / np.sqrt(len(along))])
    np.testing.assert_allclose(domain.limit, 1.5 * np.max(shifts, axis=0))


def test_another_organ_moves_the_mean_where_training_tissue_varies(domain: Domain) -> None:
    reference, features = domain.reference, tissue(11, 1)[0]
    organ = reference.centre + reference.scale * (0.9 * reference.spread @ reference.axes)
    shifts = reference.shifts(organ)
    assert shifts[0] < domain.limit[0]
    assert shifts[1] == pytest.approx(0.9)
    assert (distance(domain, features) > BEYOND).mean() < 0.1
    assert (distance(domain, features, organ) == 1).all()
