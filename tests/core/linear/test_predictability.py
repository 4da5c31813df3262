"""The prior score by leaving one spot out, against refitting."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge

from agl_sc.core.linear.choose_by_validation import own_penalty
from agl_sc.core.linear.closed_form import ridge_basis
from agl_sc.core.linear.predictability import predictability
from agl_sc.core.spots import expression as blocks
from agl_sc.core.spots.expression import Expression

N_GENES, N_TARGETS = 7, 3


def problem(n_spots: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Features, genes that follow them less and less, the last one constant, and weights."""
    rng = np.random.default_rng(n_spots)
    features = rng.normal(size=(n_spots, 20))
    noise = np.linspace(0.5, 10, N_GENES) * rng.normal(size=(n_spots, N_GENES))
    genes = features @ rng.normal(size=(20, N_GENES)) + noise
    genes[:, -1] = 0
    return features, genes, rng.uniform(0.2, 2, size=n_spots)


@pytest.mark.parametrize("n_spots", [15, 60], ids=["fewer spots than features", "more"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_spot_is_predicted_without_itself(n_spots: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * n_spots * 2)
    features, genes, weights = problem(n_spots)
    used = weights if weighted else None
    expression = Expression.from_dense(genes)
    scores = predictability(features, expression, N_TARGETS, weights=used)
    targets = genes[:, :N_TARGETS]
    alpha = own_penalty(ridge_basis(features, expression, used), features, targets, weights=used)
    predicted = np.empty_like(genes)
    for spot in range(n_spots):
        others = np.arange(n_spots) != spot
        kept = None if used is None else used[others]
        predicted[spot] = (
            Ridge(alpha, fit_intercept=False).fit(features[others], genes[others], kept).predict(features[[spot]])
        )
    expected = [pearsonr(predicted[:, g], genes[:, g]).statistic for g in range(N_GENES - 1)]
    np.testing.assert_allclose(scores[:-1], expected, atol=1e-8)
    assert np.isnan(scores[-1])


def test_genes_that_features_do_not_show_come_last() -> None:
    scores = predictability(*(problem(60)[0], Expression.from_dense(problem(60)[1])), N_TARGETS)
    assert scores[0] > 0.8
    assert scores[0] > scores[2] > scores[5]
