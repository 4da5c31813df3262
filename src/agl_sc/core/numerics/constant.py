"""What is constant: a gene or a feature that has one value everywhere, so that neither spread nor correlation says anything."""

import numpy as np
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray

_LEAST_SPREAD = 1e-12
"""What centring leaves of a constant is rounding, and below this; what varies is far above."""


def constant(values: FloatArray) -> NDArray[np.bool_]:
    """Which columns have the same value in every row, (n_columns,); a column with NaN is not one of them."""
    same: NDArray[np.bool_] = np.ptp(values, axis=0) == 0
    return same


def varying(values: FloatArray) -> NDArray[np.bool_]:
    """Which columns have different values, (n_columns,); a column with NaN is not one of them either.

    By the values themselves: a mean may miss those of a constant by a rounding error, which its variance then shows.
    """
    different: NDArray[np.bool_] = np.ptp(values, axis=0) > 0
    return different


def divisor(deviation: FloatArray) -> FloatArray:
    """Standard deviations to divide by: 1 where that of centred values is only what rounding leaves of a constant."""
    return np.where(deviation > _LEAST_SPREAD, deviation, 1.0)
