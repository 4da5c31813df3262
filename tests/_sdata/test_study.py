"""Where the data is: said once, resolved once, remembered by every later step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale
from tests.conftest import TILES, duplicate

from agl_sc import pl, pp, tl
from agl_sc._sdata.study import Address, Study
from agl_sc.tl import TrainConfig

Step = Callable[[SpatialData], Any]


@pytest.fixture
def doubtful(tissue: SpatialData) -> SpatialData:
    """Every section with a second, coarser image in its coordinate system, as spatialdata_io.visium leaves them."""
    for name in ("section_1", "section_2", "section_3"):
        pixels = np.asarray(next(iter(tissue[f"{name}_image"]["scale0"].values())).data)
        tissue.images[f"{name}_lowres"] = Image2DModel.parse(
            np.ascontiguousarray(pixels[:, ::4, ::4]),
            dims=("c", "y", "x"),
            transformations={name: Scale([4.0, 4.0], axes=("x", "y"))},
        )
    return tissue


IMAGES = [f"section_{i}_image" for i in (1, 2, 3)]
LATER: dict[str, Step] = {
    "split": lambda sdata: pp.split(sdata, by="block", block_um=200, buffer_um=50),
    "rank_auxiliary": lambda sdata: pp.rank_auxiliary(sdata, score="moran"),
    "train": lambda sdata: tl.train(sdata, method="pgl", config=TrainConfig(batch_size=16, max_epochs=1, hidden=16)),
    "evaluate": lambda sdata: tl.evaluate(sdata, metrics=["ssim"]),
    "cross_validate": lambda sdata: tl.cross_validate(
        sdata, methods="ridge", by="block", block_um=200, buffer_um=50, genes=4
    ),
    "spatial_pred": lambda sdata: pl.spatial_pred(sdata, sdata["table"].var_names[0], show=False),
    "tiles": lambda sdata: pl.tiles(sdata, tile_px=32, mpp=1.0, n=2, show=False),
    "duplicates": pp.duplicates,
}


@pytest.fixture
def whole(doubtful: SpatialData) -> SpatialData:
    pp.embed(doubtful, image_key=IMAGES, **TILES)
    pp.split(doubtful, test=["section_3"], validation=["section_2"])
    pp.target_genes(doubtful, genes=4)
    pp.rank_auxiliary(doubtful, score="truth_prior")
    tl.train(doubtful, method="agl", config=TrainConfig(batch_size=16, max_epochs=1, hidden=16))
    return doubtful


@pytest.mark.parametrize("step", LATER.values(), ids=list(LATER))
def test_the_image_that_was_named_is_found_again(whole: SpatialData, step: Step) -> None:
    gene = whole["table"].var_names[np.isfinite(whole["table"].layers["agl"]).any(axis=0)][0]
    order = [gene, *(name for name in whole["table"].var_names if name != gene)]
    whole.tables["table"] = whole["table"][:, order].copy()
    step(whole)


@pytest.mark.parametrize(
    "step",
    [LATER["train"], LATER["tiles"], LATER["duplicates"], lambda sdata: pp.embed(sdata, **TILES)],
    ids=["train", "tiles", "duplicates", "embed"],
)
def test_an_image_is_asked_for_where_pixels_are_needed(doubtful: SpatialData, step: Step) -> None:
    with pytest.raises(
        ValueError, match=r"several images \(section_1_image, section_1_lowres\); name one with image_key="
    ):
        step(doubtful)


@pytest.mark.parametrize("step", [LATER["split"], LATER["cross_validate"]], ids=["split", "cross_validate"])
def test_positions_need_no_image(prepared: SpatialData, step: Step) -> None:
    with_images = duplicate(prepared)
    for name in list(prepared.images):
        del prepared.images[name]
    step(prepared)
    step(with_images)
    for column in {"agl_split", "agl_fold"} & set(prepared["table"].obs):
        assert list(prepared["table"].obs[column]) == list(with_images["table"].obs[column])


def test_a_scale_that_was_stated_is_kept_for_that_image_alone(tissue: SpatialData) -> None:
    tissue.attrs["agl_sc"] = {}
    pp.embed(tissue, image_mpp={"section_1": 1.0, "section_2_image": 1.01, "section_3": 0.99}, **TILES)
    assert [section.mpp() for section in Study.of(tissue).imaged] == [1.0, 1.01, 0.99]
    pixels = np.zeros((3, 400, 400), np.uint8)
    tissue.images["section_1_image"] = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), transformations={"section_1": Scale([2.0, 2.0], axes=("x", "y"))}
    )
    with pytest.raises(ValueError, match="microns per pixel of 'section_1_image' are unknown; pass image_mpp="):
        Study.of(tissue).imaged[0].mpp()


def test_the_readers_scale_follows_a_resampled_image(tissue: SpatialData) -> None:
    before = Study.of(tissue).imaged[0].mpp()
    pixels = np.asarray(next(iter(tissue["section_1_image"]["scale0"].values())).data)[:, ::2, ::2]
    tissue.images["section_1_image"] = Image2DModel.parse(
        np.ascontiguousarray(pixels),
        dims=("c", "y", "x"),
        transformations={"section_1": Scale([2.0, 2.0], axes=("x", "y"))},
    )
    assert Study.of(tissue).imaged[0].mpp() == pytest.approx(2 * before)


def test_a_scale_of_an_unknown_section_is_refused(tissue: SpatialData) -> None:
    with pytest.raises(
        KeyError, match="image_mpp= names 'section_9', which is neither a section, a region nor an image"
    ):
        pp.embed(tissue, image_mpp={"section_9": 1.0}, **TILES)


def test_the_layer_is_remembered_and_x_can_be_asked_for(prepared: SpatialData) -> None:
    prepared["table"].layers["counts"] = prepared["table"].X.copy()
    pp.target_genes(prepared, genes=4, layer="counts")
    assert Study.of(prepared).address.layer == "counts"
    assert Study.of(prepared, Address(layer="X")).address.layer == "X"
    pp.target_genes(prepared, genes=4, layer="X")
    assert Study.of(prepared).address.layer == "X"
    pp.target_genes(prepared, genes=4, layer="counts")
    del prepared["table"].layers["counts"]
    assert Study.of(prepared).address.layer is None


def test_of_several_tables_the_one_that_an_analysis_began_in_is_taken(prepared: SpatialData) -> None:
    prepared.tables["other"] = prepared["table"].copy()
    del prepared["other"].uns["agl"]
    assert Study.of(prepared).table_key == "table"
    with pytest.raises(ValueError, match="several tables"):
        Study.of(prepared, key_added="another")


def test_sections_without_a_name_are_refused(tissue: SpatialData) -> None:
    table = tissue["table"]
    names = table.obs["section"].astype(object)
    for gap in (None, np.nan, "", "nan", " None "):
        table.obs["section"] = [gap if i % 20 == 0 else name for i, name in enumerate(names)]
        with pytest.raises(
            ValueError, match=r'obs\["section"\] is empty for 8 spots \(of section_1, section_2, section_3\)'
        ):
            pp.split(tissue)


def test_spots_off_the_tissue_are_in_no_set(tissue: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = tissue["table"]
    off = np.arange(table.n_obs) % 5 == 0
    for values in (~off, (~off).astype(int), np.where(off, "0", "1"), np.where(off, 0.0, 1.0)):
        table.obs["in_tissue"] = values
        for options in ({"by": "spot"}, {"by": "section"}, {"by": "block", "block_um": 200, "buffer_um": 0}):
            pp.split(tissue, **options)
            assert ((table.obs["agl_split"] == "unused").to_numpy() == off).all()
        pp.split(tissue, by="spot", n_folds=3)
        assert ((table.obs["agl_split"] == "unused").to_numpy() == off).all()
    assert '32 spots are off the tissue (obs["in_tissue"] of 0) and are in no set.' in caplog.messages


@pytest.mark.parametrize("argument", ["image_key", "shapes_key"])
@pytest.mark.parametrize("names", ["", [], (), np.array([], dtype=str)], ids=repr)
def test_an_address_that_names_nothing_is_refused(argument: str, names: Any) -> None:
    with pytest.raises(ValueError, match=rf"{argument}=.* names nothing; name one or several, or pass None"):
        Address(**{argument: names})
