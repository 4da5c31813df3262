"""``genes`` lists what the library finds."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import spatialdata
from typer.testing import Result

from agl_sc import tl

Run = Callable[..., Result]


def test_genes_are_those_of_the_library(run: Run, results: Path, tmp_path: Path) -> None:
    csv, figure = tmp_path / "genes.csv", tmp_path / "genes.png"
    store = results / "result.zarr"
    done = run("genes", store, "--min-spots", 3, "--csv", csv, "--figure", figure, "--json")
    assert done.exit_code == 0, done.output
    expected = tl.predictable_genes(spatialdata.read_zarr(store), min_spots=3)
    pd.testing.assert_frame_equal(pd.read_csv(csv, index_col=0), expected)
    assert figure.stat().st_size > 5_000
    printed = json.loads(done.stdout)
    assert [row["gene"] for row in printed["genes"]] == list(expected.index)
    assert printed["n_genes"] == len(expected)
    assert f"of {len(expected)} detected genes are shown by the H&E" in run("genes", store, "--min-spots", 3).stdout


def test_an_unknown_way_to_hold_out(run: Run, results: Path) -> None:
    done = run("genes", results / "result.zarr", "--by", "spot")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "agl-sc: by='spot' is not one of 'patient', 'section', 'block'."
