"""What ``train`` writes is what the library would, and runs again from its own options."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import spatialdata
from typer.testing import Result

from agl_sc import Model
from agl_sc.cli._train import train_config
from agl_sc.tl import GradientSearch, TrainConfig

Run = Callable[..., Result]


def test_model_and_store_are_written(store: Path, results: Path) -> None:
    model = Model.load(results / "model")
    table = spatialdata.read_zarr(results / "result.zarr")["table"]
    assert set(table.obs["agl_split"][table.obs["section"] == "section_3"]) == {"test"}
    assert np.isfinite(table.layers["agl"][:, table.var_names.isin(model.targets)]).all()
    assert table.uns["agl"]["params"]["batch_size"] == 16
    assert (model.card["features"]["context"], model.card["features"]["orientations"]) == ("", 1)
    printed = json.loads((results / "stdout.json").read_text())
    assert printed["model"] == str(results / "model")
    assert printed["n_targets"] == model.n_targets == 4
    assert printed["cutoff"] == model.cutoff
    assert printed["n_selected"] == int(table.var["agl_selected"].sum())
    assert printed["validation_pearson"] == pytest.approx(model.history["validation_pearson"].max())
    assert "agl" not in spatialdata.read_zarr(store)["table"].layers


def test_options_beside_the_results_run_again_to_the_same_bytes(run: Run, results: Path, tmp_path: Path) -> None:
    options = results / "model" / "agl-sc.toml"
    assert options.read_bytes() == (results / "result.agl-sc.toml").read_bytes()
    saved = tomllib.loads(options.read_text())
    assert (saved["test"], saved["tile-px"], saved["seed"]) == (["section_3"], 32, 0)
    again = ["--output", tmp_path / "again", "--write", tmp_path / "again.zarr"]
    done = run("train", "--config", options, *again)
    assert done.exit_code == 0
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (results / "model" / weights).read_bytes()
    assert re.match(r"dkgsb: 4 target genes, \d+ of \d+ auxiliary genes, validation Pearson", done.stdout)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(
            ["--test", "sectoin_3"], "test='sectoin_3' is not a section; .*; did you mean section_3", id="section"
        ),
        pytest.param(["--method", "agi"], "method='agi' is not one of 'pgl', 'agl', 'dkgsb'", id="method"),
        pytest.param(["--test", "0.99"], "leave nothing for training", id="fraction"),
        pytest.param(["--targets", "G9999"], "1 target genes are missing: G9999 not in the table", id="gene"),
        pytest.param(["--layer", "raw"], "layer='raw' is not in the table", id="layer"),
        pytest.param(
            ["--set", "batchsize=3"], "--set batchsize=3 is not NAME=VALUE .* did you mean batch_size", id="setting"
        ),
        pytest.param(["--preset", "mine"], "preset='mine' is not one of 'paper'", id="preset"),
    ],
)
def test_refused_before_anything_is_written(
    run: Run, *, store: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    done = run("train", store, "--output", tmp_path / "model", *args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.search(message, done.stderr.splitlines()[-1])
    assert not list(tmp_path.iterdir())


def test_settings() -> None:
    given = ["loss=mse", "rank=none", "lr=1e-3", "batch_size=32", "refit=false", "gradient.outer_batch_size=64"]
    expected = TrainConfig(
        loss="mse", lr=1e-3, batch_size=32, refit=False, gradient=GradientSearch(outer_batch_size=64)
    )
    assert train_config(given, None) == expected
    assert train_config(["lr=1"], "paper") == TrainConfig.preset("paper", lr=1.0)
    nested = TrainConfig.preset("paper", gradient={"inner_steps": 3})
    assert train_config(["gradient.inner_steps=3"], "paper") == nested


@pytest.mark.parametrize("preset", [None, "released"])
def test_old_names_of_settings_are_taken_and_the_new_form_is_told(
    preset: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_config(["inner_steps=3"], preset) == train_config(["gradient.inner_steps=3"], preset)
    told = "--set inner_steps=... is now --set gradient.inner_steps=...; the old form goes in the next version."
    assert capsys.readouterr().err.splitlines() == [told]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        pytest.param("lr", "--set lr is not NAME=VALUE of a setting; the settings are loss, search", id="no value"),
        pytest.param("lr=fast", "--set lr=fast is not a number", id="number"),
        pytest.param("rank=2.5", "--set rank=2.5 is not none or a whole number", id="optional number"),
        pytest.param("refit=1", "--set refit=1 is not true or false", id="flag"),
        pytest.param("batch_size=4", "batch_size=4 is not at least 8", id="range"),
        pytest.param("gradient=3", "--set gradient=3 is not NAME=VALUE of a setting", id="nested"),
        pytest.param("gradient.inner_steps=0", "inner_steps=0 is not at least 1", id="range of a nested one"),
        pytest.param("loss=mae", "loss='mae' is not one of 'pearson'", id="name"),
    ],
)
def test_bad_setting(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train_config([setting], None)


def test_training_goes_on_from_a_model(run: Run, *, store: Path, results: Path, tmp_path: Path) -> None:
    first = Model.load(results / "model")
    start = ["--test", "section_1", "--validation", "section_2", "--set", "batch_size=16", "--set", "max_epochs=2"]
    refused = run("train", store, "--init", results / "model", "--targets", "3", "--output", tmp_path / "model")
    assert refused.exit_code == 2
    assert "brings its own genes and tiles, and genes is asked for too; leave that out" in refused.stderr
    refused = run("train", store, *start, "--init", results / "model", "--output", tmp_path / "model")
    assert refused.exit_code == 2
    assert "init was fitted on section_1" in refused.stderr
    again = ["--test", "section_3", "--validation", "section_2", *start[4:], "--write-to", "table"]
    written = ["--output", tmp_path / "model", "--write", tmp_path / "result.zarr"]
    done = run("train", store, *again, "--init", results / "model", *written)
    assert done.exit_code == 0, done.output
    model = Model.load(tmp_path / "model")
    assert model.predicted_genes == first.predicted_genes
    assert "continued_from" in model.card
    assert "agl_prediction" in spatialdata.read_zarr(tmp_path / "result.zarr").tables
