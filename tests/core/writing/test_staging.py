"""All of a result or nothing, whatever happens in between."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agl_sc.core.writing import exchange as exchanging
from agl_sc.core.writing import staging
from agl_sc.core.writing.staging import forget_written, note_written, staged, sweep, written_so_far


@pytest.fixture(params=["system", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The exchange of the system, and what stands for it elsewhere."""
    if request.param == "plain":
        monkeypatch.setattr(exchanging, "_system_call", lambda: None)
    return str(request.param)


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder, by path."""
    return {
        str(each.relative_to(folder)): each.read_text() if each.is_file() else "/" for each in sorted(folder.rglob("*"))
    }


def fill(path: Path, kind: str, text: str) -> None:
    if kind == "file":
        path.write_text(text)
    elif kind == "folder":
        path.mkdir()
        (path / "inner").mkdir()
        (path / "inner" / "x").write_text(text)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
@pytest.mark.parametrize("after", ["file", "folder"])
def test_a_result_takes_the_place_of_what_was_there(tmp_path: Path, before: str, after: str) -> None:
    fill(tmp_path / "m", before, "old")
    with staged([tmp_path / "m"]) as (fresh,):
        fill(fresh, after, "new")
        assert (tmp_path / "m").exists() == (before != "nothing")
    fill(tmp_path / "expected", after, "new")
    assert tree(tmp_path / "m") == tree(tmp_path / "expected")
    assert (tmp_path / "m").is_dir() == (after == "folder")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["expected", "m"]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("no")])
@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException, before: str) -> None:
    fill(tmp_path / "m", before, "old")
    expected = tree(tmp_path)

    def interrupted() -> None:
        with staged([tmp_path / "m", tmp_path / "n"]) as (fresh, _):
            fill(fresh, "folder", "half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert tree(tmp_path) == expected


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_several_results_come_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, error: BaseException, when: str, fails_at: int
) -> None:
    """Interrupted before or right after any of the exchanges: a file replaced, a folder replaced, one that is new."""
    for kind in ("file", "folder"):
        fill(tmp_path / kind, kind, "old")
    expected, calls = tree(tmp_path), []

    def failing(function: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def call(fresh: Path, path: Path) -> None:
            calls.append(path)
            if len(calls) == fails_at and when == "before":
                raise error
            function(fresh, path)
            if len(calls) == fails_at:
                raise error

        return call

    for name in ("exchange", "move"):
        monkeypatch.setattr(staging, name, failing(getattr(staging, name)))
    paths = [tmp_path / name for name in ("file", "folder", "new")]

    def write() -> None:
        with staged(paths) as fresh:
            for path, kind in zip(fresh, ("file", "folder", "folder"), strict=True):
                fill(path, kind, "new")

    with pytest.raises(type(error)):
        write()
    assert tree(tmp_path) == expected


@pytest.mark.usefixtures("way")
def test_a_result_that_was_not_written_takes_nothing_along(tmp_path: Path) -> None:
    fill(tmp_path / "a", "file", "old")
    with pytest.raises(FileNotFoundError), staged([tmp_path / "a", tmp_path / "b"]) as (fresh, _):
        fresh.write_text("new")
    assert tree(tmp_path) == {"a": "old"}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_came_up_meanwhile_is_not_replaced(tmp_path: Path, kind: str) -> None:
    def write() -> None:
        with staged([tmp_path / "m"]) as (fresh,):
            fill(fresh, kind, "new")
            fill(tmp_path / "m", kind, "mine")

    with pytest.raises(FileExistsError, match=r"/m has come into being meanwhile, and is not replaced; choose another"):
        write()
    fill(tmp_path / "expected", kind, "mine")
    assert tree(tmp_path / "m") == tree(tmp_path / "expected")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").mkdir()
    fill(tmp_path / "data" / "real", kind, "old")
    (tmp_path / "m").symlink_to(Path("data") / "real")
    with staged([tmp_path / "m"]) as (fresh,):
        fill(fresh, "file" if kind == "nothing" else kind, "new")
    assert (tmp_path / "m").readlink() == Path("data/real")
    assert "new" in {**tree(tmp_path / "data"), "": ""}.values()
    assert "old" not in tree(tmp_path / "data").values()
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["real"]


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="pipe is neither a file nor a folder"), staged([tmp_path / "pipe"]):
        pass
    assert not (tmp_path / "pipe").is_file()


def test_a_fresh_file_has_the_name_of_its_place_for_formats_go_by_it(tmp_path: Path) -> None:
    with staged([tmp_path / "table.csv.gz"]) as (fresh,):
        assert fresh.name == "table.csv.gz"
        fresh.write_text("")


KILLED = """
import os, signal, sys
from pathlib import Path
from agl_sc.core.writing.staging import staged
with staged([Path(sys.argv[1])]) as (fresh,):
    fresh.mkdir()
    (fresh / "big").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["other", "store.zarr"])
