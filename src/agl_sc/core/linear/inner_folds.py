"""What is left out inside the training spots to choose by."""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, KFold

_INNER_FOLDS = 5


def inner_folds(sections: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit on and rows to judge by: whole sections where there are several, else runs of consecutive spots."""
    n_sections = len(np.unique(sections))
    if n_sections > 1:
        return list(GroupKFold(min(_INNER_FOLDS, n_sections)).split(sections, groups=sections))
    return list(KFold(min(_INNER_FOLDS, len(sections))).split(sections))
