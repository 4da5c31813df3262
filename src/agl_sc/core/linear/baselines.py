"""Baselines that a network has to beat, on the same spots: scikit-learn behind one protocol."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from agl_sc.core.arrays import FloatArray, Floats
from agl_sc.core.config import Denoise
from agl_sc.core.linear.choose_by_validation import ALPHAS, RANKS, choose_alpha, choose_rank
from agl_sc.core.linear.choose_denoising import choose_denoising, denoised
from agl_sc.core.linear.closed_form import reduced_rank_ridge, ridge_basis
from agl_sc.core.linear.inner_folds import inner_folds
from agl_sc.core.spots.spots import Spots, Validation

Predictor = Callable[[Floats], FloatArray]
"""From features (n_spots, n_features) to targets (n_spots, n_targets)."""

HEST_COMPONENTS = 256
TREE_COMPONENTS = 32
"""Principal components that trees are grown on."""
NEIGHBOURS = (5, 10, 20, 40, 80)
"""Numbers of neighbours tried."""
_MIX = (0.5, 0.8)
"""Shares of the projection in denoised targets of ridge, which more of it serves than serves networks."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What a baseline is fitted on."""

    spots: Spots
    """Training and validation spots; targets first, then auxiliary genes by prior rank."""
    train: Spots
    """Training spots alone, scaled alike, for what validation picks."""
    validation: Validation
    """Validation spots of the targets."""
    n_targets: int
    """Number of leading genes that are targets."""
    seed: int = 0
    """Of whatever is drawn."""

    @property
    def features(self) -> FloatArray:
        """Of training and validation spots, in double precision, (n_spots, n_features)."""
        return self.spots.features.astype(np.float64)

    @property
    def targets(self) -> FloatArray:
        """Of training and validation spots, centred per section and scaled, (n_spots, n_targets)."""
        return self.spots.expression.columns(0, self.n_targets)


def fit_baseline(name: str, samples: Samples) -> Predictor:
    """Fit one of :data:`BASELINES`.

    Parameters
    ----------
    name
        One of :data:`BASELINES`.
    samples
        What to fit on.

    Returns
    -------
    A function from features, centred per section and scaled as those of the samples, to targets in the units of the layer:
    the prediction of the centred and scaled expression, times a gene's spread, plus its mean over the samples; NaN for
    spots with NaN.

    Raises
    ------
    ValueError
        There is no such baseline.
    """
    if name not in BASELINES:
        msg = f"{name!r} is not one of the baselines {', '.join(BASELINES)}."
        raise ValueError(msg)
    predict, expression = BASELINES[name](samples), samples.spots.expression
    genes = slice(samples.n_targets)
    mean, scale = expression.means[:, genes][expression.sections].mean(axis=0), expression.typical_scale[genes]

    def in_units(features: Floats) -> FloatArray:
        known = np.isfinite(features).all(axis=1)
        predicted = np.full((len(features), samples.n_targets), np.nan)
        if known.any():
            predicted[known] = predict(features[known].astype(np.float64)) * scale + mean
        return predicted

    return in_units


