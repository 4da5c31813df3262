"""Baselines that a network has to beat, on the same spots."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from agl_sc.core.path import ALPHAS

FloatArray = NDArray[np.float64]


def ridge_cv(features: FloatArray, targets: FloatArray) -> FloatArray:
    """Coefficients (n_features, n_targets) of ridge regression, the penalty chosen by leave-one-out cross-validation.

    Parameters
    ----------
    features
        Centred and scaled, (n_spots, n_features).
    targets
        Centred and scaled, (n_spots, n_targets).
    """
    alphas = [alpha * features.shape[1] for alpha in ALPHAS]
    fitted = RidgeCV(alphas=alphas, fit_intercept=False).fit(features, targets)
    coefficients: FloatArray = fitted.coef_.T
    return coefficients
