"""Held-out predictions against scikit-learn, and that nothing of a held-out spot is looked at."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import RidgeCV

from agl_sc.core.arrays import Float32Array, FloatArray
from agl_sc.core.evaluation import held_out
from agl_sc.core.evaluation.held_out import HeldOutFold, Samples, held_out_predictions
from agl_sc.core.linear.choose_by_validation import ALPHAS
from agl_sc.core.spots import expression as blocks
from agl_sc.core.spots.scaling import CLIP, depth_weights


def problem(n_sections: int = 3, n_each: int = 30, n_genes: int = 7) -> Samples:
    """Sections of other levels, genes that follow the features less and less, the last one constant."""
    rng = np.random.default_rng(n_sections)
    n_spots = n_sections * n_each
    sections = np.repeat(np.arange(n_sections), n_each)
    features = rng.normal(size=(n_spots, 20)) + 3 * rng.normal(size=(n_sections, 20))[sections]
    noise = np.linspace(0.2, 8, n_genes) * rng.normal(size=(n_spots, n_genes))
    genes = features @ rng.normal(size=(20, n_genes)) + noise + 50.0
    genes[:, -1] = 2.0
    return Samples(features, scipy.sparse.csr_matrix(genes), rng.integers(50, 500, n_spots).astype(float), sections)


def by_section(samples: Samples) -> list[HeldOutFold]:
    codes = samples.sections
    return [HeldOutFold(np.flatnonzero(codes != c), np.flatnonzero(codes == c)) for c in np.unique(codes)]


def predicted_of(samples: Samples, folds: list[HeldOutFold]) -> FloatArray:
    return np.hstack([predicted for _, _, predicted in held_out_predictions(samples, folds)])


def test_ridge_of_scikit_learn_on_the_other_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = problem()
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * len(samples.sections) * 2)  # genes in several blocks
    fold = by_section(samples)[1]
    predicted = predicted_of(samples, [fold])
    measured, codes = samples.expression.toarray(), samples.sections
    features = np.array(samples.features)
    for code in np.unique(codes):
        features[codes == code] -= features[codes == code].mean(axis=0)
    scaled = np.clip(features / features[fold.fit].std(axis=0), -CLIP, CLIP)
    standard, mean, spread = measured[fold.fit].copy(), np.zeros(7), np.zeros(7)
    for code in np.unique(codes[fold.fit]):
        inside = codes[fold.fit] == code
        deviation = standard[inside].std(axis=0)
        deviation[-1] = 1.0
        mean, spread = mean + standard[inside].mean(axis=0) / 2, spread + deviation / 2
        standard[inside] = (standard[inside] - standard[inside].mean(axis=0)) / deviation
    weights = depth_weights(samples.library[fold.fit], codes[fold.fit])
    ridge = RidgeCV([20 * alpha for alpha in ALPHAS], fit_intercept=False).fit(scaled[fold.fit], standard, weights)
    expected = ridge.predict(scaled[fold.held]) * spread + mean
    np.testing.assert_allclose(predicted[fold.held], expected, rtol=2e-3, atol=2e-3)
    assert np.isnan(predicted[fold.fit]).all()


def test_expression_of_held_out_spots_changes_nothing_of_their_prediction() -> None:
    samples = problem()
    other = samples.expression.toarray()
    fold = by_section(samples)[0]
    other[fold.held] *= 7.0
    library = samples.library.copy()
    library[fold.held] *= 3
    changed = replace(samples, expression=scipy.sparse.csr_matrix(other), library=library)
    first, second = (predicted_of(each, [fold])[fold.held] for each in (samples, changed))
    np.testing.assert_array_equal(first, second)


def test_the_most_variable_genes_of_the_fit_choose_the_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, folds = problem(), by_section(problem())
    monkeypatch.setattr(held_out, "N_LEADING", 2)
    variance = samples.expression.toarray()[folds[0].fit].var(axis=0)
    leading = np.sort(np.argsort(-variance)[:2])
    named = np.hstack([p for _, _, p in held_out_predictions(samples, folds[:1], leading=leading)])
    np.testing.assert_array_equal(predicted_of(samples, folds[:1]), named)


def test_many_spots_are_thinned_before_a_fit_and_all_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, folds = problem(n_each=60), by_section(problem(n_each=60))
    monkeypatch.setattr(held_out, "MOST_SPOTS", 80)
    thinned = predicted_of(samples, folds)
    assert np.isfinite(thinned).all()
    monkeypatch.undo()
    full = predicted_of(samples, folds)
    assert (thinned != full).any()
    assert np.corrcoef(thinned[:, 0], full[:, 0])[0, 1] > 0.95


def test_weights_kept_as_two_factors_predict_as_their_product(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = problem(n_each=60)
    folds = by_section(samples)
    kept: list[int] = []
    original = held_out._Smoother.__call__

    def spied(self: held_out._Smoother, standard: Float32Array) -> Float32Array:
        kept.append(len(self.factors))
        return original(self, standard)

    monkeypatch.setattr(held_out._Smoother, "__call__", spied)
    factors = predicted_of(samples, folds)  # 60 x 120 weights by 20 features
    monkeypatch.setattr(
        held_out._Smoother,
        "of",
        classmethod(lambda cls, fold, left, right: cls(fold, ((left @ right).astype(np.float32),))),
    )
    product = predicted_of(samples, folds)
    assert set(kept[:3]) == {2}
    assert set(kept[3:]) == {1}
    np.testing.assert_allclose(factors, product, rtol=1e-4, atol=1e-4)