def ridge_cv(features: Floats, targets: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Coefficients (n_features, n_targets) of ridge regression, the penalty chosen by leave-one-out cross-validation.

    Parameters
    ----------
    features
        Centred and scaled, (n_spots, n_features).
    targets
        Centred and scaled, (n_spots, n_targets).
    weights
        Of every spot's squared error, (n_spots,); all 1 by default.
    """
    alphas = [alpha * features.shape[1] for alpha in ALPHAS]
    fitted = RidgeCV(alphas=alphas, fit_intercept=False).fit(features.astype(np.float64), targets, weights)
    coefficients: FloatArray = fitted.coef_.reshape(
        -1, features.shape[1]
    ).T  # of a single target, scikit-learn's is flat
    return coefficients


def _mean(samples: Samples) -> Predictor:
    """Nothing but the mean: Pearson is undefined, and the squared error is what a prediction has to be better than."""
    return lambda features: np.zeros((len(features), samples.n_targets))


def _ridge(samples: Samples, weights: FloatArray | None = None) -> Predictor:
    """Ridge, its penalty by leave-one-out, which is exact in closed form."""
    coefficients = ridge_cv(samples.features, samples.targets, weights)
    return lambda features: features @ coefficients


def _weighted_ridge(samples: Samples) -> Predictor:
    """The same with spots weighted by depth, as in the closed-form start of the networks."""
    return _ridge(samples, samples.spots.depth_weights)


def _denoised_ridge(samples: Samples, settings: Denoise = Denoise(mix=_MIX)) -> Predictor:
    """Weighted ridge of targets denoised by auxiliary genes, as far as leaving sections out says; without any training."""
    choice = choose_denoising(samples.spots, samples.n_targets, settings)
    return _weighted_ridge(replace(samples, spots=denoised(samples.spots, samples.n_targets, choice.chosen)))


def _denoised_by_targets(samples: Samples) -> Predictor:
    """The same, denoised by the targets themselves alone."""
    return _denoised_ridge(samples, Denoise(genes=(0,), mix=_MIX))


def _denoised_by_all(samples: Samples) -> Predictor:
    """The same, denoised by every auxiliary gene there is."""
    return _denoised_ridge(samples, Denoise(genes=(samples.spots.expression.shape[1] - samples.n_targets,), mix=_MIX))


def _knn(samples: Samples) -> Predictor:
    """Mean of the nearest spots in feature space; how many, by squared error in held-out sections."""
    folds = inner_folds(samples.spots.sections)
    most = min(len(inside) for inside, _ in folds)
    tried = [n for n in NEIGHBOURS if n <= most] or [most]
    search = GridSearchCV(
        KNeighborsRegressor(), {"n_neighbors": tried}, cv=folds, scoring="neg_mean_squared_error"
    ).fit(samples.features, samples.targets)
    return _predictor(search)


def _pca_ridge(samples: Samples) -> Predictor:
    """PCA-256 and ridge as HEST-bench defines them (Jaume et al., NeurIPS 2024, ``hest/bench/trainer.py``).

    Standardised features, 256 principal components, no intercept, and a penalty of 100 / (n_components * n_targets), which
    is next to none. HEST-bench's own ``--alpha`` is overwritten by that formula (its pull request 140), so this is what its
    numbers were made with. Features and targets are those of every other method here, centred per section.
    """
    n_components = _n_components(samples, HEST_COMPONENTS)
    penalty = 100 / (n_components * samples.n_targets)
    ridge = Ridge(alpha=penalty, fit_intercept=False, solver="lsqr", max_iter=1000)
    return _predictor(_on_components(n_components, ridge).fit(samples.features, samples.targets))


def _reduced_rank_ridge(samples: Samples) -> Predictor:
    """Reduced-rank ridge of targets and auxiliary genes alike; penalty and rank by validation, then fitted on all spots."""
    basis = ridge_basis(samples.train.features, samples.train.expression)
    every = np.ones(samples.train.expression.shape[1])
    alpha = choose_alpha(basis, samples.validation)
    rank = choose_rank(reduced_rank_ridge(basis, every, alpha=alpha, rank=RANKS[-1]), samples.validation)
    again = ridge_basis(samples.spots.features, samples.spots.expression)
    fitted = reduced_rank_ridge(again, every, alpha=alpha, rank=rank)
    return lambda features: fitted.predict(features)[:, : samples.n_targets]


def _random_forest(samples: Samples) -> Predictor:
    """One forest for all targets, on principal components; a third of them tried at a split (Breiman, 2001)."""
    forest = RandomForestRegressor(100, min_samples_leaf=5, max_features=1 / 3, random_state=samples.seed)
    targets = samples.targets
    single = targets.ravel() if samples.n_targets == 1 else targets  # scikit-learn warns of a single column
    return _predictor(_on_components(_n_components(samples, TREE_COMPONENTS), forest).fit(samples.features, single))


def _gradient_boosting(samples: Samples) -> Predictor:
    """Boosted trees of depth 3 for every target, on principal components; as many and as deep as HEST-bench's."""
    trees = HistGradientBoostingRegressor(max_iter=100, max_depth=3, early_stopping=False, random_state=samples.seed)
    n_components = _n_components(samples, TREE_COMPONENTS)
    return _predictor(_on_components(n_components, MultiOutputRegressor(trees)).fit(samples.features, samples.targets))


def _n_components(samples: Samples, most: int) -> int:
    n_spots, n_features = samples.spots.features.shape
    return int(min(most, n_spots, n_features))


def _on_components(n_components: int, estimator: Any) -> Pipeline:
    """Standardised features, then principal components; where those come by random projection, always the same."""
    return make_pipeline(StandardScaler(), PCA(n_components, random_state=0), estimator)


def _predictor(fitted: Any) -> Predictor:
    return lambda features: fitted.predict(features).reshape(len(features), -1)


BASELINES: dict[str, Callable[[Samples], Predictor]] = {
    "mean": _mean,
    "depth": _ridge,
    "knn": _knn,
    "ridge": _ridge,
    "weighted_ridge": _weighted_ridge,
    "denoised_ridge": _denoised_ridge,
    "denoised_ridge_targets": _denoised_by_targets,
    "denoised_ridge_random": _denoised_ridge,
    "denoised_ridge_all": _denoised_by_all,
    "pca_ridge": _pca_ridge,
    "reduced_rank_ridge": _reduced_rank_ridge,
    "random_forest": _random_forest,
    "gradient_boosting": _gradient_boosting,
}
"""From samples to a predictor of centred and scaled targets; that of ``"depth"`` is given depth for features, that of
``"denoised_ridge_random"`` auxiliary genes in random order."""
WITH_AUXILIARY = ("denoised_ridge", "denoised_ridge_random", "denoised_ridge_all", "reduced_rank_ridge")
"""Baselines that look at auxiliary genes."""
PICKING = ("reduced_rank_ridge",)
"""Baselines for which validation spots pick."""
