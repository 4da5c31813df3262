"""Baselines that a network has to beat, on the same spots."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from agl_sc.core.expression import Floats
from agl_sc.core.path import ALPHAS

FloatArray = NDArray[np.float64]


def ridge_cv(features: Floats, targets: FloatArray) -> FloatArray:
    """Coefficients (n_features, n_targets) of ridge regression, the penalty chosen by leave-one-out cross-validation.

    Parameters
    ----------
    features
        Centred and scaled, (n_spots, n_features).
    targets
        Centred and scaled, (n_spots, n_targets).
    """
    alphas = [alpha * features.shape[1] for alpha in ALPHAS]
    fitted = RidgeCV(alphas=alphas, fit_intercept=False).fit(features.astype(np.float64), targets)
    coefficients: FloatArray = fitted.coef_.T
    return coefficients
