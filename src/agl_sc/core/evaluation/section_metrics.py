"""All metrics of one section in one table."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from agl_sc.core.arrays import FloatArray
from agl_sc.core.evaluation.beyond_depth import pearson_beyond_depth
from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.metrics import METRICS, pearson
from agl_sc.core.evaluation.noise_ceiling import RawCounts, noise_ceiling
from agl_sc.core.evaluation.shift_test import false_discovery_rate, shift_p_values
from agl_sc.core.evaluation.spatial_metrics import moran_ratio, ssim

SPATIAL = ("ssim", "moran_ratio", "p_value", "fdr")
"""Metrics that need to know where spots lie."""
CEILING = ("noise_ceiling", "pearson_of_ceiling")
"""Metrics that need raw counts."""
BEYOND_DEPTH = "pearson_beyond_depth"
"""The metric that needs total counts."""
BETWEEN = "pearson_between"
"""The metric over several sections; of one alone it is NaN."""
NAMES = (*METRICS, BEYOND_DEPTH, *SPATIAL, *CEILING, BETWEEN)
"""Every metric, in the order of columns."""
COVERAGE = "coverage"
"""The metric of intervals, which is there where they are."""


def section_metrics(
    measured: FloatArray,
    predicted: FloatArray,
    *,
    names: Sequence[str] = NAMES,
    lattice: Lattice | None = None,
    counts: RawCounts | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Metrics of every gene over the spots of one section.

    Parameters
    ----------
    measured
        Expression in the units of the prediction, (n_spots, n_genes).
    predicted
        (n_spots, n_genes).
    names
        Which, of :data:`NAMES`.
    lattice
        Where the same spots lie; those without a position are left out of the spatial metrics, which are NaN without it.
    counts
        Raw counts of the same spots and genes; the noise ceiling and what is beyond depth are NaN without them.
    seed
        Seed of the count splitting.

    Returns
    -------
    A row per gene, a column per name, NaN where a metric is undefined.

    Raises
    ------
    ValueError
        A name is unknown, or the two arrays differ in shape.
    """
    check_names(names)
    columns = {name: METRICS[name](measured, predicted) for name in names if name in METRICS}
    undefined = np.full(measured.shape[1], np.nan)
    columns |= dict.fromkeys((name for name in names if name not in METRICS), undefined)
    if lattice is not None:
        inside = lattice.known
        columns |= _spatial(measured[inside], predicted[inside], lattice.take(inside), names=names)
    if counts is not None and BEYOND_DEPTH in names:
        columns[BEYOND_DEPTH] = pearson_beyond_depth(measured, predicted, counts.library)
    if counts is not None and set(names) & set(CEILING):
        ceiling = noise_ceiling(counts, rng=np.random.default_rng(seed))
        columns |= {"noise_ceiling": ceiling, "pearson_of_ceiling": pearson(measured, predicted) / ceiling}
    return pd.DataFrame({name: columns[name] for name in names})


def check_names(names: Sequence[str]) -> None:
    """Refuse metrics that do not exist."""
    listed = list(names) if isinstance(names, Sequence) and not isinstance(names, str) else []
    unknown = [name for name in listed if name not in NAMES]
    if unknown or not listed:
        what = repr(unknown[0] if unknown else names)
        msg = f"metrics={what} is not among the metrics; pass a list of some of {', '.join(NAMES)}."
        raise ValueError(msg)


def _spatial(
    measured: FloatArray, predicted: FloatArray, lattice: Lattice, *, names: Sequence[str]
) -> dict[str, FloatArray]:
    columns = {}
    if "ssim" in names:
        columns["ssim"] = ssim(measured, predicted, lattice)
    if "moran_ratio" in names:
        columns["moran_ratio"] = moran_ratio(measured, predicted, lattice)
    if "p_value" in names or "fdr" in names:
        columns["p_value"] = shift_p_values(measured, predicted, lattice)
        columns["fdr"] = false_discovery_rate(columns["p_value"])
    return columns
