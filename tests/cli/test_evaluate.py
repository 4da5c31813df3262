"""``evaluate`` prints what the library computes."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import spatialdata
from typer.testing import Result

from agl_sc import tl

Run = Callable[..., Result]


def test_metrics_are_those_of_the_library(run: Run, results: Path, tmp_path: Path) -> None:
    done = run("evaluate", results / "result.zarr", "--csv", tmp_path / "m.csv", "--json")
    assert done.exit_code == 0, done.output
    expected = tl.evaluate(spatialdata.read_zarr(results / "result.zarr"))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "m.csv"), expected, check_dtype=False)
    printed = json.loads(done.stdout)
    assert [row["gene"] for row in printed["genes"]] == list(expected["gene"])
    assert printed["sections"]["section_3"]["pearson"] == pytest.approx(expected["pearson"].mean())
    shown = run("evaluate", results / "result.zarr").stdout
    assert "Means over 4 target genes, test spots" in shown
    assert f"{expected['pearson'].mean():.3f}" in shown


def test_training_spots_are_said_to_be_no_evidence(run: Run, results: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = run("evaluate", results / "result.zarr", "--on", "train")
    assert done.exit_code == 0
    assert "these numbers are not evidence" in caplog.text


def test_store_without_predictions(run: Run, store: Path) -> None:
    done = run("evaluate", store)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        'agl-sc: layers["agl"] is missing; run agl_sc.tl.train or agl_sc.tl.predict first.'
    )
