"""Centring per section, scaling, weights by depth."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray, Floats
from agl_sc.core.numerics.constant import divisor

_BLOCK_BYTES = 2**26
_FEWEST_ROWS = 64
CLIP = 3.0
"""Scaled features are kept within this many spreads of their section's mean."""


def center_per_section(values: Floats, codes: NDArray[np.int64]) -> FloatArray:
    """Subtract every section's mean; rows with a value that is not finite become NaN and do not count.

    Parameters
    ----------
    values
        (n_spots, n_columns).
    codes
        Section of every spot, (n_spots,).
    """
    centred = np.asarray(values, dtype=float).copy()
    known = np.isfinite(centred).all(axis=1)
    for code in np.unique(codes[known]):
        inside = known & (codes == code)
        centred[inside] -= centred[inside].mean(axis=0)
    centred[~known] = np.nan
    return centred


def rows_at_once(n_columns: int) -> int:
    """Rows of so many columns that are converted to double precision at a time: 64 MiB of them, and 64 at least."""
    return max(_FEWEST_ROWS, _BLOCK_BYTES // (8 * max(n_columns, 1)))


def row_slices(n_rows: int, n_columns: int) -> Iterator[slice]:
    """All rows of an array, as many at a time as :func:`rows_at_once` says."""
    step = rows_at_once(n_columns)
    return (slice(start, start + step) for start in range(0, n_rows, step))


def section_means(values: Floats, codes: NDArray[np.int64], *, n_rows: int | None = None) -> FloatArray:
    """Mean of every section, as :func:`center_per_section` subtracts it, without a copy of all values.

    Parameters
    ----------
    values
        (n_spots, n_columns); rows with a value that is not finite do not count.
    codes
        Section of every spot, from 0, (n_spots,); spots of -1 do not count.
    n_rows
        Rows that are converted to double precision at once; :func:`rows_at_once` by default.

    Returns
    -------
    (n_sections, n_columns); 0 for a section without a row that counts.
    """
    n_sections, n_rows = int(codes.max(initial=-1)) + 1, n_rows or rows_at_once(values.shape[1])
    totals, counts = np.zeros((n_sections, values.shape[1])), np.zeros((n_sections, 1))
    for start in range(0, len(values), n_rows):
        block, of = np.asarray(values[start : start + n_rows], dtype=float), codes[start : start + n_rows]
        known = np.isfinite(block).all(axis=1) & (of >= 0)
        for code in np.unique(of[known]):
            inside = block[known & (of == code)]
            totals[code] = np.vstack([totals[code], inside]).sum(axis=0)  # row by row, as the sum over all at once
            counts[code] += len(inside)
    return totals / np.maximum(counts, 1)


def means_of(reference: Mapping[Any, NDArray[np.floating[Any]]], names: NDArray[Any], n_features: int) -> FloatArray:
    """Means (n_sections, n_features) of some sections, refused where one is missing or of another shape."""
    if not isinstance(reference, Mapping):
        msg = f"reference is a {type(reference).__name__}; pass a mapping from section to its mean features."
        raise TypeError(msg)
    missing = [name for name in names if name not in reference]
    if missing:
        listed = ", ".join(map(str, reference)) or "none"
        msg = f"reference lacks the section {str(missing[0])!r} and holds {listed}; pass the mean features of every section."
        raise KeyError(msg)
    means = [np.asarray(reference[name], dtype=float) for name in names]
    odd = [
        name
        for name, mean in zip(names, means, strict=True)
        if mean.shape != (n_features,) or not np.isfinite(mean).all()
    ]
    if odd:
        shape = np.shape(reference[odd[0]])
        msg = f"reference of section {str(odd[0])!r} has shape {shape}; pass its mean features, ({n_features},), without NaN."
        raise ValueError(msg)
    return np.array(means).reshape(len(means), n_features)


def centred_rows(values: Floats, means: FloatArray) -> FloatArray:
    """Values less the mean of each one's section, both (n_spots, n_columns); rows with one that is not finite are NaN."""
    centred = np.asarray(values, dtype=float) - means
    centred[~np.isfinite(values).all(axis=1)] = np.nan
    return centred


def spread(values: FloatArray) -> FloatArray:
    """Standard deviation of every column, 1 where it is constant, (n_columns,)."""
    return divisor(values.std(axis=0))


def spread_about(values: Floats, means: FloatArray, codes: NDArray[np.int64], *, rows: NDArray[np.int64]) -> FloatArray:
    """As :func:`spread` of rows that are centred, without a copy of all values, (n_columns,).

    Parameters
    ----------
    values
        (n_spots, n_columns).
    means
        What the values of every section are centred on, (n_sections, n_columns).
    codes
        Section of every spot, (n_spots,).
    rows
        Which spots, without NaN.
    """
    blocks = [rows[some] for some in row_slices(len(rows), values.shape[1])]
    centre = sum((values[each] - means[codes[each]]).sum(axis=0) for each in blocks) / len(rows)
    square = sum(((values[each] - means[codes[each]] - centre) ** 2).sum(axis=0) for each in blocks)
    return divisor(np.sqrt(square / len(rows)))


def scaled_rows(
    values: Floats,
    means: FloatArray,
    codes: NDArray[np.int64],
    *,
    scale: FloatArray,
    directions: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """All values centred, scaled and clipped, in single precision, (n_spots, n_columns); rows with NaN are NaN.

    Parameters
    ----------
    values
        (n_spots, n_columns).
    means
        What the values of every section are centred on, (n_sections, n_columns).
    codes
        Section of every spot, (n_spots,).
    scale
        What they are divided by, (n_columns,).
    directions
        What they are projected on then, (n_columns, width): the result is (n_spots, width).
    """
    width = values.shape[1] if directions is None else directions.shape[1]
    scaled = np.empty((len(values), width), dtype=np.float32)
    for rows in row_slices(*values.shape):
        block = scale_features(centred_rows(values[rows], means[codes[rows]]), scale)
        scaled[rows] = block if directions is None else block.astype(np.float32) @ directions
    return scaled


def scale_features(centred: FloatArray, scale: FloatArray) -> FloatArray:
    """Divide by ``scale`` and clip at +-3.

    Channels that are silent on the training sections and loud on another one would otherwise come out hundreds of
    spreads away, and drown a linear prediction.
    """
    return np.clip(centred / scale, -CLIP, CLIP)


def depth_weights(library: FloatArray, sections: NDArray[np.int64]) -> FloatArray:
    """Weight of every spot: the root of its total counts, with mean 1 in every section, (n_spots,).

    The counting noise of log-normalised expression falls with depth, what morphology does not tell stays. The root is a
    middle between no weights, right if there were no counting noise, and counts, right if there were nothing else.

    Parameters
    ----------
    library
        Total counts of every spot, (n_spots,).
    sections
        Section of every spot, (n_spots,).
    """
    weights: FloatArray = np.sqrt(library)
    codes = np.unique(sections, return_inverse=True)[1]
    return weights / (np.bincount(codes, weights) / np.bincount(codes))[codes]


def held_out_slope(calibrated: FloatArray, measured: FloatArray, codes: NDArray[np.int64]) -> float:
    """Slope of measured on calibrated expression of spots that were not fitted to, all genes together, in [0, 1].

    A fit is surer of the spots it was fitted to than of others: on those, the calibrated predictions vary too much.

    Parameters
    ----------
    calibrated
        (n_spots, n_genes).
    measured
        The same spots, (n_spots, n_genes).
    codes
        Section of every spot, within which both are centred, (n_spots,).
    """
    scale = spread(center_per_section(measured, codes))
    predicted, wanted = (center_per_section(values / scale, codes) for values in (calibrated, measured))
    square = float((predicted**2).sum())
    return float(np.clip((predicted * wanted).sum() / square, 0.0, 1.0)) if square > 0 else 1.0
