"""What holds for every figure: where it is saved, what it refuses, and that it is drawn on the user's axes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Text
from spatialdata import SpatialData

from agl_sc import pl

if TYPE_CHECKING:
    from agl_sc.model import Model

OF_SDATA: dict[str, dict[str, Any]] = {
    "calibration": {"genes": "ERBB2"},
    "gene_metrics": {},
    "predictable_genes": {},
    "residual_map": {"genes": "ERBB2", "sections": "C2"},
    "spatial_pred": {"genes": "ERBB2", "sections": "C2"},
    "tiles": {"n": 3, "tile_px": 16, "mpp": 10.0},
}
OF_GENES = [name for name, arguments in OF_SDATA.items() if "genes" in arguments]
OF_MODEL = ("cutoff", "gene_weights", "history")
Draw = Callable[..., Any]


@pytest.fixture
def draw(sdata: SpatialData, model: "Model") -> Callable[[str], Draw]:
    """Makes a figure of its name, drawn from what it takes."""
    sdata.tables["table"].var["agl_pearson"] = [0.1, 0.2, 0.3, 0.4, np.nan]
    for name in ("pearson", "noise_ceiling", "q_value"):
        sdata.tables["table"].var[f"agl_predictable_{name}"] = [0.1, 0.2, 0.3, 0.4, np.nan]
    row = {"method": "agl", "reference": "ridge", "metric": "pearson", "unit": "section", "n_units": 6}
    numbers = {"mean": 0.1, "low": 0.05, "high": 0.2, "distinguishable": True}
    scores = pd.DataFrame({"method": ["agl", "ridge"], "metric": "pearson", "fold": "1", "value": [0.4, 0.3]})
    provenance = {"data": {"n_spots": {"C2": 30}}}
    compared = SimpleNamespace(differences=pd.DataFrame([row | numbers]), results=scores, provenance=provenance)

    def made(name: str) -> Draw:
        subject = model if name in OF_MODEL else compared if name == "benchmark" else sdata
        return lambda **options: getattr(pl, name)(subject, **OF_SDATA.get(name, {}) | options)

    return made


def test_these_are_all() -> None:
    assert sorted([*OF_SDATA, *OF_MODEL, "benchmark"]) == sorted(pl.__all__)


@pytest.mark.parametrize("name", pl.__all__)
class TestEvery:
    def test_saves(self, draw: Callable[[str], Draw], name: str, tmp_path: Path) -> None:
        draw(name)(save=tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5_000

    @pytest.mark.parametrize(
        ("error", "save", "message"),
        [
            (FileNotFoundError, "absent/figure.png", "does not exist; create it first"),
            (ValueError, "figure.docx", "ends in '.docx', not in one of"),
            (ValueError, "", "is a folder; name a file in it"),
            (TypeError, 3, "save=3 is a int, not a path"),
        ],
        ids=["folder absent", "format", "folder", "number"],
    )
    def test_place_to_save_is_checked_before_drawing(
        self, *, draw: Callable[[str], Draw], name: str, tmp_path: Path, error: type[Exception], save: Any, message: str
    ) -> None:
        with pytest.raises(error, match=message):
            draw(name)(save=tmp_path / save if isinstance(save, str) else save)
        assert not plt.get_fignums()

    def test_axes_that_are_none(self, draw: Callable[[str], Draw], name: str) -> None:
        with pytest.raises((TypeError, ValueError), match=r"ax (is a str, not a matplotlib Axes|holds axes of shape)"):
            draw(name)(ax="ax")
        assert not plt.get_fignums()

    def test_smallest_text_is_legible_at_journal_width(self, draw: Callable[[str], Draw], name: str) -> None:
        axes = np.atleast_1d(draw(name)()).ravel()
        figure = axes[0].figure.canvas.figure
        figure.draw_without_rendering()
        sizes = [text.get_fontsize() for ax in figure.axes for text in ax.findobj(Text) if text.get_text()]
        assert min(sizes) >= 6
        assert figure.get_size_inches()[0] <= 7


@pytest.mark.parametrize("name", [*OF_SDATA])
def test_only_spatialdata_is_drawn(sdata: SpatialData, name: str) -> None:
    with pytest.raises(TypeError, match="sdata is a AnnData, not a SpatialData; read sections with"):
        getattr(pl, name)(sdata.tables["table"], **OF_SDATA[name])
    with pytest.raises(KeyError, match="table_key='cells' is not in sdata"):
        getattr(pl, name)(sdata, **OF_SDATA[name] | {"table_key": "cells"})


@pytest.mark.parametrize("name", OF_GENES)
@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"genes": []}, "genes is empty; name at least one"),
        (TypeError, {"genes": [3]}, "genes holds 3, a int; pass names"),
        (KeyError, {"genes": "ERBB"}, "'ERBB' is not in the table; did you mean ERBB2"),
        (ValueError, {"genes": "ACTB"}, "'ACTB' was not predicted"),
        (ValueError, {"sections": []}, "sections is empty; name at least one"),
        (KeyError, {"sections": "c6"}, "'c6' is not among the sections of the table: C2, C6; did you mean C6"),
        (KeyError, {"key_added": "ridge"}, r'layers\["ridge"\] is missing; run agl_sc.tl.train'),
        (KeyError, {"prediction": "oof"}, r'layers\["agl_oof"\] is missing; run agl_sc.tl.cross_validate'),
        (ValueError, {"prediction": "fold"}, "prediction='fold' is not one of"),
        (KeyError, {"layer": "raw"}, "layer='raw' is not in the table"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_selection_is_checked_before_drawing(
    *, sdata: SpatialData, name: str, error: type[Exception], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(pl, name)(sdata, **OF_SDATA[name] | arguments)
    assert not plt.get_fignums()
