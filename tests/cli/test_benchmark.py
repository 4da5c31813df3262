"""``benchmark`` saves the report of the library, with its options."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import spatialdata
from typer.testing import Result

from agl_sc import tl
from agl_sc.cli._train import train_config

Run = Callable[..., Result]
SETTINGS = ["batch_size=16", "max_epochs=1"]


def test_report_is_that_of_the_library(run: Run, results: Path, tmp_path: Path) -> None:
    store, folder = results / "result.zarr", tmp_path / "report"
    options = ["--methods", "ridge, reduced_rank_ridge", "--seeds", "1", "--targets", "4", "--score", "dispersion"]
    options += [text for setting in SETTINGS for text in ("--set", setting)]
    done = run("benchmark", store, *options, "--output", folder, "--json")
    assert done.exit_code == 0, done.output
    asked: dict[str, Any] = {"methods": ["ridge", "reduced_rank_ridge"], "score": "dispersion"}
    config = train_config(SETTINGS, None)
    expected = tl.benchmark(spatialdata.read_zarr(store), **asked, seeds=1, genes=4, config=config)
    assert expected.provenance["cross_validation"]["score"] == "dispersion"
    saved = tl.Benchmark.load(folder)
    pd.testing.assert_frame_equal(saved.results, expected.results, check_dtype=False, check_categorical=False)
    pd.testing.assert_frame_equal(saved.differences, expected.differences, check_dtype=False)
    assert (folder / "report.md").read_text(encoding="utf-8") == expected.to_markdown()
    names = {"report.md", "results.csv", "differences.csv", "provenance.json", "agl-sc.toml"}
    assert {path.name for path in folder.iterdir()} == names
    printed = json.loads(done.stdout)
    assert printed["folder"] == str(folder)
    assert [row["method"] for row in printed["differences"]] == list(expected.differences["method"])


def test_unknown_method_is_refused(run: Run, store: Path, tmp_path: Path) -> None:
    done = run("benchmark", store, "--methods", "ridge,dgksb", "--output", tmp_path / "report")
    assert done.exit_code == 2
    assert "'dgksb' is not a method; the methods are mean" in done.stderr
    assert not list(tmp_path.iterdir())
