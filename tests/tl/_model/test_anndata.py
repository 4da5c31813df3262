"""An AnnData in scanpy's and squidpy's layout, trained on and drawn by squidpy."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from spatialdata import SpatialData

from agl_sc.io import from_anndata
from agl_sc.pp import embed, split, target_genes
from agl_sc.tl import TrainConfig, evaluate, train


def in_squidpys_layout(sdata: SpatialData) -> AnnData:
    """The first section, its image in ``uns["spatial"]`` at the scale of the spots."""
    table = sdata["table"][(sdata["table"].obs["section"] == "section_1").to_numpy()]
    adata = AnnData(table.X.copy())
    adata.obs_names, adata.var_names = table.obs_names, table.var_names
    adata.obsm["spatial"] = table.obsm["spatial"].copy()
    pixels = sdata["section_1_image"]["scale0"]["image"].to_numpy().transpose(1, 2, 0)
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 55.0}
    adata.uns["spatial"] = {"brain": {"images": {"hires": pixels}, "scalefactors": factors}}
    return adata


def test_squidpy_draws_what_was_trained(tissue: SpatialData, config: TrainConfig) -> None:
    import squidpy as sq

    mpl.use("Agg")
    adata = in_squidpys_layout(tissue)
    sdata = from_anndata(adata, technology="visium")
    split(sdata, by="block", test=0.2, validation=0.2, block_um=250, buffer_um=110)
    target_genes(sdata, genes=4)
    embed(sdata, tile_px=32, mpp=1.0)
    model = train(sdata, config=replace(config, batch_size=8))
    assert adata.layers["agl"] is sdata["table"].layers["agl"]
    assert np.isfinite(evaluate(sdata)["mse"]).all()
    gene = model.targets[0]
    axis = sq.pl.spatial_scatter(adata, color=gene, layer="agl", return_ax=True)
    drawn = np.ma.getdata(axis.collections[0].get_array())
    np.testing.assert_allclose(drawn, adata.layers["agl"][:, adata.var_names.get_loc(gene)])
    assert np.ptp(drawn) > 0
    plt.close("all")
