"""What squidpy and spatialdata-plot draw of objects that went through training and prediction."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import Normalize
from spatialdata import SpatialData

from agl_sc import tl

if TYPE_CHECKING:
    from agl_sc.tl import TrainConfig


@pytest.fixture
def trained(prepared: SpatialData, config: "TrainConfig") -> SpatialData:
    tl.train(prepared, method="pgl", config=config)
    return prepared


def test_squidpy_scatters_the_layer(trained: SpatialData) -> None:
    sq = pytest.importorskip("squidpy", reason="squidpy is not installed")
    table = trained.tables["table"]
    gene = table.var_names[np.isfinite(table.layers["agl"]).any(axis=0)][0]
    section = table[table.obs["section"] == "section_3"].copy()
    (axes,) = plt.subplots(1, 1, squeeze=False)[1].ravel()
    sq.pl.spatial_scatter(section, color=gene, layer="agl", shape=None, size=20, ax=axes)
    drawn = np.ma.filled(np.ma.asarray(axes.collections[0].get_array()).astype(float), np.nan)
    np.testing.assert_allclose(drawn, section[:, gene].layers["agl"].ravel(), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning")  # its chain keeps one section's elements
def test_chains_of_spatialdata_plot_draw_the_layer(trained: SpatialData) -> None:
    pytest.importorskip("spatialdata_plot", reason="spatialdata-plot is not installed")
    table = trained.tables["table"]
    gene = table.var_names[np.isfinite(table.layers["agl"]).any(axis=0)][0]
    ax = plt.figure().add_subplot()
    chain = trained.pl.render_images("section_3_image").pl.render_shapes("section_3", color=gene, table_layer="agl")
    chain.pl.show(coordinate_systems="section_3", ax=ax)
    assert ax.images
    predictions = table[table.obs["section"] == "section_3", gene].layers["agl"].ravel()
    colours = plt.get_cmap("viridis")(Normalize()(predictions))
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_facecolor(), dtype=float), colours, atol=1e-6)
