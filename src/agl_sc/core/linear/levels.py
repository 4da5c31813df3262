"""Levels of whole sections: from the mean features of a section to its mean expression."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_sc.core.arrays import BoolArray, FloatArray
from agl_sc.core.numerics.constant import divisor

FEWEST_UNITS = 6
"""Sections, or patients, that are needed to hold some out: with fewer, chance alone often looks like a gain."""
MARGIN = 0.8
"""Share of the mean's squared error of held-out units that must not be exceeded for levels to be predicted."""
PENALTIES = tuple(10.0**power for power in range(-2, 4))
"""Tried, in units of the mean square of the centred mean features of a section."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Ridge of the mean expression of sections on their mean features, in the space of the sections."""

    centre: FloatArray
    """Mean features over the sections it was fitted to, (n_features,)."""
    sections: FloatArray
    """Mean features of each, less that, (n_sections, n_features)."""
    coefficients: FloatArray
    """(n_sections, n_genes)."""

    def shift(self, features: FloatArray) -> FloatArray:
        """By how much the expression of a section lies above that of the sections it was fitted to, (n_genes,).

        No further than that of any of these does: a section of another stain or scanner lies far off.

        Parameters
        ----------
        features
            Mean features of the section, (n_features,).
        """
        most = np.abs(self.sections @ self.sections.T @ self.coefficients).max(axis=0, initial=0.0)
        shifted: FloatArray = np.clip((self.sections @ (features - self.centre)) @ self.coefficients, -most, most)
        return shifted


def fit_levels(features: FloatArray, expression: FloatArray, penalty: float) -> Levels:
    """Ridge, both sides centred over sections.

    Parameters
    ----------
    features
        Mean features of every section, scaled as those of spots, (n_sections, n_features).
    expression
        Mean expression of every section, (n_sections, n_genes).
    penalty
        One of :data:`PENALTIES`, or any other number above 0.
    """
    centre = features.mean(axis=0)
    centred = features - centre
    gram = centred @ centred.T
    total = float(np.trace(gram)) / len(gram)
    ridge = gram + penalty * (total or 1.0) * np.eye(len(gram))
    return Levels(centre, centred, np.linalg.solve(ridge, expression - expression.mean(axis=0)))


def held_out_error(features: FloatArray, expression: FloatArray, units: NDArray[Any]) -> float:
    """Squared error of the levels of sections that were held out, as a share of the error of the mean of the others.

    One unit after the other is held out, and the penalty is chosen without it, by holding out one of the others at a time;
    genes count alike, whatever their spread over sections.

    Parameters
    ----------
    features
        Mean features of every section, (n_sections, n_features).
    expression
        Mean expression of every section, (n_sections, n_genes).
    units
        What is held out together: the patient of every section, or the section itself, (n_sections,).
    """
    scaled = (expression - expression.mean(axis=0)) / divisor(expression.std(axis=0))
    error = of_mean = 0.0
    for unit in np.unique(units):
        inside = units == unit
        penalty = best_penalty(features[~inside], scaled[~inside], units[~inside])
        own, mean = _errors(features, scaled, inside, penalty=penalty)
        error, of_mean = error + own, of_mean + mean
    return error / of_mean if of_mean > 0 else float("nan")


def best_penalty(features: FloatArray, expression: FloatArray, units: NDArray[Any]) -> float:
    """The penalty of the least squared error in units that are held out one after the other."""

    def error(penalty: float) -> float:
        parts = (_errors(features, expression, units == unit, penalty=penalty)[0] for unit in np.unique(units))
        return float(sum(parts))

    return min(PENALTIES, key=error)


def _errors(features: FloatArray, expression: FloatArray, inside: BoolArray, *, penalty: float) -> tuple[float, float]:
    """Squared error in held-out sections of the fit to the others, and of their mean."""
    levels, mean = fit_levels(features[~inside], expression[~inside], penalty), expression[~inside].mean(axis=0)
    off = expression[inside] - mean
    shifts = np.array([levels.shift(row) for row in features[inside]])
    return float(((off - shifts) ** 2).sum()), float((off**2).sum())
