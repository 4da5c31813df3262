"""Bad input to training: one sentence, nothing changed."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

from agl_sc.pp import split
from agl_sc.tl import TrainConfig, train

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
Spoil = Callable[[SpatialData], None]


def nothing(sdata: SpatialData) -> None:
    """As it is."""


def without(slot: str, name: str) -> Spoil:
    """Delete an entry."""

    def spoil(sdata: SpatialData) -> None:
        del getattr(sdata["table"], slot)[name]

    return spoil


def counts(value: float) -> Spoil:
    """Put one wrong value into X."""

    def spoil(sdata: SpatialData) -> None:
        sdata["table"].X.data[5] = value

    return spoil


def as_layer(name: str) -> Spoil:
    def spoil(sdata: SpatialData) -> None:
        sdata["table"].layers[name] = sdata["table"].X.copy()

    return spoil


def repeated_gene(sdata: SpatialData) -> None:
    sdata["table"].var_names = ["G0001", "G0001", *sdata["table"].var_names[2:]]


def no_image(sdata: SpatialData) -> None:
    del sdata["table"].obsm["agl_features"]
    for name in list(sdata.images):
        del sdata.images[name]


def no_table(sdata: SpatialData) -> None:
    del sdata.tables["table"]


def two_images(sdata: SpatialData) -> None:
    del sdata["table"].obsm["agl_features"]
    del sdata["table"].uns["agl"]["address"]  # by which the image would be found again
    sdata.images["copy"] = sdata["section_2_image"]


def replaced_image(pixels: Any) -> Spoil:
    def spoil(sdata: SpatialData) -> None:
        del sdata["table"].obsm["agl_features"]
        element = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"section_2": Identity()})
        sdata.images["section_2_image"] = element

    return spoil


def unknown_scale(sdata: SpatialData) -> None:
    del sdata["table"].obsm["agl_features"]
    sdata.attrs["agl_sc"] = {}


def wrong_scale(sdata: SpatialData) -> None:
    del sdata["table"].obsm["agl_features"]
    sdata.attrs["agl_sc"]["image_mpp"]["section_2_image"] = 1.3


def no_shapes(sdata: SpatialData) -> None:
    del sdata["table"].obsm["agl_features"]
    sdata["table"].obs["spot_id"] = ["lost", *sdata["table"].obs["spot_id"][1:]]


def no_validation(sdata: SpatialData) -> None:
    split(sdata, test=["section_3"], validation=0.0)


def one_validation_spot(sdata: SpatialData) -> None:
    split(sdata, test=["section_3"], validation=["section_2"])
    assigned = sdata["table"].obs["agl_split"]
    sdata["table"].obs.loc[assigned.index[assigned == "validation"][1:], "agl_split"] = "train"
    del sdata["table"].uns["agl"]["split"]


def nan_rank(sdata: SpatialData) -> None:
    table = sdata["table"]
    table.var.loc[table.var_names[table.var["agl_role"] == "auxiliary"][0], "agl_prior_rank"] = np.nan


def all_excluded(sdata: SpatialData) -> None:
    zeros = scipy.sparse.csr_matrix(sdata["table"].shape, dtype=np.float32)
    del sdata["table"].var["agl_role"]
    sdata["table"].X = zeros


BAD = [
    pytest.param(no_image, {}, KeyError, "sdata has no image", id="no image"),
    pytest.param(no_table, {}, KeyError, "sdata has no table", id="no table"),
    pytest.param(two_images, {}, ValueError, r"several images \(copy, section_2_image\); name one", id="two images"),
    pytest.param(without("uns", "spatialdata_attrs"), {"finetune": True}, ValueError, "The table annotates no shapes", id="no annotation"),
    pytest.param(unknown_scale, {}, ValueError, "microns per pixel of 'section_1_image' are unknown", id="scale unknown"),
    pytest.param(wrong_scale, {}, ValueError, "image_mpp=1.3 of 'section_2_image' contradicts the visium spot pitch", id="scale contradicted"),
    pytest.param(replaced_image(np.zeros((3, 40, 40), np.uint16)), {}, ValueError, "'section_2_image' is uint16, not uint8", id="uint16 image"),
    pytest.param(replaced_image(np.zeros((1, 40, 40), np.uint8)), {}, ValueError, "'section_2_image' has dimensions .* not 3 channels", id="grey image"),
    pytest.param(no_shapes, {}, ValueError, r"1 spots of the table have no shape in 'section_1' \(e.g. 'lost', where shapes are named", id="instance without shape"),
    pytest.param(counts(-1), {}, ValueError, "X holds negative values; raw counts are needed", id="negative counts"),
    pytest.param(counts(np.nan), {}, ValueError, "X holds NaN", id="NaN counts"),
    pytest.param(counts(0.5), {}, ValueError, "X holds values that are not whole numbers, as after normalisation", id="normalised counts"),
    pytest.param(repeated_gene, {}, ValueError, r"1 gene names stand twice in the table \(G0001\)", id="duplicate genes"),
    pytest.param(all_excluded, {}, ValueError, "No gene is detected in more than 30% of the training spots", id="nothing detected"),
    pytest.param(nothing, {"layer": "raw"}, KeyError, "layer='raw' is not in the table", id="layer missing"),
    pytest.param(as_layer("agl"), {"layer": "agl"}, ValueError, "layer='agl' holds the counts and would be overwritten", id="layer overwritten"),
    pytest.param(nothing, {"config": TrainConfig(batch_size=64)}, ValueError, r"53 training spots, fewer than batch_size=64; pass config=TrainConfig\(batch_size=26\)", id="too few spots"),
    pytest.param(no_validation, {}, ValueError, "has 0 validation spots, no two of them in one section", id="no validation"),
    pytest.param(one_validation_spot, {}, ValueError, "has 1 validation spots, no two of them in one section", id="one validation spot"),
    pytest.param(nan_rank, {}, ValueError, r"agl_prior_rank.* is NaN for 1 auxiliary genes, 'G0001' the first; run agl_sc.pp.rank_auxiliary", id="rank NaN"),
    pytest.param(nothing, {"preset": "supplement", "config": None}, ValueError, "preset='supplement' is not one of 'paper', 'released', 'warmstart'", id="preset"),
    pytest.param(nothing, {"preset": "paper", "config": TrainConfig()}, ValueError, "preset='paper' and config= exclude each other", id="preset and config"),
    pytest.param(without("uns", "agl"), {}, ValueError, "obsm.*agl_features.* was not made by agl_sc.pp.embed", id="features of unknown origin"),
    pytest.param(nothing, {"method": "mtl"}, ValueError, "method='mtl' is not one of 'pgl', 'agl', 'dkgsb'", id="method"),
    pytest.param(nothing, {"key_added": "my result"}, ValueError, "key_added='my result' is not a plain name", id="key_added"),
    pytest.param(nothing, {"table_key": "t"}, KeyError, "table_key='t' is not in sdata", id="table_key"),
    pytest.param(nothing, {"finetune": True, "image_key": "x"}, KeyError, "image_key='x' is not among", id="image_key"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "options", "error", "match"), BAD)
def test_bad_input_is_refused_and_nothing_changed(
    *,
    prepared: SpatialData,
    config: TrainConfig,
    spoil: Spoil,
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    unchanged: Unchanged,
) -> None:
    spoil(prepared)
    with pytest.raises(error, match=match), unchanged(prepared):
        train(prepared, **{"config": config, **options})


def test_a_failure_after_preparing_takes_the_preparation_back(tissue: SpatialData, unchanged: Unchanged) -> None:
    """Split, roles and ranks were made and the scale of the last section is wrong."""
    tissue.attrs["agl_sc"]["image_mpp"]["section_3_image"] = 7.0
    with pytest.raises(ValueError, match="image_mpp=7 of 'section_3_image' contradicts"), unchanged(tissue):
        train(tissue, config=TrainConfig(batch_size=16))


def test_an_anndata_is_pointed_to_its_reader(prepared: SpatialData) -> None:
    with pytest.raises(TypeError, match=r"sdata is a AnnData, not a SpatialData; .*agl_sc\.io\.from_anndata"):
        train(prepared["table"])


def missing_folder(folder: Path) -> Path:
    return folder / "nowhere" / "model"


def other_file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("mine")
    return folder / "notes.txt"


def folder_in_use(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "mine.txt").write_text("mine")
    return folder / "data"


@pytest.mark.parametrize(
    ("place", "error", "match"),
    [
        pytest.param(missing_folder, FileNotFoundError, "The folder .*nowhere does not exist; make it", id="missing"),
        pytest.param(other_file, FileExistsError, r"notes.txt.* exists and is not a", id="a file"),
        pytest.param(folder_in_use, FileExistsError, r"data.* exists and is not a", id="a folder of something else"),
        pytest.param(lambda _: Path("/proc/model"), PermissionError, r"The folder /proc cannot be written to \(", id="read-only"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_could_not_be_written_is_refused_before_any_work(
    *,
    prepared: SpatialData,
    config: TrainConfig,
    place: Callable[[Path], Path],
    error: type[Exception],
    match: str,
    unchanged: Unchanged,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agl_sc.tl._model.train.fit_arm", lambda *_, **__: pytest.fail("training began"))
    path = place(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(error, match=match), unchanged(prepared):
        train(prepared, config=config, checkpoint=path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_checkpoint_interrupted_before_its_first_epoch_is_continued(prepared: SpatialData, tmp_path: Path) -> None:
    config = TrainConfig(max_epochs=1, batch_size=16)
    train(prepared, config=config, checkpoint=tmp_path / "run")
    (tmp_path / "run" / "state.safetensors").unlink()
    train(prepared, config=config, checkpoint=tmp_path / "run")
    assert (tmp_path / "run" / "state.safetensors").exists()
