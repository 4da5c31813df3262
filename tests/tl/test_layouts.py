"""What spatialdata-io's readers return works from features to the figure, with the image and table named once."""

from typing import Any

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import shapely
from anndata import AnnData
from spatialdata import SpatialData, concatenate, deepcopy
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

from agl_sc import pl, pp, tl
from agl_sc._sdata.study import Study
from agl_sc.tl import TrainConfig
from agl_sc.tl._model.intervals import named_patients

SIDE, PITCH = 14, 20
TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}


def tissue() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], scipy.sparse.csr_matrix]:
    """A picture (y, x, 3) of 1 um per pixel, centres (x, y) in it, and counts that follow its red."""
    size = PITCH * (SIDE + 2)
    y, x = np.mgrid[0:size, 0:size]
    red = 128 + 90 * np.sin(x / 40) * np.cos(y / 55)
    picture = np.dstack([red, 200 - red / 2, np.full_like(red, 160)]).astype(np.uint8)
    rows, columns = np.divmod(np.arange(SIDE**2), SIDE)
    centres = PITCH * np.column_stack([columns + 1.5, rows + 1.5])
    at = red[centres[:, 1].astype(int), centres[:, 0].astype(int)]
    slopes = np.random.default_rng(0).normal(0, 1, 20)
    mean = np.exp(3 + np.outer((at - 128) / 90, slopes))
    return picture, centres, scipy.sparse.csr_matrix(np.random.default_rng(1).poisson(mean).astype(np.float32))


def table(counts: Any, region: str, *, key: str, instances: Any) -> AnnData:
    obs = pd.DataFrame({"region": pd.Categorical([region] * len(instances)), key: instances})
    obs.index = obs.index.astype(str)
    adata = AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(counts.shape[1])]))
    return TableModel.parse(adata, region=region, region_key="region", instance_key=key)


def picture_of(pixels: Any, transformations: dict[str, Any]) -> Any:
    return Image2DModel.parse(pixels.transpose(2, 0, 1).copy(), dims=("c", "y", "x"), transformations=transformations)


def visium_hd() -> SpatialData:
    """Two bin sizes, each with a table; the full image and the hires one in one coordinate system."""
    picture, centres, counts = tissue()
    squares = [shapely.box(x - PITCH / 2, y - PITCH / 2, x + PITCH / 2, y + PITCH / 2) for x, y in centres]
    shapes, tables = {}, {}
    for um, some in ((20, slice(None)), (40, slice(0, 30))):
        name = f"S1_square_{um:03d}um"
        frame = gpd.GeoDataFrame(geometry=squares[some])
        shapes[name] = ShapesModel.parse(frame, transformations={"S1": Identity()})
        tables[name[3:]] = table(counts[some], name, key="location_id", instances=np.arange(len(frame)))
    images = {
        "S1_full_image": picture_of(picture, {"S1": Identity()}),
        "S1_hires_image": picture_of(picture[::2, ::2], {"S1": Scale([2.0, 2.0], axes=("x", "y"))}),
    }
    return SpatialData(images=images, shapes=shapes, tables=tables)


def bins_as_labels() -> SpatialData:
    """What ``annotate_table_by_labels=True`` gives: a pixel for every bin."""
    picture, _, counts = tissue()
    numbers = np.arange(1, SIDE**2 + 1, dtype=np.int32).reshape(SIDE, SIDE)
    to_image = Affine(
        np.array([[PITCH, 0, PITCH], [0, PITCH, PITCH], [0, 0, 1.0]]), input_axes=("x", "y"), output_axes=("x", "y")
    )
    name = "S1_square_020um_labels"
    adata = table(counts, name, key="location_id", instances=numbers.ravel())
    adata.obs["array_row"], adata.obs["array_col"] = np.divmod(np.arange(SIDE**2), SIDE)
    return SpatialData(
        images={"S1_full_image": picture_of(picture, {"S1": Identity()})},
        labels={name: Labels2DModel.parse(numbers, dims=("y", "x"), transformations={"S1": to_image})},
        tables={"square_020um": adata},
    )


