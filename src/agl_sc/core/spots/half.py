"""Features of many spots in half the bytes, where that loses nothing that counts."""

import numpy as np

from agl_sc.core.arrays import Floats

MOST_SPOTS = 50_000
"""Features of more spots than this are kept in half precision."""
_MOST_ERROR = 0.02
"""Root mean square of what rounding takes away, in spreads of a feature."""
_LOOKED_AT = 4096


def storage_type(features: Floats, n_spots: int) -> type[np.float16 | np.float32]:
    """In what precision the features of so many spots are kept.

    Half precision has 11 binary digits: enough for a feature whose mean is not far larger than its spread, and of an encoder whose
    features are below 65,504. Some thousand rows say whether they are.

    Parameters
    ----------
    features
        Some or all of them, (n, n_features); rows with NaN do not count.
    n_spots
        How many are to be kept.
    """
    if n_spots <= MOST_SPOTS:
        return np.float32
    rows = np.asarray(features[:: max(1, len(features) // _LOOKED_AT)], dtype=np.float32)
    rows = rows[np.isfinite(rows).all(axis=1)].astype(float)
    with np.errstate(over="ignore"):
        halved = rows.astype(np.float16).astype(float)
    if not len(rows) or not np.isfinite(halved).all() or 2 * np.abs(rows).max() > np.finfo(np.float16).max:
        return np.float32
    error, spread = np.sqrt(((halved - rows) ** 2).mean(axis=0)), rows.std(axis=0)
    return np.float16 if (error <= _MOST_ERROR * spread).all() else np.float32
