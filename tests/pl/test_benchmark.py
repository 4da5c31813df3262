from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import same_color, to_rgb
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from agl_sc import pl
from agl_sc.pl._style import BLUE, ORANGE

COLUMNS = ["method", "reference", "metric", "unit", "n_units", "mean", "low", "high", "distinguishable"]
ROWS = [
    ("pgl", "ridge", "pearson", "section", 6, -0.02, -0.035, -0.004, True),
    ("agl", "ridge", "pearson", "section", 6, 0.008, -0.01, 0.026, False),
    ("dkgsb", "ridge", "pearson", "section", 6, 0.031, 0.012, 0.05, True),
    ("dkgsb", "ridge", "mse", "section", 6, -0.2, -0.3, -0.1, True),
]


SCORES = {"ridge": 0.41, "pgl": 0.39, "agl": 0.418, "dkgsb": 0.441, "depth": 0.27}


def made(rows: list[tuple[Any, ...]] | None = None, **data: Any) -> Any:
    """As much of a Benchmark as is drawn: every score is a mean over two folds."""
    scores = [
        (method, metric, fold, score + shift)
        for metric in ("pearson", "mse")
        for method, score in SCORES.items()
        for fold, shift in (("1", -0.1), ("2", 0.1))
        if method in {each for row in (ROWS if rows is None else rows) for each in row[:2]}
    ]
    return SimpleNamespace(
        differences=pd.DataFrame(ROWS if rows is None else rows, columns=COLUMNS),
        results=pd.DataFrame(scores, columns=["method", "metric", "fold", "value"]),
        provenance={"data": {"n_spots": {f"C{i}": 100 for i in range(6)}} | data},
    )


def line(ax: Axes, label: str) -> Line2D:
    (found,) = [candidate for candidate in ax.lines if candidate.get_label() == label]
    return found


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def rows(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def test_largest_difference_on_top_with_its_interval() -> None:
    ax = pl.benchmark(made())
    assert rows(ax) == ["targets only (6 sections)", "all auxiliary (6 sections)", "DkGSB (6 sections)"]
    assert ax.get_xlabel() == "paired difference in Pearson r, method minus ridge"
    np.testing.assert_allclose(np.asarray(line(ax, "above 0").get_xydata()), [[0.031, 2]])
    np.testing.assert_allclose(np.asarray(line(ax, "below 0").get_xydata()), [[-0.02, 0]])
    segments = [tuple(s[:, 0]) for collection in ax.collections for s in collection.get_segments()]  # type: ignore[attr-defined]
    assert sorted(segments) == [(-0.035, -0.004), (-0.01, 0.026), (0.012, 0.05)]


def test_not_distinguishable_is_grey_and_hollow() -> None:
    ax = pl.benchmark(made())
    grey = line(ax, "not distinguishable from 0")
    np.testing.assert_allclose(np.asarray(grey.get_xydata()), [[0.008, 1]])
    assert same_color(grey.get_markerfacecolor(), "white")
    red, green, blue = to_rgb(grey.get_color())
    assert red == green == blue
    assert same_color(line(ax, "above 0").get_color(), BLUE)
    assert same_color(line(ax, "below 0").get_color(), ORANGE)


def test_zero_line_and_legend() -> None:
    ax = pl.benchmark(made())
    assert any(list(np.asarray(candidate.get_xdata())) == [0, 0] for candidate in ax.lines)
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["above 0", "below 0", "not distinguishable from 0"]


def test_metric_is_chosen() -> None:
    ax = pl.benchmark(made(), metric="mse")
    assert rows(ax) == ["DkGSB (6 sections)"]
    assert "mean squared error" in ax.get_xlabel()


def test_several_references_are_named_and_grouped() -> None:
    more = [*ROWS[:3], ("dkgsb", "agl", "pearson", "gene", 50, 0.9, 0.8, 1.0, True)]
    ax = pl.benchmark(made(more))
    assert rows(ax)[0] == "DkGSB vs all auxiliary (50 genes)"
    assert rows(ax)[-1] == "DkGSB vs ridge (6 sections)"
    assert ax.get_xlabel().split("\n")[0] == "paired difference in Pearson r, first minus second"
    assert texts(ax)[-2:] == ["0.410 → 0.441", "score"]


def test_scores_stand_beside_their_rows() -> None:
    ax = pl.benchmark(made())
    assert texts(ax) == ["0.390", "0.418", "0.441", "score\n(ridge: 0.410)"]
    assert [float(text.xy[1]) for text in ax.texts if isinstance(text, Annotation)][:3] == [0, 1, 2]


def test_what_intervals_cannot_tell_stands_below() -> None:
    def said(**data: Any) -> str:
        return " ".join(pl.benchmark(made(**data)).get_xlabel().split("\n")[1:])

    of_genes = [("agl", "ridge", "pearson", "gene", 50, 0.1, 0.05, 0.15, True)]
    of_depth = [("depth", "ridge", "pearson", "section", 6, -0.14, -0.2, -0.1, True)]
    assert said() == ""
    assert said(n_patients=2).startswith("The 6 sections are of 2 patients: an interval over sections says nothing")
    assert said(rows=of_genes).endswith("so they are too narrow and say nothing of other sections.")
    assert said(rows=of_depth).startswith("depth alone, measured sees no pixels")


def test_the_depth_model_stands_below_where_others_were_compared() -> None:
    of_depth = [("depth", "ridge", "pearson", "section", 6, -0.14, -0.2, -0.1, True)]
    ax = pl.benchmark(made([*ROWS, *of_depth]))
    assert rows(ax) == rows(pl.benchmark(made()))
    assert ax.get_xlabel().replace("\n", " ").endswith("depth alone can explain. Its score is 0.270.")
    assert rows(pl.benchmark(made(of_depth))) == ["depth alone, measured (6 sections)"]


def test_unknown_interval_leaves_a_grey_point() -> None:
    ax = pl.benchmark(made([("agl", "ridge", "pearson", "gene", 1, 0.1, np.nan, np.nan, False)]))
    np.testing.assert_allclose(np.asarray(line(ax, "not distinguishable from 0").get_xydata()), [[0.1, 0]])
    assert rows(ax) == ["all auxiliary (1 gene)"]


@pytest.mark.parametrize(
    ("error", "benchmark", "metric", "message"),
    [
        (ValueError, made(), "pearsn", "'pearsn' was not compared: the metrics are mse, pearson; did you mean pearson"),
        (ValueError, made([]), "pearson", "was not compared: nothing was, run agl_sc.tl.benchmark with two methods"),
        (
            ValueError,
            made([("agl", "ridge", "pearson", "section", 0, np.nan, np.nan, np.nan, False)]),
            "pearson",
            "undefined in every pair",
        ),
        (TypeError, "report.md", "pearson", r"benchmark is a str, not an agl_sc\.tl\.Benchmark"),
        (TypeError, SimpleNamespace(differences=pd.DataFrame({"a": [1]})), "pearson", "is a SimpleNamespace, not"),
    ],
    ids=["metric", "empty", "undefined", "path", "other columns"],
)
def test_bad_arguments(*, error: type[Exception], benchmark: Any, metric: str, message: str) -> None:
    with pytest.raises(error, match=message):
        pl.benchmark(benchmark, metric=metric)
    assert not plt.get_fignums()