def xenium(kind: str) -> SpatialData:
    """Cells in microns or as labels, a morphology image of other channels, and an H&E that was aligned."""
    picture, centres, counts = tissue()
    zoom, names = 1 / 0.2125, [f"cell{i}" for i in range(len(centres))]
    to_global = {"global": Scale([zoom, zoom], axes=("x", "y"))}
    region, elements = f"cell_{kind}", dict[str, Any]()
    instances: list[Any] = [*names]
    if kind == "circles":
        frame = gpd.GeoDataFrame({"geometry": shapely.points(centres), "radius": 4.0}, index=names)
        elements["shapes"] = {region: ShapesModel.parse(frame, transformations=to_global)}
    elif kind == "boundaries":
        frame = gpd.GeoDataFrame(geometry=shapely.points(centres).tolist(), index=names).buffer(4).to_frame("geometry")
        elements["shapes"] = {region: ShapesModel.parse(gpd.GeoDataFrame(frame), transformations=to_global)}
    else:
        mask = np.zeros(picture.shape[:2], np.int32)
        for number, (x, y) in enumerate(centres.astype(int), start=1):
            mask[y - 4 : y + 4, x - 4 : x + 4] = number
        elements["labels"] = {region: Labels2DModel.parse(mask, dims=("y", "x"), transformations=to_global)}
        instances = list(range(1, len(centres) + 1))
    aligned = Affine(np.diag([zoom, zoom, 1.0]), input_axes=("x", "y"), output_axes=("x", "y"))
    focus = Image2DModel.parse(
        np.zeros((5, 32, 32), np.uint16), dims=("c", "y", "x"), transformations={"global": Identity()}
    )
    images = {"morphology_focus": focus, "he_image": picture_of(picture, {"global": aligned})}
    return SpatialData(
        images=images, tables={"table": table(counts, region, key="cell_id", instances=instances)}, **elements
    )


LAYOUTS = {"visium_hd": visium_hd, "bins as labels": bins_as_labels}


@pytest.mark.parametrize("layout", ["visium_hd", "bins as labels", "circles", "boundaries", "labels"])
def test_named_once_it_works_to_the_figure(layout: str) -> None:
    sdata = LAYOUTS[layout]() if layout in LAYOUTS else xenium(layout)
    if layout in LAYOUTS:
        pp.embed(sdata, table_key="square_020um", image_key="S1_full_image", **TILES)
    else:
        pp.embed(sdata, image_key="he_image", image_mpp=1.0, **TILES)
    pp.split(sdata, by="block", block_um=60, buffer_um=0)
    pp.target_genes(sdata, genes=5)
    model = tl.train(sdata, config=TrainConfig(batch_size=16, max_epochs=2, hidden=16))
    metrics = tl.evaluate(sdata, metrics=["pearson", "ssim"])
    assert metrics["pearson"].mean() > 0.3
    assert metrics["ssim"].notna().all()
    drawn = pl.spatial_pred(sdata, model.targets[0], show=False)
    assert drawn[0, 0].images
    out_of_fold = tl.cross_validate(sdata, methods="ridge", by="block", block_um=60, buffer_um=0, genes=5)
    assert out_of_fold.results["value"].notna().any()


def test_sections_smaller_than_a_block_are_divided_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """320 um of cells: blocks of 500 um with a buffer of 150 um would leave one set."""
    sdata = xenium("circles")
    pp.embed(sdata, image_key="he_image", image_mpp=1.0, **TILES)
    tl.train(sdata, method="pgl", config=TrainConfig(batch_size=16, max_epochs=1, hidden=16))
    assert "The sections are too small for blocks of 500 um and a buffer of 150 um" in caplog.text
    assert set(sdata["table"].obs["agl_split"]) >= {"train", "validation", "test"}
    assert sdata["table"].uns["agl"]["split"]["block_um"] < 320


