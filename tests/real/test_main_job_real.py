"""The main job on the real sections, made small: coarse tiles, two epochs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from spatialdata import SpatialData

from agl_sc.io import read_visium
from agl_sc.io._st import read_st_folder
from agl_sc.pp import embed, split, target_genes
from agl_sc.tl import TrainConfig, evaluate, predict, train

FEW_EPOCHS = TrainConfig(max_epochs=2, batch_size=64)


def test_her2st_trains_and_predicts_a_section_never_seen(data_dir: Path) -> None:
    """C2 trains, C3 validates, C6 of the same tumour is test; mean Pearson of any signal at all."""
    sdata = read_st_folder(data_dir / "her2st", sections=["C2", "C3", "C6"], patient="C")
    split(sdata, test="C6", validation="C3")
    target_genes(sdata, genes=50)
    embed(sdata, tile_px=64, mpp=1.5, context=())
    model = train(sdata, config=FEW_EPOCHS)
    table = sdata["table"]
    assert table.shape[0] == 187 + 180 + 178
    assert np.isfinite(table.layers["agl"][:, table.var_names.get_indexer(model.predicted_genes)]).all()
    result = evaluate(sdata)
    assert set(result["section"]) == {"C6"}
    assert len(result) == 50
    assert result["pearson"].mean() > 0.1
    never_seen = read_st_folder(data_dir / "her2st", sections=["C6"], patient="C")
    predict(never_seen, model)
    rows = (table.obs["section"] == "C6").to_numpy()
    expected = table[rows, model.targets].layers["agl"]
    np.testing.assert_allclose(never_seen["table"][:, model.targets].layers["agl"], expected, atol=1e-3)
    assert (never_seen["table"].obs["agl_split"] == "test").all()


@pytest.fixture(scope="module")
def brains(data_dir: Path) -> SpatialData:
    folder = data_dir / "visium"
    return read_visium({name: folder / f"mousebrain_V10F24-078_{name}" for name in ("A1", "B1")})


def test_a_visium_hires_image_is_too_coarse_for_usual_tiles(
    brains: SpatialData, unchanged: Callable[[SpatialData], AbstractContextManager[None]]
) -> None:
    reason = r"mpp=0.5 needs 8\.\dx up-sampling of 'A1_image', whose own resolution is 4\.1\d um/px \(112 um are only 27 px there\)"
    with pytest.raises(ValueError, match=f"{reason}.*or ask for mpp='image'"), unchanged(brains):
        embed(brains, tile_px=224, mpp=0.5)


def test_a_visium_section_trains_at_the_images_own_resolution(brains: SpatialData) -> None:
    split(brains, test="B1", validation=0.2)
    target_genes(brains, genes=20)
    embed(brains, tile_px=32, mpp="image", context=())
    assert brains["table"].uns["agl"]["features"]["mpp"] == pytest.approx(4.14, rel=0.015)
    model = train(brains, method="pgl", config=FEW_EPOCHS)
    result = evaluate(brains)
    assert set(result["section"]) == {"B1"}
    assert set(result["gene"]) == set(model.targets)
    assert result["pearson"].mean() > 0.1
