"""Calls with something spoilt either return or refuse in a sentence of the package's own, and then nothing has changed.

500 calls by default, and a fifth as many of the readers on damaged folders; a nightly run makes more: ``AGL_SC_FUZZ=10000
pytest tests/test_fuzz.py``. ``AGL_SC_FUZZ_FIRST``
is the first seed (0), so that one call can be made alone: ``AGL_SC_FUZZ=1 AGL_SC_FUZZ_FIRST=137 pytest tests/test_fuzz.py``.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import pytest
from tests.conftest import duplicate
from tests.fuzz_calls import CALLS, Subject, fault_of
from tests.fuzz_files import fault_of_reading
from tests.io.hest_files import write_encoder

import agl_sc
from agl_sc import pl, pp, tl

if TYPE_CHECKING:
    from spatialdata import SpatialData

N_CALLS = int(os.environ.get("AGL_SC_FUZZ", "500"))
FIRST = int(os.environ.get("AGL_SC_FUZZ_FIRST", "0"))
N_PARTS = 10
ELSEWHERE = {"pp.encoders"}
"""Without a parameter."""


@pytest.fixture(scope="module")
def subject(_prepared: "SpatialData", tmp_path_factory: pytest.TempPathFactory) -> Subject:
    mpl.use("Agg")
    sdata = duplicate(_prepared)
    config = tl.TrainConfig(batch_size=16, max_epochs=1, hidden=8)
    model = tl.train(sdata, config=config)
    result = tl.benchmark(
        duplicate(_prepared), methods=["mean", "ridge"], reference="mean", genes=4, seeds=1, config=config
    )
    tl.cross_validate(sdata, methods="mean", genes=4, config=config)
    tl.evaluate(sdata)
    return Subject(sdata, model, result, write_encoder(tmp_path_factory.mktemp("encoder") / "net.pth"))


def test_every_public_function_is_called() -> None:
    public = {f"{space.__name__[7:]}.{name}" for space in (pp, tl, pl) for name in space.__all__ if name.islower()}
    assert public == {call.name for call in CALLS if call.name[:2] in ("pp", "tl", "pl")} | ELSEWHERE
    assert hasattr(agl_sc.Model, "predict")


@pytest.mark.parametrize("part", range(N_PARTS))
def test_calls_return_or_refuse(
    *, part: int, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)  # no window
    seeds = range(FIRST + part, FIRST + N_CALLS, N_PARTS)
    faults = [fault for seed in seeds if (fault := fault_of(subject, seed))]
    if faults:
        pytest.fail("\n".join(map(str, faults)), pytrace=False)


@pytest.mark.parametrize("part", range(2))
def test_readers_return_or_refuse(*, part: int, tmp_path: Path) -> None:
    seeds = range(FIRST + part, FIRST + N_CALLS // 5, 2)
    faults = [fault for seed in seeds if (fault := fault_of_reading(tmp_path, seed))]
    if faults:
        pytest.fail("\n".join(map(str, faults)), pytrace=False)
