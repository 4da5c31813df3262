"""Fixtures shared by all tests."""

import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from tests.refusals import watch

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from agl_sc.tl import TrainConfig

# Tensors are small here, and threads that wait for busy cores cost 20-fold. Numba, under scanpy, would set OpenMP's
# threads, and so torch's, anew; a plugin of pytest has imported it already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")
if "numba" in sys.modules:
    sys.modules["numba"].config.THREADING_LAYER = "workqueue"

watch()  # before tests import the functions

WORKER_BYTES = 4 * 2**30
"""Memory that a worker may need."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of ``-n auto``: as many as cores and memory allow, at most 8, for each makes the session's fixtures anew."""
    import psutil

    return max(1, min(os.cpu_count() or 1, int(psutil.virtual_memory().available // WORKER_BYTES), 8))


TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tutorials first, minutes each, so that no core waits for the last of them."""
    items.sort(key=lambda item: item.path.stem != "test_tutorials")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real sections, `$AGL_SC_DATA` or `../shared/data`."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("AGL_SC_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at '{folder}'; set AGL_SC_DATA to the folder that holds her2st/ and visium/")
    return folder


@pytest.fixture
def another_accelerator() -> Iterator[None]:
    """Accelerate remembers the first Accelerator of a process; forget it, before and after."""
    from accelerate.state import AcceleratorState, GradientState

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield
    forget()


def duplicate(sdata: "SpatialData") -> "SpatialData":
    """A copy of shapes, tables and attrs; images, which nothing may change, are shared."""
    from spatialdata import SpatialData

    return SpatialData(
        images=dict(sdata.images),
        shapes={name: shapes.copy() for name, shapes in sdata.shapes.items()},
        tables={name: table.copy() for name, table in sdata.tables.items()},
        attrs=copy.deepcopy(sdata.attrs),
    )


@pytest.fixture(scope="session")
def _tissue() -> "SpatialData":
    from agl_sc.datasets import toy_tissue

    return toy_tissue(n_sections=3, n_spots_per_side=7, n_targets=4, n_informative=8, n_auxiliary=20)


@pytest.fixture(scope="session")
def _prepared(_tissue: "SpatialData") -> "SpatialData":
    from agl_sc import pp

    sdata = duplicate(_tissue)
    pp.embed(sdata, **TILES)
    pp.split(sdata, test=["section_3"], validation=["section_2"])
    pp.target_genes(sdata, genes=4)
    pp.rank_auxiliary(sdata, score="truth_prior")
    return sdata


@pytest.fixture
def tissue(_tissue: "SpatialData") -> "SpatialData":
    """Three small sections of 53 spots each and 24 genes, nothing prepared."""
    return duplicate(_tissue)


@pytest.fixture
def prepared(_prepared: "SpatialData") -> "SpatialData":
    """The same with features, split (section_1 trains, section_2 validates), 4 targets and prior ranks."""
    return duplicate(_prepared)


@pytest.fixture(scope="session")
def config() -> "TrainConfig":
    """Settings that fit 53 training spots."""
    from agl_sc.tl import TrainConfig

    return TrainConfig(batch_size=16, max_epochs=3, hidden=16, lr=0.01)


@pytest.fixture(scope="session")
def slots() -> "Callable[[SpatialData], dict[str, Any]]":
    """Fingerprint of everything in a SpatialData, flat, by slot: ``obs/section``, ``uns/truth/targets``, ``shapes/S`` ..."""
    return fingerprints


@pytest.fixture(scope="session")
def unchanged() -> "Callable[[SpatialData], AbstractContextManager[None]]":
    """Context in which nothing of a SpatialData may change, whatever else happens."""
    return _unchanged


@contextmanager
def _unchanged(sdata: "SpatialData") -> Iterator[None]:
    before = fingerprints(sdata)
    try:
        yield
    finally:
        after = fingerprints(sdata)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert not changed


def fingerprints(sdata: "SpatialData") -> dict[str, Any]:
    """Fingerprint of every slot."""
    from spatialdata.transformations import get_transformation

    found: dict[str, Any] = {"attrs": repr(sdata.attrs)}
    for kind in ("images", "shapes"):
        for name, element in getattr(sdata, kind).items():
            found[f"{kind}/{name}"] = (id(element), repr(get_transformation(element, get_all=True)))
    for name, shapes in sdata.shapes.items():
        found[f"shapes/{name}/content"] = (
            *_columns(pd.DataFrame(shapes.drop(columns="geometry"))).values(),
            *shapes.to_wkb().geometry,
        )
    for name, table in sdata.tables.items():
        prefix = "" if name == "table" else f"{name}/"
        found |= {f"{prefix}{slot}": value for slot, value in _table(table).items()}
    return found


def _table(table: "AnnData") -> dict[str, Any]:
    found = {"identity": id(table), "X": _fingerprint(table.X)}
    for slot in ("obs", "var"):
        frame = getattr(table, slot)
        found |= {f"{slot}/{name}": value for name, value in _columns(frame).items()}
        found[f"{slot}_names"] = tuple(frame.index)
    for slot in ("layers", "obsm", "varm", "obsp"):
        found |= {f"{slot}/{name}": _fingerprint(value) for name, value in getattr(table, slot).items()}
    return found | _flat("uns", table.uns)


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    return {str(name): (str(frame[name].dtype), _fingerprint(frame[name].to_numpy(dtype=object))) for name in frame}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: _fingerprint(value)}
    return {name: leaf for key in value for name, leaf in _flat(f"{prefix}/{key}", value[key]).items()}


def _fingerprint(value: Any) -> Any:
    if scipy.sparse.issparse(value):
        return (value.format, value.shape, *(_fingerprint(part) for part in (value.data, value.indices, value.indptr)))
    if isinstance(value, np.ndarray) and value.dtype != object:
        return (value.dtype.str, value.shape, value.tobytes())
    return repr(value.tolist()) if isinstance(value, np.ndarray) else repr(value)
