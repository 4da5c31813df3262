"""How often intervals hold on spots that were measured."""

import logging
from typing import Any

import numpy as np

from agl_sc._sdata.interval import IntervalRecord
from agl_sc._sdata.predictions import bounds_of
from agl_sc._sdata.records import remembered
from agl_sc._sdata.study import Study
from agl_sc.core.arrays import BoolArray, FloatArray
from agl_sc.core.evaluation.intervals import covered_share

logger = logging.getLogger(__name__)


def intervals_in(study: Study) -> IntervalRecord | None:
    """What the intervals in place promise; None where there are none."""
    found = remembered(study.table, study.keys, IntervalRecord)
    return found if found is not None and bounds_of(study, study.table.var_names[:0]) is not None else None


def coverage_of(study: Study, section: str, pair: tuple[Any, Any], *, rows: BoolArray, genes: Any) -> FloatArray:
    """Share of the spots of a section within their intervals, (n_genes,), NaN for a gene without; tells of it.

    Parameters
    ----------
    study
        With intervals.
    section
        Its name.
    pair
        Measured and predicted expression, (n_spots, n_genes) each.
    rows
        These spots in the table, (n_obs,).
    genes
        Names of these genes.
    """
    found, bounds = intervals_in(study), bounds_of(study, genes)
    covers_level = None if found is None else found.covers_level(section)
    if found is None or bounds is None or covers_level is None:
        return np.full(len(genes), np.nan)
    measured, predicted = (np.asarray(each, dtype=float) for each in pair)
    lower, upper = (each[rows].astype(float) for each in bounds)
    share = covered_share(measured, predicted, (lower, upper), covers_level=covers_level)
    if np.isfinite(share).any():
        told = "Intervals of %.0f %% cover %.0f %% of the spots of %s; they hold %s."
        logger.info(told, 100 * found.level, 100 * np.nanmean(share), section, found.words(section))
    return share
