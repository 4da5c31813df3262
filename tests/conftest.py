"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real sections, `$AGL_SC_DATA` or `../shared/data`."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("AGL_SC_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at '{folder}'; set AGL_SC_DATA to the folder that holds her2st/ and visium/")
    return folder
