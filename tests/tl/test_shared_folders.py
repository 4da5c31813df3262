"""Several processes in one folder, and models that come from elsewhere."""

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from spatialdata import SpatialData

from agl_sc import Model
from agl_sc.tl import TrainConfig, cross_validate, predict, train
from agl_sc.tl._benchmark import cross_validate as module
from agl_sc.tl._benchmark import runs

HOLD = "import sys; from pathlib import Path; from agl_sc.core.writing.claims import claimed\nwith claimed(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def duplicate(sdata: SpatialData) -> SpatialData:
    tables = {"table": sdata["table"].copy()}
    return SpatialData(
        images=dict(sdata.images), shapes=dict(sdata.shapes), tables=tables, attrs=copy.deepcopy(sdata.attrs)
    )


def test_runs_of_one_folder_are_shared_and_none_is_done_twice(
    prepared: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As array jobs share them; here of threads, which are told apart as processes are."""
    how: dict[str, Any] = {"methods": ["mean", "ridge", "knn"], "genes": 4}
    alone = cross_validate(duplicate(prepared), **how)
    run, done, both = runs.run, list[tuple[int, int, str]](), threading.Barrier(2)

    def noted(study: Any, fold: Any, **options: Any) -> Any:
        if len(done) < 2:
            both.wait(timeout=60)  # neither goes on before the other is at a run of its own
        done.append((threading.get_ident(), fold.number, options["name"]))
        return run(study, fold, **options)

    monkeypatch.setattr(module, "run", noted)
    results: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(cross_validate(duplicate(prepared), **how, checkpoint=tmp_path / "runs"))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len({run[1:] for run in done}) == 9
    assert len({thread for thread, *_ in done}) == 2
    assert len(results) == 2
    for each in results:
        pd.testing.assert_frame_equal(each.results, alone.results, check_exact=True)
    assert sorted(path.suffix for path in (tmp_path / "runs").iterdir()) == [".npz"] * 9


def test_a_checkpoint_that_another_process_is_at_is_refused(
    *, prepared: SpatialData, config: TrainConfig, tmp_path: Path, unchanged: Callable[[SpatialData], Any]
) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            unchanged(prepared),
            pytest.raises(BlockingIOError, match=r"Another process is writing to .*/run; wait until it is done"),
        ):
            train(prepared, method="pgl", config=config, checkpoint=folder)
        assert not folder.exists()
        other.kill()
    train(prepared, method="pgl", config=replace(config, max_epochs=1), checkpoint=folder)
    assert (folder / "model").is_dir()


def test_a_table_that_was_in_a_store_gives_the_same_model_file(
    prepared: SpatialData, config: TrainConfig, tmp_path: Path
) -> None:
    prepared["table"].uns = {
        name: value for name, value in prepared["table"].uns.items() if name in ("spatialdata_attrs", "agl")
    }
    prepared.write(tmp_path / "a.zarr")
    for name, sdata in (("fresh", prepared), ("read", SpatialData.read(tmp_path / "a.zarr"))):
        train(sdata, method="pgl", config=replace(config, max_epochs=1)).save(tmp_path / name)
    for file in ("model.json", "model.safetensors"):
        assert (tmp_path / "fresh" / file).read_bytes() == (tmp_path / "read" / file).read_bytes()


def test_an_encoder_that_a_card_names_is_not_fetched_for_a_prediction(
    *, prepared: SpatialData, config: TrainConfig, tmp_path: Path, unchanged: Callable[[SpatialData], Any]
) -> None:
    model = train(prepared, method="pgl", config=replace(config, max_epochs=0))
    card = copy.deepcopy(model.card)
    card["features"]["encoder"] = "hf-hub:anyone/x"
    replace(model, card=card).save(tmp_path / "model")
    del prepared["table"].obsm["agl_features"]
    with unchanged(prepared), pytest.raises(ValueError, match=r"names the encoder 'hf-hub:anyone/x', which is fetched"):
        predict(prepared, Model.load(tmp_path / "model"))
