from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from spatialdata import SpatialData

from agl_sc import pl

PEARSON = [0.2, 0.6, np.nan, -0.1, 0.4]
CEILING = [0.5, 0.7, 0.9, 0.3, np.nan]


@pytest.fixture
def scored(sdata: SpatialData) -> SpatialData:
    var = sdata.tables["table"].var
    var["agl_pearson"], var["agl_mse"], var["agl_noise_ceiling"] = PEARSON, [1.0, 2.0, np.nan, 4.0, 5.0], CEILING
    return sdata


def many(sdata: SpatialData, n_genes: int) -> SpatialData:
    """The table with as many genes, of falling Pearson."""
    table = sdata.tables["table"]
    genes = pd.DataFrame({"agl_pearson": np.linspace(0.9, 0.1, n_genes)}, index=[f"GENE{i}" for i in range(n_genes)])
    wide = AnnData(table.X[:, np.arange(n_genes) % table.n_vars], obs=table.obs, var=genes, uns=dict(table.uns))
    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": wide})


def points(ax: Axes) -> Any:
    (found,) = [line for line in ax.lines if line.get_label() == "genes"]
    return found.get_xydata()


def bars(ax: Axes) -> BarContainer:
    (found,) = ax.containers
    assert isinstance(found, BarContainer)
    return found


def test_against_mean_expression_over_the_test_spots(scored: SpatialData) -> None:
    ax = pl.gene_metrics(scored)
    counts = scored.tables["table"].X.toarray()[30:]
    mean = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).mean(axis=0)
    known = [0, 1, 3, 4]
    np.testing.assert_allclose(points(ax), np.column_stack([mean, PEARSON])[known], rtol=1e-5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mean expression in test spots, log1p(CP10k)", "test Pearson r")


def test_against_the_noise_ceiling_with_the_identity_line(scored: SpatialData) -> None:
    ax = pl.gene_metrics(scored, against="noise_ceiling")
    np.testing.assert_allclose(points(ax), np.column_stack([CEILING, PEARSON])[[0, 1, 3, 4]])
    (identity,) = [line for line in ax.lines if line.get_label() == "noise ceiling reached"]
    assert identity.get_slope() == 1  # type: ignore[attr-defined]
    assert identity.get_xy1() == (0, 0)  # type: ignore[attr-defined]
    assert ax.get_xlabel() == "noise ceiling of Pearson r"
    assert {text.get_text() for text in ax.texts} == {"KRT8", "ERBB2", "IGKC"}  # ACTB has no ceiling


def test_sorted_bars_are_named(scored: SpatialData) -> None:
    ax = pl.gene_metrics(scored, against=None)
    assert [bar.get_height() for bar in bars(ax)] == [0.6, 0.4, 0.2, -0.1]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["KRT8", "ACTB", "ERBB2", "IGKC"]
    assert ax.get_xlabel() == "4 genes by Pearson r (median 0.3)"


def test_of_many_bars_the_largest_are_listed_beside(sdata: SpatialData) -> None:
    ax = pl.gene_metrics(many(sdata, 60), against=None, n_names=3)
    assert len(bars(ax)) == 60
    (listed,) = ax.texts
    assert listed.get_text() == "GENE0 0.90\nGENE1 0.89\nGENE2 0.87"
    assert listed.get_position()[0] > 1


def test_errors_are_in_squared_units(scored: SpatialData) -> None:
    ax = pl.gene_metrics(scored, metric="mse")
    assert ax.get_ylabel() == "test mean squared error, log1p(CP10k) squared"


def test_names_cover_neither_names_nor_points(sdata: SpatialData) -> None:
    table = many(sdata, 200)
    table.tables["table"].var["agl_noise_ceiling"] = np.random.default_rng(0).uniform(0, 1, 200)
    ax = pl.gene_metrics(table, against="noise_ceiling", n_names=40)
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) > 10
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    pixels = ax.transData.transform(points(ax))
    assert not any(box.contains(*pixel) for box in boxes for pixel in pixels)


def test_no_names(scored: SpatialData) -> None:
    assert not pl.gene_metrics(scored, n_names=0).texts


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (KeyError, {"metric": "spearman"}, r'var\["agl_spearman"\] is missing; run agl_sc.tl.evaluate'),
        (KeyError, {"key_added": "other"}, r'var\["other_pearson"\] is missing; run agl_sc.tl.evaluate'),
        (ValueError, {"against": "median"}, "against='median' is not one of 'mean', 'noise_ceiling'"),
        (ValueError, {"against": "noise_ceiling", "metric": "mse"}, "not of metric='mse'"),
        (ValueError, {"n_names": -1}, "n_names=-1 is negative"),
        (KeyError, {"layer": "raw"}, "layer='raw' is not in the table"),
    ],
)
def test_bad_arguments(*, scored: SpatialData, error: type[Exception], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(error, match=message):
        pl.gene_metrics(scored, **arguments)
    assert not plt.get_fignums()


def test_missing_ceiling_names_evaluate(scored: SpatialData) -> None:
    del scored.tables["table"].var["agl_noise_ceiling"]
    with pytest.raises(KeyError, match=r'var\["agl_noise_ceiling"\] is missing; run agl_sc.tl.evaluate'):
        pl.gene_metrics(scored, against="noise_ceiling")


def test_no_gene_has_the_metric(scored: SpatialData) -> None:
    scored.tables["table"].var["agl_pearson"] = np.nan
    with pytest.raises(ValueError, match="is NaN for all genes"):
        pl.gene_metrics(scored)


def test_mean_expression_needs_test_spots(scored: SpatialData) -> None:
    obs = scored.tables["table"].obs
    obs["agl_split"] = "train"
    with pytest.raises(ValueError, match=r'obs\["agl_split"\] has no test spot to average over; pass against=None'):
        pl.gene_metrics(scored)
    del obs["agl_split"]
    with pytest.raises(KeyError, match=r'obs\["agl_split"\] is missing'):
        pl.gene_metrics(scored)
    assert pl.gene_metrics(scored, against=None).containers
