"""Depth as the only feature."""

import logging

import numpy as np
import pytest

from agl_sc.core.linear.depth import depth_feature

SECTIONS = np.repeat([0, 1], 4)


def test_the_log_of_total_counts_within_sections() -> None:
    library = np.array([1, 10, 100, 1000, 5, 50, 500, 5000], dtype=float)
    found = depth_feature(library, SECTIONS, np.ones(8, dtype=bool))
    steps = np.array([-1.5, -0.5, 0.5, 1.5])
    np.testing.assert_allclose(found[:, 0], np.tile(steps / steps.std(), 2))


def test_scaled_by_training_spots_alone_and_undefined_without_counts() -> None:
    library = np.array([1, 10, 100, 1000, 5, 50, 0, 5e9], dtype=float)
    train = SECTIONS == 0
    found = depth_feature(library, SECTIONS, train)
    assert found[train].std() == pytest.approx(1)
    assert np.isnan(found[:, 0]).tolist() == [False] * 6 + [True, False]


def test_total_counts_that_are_all_equal_are_told(caplog: pytest.LogCaptureFixture) -> None:
    library = np.repeat([100.0, 333.0], 4)
    with caplog.at_level(logging.WARNING):
        found = depth_feature(library, SECTIONS, np.ones(8, dtype=bool))
    np.testing.assert_array_equal(found, 0)
    assert "All training spots of a section have the same total counts" in caplog.text
