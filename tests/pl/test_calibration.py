from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from scipy.stats import binned_statistic, sem
from spatialdata import SpatialData

from agl_sc import pl

TEST = slice(31, 54)
"""Test spots with a prediction."""


def line(ax: Axes, label: str) -> Line2D:
    (found,) = [candidate for candidate in ax.lines if candidate.get_label() == label]
    return found


def bins(ax: Axes) -> ErrorbarContainer:
    (found,) = ax.containers
    assert isinstance(found, ErrorbarContainer)
    return found


def measured(sdata: SpatialData) -> Any:
    counts = sdata.tables["table"].X.toarray()
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def test_test_spots_alone_are_drawn(sdata: SpatialData) -> None:
    (ax,) = pl.calibration(sdata, "ERBB2")
    expected = np.column_stack([sdata.tables["table"].layers["agl"][TEST, 0], measured(sdata)[TEST, 0]])
    np.testing.assert_allclose(np.asarray(line(ax, "spots").get_xydata()), expected, rtol=1e-5)
    r = np.corrcoef(*expected.T)[0, 1]
    assert ax.get_title() == f"ERBB2\nr = {r:.2f}, 23 test spots"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted, log1p(CP10k)", "measured, log1p(CP10k)")


def test_bins_hold_the_means_of_equally_many_spots(sdata: SpatialData) -> None:
    (ax,) = pl.calibration(sdata, "ERBB2", sections="C2")
    predicted, truth = sdata.tables["table"].layers["agl"][:30, 0].astype(float), measured(sdata)[:30, 0]
    rank = predicted.argsort().argsort()
    edges = np.arange(0, 31, 5) - 0.5
    means, *_ = binned_statistic(rank, [predicted, truth], "mean", bins=edges)
    (errors,), *_ = binned_statistic(rank, [truth], lambda part: sem(part), bins=edges)
    points, _, (whiskers,) = bins(ax).lines
    assert points is not None
    np.testing.assert_allclose(np.asarray(points.get_xydata()), means.T, rtol=1e-5)
    lengths = [np.ptp(segment[:, 1]) for segment in whiskers.get_segments()]
    np.testing.assert_allclose(lengths, 2 * errors, rtol=1e-5)


def test_identity_line(sdata: SpatialData) -> None:
    (ax,) = pl.calibration(sdata, "ERBB2")
    identity: Any = line(ax, "identity")
    assert (identity.get_slope(), identity.get_xy1()) == (1, (0, 0))
    (legend,) = ax.figure.canvas.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["spots", "identity", "mean of a bin ± s.e."]


def test_planted_calibration_lies_on_the_identity(sdata: SpatialData) -> None:
    sdata.tables["table"].layers["agl"][:, 0] = measured(sdata)[:, 0]
    (ax,) = pl.calibration(sdata, "ERBB2")
    points = bins(ax).lines[0]
    assert points is not None
    np.testing.assert_allclose(np.asarray(points.get_xdata()), np.asarray(points.get_ydata()), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sections": "C2"}, "30 training spots"),
        ({"sections": ["C6", "C2"]}, "23 test spots"),
        ({"prediction": "oof"}, "54 spots, out of fold, 2 folds"),
        ({"prediction": "oof", "sections": "C6"}, "24 spots, out of fold"),
    ],
    ids=["training", "both", "out of fold", "one fold"],
)
def test_title_says_which_spots(sdata: SpatialData, options: dict[str, Any], words: str) -> None:
    table = sdata.tables["table"]
    table.layers["agl_oof"] = np.random.default_rng(1).random(table.shape).astype(np.float32)
    table.obs["agl_fold"] = pd.Categorical(table.obs["section"].astype(str))
    (ax,) = pl.calibration(sdata, "KRT8", **options)
    assert ax.get_title().endswith(f", {words}")


def test_section_without_prediction_has_no_bins(sdata: SpatialData) -> None:
    sdata.tables["table"].layers["agl"][30:] = np.nan
    (ax,) = pl.calibration(sdata, "ERBB2", sections="C6")
    assert "r undefined, 0" in ax.get_title()
    assert not ax.containers


def test_one_axes_per_gene(sdata: SpatialData) -> None:
    axes = pl.calibration(sdata, ["ERBB2", "KRT8", "CD74", "IGKC"])
    assert [ax.get_title().split("\n")[0] for ax in axes] == ["ERBB2", "KRT8", "CD74", "IGKC"]


def test_axes_of_the_user(sdata: SpatialData) -> None:
    figure, axes = plt.subplots(1, 2)
    assert [*pl.calibration(sdata, ["ERBB2", "KRT8"], ax=axes)] == [*axes]
    assert not figure.legends
    with pytest.raises(ValueError, match=r"shape \(1, 2\), but \(1, 1\) \(genes\)"):
        pl.calibration(sdata, "ERBB2", ax=axes)
