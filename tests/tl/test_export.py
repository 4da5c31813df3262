"""Predictions as an AnnData in scanpy's layout: predicted genes alone, where they lie, and a small image."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy
from anndata import AnnData, read_h5ad
from spatialdata import SpatialData
from typer.testing import CliRunner

from agl_sc.cli import app
from agl_sc.model import Model
from agl_sc.tl import cross_validate, evaluate, predict, to_anndata
from agl_sc.tl._export import thumbnail

Trained = tuple[SpatialData, Model]
Unchanged = Callable[[SpatialData], AbstractContextManager[None]]


def test_it_holds_what_was_predicted(trained: Trained, unchanged: Unchanged) -> None:
    sdata, model = trained
    evaluate(sdata, metrics=["pearson"])
    with unchanged(sdata):
        adata = to_anndata(sdata)
    table = sdata["table"]
    assert set(adata.var_names) == set(model.predicted_genes)
    assert list(adata.obs_names) == list(table.obs_names)
    np.testing.assert_array_equal(adata.X, table[:, adata.var_names].layers["agl"])
    assert adata.X.dtype == np.float32
    expected = table.var.loc[adata.var_names, "agl_pearson"]
    np.testing.assert_array_equal(adata.var["agl_pearson"], expected)
    assert expected.notna().sum() == model.n_targets
    assert adata.uns["agl_sc"]["units"] == "log1p_cp10k"


def test_spots_lie_on_the_image_that_goes_along(trained: Trained) -> None:
    sdata, _ = trained
    adata = to_anndata(sdata, max_image_px=100)
    shapes = sdata["section_2"]
    of = (adata.obs["library_id"] == "section_2").to_numpy()
    centres = np.column_stack([shapes.geometry.x, shapes.geometry.y])
    np.testing.assert_allclose(adata.obsm["spatial"][of], centres)
    library = adata.uns["spatial"]["section_2"]
    factors = library["scalefactors"]
    assert factors["spot_diameter_fullres"] == pytest.approx(2 * shapes["radius"].iloc[0])
    image = library["images"]["hires"]
    assert image.dtype == np.uint8
    assert max(image.shape[:2]) <= 100
    full = (
        np.asarray(sdata["section_2_image"]["scale0"]["image"])
        if "scale0" in sdata["section_2_image"]
        else np.asarray(sdata["section_2_image"])
    )
    step = round(1 / factors["tissue_hires_scalef"])
    y, x = (int(each) for each in adata.obsm["spatial"][of][0, ::-1] * factors["tissue_hires_scalef"])
    expected = full[:, y * step : (y + 1) * step, x * step : (x + 1) * step].mean(axis=(1, 2))
    np.testing.assert_allclose(image[y, x], expected, atol=0.51)


def test_a_thumbnail_is_the_mean_of_squares_and_says_its_scale() -> None:
    full = np.random.default_rng(0).integers(0, 256, (3, 64, 100), dtype=np.uint8)
    half = full.reshape(3, 32, 2, 50, 2).mean(axis=(2, 4)).astype(np.uint8)
    levels = tuple(cast("Any", da).from_array(level, chunks=(3, 17, 23)) for level in (full, half))
    pixels, scale = thumbnail(levels, 20)  # the half level, by 3
    assert scale == pytest.approx(1 / 6)
    expected = half[:, :30, :48].reshape(3, 10, 3, 16, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(pixels, expected.transpose(1, 2, 0), atol=0.5)
    pixels, scale = thumbnail(levels, 100)
    assert scale == 1
    np.testing.assert_array_equal(pixels, full.transpose(1, 2, 0))


@pytest.mark.filterwarnings("ignore:Use `squidpy.pl.spatial_scatter` instead:FutureWarning")
@pytest.mark.filterwarnings("ignore:The function spatial is deprecated:FutureWarning")  # of newer scanpy
def test_scanpy_reads_and_draws_it(trained: Trained, tmp_path: Path) -> None:
    sdata, model = trained
    to_anndata(sdata, sections="section_3").write_h5ad(tmp_path / "out.h5ad", compression="gzip")
    adata = read_h5ad(tmp_path / "out.h5ad")
    assert list(adata.uns["spatial"]) == ["section_3"]
    scanpy.pp.pca(adata, n_comps=2)
    (axes,) = scanpy.pl.spatial(adata, color=model.targets[0], show=False)
    (image,) = axes.get_images()
    assert image.get_array().shape == adata.uns["spatial"]["section_3"]["images"]["hires"].shape
    plt.close("all")
    adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    scanpy.tl.rank_genes_groups(adata, "half")


def test_a_table_of_its_own_gives_the_same(trained: Trained) -> None:
    sdata, model = trained
    expected = to_anndata(sdata)
    predict(sdata, model, write_to="table")
    found = to_anndata(sdata)[:, expected.var_names]
    np.testing.assert_array_equal(found.X, expected.X)


def test_out_of_fold(prepared: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    cross_validate(prepared, methods="mean", genes=3)
    adata = to_anndata(prepared, prediction="oof")
    table = prepared["table"][:, adata.var_names]
    np.testing.assert_array_equal(adata.X, table.layers["agl_oof"])
    if np.isnan(adata.X).any():
        assert "genes are predicted in some of the spots alone" in caplog.text


def test_spots_without_a_prediction_are_left_out(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    sdata, _ = trained
    sdata["table"].layers["agl"][:5] = np.nan
    adata = to_anndata(sdata, max_image_px=0)
    assert list(adata.obs_names) == list(sdata["table"].obs_names[5:])
    assert "5 spots without a prediction are left out." in caplog.messages
    assert adata.uns["spatial"]["section_1"]["images"] == {}
    sdata["table"].layers["agl"][:] = np.nan
    with pytest.raises(ValueError, match=r'layers\["agl"\] holds no prediction of these sections'):
        to_anndata(sdata)


@pytest.mark.parametrize("bad", [-1, 0.5, "600", None])
def test_sizes_that_are_none(trained: Trained, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"max_image_px=.* is not a whole number of pixels"):
        to_anndata(trained[0], max_image_px=bad)


def test_before_any_prediction(prepared: SpatialData) -> None:
    with pytest.raises(KeyError, match=r'layers\["agl"\] is missing; run agl_sc.tl.train or agl_sc.tl.predict first'):
        to_anndata(prepared)


def test_command(trained: Trained, tmp_path: Path) -> None:
    sdata, model = trained
    sdata.write(tmp_path / "out.zarr")
    path = tmp_path / "out.h5ad"
    arguments = ["export", str(tmp_path / "out.zarr"), "--output", str(path), "--section", "section_3", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    adata = cast("AnnData", read_h5ad(path))
    assert (said["n_spots"], said["n_genes"]) == adata.shape == (53, model.n_predicted)
    refused = CliRunner().invoke(app, [*arguments[:3], str(tmp_path / "out.csv")])
    assert refused.exit_code == 2
    assert "does not end in .h5ad" in refused.stderr
