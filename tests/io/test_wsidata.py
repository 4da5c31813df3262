from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from shapely import Polygon, box
from tests.io.slide_files import painted, write_svs

from agl_sc import Model, pp, tl
from agl_sc.io import from_wsidata

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from agl_sc.tl import TrainConfig

wsidata = pytest.importorskip("wsidata")
GENES = 12


@pytest.fixture
def wsi(tmp_path: Path) -> Any:
    """A slide of which LazySlide knows the tissue, 5 x 9 tiles of 20 px, and features of ``"uni"``."""
    from wsidata import TileSpec
    from wsidata.io import add_features, add_tiles, add_tissues

    path = write_svs(tmp_path / "slide.svs", painted(), mpp=8, magnification=1.25)
    wsi = wsidata.open_wsi(path, store=None)
    hole = box(100, 100, 120, 120).exterior.coords
    add_tissues(wsi, "tissues", [Polygon(box(50, 60, 240, 180).exterior.coords, [hole])])
    corners = np.array([(x, y) for y in range(70, 170, 20) for x in range(52, 232, 20)])
    spec = TileSpec(height=20, width=20, stride_height=20, stride_width=20, mpp=8.0)
    add_tiles(wsi, "tiles", corners, spec, np.zeros(len(corners), dtype=int))
    add: Any = add_features
    add(wsi, "uni_tiles", "tiles", np.random.default_rng(0).normal(size=(len(corners), GENES)).astype(np.float32))
    return wsi


@pytest.fixture
def model(tissue: "SpatialData", config: "TrainConfig") -> Model:
    features = np.random.default_rng(1).normal(size=(tissue["table"].n_obs, GENES))
    pp.use_features(tissue, features, encoder="uni", tile_px=20, mpp=8.0)
    pp.split(tissue, test=["section_3"], validation=["section_2"])
    return tl.train(tissue, config=config)


def test_tiles_become_spots_and_tissues_a_mask(wsi: Any) -> None:
    sdata = from_wsidata(wsi, patient="P")
    table = sdata["table"]
    assert table.shape == (45, 0)
    assert table.obs["spot_id"].tolist() == [str(number) for number in range(45)]
    np.testing.assert_array_equal(table.obsm["spatial"][[0, 44]], [[62, 80], [222, 160]])
    assert sdata["slide"]["radius"].unique() == [10]
    assert sdata.attrs["agl_sc"]["image_mpp"] == {"slide_image": 8.0}
    expected = np.zeros((240, 300), bool)
    expected[60:180, 50:240] = True
    expected[100:120, 100:120] = False
    assert (np.asarray(sdata["slide_tissue"]) == expected).mean() > 0.99
    assert table.obs["tissue_share"].min() == pytest.approx(1 - 12 * 10 / 400, abs=0.01)  # beside the hole
    assert table.obs["tissue_share"].median() == 1
    assert (table.obs["tissue_id"] == 0).all()


def test_features_of_lazyslide_are_predicted_from_as_lazyslide_itself_predicts(wsi: Any, model: Model) -> None:
    """Both ways lead to the same numbers: the real package calls the model, and the model takes its table."""
    lazyslide = pytest.importorskip("lazyslide")
    lazyslide.tl.feature_prediction(wsi, model.as_lazyslide(), "uni", pbar=False)
    theirs = wsi.tables["agl_sc_tiles"]
    assert theirs.var_names.tolist() == model.predicted_genes
    sdata = from_wsidata(wsi)
    spec = wsi.tile_spec("tiles")
    pp.use_features(sdata, wsi.tables["uni_tiles"], encoder="uni", tile_px=spec.width, mpp=spec.mpp)
    features = sdata["table"].obsm["agl_features"]
    np.testing.assert_array_equal(features, wsi.tables["uni_tiles"].X)
    ours = model.predict(features, np.zeros(45))
    np.testing.assert_allclose(theirs.X, ours, rtol=1e-5)
    assert np.ptp(theirs.X, axis=0).min() > 0


def test_a_model_satisfies_the_protocol_of_lazyslide_and_finds_its_features_by_name(wsi: Any, model: Model) -> None:
    lazyslide = pytest.importorskip("lazyslide")
    from lazyslide_models.base import FeaturePredictionModelProtocol

    lent = model.as_lazyslide(name="her2st")
    assert isinstance(lent, FeaturePredictionModelProtocol)
    assert lent.whole_slide
    assert lent.features_model_name == "uni"
    lazyslide.tl.feature_prediction(wsi, lent, pbar=False, compile=True)
    assert wsi.tables["her2st_tiles"].shape == (45, model.n_predicted)


def test_features_of_another_width_are_refused_there_too(wsi: Any, model: Model) -> None:
    lazyslide = pytest.importorskip("lazyslide")
    wsi.tables["uni_tiles"] = wsi.tables["uni_tiles"][:, :5].copy()
    with pytest.raises(ValueError, match=r"features have shape \(45, 5\), but the model needs \(n_spots, 12\)"):
        lazyslide.tl.feature_prediction(wsi, model.as_lazyslide(), "uni", pbar=False)


def test_a_model_of_several_fields_of_view_is_not_lent(tissue: "SpatialData", config: "TrainConfig") -> None:
    pp.embed(tissue, tile_px=32, mpp=1.0, context=(2,), orientations=2, stages=False)
    pp.split(tissue, test=["section_3"], validation=["section_2"])
    model = tl.train(tissue, config=config)
    with pytest.raises(
        ValueError, match=r"takes features with context, orientations, maps of agl_sc\.pp\.embed, which LazySlide"
    ):
        model.as_lazyslide()


def test_what_is_no_tiled_slide_is_refused(wsi: Any) -> None:
    with pytest.raises(TypeError, match=r"wsi is a DataFrame, not a wsidata\.WSIData"):
        from_wsidata(pd.DataFrame())
    with pytest.raises(KeyError, match=r"tile_key='none' is not among the shapes of wsi \(tissues, tiles\)"):
        from_wsidata(wsi, tile_key="none")
    wsi.set_mpp(None)
    with pytest.raises(ValueError, match=r"does not know the microns per pixel .* wsi\.set_mpp"):
        from_wsidata(wsi)
    wsi.set_mpp(80.0)
    with pytest.raises(ValueError, match=r"says 80 um per pixel \(LazySlide\), outside 0\.1 to 20"):
        from_wsidata(wsi)


@pytest.mark.parametrize(
    ("magnification", "fits"), [("1.25", True), ("40", False), ("unknown", True), (None, True), ("nan", True)]
)
def test_a_magnification_may_be_text(wsi: Any, *, magnification: Any, fits: bool) -> None:
    """Readers such as cucim give it so."""
    wsi.properties.magnification = magnification
    if fits:
        assert from_wsidata(wsi)["table"].n_obs == 45
    else:
        with pytest.raises(ValueError, match=r"a magnification of 40x, which has about 0\.25"):
            from_wsidata(wsi)
