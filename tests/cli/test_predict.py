"""``predict`` writes what the library predicts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import spatialdata
from typer.testing import Result

from agl_sc import Model, tl
from agl_sc._sdata.sections import levels_of

Run = Callable[..., Result]


def test_predictions_are_those_of_the_library(run: Run, *, store: Path, results: Path, tmp_path: Path) -> None:
    done = run("predict", store, results / "model", "--output", tmp_path / "out.zarr", "--json")
    assert done.exit_code == 0, done.output
    expected = spatialdata.read_zarr(store)
    tl.predict(expected, Model.load(results / "model"))
    table = spatialdata.read_zarr(tmp_path / "out.zarr")["table"]
    np.testing.assert_array_equal(table.layers["agl"], expected["table"].layers["agl"])
    n_genes = int(np.isfinite(table.layers["agl"]).any(axis=0).sum())
    assert json.loads(done.stdout) == {
        "store": str(tmp_path / "out.zarr"), "layer": "agl", "predictions": 'layers["agl"]', "n_genes": n_genes, "n_spots": 159, "n_obs": 159
    }  # fmt: skip
    assert (tmp_path / "out.agl-sc.toml").is_file()
    refused = run("predict", store, results / "model", "--output", tmp_path / "out.zarr")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "out.zarr exists; pass --force" in refused.stderr


def test_store_is_replaced_in_place(run: Run, *, store: Path, results: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.zarr"
    spatialdata.read_zarr(store).write(own)
    assert run("predict", own, results / "model", "--output", own, "--force").exit_code == 0
    table = spatialdata.read_zarr(own)["table"]
    assert np.isfinite(table.layers["agl"]).any()
    image = spatialdata.read_zarr(own)["section_1_image"]
    assert levels_of(image, "section_1_image")[0].compute().any()


def test_folder_that_is_no_model(run: Run, store: Path, tmp_path: Path) -> None:
    done = run("predict", store, tmp_path, "--output", tmp_path / "out.zarr")
    assert done.exit_code == 2
    assert "is not a model: model.json is missing" in done.stderr


def test_an_image_of_a_file_is_a_slide(run: Run, *, results: Path, tmp_path: Path) -> None:
    """Which file it is, is read in front of the sign; what is wrong with it is told of the file, not of a store."""
    (tmp_path / "slide.tif").write_bytes(b"nothing")
    done = run("predict", f"{tmp_path / 'slide.tif'}#1", results / "model", "--output", tmp_path / "out.zarr")
    assert done.exit_code == 2
    assert "SpatialData store" not in done.stderr
    assert f"'{tmp_path / 'slide.tif'}' is no TIFF, so it holds one image and none named '1'" in done.stderr


def test_place_and_intervals_are_those_asked_for(run: Run, *, store: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    refused = run("predict", store, results / "model", "--output", out, "--interval", "0.9")
    assert refused.exit_code == 2
    assert "No interval of 90% can be promised" in refused.stderr
    odd = run("predict", store, results / "model", "--output", out, "--write-to", "nowhere")
    assert odd.exit_code == 2
    assert "write_to" in odd.stderr
    done = run("predict", store, results / "model", "--output", out, "--write-to", "table")
    assert done.exit_code == 0, done.output
    found = spatialdata.read_zarr(out)
    assert "agl" not in found["table"].layers
    assert found["agl_prediction"].n_vars == Model.load(results / "model").n_predicted