def test_leftovers_of_a_killed_process_are_swept_by_the_next_writer_there(tmp_path: Path, name: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "store.zarr"], check=False)
    assert done.returncode == -signal.SIGKILL
    (tmp_path / ".another.agl-lock").write_text("")
    assert any(".agl-" in each.name for each in tmp_path.iterdir())
    with staged([tmp_path / name]) as (fresh,):
        assert len(list(tmp_path.glob(".*.agl-????????"))) == 1  # its own
        fresh.write_text("")
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_what_this_process_is_writing_is_not_swept(tmp_path: Path) -> None:
    with staged([tmp_path / "a"]) as (a,):
        a.write_text("1")
        with staged([tmp_path / "b"]) as (b,):
            b.write_text("2")
        with staged([tmp_path / "a"]) as (again,):
            again.write_text("3")
            (tmp_path / "b").unlink()
        (tmp_path / "a").unlink()
    assert tree(tmp_path) == {"a": "1"}


def test_an_older_result_that_had_stepped_aside_comes_back(tmp_path: Path) -> None:
    """Killed between the two renames, where the system has no exchange."""
    leftover = tmp_path / ".m.agl-abcdefgh"
    leftover.mkdir()
    fill(leftover / "m", "folder", "new, complete but not in place")
    fill(leftover / "m.aside", "folder", "old")
    sweep(tmp_path)
    assert tree(tmp_path) == {"m": "/", "m/inner": "/", "m/inner/x": "old"}


def test_a_reader_never_sees_nothing_or_a_mixture(tmp_path: Path) -> None:
    if exchanging._system_call() is None:
        pytest.skip("no exchange in one step on this system")
    path, seen, stop = tmp_path / "m", set(), threading.Event()
    fill(path, "folder", "0")

    def read() -> None:
        while not stop.is_set():
            seen.add(path.exists())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(200):
        with staged([path]) as (fresh,):
            fill(fresh, "folder", str(turn))
    stop.set()
    reader.join()
    assert seen == {True}


def test_file_systems_that_know_no_exchange_are_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanging, "_system_call", lambda: lambda *_: errno.EINVAL)
    fill(tmp_path / "m", "folder", "old")
    with staged([tmp_path / "m"]) as (fresh,):
        fill(fresh, "folder", "new")
    assert tree(tmp_path) == {"m": "/", "m/inner": "/", "m/inner/x": "new"}


def test_a_folder_of_many_files_goes_to_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Any] = []
    monkeypatch.setattr(os, "sync", lambda: synced.append("all"))
    with staged([tmp_path / "m"]) as (fresh,):
        fresh.mkdir()
        for number in range(300):
            (fresh / str(number)).write_text("")
    assert synced == ["all"]


def test_what_was_written_is_remembered_while_it_is_there(tmp_path: Path) -> None:
    forget_written()
    with staged([tmp_path / "a"]) as (fresh,):
        fresh.write_text("")
    note_written(tmp_path / "gone")
    assert written_so_far() == [tmp_path / "a"]
    forget_written()
    assert written_so_far() == []