def test_sections_side_by_side_in_one_system_have_the_image_they_lie_on() -> None:
    """As fields of view of CosMx, of which each is in a system of all; an image that only touches the spots is none of theirs."""
    picture, centres, counts = tissue()
    images, shapes, tables = {}, {}, []
    for number, shift in enumerate((0.0, 500.0)):
        place = Affine(np.array([[1, 0, shift], [0, 1, 0], [0, 0, 1.0]]), input_axes=("x", "y"), output_axes=("x", "y"))
        images[f"fov_{number}"] = picture_of(picture, {"slide": place})
        images[f"corner_{number}"] = picture_of(picture[:99, :99], {"slide": place})
        shapes[f"cells_{number}"] = ShapesModel.parse(
            centres, geometry=0, radius=4.0, index=pd.RangeIndex(len(centres)), transformations={"slide": place}
        )
        tables.append(table(counts, f"cells_{number}", key="cell_id", instances=np.arange(len(centres))))
    both = ad.concat(tables, index_unique="-")
    both = TableModel.parse(both, region=[*shapes], region_key="region", instance_key="cell_id")
    sdata = SpatialData(images=images, shapes=shapes, tables={"table": both})
    assert {each.name: each.image_key for each in Study.of(sdata).imaged} == {"cells_0": "fov_0", "cells_1": "fov_1"}
    sdata["copy"] = sdata["fov_0"]
    with pytest.raises(
        ValueError, match=r"'cells_0' shares .* several images \(copy, fov_0\); name one with image_key="
    ):
        _ = Study.of(sdata).imaged


def test_sections_of_one_name_put_together_are_sections_of_their_own(tissue: SpatialData) -> None:
    """spatialdata.concatenate renames regions, and leaves the columns that readers wrote."""
    parts = {}
    for name in ("section_1", "section_2", "section_3"):
        part = deepcopy(tissue.filter_by_coordinate_system(name))  # concatenate renames systems in place
        own = part["table"].copy()
        own.obs[["section", "patient"]] = "lib"
        image, shapes = part[f"{name}_image"], part[name]
        own.obs["region"] = pd.Categorical(["lib"] * own.n_obs)
        own.uns["spatialdata_attrs"]["region"] = "lib"
        parts[name[-1]] = SpatialData(images={"lib_image": image}, shapes={"lib": shapes}, tables={"table": own})
    whole = concatenate(parts, concatenate_tables=True)
    pp.split(whole, by="section", test="lib-1", validation="lib-2", image_mpp=1.0)
    sets = whole["table"].obs.groupby("region", observed=True)["agl_split"].unique()
    assert {name: found.tolist() for name, found in sets.items()} == {
        "lib-1": ["test"], "lib-2": ["validation"], "lib-3": ["train"]
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"nobody named those of 3 sections \(lib-1, lib-2, lib-3\)"):
        pp.split(whole, by="patient", image_mpp=1.0)
    assert set(named_patients(Study.of(whole))) == {""}


@pytest.mark.parametrize("kinds", [(int, str), (str, int), (int, float)])
def test_names_that_became_text_on_one_side_are_found(tissue: SpatialData, kinds: tuple[type, type]) -> None:
    sdata = deepcopy(tissue.filter_by_coordinate_system("section_1"))
    expected = Study.of(sdata).positioned[0].centres
    order = np.random.default_rng(0).permutation(sdata["table"].n_obs)
    shapes = sdata["section_1"].iloc[order]
    shapes.index = [kinds[0](number) for number in order]
    sdata.shapes["section_1"] = shapes
    sdata["table"].obs["spot_id"] = [kinds[1](number) for number in range(len(order))]
    np.testing.assert_array_equal(Study.of(sdata).positioned[0].centres, expected)
