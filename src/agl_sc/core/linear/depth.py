"""The one feature of a model that sees no pixels: how many counts a spot has."""

import logging

import numpy as np
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray
from agl_sc.core.numerics.constant import constant
from agl_sc.core.spots.scaling import center_per_section, spread

logger = logging.getLogger(__name__)


def depth_feature(library: FloatArray, sections: NDArray[np.int64], train: NDArray[np.bool_]) -> FloatArray:
    """Log of the total counts of every spot, centred within its section and scaled by the spread of training spots.

    These are measured counts, those of the spots that are to be predicted among them.

    Parameters
    ----------
    library
        Total counts of every spot, (n_obs,).
    sections
        Section of every spot, (n_obs,).
    train
        Training spots, (n_obs,).

    Returns
    -------
    (n_obs, 1); NaN for a spot without counts, 0 for all others where the spots of every section have the same.
    """
    known = library > 0
    depth = np.where(known, np.log(np.where(known, library, 1.0)), np.nan)[:, None]
    centred = center_per_section(depth, sections)
    flat = [constant(depth[train & known & (sections == code)])[0] for code in np.unique(sections[train & known])]
    if all(flat):
        logger.warning(
            "All training spots of a section have the same total counts: there is no depth to predict from, and the depth model "
            "predicts the training mean."
        )
        return np.where(known[:, None], 0.0, np.nan)
    return centred / spread(centred[train & known])
