"""How far targets are denoised: planted states help, noise does not, and nothing but the spots given is seen."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray

from agl_sc.core.config import Denoise
from agl_sc.core.linear import choose_denoising as module
from agl_sc.core.linear.choose_denoising import choose_denoising, denoised
from agl_sc.core.spots.counts import Counts
from agl_sc.core.spots.denoise import AS_MEASURED, Denoised, projections
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots

FloatArray = NDArray[np.float64]
N_TARGETS, N_AUXILIARY = 8, 120
SETTINGS = Denoise(genes=(0, N_AUXILIARY), components=(2, 4), mix=(0.8,))


def spots_of(*, shared: bool, noise: float = 2.0, n_sections: int = 3, seed: int = 0) -> Spots:
    """Features show two states that drive the targets; auxiliary genes share them, or are noise."""
    rng = np.random.default_rng(seed)
    n = 60 * n_sections
    sections = np.repeat(np.arange(n_sections), 60)
    state = rng.normal(size=(n, 2))
    features = (state @ rng.normal(size=(2, 30)) + 2 * rng.normal(size=(n, 30))).astype(np.float32)
    driven = N_TARGETS + (N_AUXILIARY if shared else 0)
    genes = noise * rng.normal(size=(n, N_TARGETS + N_AUXILIARY))
    genes[:, :driven] += state @ rng.normal(size=(2, driven))
    values = scipy.sparse.csr_matrix(genes + 20)
    counts = Counts(values, rng.uniform(500, 2000, n), 1e4)
    return Spots(features, Expression.fitted(values, sections), sections, counts)


def test_auxiliary_genes_that_share_the_state_of_the_targets_denoise_them() -> None:
    found = choose_denoising(spots_of(shared=True), N_TARGETS, SETTINGS)
    assert found.chosen.n_genes == N_AUXILIARY
    by = found.trace.set_index(["n_genes", "n_components"])["pearson"]
    assert by[N_AUXILIARY, 2] > max(by[0, 2], by[0, 0])


def test_auxiliary_genes_of_noise_do_not() -> None:
    found = choose_denoising(spots_of(shared=False), N_TARGETS, SETTINGS)
    assert found.chosen.n_genes == 0
    by = found.trace.set_index(["n_genes", "n_components"])["pearson"]
    assert by[0, 2] > by[N_AUXILIARY, 2]


def test_targets_without_noise_stay_as_measured() -> None:
    spots = spots_of(shared=True, noise=0.0)
    apart = np.random.default_rng(5).normal(
        size=(180, N_TARGETS)
    )  # what every target has of its own, shown by features
    features = np.hstack([spots.features, apart]).astype(np.float32)
    values = scipy.sparse.csr_matrix(spots.expression.values.toarray())
    values[:, :N_TARGETS] = values[:, :N_TARGETS].toarray() + 3 * apart
    own = replace(spots, features=features, expression=Expression.fitted(values.tocsr(), spots.sections))
    found = choose_denoising(own, N_TARGETS, SETTINGS)
    assert found.chosen == AS_MEASURED
    assert denoised(own, N_TARGETS, found.chosen) is own


def test_denoised_targets_are_the_mix_and_auxiliary_genes_stay() -> None:
    spots = spots_of(shared=True)
    found = denoised(spots, N_TARGETS, Denoised(50, 3, 0.8)).expression
    before = spots.expression.columns(0, N_TARGETS + 4)
    (projected,) = projections(
        spots.expression, N_TARGETS, n_genes=[50], n_components=[3], weights=spots.depth_weights
    ).values()
    np.testing.assert_allclose(found.columns(0, N_TARGETS), 0.2 * before[:, :N_TARGETS] + 0.8 * projected)
    np.testing.assert_array_equal(found.columns(0, N_TARGETS + 4)[:, N_TARGETS:], before[:, N_TARGETS:])


def test_of_one_section_strips_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    spots = spots_of(shared=True, n_sections=1)
    rng = np.random.default_rng(0)
    centres = np.column_stack([rng.uniform(0, 1, 60), rng.permutation(60)])
    seen: list[NDArray[np.int64]] = []
    plain = module._scores

    def watched(*given: object, **named: object) -> FloatArray:
        seen.append(given[2][1])  # type: ignore[index]
        return plain(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_scores", watched)
    choose_denoising(spots, N_TARGETS, SETTINGS, centres=centres)
    along = [np.sort(centres[rows, 1]) for rows in seen]
    assert [each.tolist() for each in along] == [list(range(12 * i, 12 * i + 12)) for i in range(5)]


def test_fewer_genes_than_components_leave_nothing_to_choose() -> None:
    found = choose_denoising(spots_of(shared=True), N_TARGETS, Denoise(genes=(0,), components=(8, 40), mix=(0.8,)))
    assert found.chosen == AS_MEASURED
    assert found.trace.empty


def test_more_genes_asked_for_than_there_are_mean_all() -> None:
    found = choose_denoising(spots_of(shared=True), N_TARGETS, Denoise(genes=(9999,), components=(2,), mix=(1.0,)))
    assert found.trace["n_genes"].tolist() == [0, N_AUXILIARY]


def test_many_spots_are_judged_by_an_even_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SPOTS", 60)
    assert choose_denoising(spots_of(shared=True), N_TARGETS, SETTINGS).chosen.n_genes == N_AUXILIARY
    rows = module._even_share(np.repeat([0, 1], [90, 30]))
    assert (int((rows < 90).sum()), int((rows >= 90).sum())) == (45, 15)


def test_the_same_spots_give_the_same_choice_and_targets() -> None:
    one, two = (denoised(spots_of(shared=True), N_TARGETS, Denoised(100, 3, 0.5)).expression for _ in range(2))
    np.testing.assert_array_equal(one.columns(0, N_TARGETS), two.columns(0, N_TARGETS))


def test_leading_genes_stay_denoised() -> None:
    spots = denoised(spots_of(shared=True), N_TARGETS, Denoised(50, 3, 0.8))
    own = spots.leading(N_TARGETS)
    assert own.expression.shape[1] == N_TARGETS
    np.testing.assert_array_equal(own.expression.columns(0, N_TARGETS), spots.expression.columns(0, N_TARGETS))
    assert own.leading(N_TARGETS) is own
