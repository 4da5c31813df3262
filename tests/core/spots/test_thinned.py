"""Of many spots some are taken, and of every section."""

import numpy as np
import pytest

from agl_sc.core.spots.thinned import FEWEST, thinned


@pytest.mark.parametrize("sizes", [(5000,), (4000, 3, 900), (30, 5000, 19, 21), (2000, 2000, 2000)])
def test_no_section_is_lost_and_the_others_keep_their_share(sizes: tuple[int, ...]) -> None:
    sections = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = thinned(sections, 1000)
    assert (np.diff(rows) > 0).all()
    assert len(rows) <= 1000 + FEWEST * len(sizes)
    for code, size in enumerate(sizes):
        kept = int((sections[rows] == code).sum())
        assert kept == min(size, max(FEWEST, int(1000 / len(sections) * size)))


def test_few_spots_are_all_taken() -> None:
    np.testing.assert_array_equal(thinned(np.array([2, 0, 1]), 3), [0, 1, 2])
