"""What a region without an image is known by: some of its feature rows, which a part of it has too."""

import hashlib

import numpy as np

from agl_sc.core.arrays import Float32Array

_PREFIX = "rows:"
_N_ROWS, _HEX = 128, 16
_FEWEST_SHARED = 2
"""Rows that have to be the same: one may be that of a blank tile, which every slide has."""


def sketch_of(features: Float32Array) -> str:
    """The smallest hashes among those of the rows with features, as text.

    Of a part of the rows, the smallest hashes are among them in proportion to its size (Broder 1997, On the resemblance and
    containment of documents).

    Parameters
    ----------
    features
        Of the spots of one region, (n_spots, n_features); NaN without any.
    """
    rows = np.ascontiguousarray(features[np.isfinite(features).all(axis=1)])
    hashes = sorted({hashlib.sha256(row.tobytes()).hexdigest()[:_HEX] for row in rows})
    return _PREFIX + "".join(hashes[:_N_ROWS])


def is_same_tissue(one: str, other: str) -> bool:
    """Whether two digests are of one image, or two sketches of spots of which several are the same."""
    if one == other or not (one.startswith(_PREFIX) and other.startswith(_PREFIX)):
        return one == other
    shared = _hashes(one) & _hashes(other)
    return len(shared) >= _FEWEST_SHARED


def _hashes(sketch: str) -> set[str]:
    text = sketch.removeprefix(_PREFIX)
    return {text[start : start + _HEX] for start in range(0, len(text), _HEX)}
