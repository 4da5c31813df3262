"""A store of three small sections, and what a training on it wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spatialdata import SpatialData
from typer.testing import CliRunner, Result

from agl_sc.cli import app

ALONE = ["--tile-px", "32", "--mpp", "1", "--context", "1", "--orientations", "1"]
QUICK = [*ALONE, "--targets", "4", "--set", "batch_size=16", "--set", "max_epochs=1"]
SPLIT = ["--by", "section", "--test", "section_3", "--validation", "section_2"]


def run_app(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(each) for each in args])


@pytest.fixture(scope="session")
def run() -> Callable[..., Result]:
    """Run ``agl-sc`` in this process."""
    return run_app


@pytest.fixture(scope="session")
def store(_tissue: SpatialData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tissue on disk, with nothing prepared."""
    path = tmp_path_factory.mktemp("store") / "toy.zarr"
    tables = {"table": _tissue["table"].copy()}
    SpatialData(images=dict(_tissue.images), shapes=dict(_tissue.shapes), tables=tables, attrs=_tissue.attrs).write(
        path
    )
    return path


@pytest.fixture(scope="session")
def results(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``model`` and ``result.zarr``, as ``train`` wrote them, and what it printed in ``stdout.json``."""
    folder = tmp_path_factory.mktemp("results")
    done = run_app(
        "train", store, *SPLIT, *QUICK, "--output", folder / "model", "--write", folder / "result.zarr", "--json"
    )
    assert done.exit_code == 0, done.output
    (folder / "stdout.json").write_text(done.stdout)
    return folder
