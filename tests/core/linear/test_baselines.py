"""Baselines: each one against a plain scikit-learn reference."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from agl_sc.core.config import Denoise
from agl_sc.core.linear.baselines import (
    BASELINES,
    NEIGHBOURS,
    TREE_COMPONENTS,
    Samples,
    fit_baseline,
)
from agl_sc.core.linear.choose_by_validation import ALPHAS, RANKS
from agl_sc.core.linear.choose_denoising import choose_denoising, denoised
from agl_sc.core.linear.inner_folds import inner_folds
from agl_sc.core.spots.counts import Counts
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.scaling import depth_weights
from agl_sc.core.spots.spots import Spots, Validation, section_pearson

FloatArray = NDArray[np.float64]
N_TARGETS, N_GENES, N_FEATURES, N_SPOTS = 3, 9, 8, 120


def samples_of(n_targets: int = N_TARGETS, n_features: int = N_FEATURES, seed: int = 0) -> Samples:
    """Three sections, the last one validation; genes follow the features, with levels and spreads of their own."""
    rng = np.random.default_rng(seed)
    sections = np.repeat(np.arange(3), N_SPOTS // 3)
    features = rng.normal(size=(N_SPOTS, n_features)).astype(np.float32)
    genes = features @ rng.normal(size=(n_features, N_GENES)) + rng.normal(size=(N_SPOTS, N_GENES))
    values = scipy.sparse.csr_matrix(genes * np.arange(1, N_GENES + 1) + 5)
    training = sections < 2
    train = Expression.fitted(values[training], sections[training])
    every = Expression.fitted(values, sections)
    held_out = Validation(features[~training], values[~training, :n_targets].toarray(), sections[~training])
    return Samples(
        Spots(features, every, sections), Spots(features[training], train, sections[training]), held_out, n_targets
    )


def new_features(n_features: int = N_FEATURES) -> FloatArray:
    made: FloatArray = np.random.default_rng(9).normal(size=(7, n_features))
    return made


def in_units(samples: Samples, scaled: Any) -> FloatArray:
    """Times the spread within a section, plus the mean of all spots that were fitted on."""
    genes = slice(samples.n_targets)
    values: FloatArray = samples.spots.expression.values[:, genes].toarray()
    found: FloatArray = (
        np.asarray(scaled).reshape(-1, samples.n_targets) * samples.spots.expression.typical_scale[genes]
    )
    found += values.mean(axis=0)
    return found


def components(samples: Samples, new: FloatArray, n: int) -> tuple[FloatArray, FloatArray]:
    scaler = StandardScaler().fit(samples.features)
    pca = PCA(n, svd_solver="full").fit(scaler.transform(samples.features))
    return pca.transform(scaler.transform(samples.features)), pca.transform(scaler.transform(new))


def reference_ridge(samples: Samples, new: FloatArray) -> Any:
    """The best penalty by leaving one spot out, without any shortcut."""

    def score(alpha: float) -> float:
        model = Ridge(alpha, fit_intercept=False)
        scored = cross_val_score(
            model, samples.features, samples.targets, cv=LeaveOneOut(), scoring="neg_mean_squared_error"
        )
        return float(scored.mean())

    alpha = max((alpha * N_FEATURES for alpha in ALPHAS[::8]), key=score)
    return Ridge(alpha, fit_intercept=False).fit(samples.features, samples.targets).predict(new)


def reference_knn(samples: Samples, new: FloatArray) -> Any:
    def error(n: int) -> float:
        errors = []
        for code in range(3):
            held_out = samples.spots.sections == code
            model = KNeighborsRegressor(n).fit(samples.features[~held_out], samples.targets[~held_out])
            errors.append(((model.predict(samples.features[held_out]) - samples.targets[held_out]) ** 2).mean())
        return float(np.mean(errors))

    return KNeighborsRegressor(min(NEIGHBOURS, key=error)).fit(samples.features, samples.targets).predict(new)


def reference_pca_ridge(samples: Samples, new: FloatArray) -> Any:
    """(X'X + alpha I)^-1 X'y by the normal equations, alpha = 100 / (n_components * n_targets)."""
    known, unknown = components(samples, new, N_FEATURES)
    penalty = 100 / (N_FEATURES * samples.n_targets) * np.eye(N_FEATURES)
    return unknown @ np.linalg.solve(known.T @ known + penalty, known.T @ samples.targets)


def reference_reduced_rank(samples: Samples, new: FloatArray) -> Any:
    """Ridge of all genes by scikit-learn, its fit cut to a rank by a singular value decomposition."""

    def cut(spots: Spots, alpha: float, rank: int) -> FloatArray:
        genes = spots.expression.columns(0, N_GENES)
        model = Ridge(alpha, fit_intercept=False, solver="svd").fit(spots.features.astype(float), genes)
        _, _, right = np.linalg.svd(model.predict(spots.features.astype(float)), full_matrices=False)
        coefficients: FloatArray = model.coef_.T @ right[:rank].T @ right[:rank]
        return coefficients[:, : samples.n_targets]

    def score(alpha: float, rank: int) -> float:
        predicted = samples.validation.features @ cut(samples.train, alpha, rank)
        return float(section_pearson(samples.validation.targets, predicted, samples.validation.sections).mean())

    ranks = [rank for rank in RANKS if rank <= N_FEATURES]
    alpha = max((alpha * N_FEATURES for alpha in ALPHAS), key=lambda a: max(score(a, rank) for rank in ranks))
    return new @ cut(samples.spots, alpha, max(ranks, key=lambda rank: score(alpha, rank)))


REFERENCES = {
    "mean": lambda samples, new: np.zeros((len(new), samples.n_targets)),
    "knn": reference_knn,
    "ridge": reference_ridge,
    "pca_ridge": reference_pca_ridge,
    "reduced_rank_ridge": reference_reduced_rank,
}


@pytest.mark.parametrize("name", list(REFERENCES))
@pytest.mark.parametrize("n_targets", [1, N_TARGETS])
def test_equals_the_reference(name: str, n_targets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "ridge":  # leaving one out for real takes a fit per spot and penalty
        monkeypatch.setattr("agl_sc.core.linear.baselines.ALPHAS", ALPHAS[::8])
    samples, new = samples_of(n_targets), new_features()
    expected = in_units(samples, REFERENCES[name](samples, new))
    np.testing.assert_allclose(fit_baseline(name, samples)(new), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("n_targets", [1, N_TARGETS])
def test_random_forest_equals_the_reference(n_targets: int) -> None:
    samples, new = samples_of(n_targets), new_features()
    known, unknown = components(samples, new, N_FEATURES)
    forest = RandomForestRegressor(100, min_samples_leaf=5, max_features=1 / 3, random_state=0)
    expected = in_units(samples, forest.fit(known, np.squeeze(samples.targets)).predict(unknown))
    np.testing.assert_allclose(fit_baseline("random_forest", samples)(new), expected, rtol=0.02)


def test_gradient_boosting_equals_a_reference_per_gene() -> None:
    samples, new = samples_of(), new_features()
    known, unknown = components(samples, new, N_FEATURES)
    trees = HistGradientBoostingRegressor(max_iter=100, max_depth=3, early_stopping=False)
    scaled = np.column_stack([trees.fit(known, gene).predict(unknown) for gene in samples.targets.T])
    np.testing.assert_allclose(fit_baseline("gradient_boosting", samples)(new), in_units(samples, scaled), rtol=0.02)


def test_weighted_ridge_has_the_least_weighted_error_of_left_out_spots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agl_sc.core.linear.baselines.ALPHAS", ALPHAS[::8])
    samples, new = samples_of(), new_features()
    library = np.random.default_rng(3).uniform(50, 50_000, size=N_SPOTS)
    counts = Counts(scipy.sparse.csr_matrix((N_SPOTS, N_GENES)), library, 1e4)
    samples = replace(samples, spots=replace(samples.spots, counts=counts))
    weights = depth_weights(library, samples.spots.sections)

    def fitted(alpha: float, rows: NDArray[np.bool_]) -> Ridge:
        return Ridge(alpha, fit_intercept=False).fit(samples.features[rows], samples.targets[rows], weights[rows])

    def error(alpha: float) -> float:
        missed = [
            weights[spot] * (fitted(alpha, np.arange(N_SPOTS) != spot).predict(samples.features[[spot]]) - target) ** 2
            for spot, target in enumerate(samples.targets)
        ]
        return float(np.sum(missed))

    alpha = min((alpha * N_FEATURES for alpha in ALPHAS[::8]), key=error)
    expected = in_units(samples, fitted(alpha, np.ones(N_SPOTS, dtype=bool)).predict(new))
    found = fit_baseline("weighted_ridge", samples)(new)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(found, fit_baseline("ridge", samples)(new), rtol=0.01)


def test_without_counts_weighted_ridge_is_ridge() -> None:
    samples, new = samples_of(), new_features()
    np.testing.assert_allclose(fit_baseline("weighted_ridge", samples)(new), fit_baseline("ridge", samples)(new))


@pytest.mark.parametrize(("name", "n"), [("denoised_ridge_targets", 0), ("denoised_ridge_all", N_GENES - N_TARGETS)])
def test_controls_of_denoising_see_no_gene_or_every_gene(name: str, n: int) -> None:
    samples, new = samples_of(), new_features()
    spots, targets = samples.spots, samples.n_targets
    choice = choose_denoising(spots, targets, Denoise(genes=(n,), components=(1, 2), mix=(0.5, 0.8)))
    assert set(choice.trace["n_genes"][1:]) == {n}
    cut = replace(
        samples,
        spots=denoised(spots, targets, choose_denoising(spots, targets, Denoise(genes=(n,), mix=(0.5, 0.8))).chosen),
    )
    np.testing.assert_array_equal(fit_baseline(name, samples)(new), fit_baseline("weighted_ridge", cut)(new))


def test_every_baseline_has_a_reference() -> None:
    assert set(BASELINES) == {
        *REFERENCES,
        "depth",
        "weighted_ridge",
        "denoised_ridge",
        "denoised_ridge_targets",
        "denoised_ridge_random",
        "denoised_ridge_all",
        "random_forest",
        "gradient_boosting",
    }


@pytest.mark.parametrize("name", list(BASELINES))
def test_rows_with_nan_give_nan_and_leave_the_others(name: str) -> None:
    samples, new = samples_of(n_features=TREE_COMPONENTS + 2), new_features(TREE_COMPONENTS + 2)
    predict = fit_baseline(name, samples)
    holed = new.copy()
    holed[2, 0] = np.nan
    predicted = predict(holed)
    assert np.isnan(predicted[2]).all()
    np.testing.assert_array_equal(np.delete(predicted, 2, axis=0), predict(np.delete(new, 2, axis=0)))
    assert predict(np.full((2, TREE_COMPONENTS + 2), np.nan)).shape == (2, N_TARGETS)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "mean"])
def test_finds_genes_that_follow_the_features(name: str) -> None:
    samples = samples_of()
    predicted = fit_baseline(name, samples)(samples.features)
    measured = samples.spots.expression.values[:, :N_TARGETS].toarray()
    assert section_pearson(measured, predicted, samples.spots.sections).min() > 0.6


@pytest.mark.parametrize("name", list(BASELINES))
def test_same_seed_same_numbers(name: str) -> None:
    samples, new = samples_of(), new_features()
    np.testing.assert_array_equal(fit_baseline(name, samples)(new), fit_baseline(name, samples)(new))


def test_inner_folds_hold_out_whole_sections() -> None:
    sections = np.array([4, 4, 7, 7, 7, 9])
    held_out = [set(sections[rows].tolist()) for _, rows in inner_folds(sections)]
    expected = [set(sections[rows].tolist()) for _, rows in GroupKFold(3).split(sections, groups=sections)]
    assert held_out == expected
    assert sorted(held_out, key=min) == [{4}, {7}, {9}]


def test_inner_folds_of_one_section_are_runs_of_spots() -> None:
    assert [rows.tolist() for _, rows in inner_folds(np.zeros(7, dtype=np.int64))] == [[0, 1], [2, 3], [4], [5], [6]]


def test_fewer_spots_than_neighbours() -> None:
    samples = samples_of()
    few = np.array([0, 1, 40, 80])
    spots = Spots(
        samples.spots.features[few],
        Expression.fitted(samples.spots.expression.values[few], samples.spots.sections[few]),
        samples.spots.sections[few],
    )
    predicted = fit_baseline("knn", Samples(spots, spots, samples.validation, N_TARGETS))(new_features())
    assert np.isfinite(predicted).all()


def test_unknown_baseline() -> None:
    with pytest.raises(ValueError, match="'lasso' is not one of the baselines mean, depth, knn, ridge"):
        fit_baseline("lasso", samples_of())
