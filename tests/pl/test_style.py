"""Names are drawn as they are spelt, and colour maps are found by name."""

import re
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt
from spatialdata import SpatialData

from agl_sc import pl
from agl_sc.pl._style import colours_of, literal


@pytest.mark.parametrize("name", ["$\\frac{1}$", "$x", "$$", "a$b$c", "\\$", "|a|", "*b*", "=cmd()", " ", "x_1"])
def test_what_is_drawn_is_the_name(name: str) -> None:
    text = plt.figure().text(0, 0, literal(name))
    shown, is_mathematics = text._preprocess_math(text.get_text())  # type: ignore[attr-defined]
    assert (shown, is_mathematics) == (name, False)


def test_where_nothing_is_mathematics_nothing_is_escaped() -> None:
    with mpl.rc_context({"text.parse_math": False}):
        assert literal("$x$") == "$x$"


def test_long_names_are_shortened() -> None:
    assert literal("x" * 3000) == f"{'x' * 59}…"
    assert literal("x" * 60) == "x" * 60


def test_figures_draw_genes_of_dollars(sdata: SpatialData) -> None:
    table = sdata.tables["table"]
    table.var_names = ["$\\frac{1}$", "$x", "|a|", "*b*", "ACTB"]
    for draw in (pl.spatial_pred, pl.residual_map, pl.calibration):
        axes = draw(sdata, ["$\\frac{1}$", "$x"], sections="C2")
        axes.ravel()[0].figure.canvas.figure.draw_without_rendering()
        assert any("\\$\\frac{1}\\$" in ax.get_title() for ax in axes.ravel())


@pytest.mark.parametrize(
    ("error", "cmap", "message"),
    [
        (ValueError, "virids", "cmap='virids' is not a colour map of matplotlib; did you mean viridis"),
        (ValueError, "", "cmap='' is not a colour map of matplotlib; viridis and RdBu_r are two"),
        (TypeError, None, "cmap=None is a NoneType, neither a name nor a matplotlib Colormap"),
        (TypeError, ["viridis"], "cmap=['viridis'] is a list, neither a name nor"),
    ],
)
def test_colour_maps_that_are_none(error: type[Exception], cmap: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        colours_of(cmap)


def test_colour_maps_are_found() -> None:
    assert colours_of("viridis").name == "viridis"
    assert colours_of(mpl.colormaps["RdBu_r"]) == mpl.colormaps["RdBu_r"]
