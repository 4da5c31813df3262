"""Four figures as pixels, against pictures that were looked at.

Made anew, and to be looked at before they are committed, by ``AGL_SC_BASELINES=1 pytest tests/pl/test_baseline.py``.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.legend import Legend
from matplotlib.testing.compare import compare_images
from matplotlib.testing.decorators import remove_ticks_and_titles
from matplotlib.text import Text
from spatialdata import SpatialData

from agl_sc import pl
from agl_sc._sdata.sections import Section, sections

BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = {"spatial_pred": 5.0, "tiles": 5.0, "gene_metrics": 0.5, "benchmark": 0.5}
"""Root mean square difference in levels of 255. Measured with baselines of matplotlib 3.11: 0 with any hinting of text; with
matplotlib 3.10, which resamples images otherwise, 3.0, 3.5, 0 and 0. Spots moved by half of their width make 10.0 and 20.3,
by a quarter 8.3 and 19.6, by a tenth 5.2 and 16.8."""
DPI = 60
HALF_A_SPOT = np.array([27.5, 0.0])


@pytest.fixture(autouse=True)
def _same_everywhere() -> Iterator[None]:
    """Matplotlib's own settings, whatever the machine's are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


@pytest.fixture
def predicted(tissue: SpatialData) -> SpatialData:
    """Two sections of toy tissue, whose first gene is predicted from the planted fields."""
    table = tissue.tables["table"]
    layer = np.full(table.shape, np.nan, dtype=np.float32)
    layer[:, 0] = 3 + table.obs["truth_field_0"]
    table.layers["agl"] = layer
    return tissue


def spatial_pred(sdata: SpatialData) -> Any:
    axes = plt.subplots(1, 2, figsize=(6, 4))[1]
    return pl.spatial_pred(sdata, sdata.tables["table"].var_names[0], sections="section_1", size=1, ax=axes)[0, 0]


def tiles(sdata: SpatialData) -> Any:
    axes = plt.subplots(2, 2, figsize=(6, 5))[1].ravel()
    return pl.tiles(sdata, section="section_1", n=3, tile_px=112, mpp=1.0, ax=axes)[0]


def gene_metrics(sdata: SpatialData, *, lift: float = 0.0) -> Any:
    sdata.tables["table"].var["agl_pearson"] = np.linspace(-0.2, 0.8, 24) + lift * (np.arange(24) == 12)
    sdata.tables["table"].var["agl_noise_ceiling"] = np.linspace(0.1, 0.9, 24) ** 0.5
    return pl.gene_metrics(sdata, against="noise_ceiling", ax=plt.figure().add_subplot())


def benchmark(_: SpatialData) -> Any:
    names = ["method", "reference", "metric", "unit", "n_units", "mean", "low", "high", "distinguishable"]
    rows = [
        ("dkgsb", "ridge", "pearson", "section", 6, 0.03, 0.01, 0.05, True),
        ("agl", "ridge", "pearson", "section", 6, 0.01, -0.01, 0.03, False),
        ("pgl", "ridge", "pearson", "section", 6, -0.02, -0.03, -0.01, True),
    ]
    scores = [(method, "pearson", "1", 0.4) for method in ("dkgsb", "agl", "pgl", "ridge")]
    results = pd.DataFrame(scores, columns=["method", "metric", "fold", "value"])
    provenance = {"data": {"n_spots": {"A1": 100}}}
    differences = pd.DataFrame(rows, columns=names)
    compared: Any = SimpleNamespace(differences=differences, results=results, provenance=provenance)
    return pl.benchmark(compared, ax=plt.figure().add_subplot())


FIGURES = [spatial_pred, tiles, gene_metrics, benchmark]
Draw = Callable[[SpatialData], Any]


def difference(ax: Any, name: str, folder: Path) -> float:
    """Difference of a figure to its baseline; 0 within the tolerance.

    Without text, and on axes that no layout moves: the pixels of text, and the room it takes, are the font renderer's.
    Other tests assert what it says.
    """
    expected, made, copy = BASELINE / f"{name}.png", folder / f"{name}.png", folder / f"{name}-baseline.png"
    figure = ax.figure.canvas.figure
    remove_ticks_and_titles(figure)
    for artist in figure.findobj(Text) + figure.findobj(Legend):
        artist.set_visible(False)
    figure.savefig(made, dpi=DPI, metadata={"Software": None})
    if os.environ.get("AGL_SC_BASELINES"):
        expected.write_bytes(made.read_bytes())
    copy.write_bytes(expected.read_bytes())  # the comparison writes beside what it compares
    found: Any = compare_images(str(copy), str(made), tol=TOLERANCE[name], in_decorator=True)
    return float(found["rms"]) if found else 0.0


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_figure_is_as_it_was(predicted: SpatialData, draw: Draw, tmp_path: Path) -> None:
    assert difference(draw(predicted), draw.__name__, tmp_path) == 0


@pytest.mark.parametrize("draw", [spatial_pred, tiles], ids=lambda draw: draw.__name__)
def test_overlay_that_is_shifted_by_half_a_spot_is_seen(
    *, predicted: SpatialData, draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spots (55 px across) moved by half of it against the image, as by a wrong transformation."""

    def shifted(*args: Any, **options: Any) -> list[Section]:
        return [replace(section, centres=section.centres + HALF_A_SPOT) for section in sections(*args, **options)]

    monkeypatch.setattr("agl_sc._sdata.study.sections", shifted)
    assert difference(draw(predicted), draw.__name__, tmp_path) > 0


def test_gene_that_moved_is_seen(predicted: SpatialData, tmp_path: Path) -> None:
    assert difference(gene_metrics(predicted, lift=0.1), "gene_metrics", tmp_path) > 0


def test_baselines_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in BASELINE.iterdir()}
    assert set(sizes) == {f"{draw.__name__}.png" for draw in FIGURES}
    assert max(sizes.values()) < 150_000
