"""Some of many spots, of every section."""

import numpy as np

from agl_sc.core.arrays import IntArray

FEWEST = 20
"""Spots that are kept of a section, where it has so many."""


def thinned(sections: IntArray, most: int) -> IntArray:
    """Rows of about ``most`` spots drawn at random: of every section the same share, and :data:`FEWEST` or all where that is fewer.

    Parameters
    ----------
    sections
        Section of every spot, (n_spots,).
    most
        More than these are thinned.
    """
    if len(sections) <= most:
        return np.arange(len(sections))
    share, generator = most / len(sections), np.random.default_rng(0)
    kept = []
    for code in np.unique(sections):
        own = np.flatnonzero(sections == code)
        n_kept = min(len(own), max(FEWEST, int(share * len(own))))
        kept.append(generator.choice(own, n_kept, replace=False))
    return np.sort(np.concatenate(kept))
