"""How well levels of whole sections are predicted, beside how well spots are within them."""

import numpy as np

from agl_sc.core.arrays import FloatArray
from agl_sc.core.evaluation.metrics import pearson

FEWEST_SECTIONS = 3
"""Of two sections every gene correlates by 1 or -1."""


def pearson_between(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """Pearson correlation over sections of the pseudobulk of every gene, (n_genes,); NaN with fewer than three sections.

    Where every section was predicted by a model that had not seen it, and says the mean of the others, the two correlate by
    -1 without any fault of the model: below 0 is nothing learned.

    Parameters
    ----------
    measured
        Mean expression over the spots of every section, (n_sections, n_genes).
    predicted
        The same of the prediction, over the same spots.
    """
    if len(measured) < FEWEST_SECTIONS:
        return np.full(measured.shape[1], np.nan)
    return pearson(measured, predicted)
