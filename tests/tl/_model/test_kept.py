"""A failure to predict costs the predictions, not the model; what does not fit into memory is refused before training."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

from agl_sc.model import Model
from agl_sc.tl import TrainConfig, cross_validate, predict, train

FAILURES = [MemoryError("Unable to allocate 4.20 GiB"), KeyboardInterrupt(), OSError(28, "No space left on device")]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, block: int = 1) -> None:
    """Raise in a block of the predictions."""
    original = Model.predicted_blocks

    def blocks(self: Model, *args: Any, **kwargs: Any) -> Any:
        for number, each in enumerate(original(self, *args, **kwargs), start=1):
            if number == block:
                raise error
            yield each

    monkeypatch.setattr(Model, "predicted_blocks", blocks)


@pytest.mark.parametrize("with_checkpoint", [False, True])
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("block", [1, 2])
def test_the_model_is_kept_and_predicts_again(
    *,
    prepared: SpatialData,
    config: TrainConfig,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    with_checkpoint: bool,
    block: int,
) -> None:
    monkeypatch.setattr("agl_sc.core.spots.scaling.rows_at_once", lambda n_columns: 100)
    config = replace(config, max_epochs=1)
    table = prepared["table"]
    table.layers["agl"], table.var["agl_pearson"] = np.zeros(table.shape, np.float32), 0.5  # of an earlier model
    checkpoint = tmp_path / "run" if with_checkpoint else None
    with monkeypatch.context() as patch:
        fail(patch, error, block=block)
        with pytest.raises(type(error)) as caught:
            train(prepared, config=config, checkpoint=checkpoint)
    assert caught.value is error
    (note,) = caught.value.__notes__[-1:]
    assert note in caplog.messages
    path = Path(note.partition("the model is in ")[2].partition(": predict with agl_sc.tl.predict(")[0])
    assert path == (checkpoint / "model" if checkpoint else next(temporary.iterdir()) / "model")
    assert len(list(temporary.iterdir())) == (0 if with_checkpoint else 1)
    assert "agl" not in table.layers  # neither the half of it nor the earlier model's
    assert not {"units", "prediction"} & set(table.uns["agl"])
    assert "agl_pearson" not in table.var
    assert {"agl_role", "agl_weight", "agl_selected", "agl_prior_rank"} <= set(table.var)
    assert len(table.uns["agl"]["history"]["epoch"]) == 2
    model = Model.load(path)
    predict(prepared, model)
    again = table.layers["agl"].copy()
    train(prepared, config=config)
    np.testing.assert_array_equal(table.layers["agl"], again)


def test_a_model_that_cannot_be_saved_either_is_told(
    *, prepared: SpatialData, config: TrainConfig, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    fail(monkeypatch, MemoryError())
    monkeypatch.setattr(Model, "save", full)
    with pytest.raises(MemoryError) as caught:
        train(prepared, method="pgl", config=replace(config, max_epochs=0, refit=False))
    assert "the model could not be saved either ([Errno 28] No space left" in caught.value.__notes__[-1]


def test_models_of_a_cross_validation_are_not_kept(
    *,
    prepared: SpatialData,
    config: TrainConfig,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchanged: Any,
) -> None:
    fail(monkeypatch, MemoryError())
    with pytest.raises(MemoryError), unchanged(prepared):
        cross_validate(prepared, methods="pgl", genes=4, config=replace(config, max_epochs=0, refit=False))
    assert list(temporary.iterdir()) == []


def test_an_error_before_the_model_is_finished_keeps_nothing(
    *,
    prepared: SpatialData,
    config: TrainConfig,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchanged: Any,
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("agl_sc.tl._model.train.fit_arm", failing)
    with pytest.raises(MemoryError) as caught, unchanged(prepared):
        train(prepared, config=config)
    assert not hasattr(caught.value, "__notes__")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("call", ["train", "predict", "cross_validate"])
def test_a_layer_beyond_memory_is_refused_before_any_work(
    *,
    trained: tuple[SpatialData, Model],
    monkeypatch: pytest.MonkeyPatch,
    unchanged: Any,
    call: str,
) -> None:
    sdata, model = trained
    needed = 159 * 24 * 4
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=needed - 1, total=needed))
    calls: dict[str, Any] = {
        "train": lambda: train(sdata), "predict": lambda: predict(sdata, model), "cross_validate": lambda: cross_validate(sdata, genes=4)
    }  # fmt: skip
    message = r"Predictions of 159 spots take a layer of 24 genes, 0.0 GB of memory, and 0.0 GB are available; keep fewer genes or spots, such as sdata.tables\['table'\] = "
    with unchanged(sdata), pytest.raises(ValueError, match=message):
        calls[call]()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=needed, total=needed))
    predict(sdata, model)


def test_predictions_in_blocks_are_those_of_all_spots_at_once(
    trained: tuple[SpatialData, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means of sections are over all their spots."""
    sdata, model = trained
    features, sections = sdata["table"].obsm["agl_features"].copy(), sdata["table"].obs["section"].to_numpy()
    features[[3, 70, 158], [0, 5, 9]] = np.nan, np.inf, np.nan
    whole = model.predict(features, sections)
    assert np.flatnonzero(np.isnan(whole).all(axis=1)).tolist() == [3, 70, 158]
    for size in (159, 100, 53, 7, 1):
        monkeypatch.setattr("agl_sc.core.spots.scaling.rows_at_once", lambda n_columns, size=size: size)
        np.testing.assert_array_equal(model.predict(features, sections), whole)
    assert model.predict(features[:0], sections[:0]).shape == (0, model.n_predicted)
