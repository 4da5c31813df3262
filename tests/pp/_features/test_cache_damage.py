"""A cache that is damaged or somebody else's is made anew or left alone, and never changes a feature."""

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import GzipCodec

from agl_sc.core.arrays import Float32Array
from agl_sc.core.encoders.encode import BLOCK
from agl_sc.pp._features.cache import FeatureCache

N_ROWS, N_FEATURES, N_BLOCKS = 2 * BLOCK + 10, 3, 3
KEY = "0123"


def block_of(number: int) -> Float32Array:
    rows = np.arange(number * BLOCK, min((number + 1) * BLOCK, N_ROWS), dtype=np.float32)
    return (rows[:, None] + np.arange(1, N_FEATURES + 1) / 8).astype(np.float32)


def use(folder: Path, shape: tuple[int, int] = (N_ROWS, N_FEATURES)) -> list[int]:
    """What a computation does: take what is finished, add the rest. Returns the blocks that were finished."""
    with FeatureCache(folder, KEY, shape) as cache:
        found = dict(cache.finished())
        for number, values in found.items():
            np.testing.assert_array_equal(values, block_of(number))
        for number in range(N_BLOCKS):
            if number not in found:
                cache.add(number, block_of(number))
    return sorted(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    use(tmp_path / "cache")
    return tmp_path / "cache"


def test_what_was_finished_is_found(folder: Path) -> None:
    assert use(folder) == [0, 1, 2]


def to_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda group: (group / name).write_text(text) and None  # type: ignore[return-value]


def to_folder(name: str) -> Callable[[Path], None]:
    def harm(group: Path) -> None:
        path = group / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.mkdir()
        (path / "thing").write_text("")

    return harm


def to_file(name: str) -> Callable[[Path], None]:
    def harm(group: Path) -> None:
        shutil.rmtree(group / name)
        (group / name).write_text("a file")

    return harm


def deleted(name: str) -> Callable[[Path], None]:
    def harm(group: Path) -> None:
        path = group / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return harm


def described(name: str, **changes: Any) -> Callable[[Path], None]:
    def harm(group: Path) -> None:
        file = group / name / "zarr.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return harm


def resized(name: str, n_bytes: int) -> Callable[[Path], None]:
    def harm(group: Path) -> None:
        file = next(each for each in sorted((group / name / "c").rglob("*")) if each.is_file())
        data = file.read_bytes()
        file.write_bytes(data[:n_bytes] if n_bytes < len(data) else data + bytes(n_bytes - len(data)))

    return harm


def anew(**options: Any) -> Callable[[Path], None]:
    def harm(group: Path) -> None:
        shutil.rmtree(group)
        made = zarr.open_group(group, mode="w")
        made.create_array(
            "features", **{"shape": (N_ROWS, N_FEATURES), "chunks": (BLOCK, N_FEATURES), "dtype": "float32", **options}
        )
        made.create_array("digests", shape=(N_BLOCKS, 32), chunks=(1, 32), dtype="uint8")

    return harm


GRID = {"name": "regular", "configuration": {"chunk_shape": [7, N_FEATURES]}}
DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"{name} {what}": to_text(name, text) for name in ("zarr.json", "features/zarr.json", "digests/zarr.json")
       for what, text in {"empty": "", "no JSON": "{", "null": "null", "a list": "[]", "an object": "{}", "a number": "5"}.items()},
    **{f"{name} a folder": to_folder(name) for name in ("zarr.json", "features/zarr.json", "features/c/1/0", "digests/c/1/0")},
    **{f"{name} a file": to_file(name) for name in ("features", "digests", "features/c", "digests/c", "features/c/1")},
    **{f"{name} deleted": deleted(name) for name in ("zarr.json", "features", "digests", "features/c", "features/c/0/0", "digests/c/0/0")},
    **{f"chunk of {name} with {n} bytes": resized(name, n) for name in ("features", "digests") for n in (0, 1, 31, 100, 10_000)},
    "other chunks": described("features", chunk_grid=GRID),
    "other type": described("features", data_type="float64"),
    "other shape": described("features", shape=[N_ROWS + 1, N_FEATURES]),
    "other codecs": described("features", codecs=[{"name": "bytes", "configuration": {"endian": "big"}}]),
    "no codec there is": described("features", codecs=[{"name": "qwertz", "configuration": {}}]),
    "other fill value": described("digests", fill_value=1),
    "attributes no object": described("features", attributes=5),
    "an unknown entry": described("features", qwertz={"must_understand": True}),
    "made with other chunks": anew(chunks=(5, 2)),
    "made with another type": anew(dtype="int32"),
    "made compressed": anew(compressors=GzipCodec()),
    "made in shards": anew(shards=(2 * BLOCK, N_FEATURES)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning", "ignore:Object at.*:UserWarning")
@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_mended(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder / KEY)
    found = use(folder)
    assert set(found) <= {0, 1, 2}
    assert use(folder) == [0, 1, 2]


def test_the_whole_cache_is_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("mine")
    with caplog.at_level(logging.WARNING):
        assert use(tmp_path / "cache") == []
    assert "can be neither used nor written" in caplog.text
    assert len(caplog.records) == 1
    assert (tmp_path / "cache").read_text() == "mine"


def test_the_group_is_a_file(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(folder / KEY)
    (folder / KEY).write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert use(folder) == []
    assert "are damaged (" in caplog.text
    assert use(folder) == [0, 1, 2]


@pytest.mark.parametrize("place", ["folder", "lock", "group", "writing"])
def test_a_folder_of_a_colleague_is_left_alone_in_one_sentence(
    *, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """As root may write anywhere, the answer of the system is replaced."""

    def denied(*args: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    if place == "folder":
        monkeypatch.setattr(Path, "mkdir", denied)
    elif place == "lock":
        monkeypatch.setattr("filelock.FileLock.acquire", denied)
    elif place == "group":
        monkeypatch.setattr(zarr, "open_group", denied)
    else:
        shutil.rmtree(folder / KEY / "features" / "c")
        monkeypatch.setattr(zarr.Array, "__setitem__", denied)
    before = sorted(folder.rglob("*.json"))
    with caplog.at_level(logging.WARNING):
        use(folder)
    assert "can be neither used nor written" in caplog.text
    assert "Permission denied" in caplog.text
    assert len([each for each in caplog.records if "neither" in each.message]) == 1
    assert sorted(folder.rglob("*.json")) == before


def test_a_full_disk_is_an_error_for_the_user_can_mend_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zarr, "open_group", full)
    with pytest.raises(OSError, match=r"No space left on device.*make room and run again"):
        use(folder)
    monkeypatch.undo()
    assert use(folder) == [0, 1, 2]
