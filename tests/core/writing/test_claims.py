"""One writer at a time: of threads, of processes, and of processes that died."""

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agl_sc.core.writing import claims
from agl_sc.core.writing.claims import abandoned, all_claimed, claimed, hidden_name, is_held, real

HOLD = "import sys; from pathlib import Path; from agl_sc.core.writing.claims import claimed\nwith claimed(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def holder(path: Path) -> "subprocess.Popen[bytes]":
    """Another process that holds a path until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_claim_leaves_nothing_behind_and_can_be_had_again(tmp_path: Path) -> None:
    for _ in range(3):
        with claimed(tmp_path / "m"):
            assert is_held(tmp_path / "m")
            assert [each.name for each in tmp_path.iterdir()] == [".m.agl-lock"]
        assert not is_held(tmp_path / "m")
        assert list(tmp_path.iterdir()) == []


def test_another_process_is_refused_in_one_sentence_and_has_it_after(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with holder(path) as process:
        with (
            pytest.raises(
                BlockingIOError, match=r"Another process is writing to .*/m; wait until it is done, or choose"
            ),
            claimed(path),
        ):
            pass
        with claimed(tmp_path / "other"):
            pass
        threading.Timer(0.5, lambda: process.stdin and process.stdin.close()).start()
        with claimed(path, wait_s=30):
            assert is_held(path)


def test_a_process_that_died_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path / "m") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / ".m.agl-lock").exists()
    with claimed(tmp_path / "m"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_same_thread_claims_once_and_another_thread_does_not(tmp_path: Path) -> None:
    path, refused = tmp_path / "m", threading.Event()

    def other() -> None:
        try:
            with claimed(path):
                pass
        except BlockingIOError:
            refused.set()

    with claimed(path):
        with claimed(path):
            pass
        assert is_held(path)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused.is_set()


def test_ways_to_the_same_place_are_one_claim(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "m")
    with claimed(tmp_path / "a" / "m"):
        for way in ("b/m", "link", "a/../a/m"):
            assert is_held(tmp_path / way), way
    assert real(tmp_path / "link") == (tmp_path / "a").resolve() / "m"


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match=r"symbolic link|symlink|Too many levels"):
        real(tmp_path / "a")


@pytest.mark.parametrize("length", [1, 100, 150, 151, 255])
def test_names_of_any_length_have_companions(tmp_path: Path, length: int) -> None:
    one, other = tmp_path / ("x" * length), tmp_path / ("x" * (length - 1) + "y")
    assert hidden_name(one, ".agl-lock") != hidden_name(other, ".agl-lock")
    with claimed(one), claimed(other):
        assert len(list(tmp_path.iterdir())) == 2


def test_several_are_claimed_or_none(tmp_path: Path) -> None:
    with holder(tmp_path / "b") as process:
        with pytest.raises(BlockingIOError, match="Another process"), all_claimed([tmp_path / n for n in "cba"]):
            pass
        assert not any(is_held(tmp_path / name) for name in "abc")
        assert process.stdin is not None
        process.stdin.close()
    with all_claimed([tmp_path / "a", tmp_path / "b", tmp_path / "a"]):
        assert is_held(tmp_path / "b")


def test_without_locks_of_the_file_system_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def unable(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unable)
    (tmp_path / ".m.agl-abcdefgh").mkdir()
    with claimed(tmp_path / "m"):
        assert list(abandoned(tmp_path)) == []  # nobody can tell whether its process lives


def test_what_living_and_dead_processes_left_is_told_apart(tmp_path: Path) -> None:
    for name in (".living.agl-abcdefgh", ".dead.agl-abcdefgh", ".agl-abcdefgh", ".x.agl-short", "visible.agl-abcdefgh"):
        (tmp_path / name).mkdir()
    with holder(tmp_path / "living") as process:
        assert [each.name for each in abandoned(tmp_path)] == [".dead.agl-abcdefgh"]
        assert process.stdin is not None
        process.stdin.close()


def count_up(path: Path, n_times: int) -> None:
    for _ in range(n_times):
        with claimed(path, wait_s=60):
            value = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(value + 1))


def test_many_processes_lose_no_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the lock deleted at every release, by which a careless lock would let two in at once."""
    monkeypatch.setattr(claims, "_PAUSE_S", 0.0005)
    path = tmp_path / "counter"
    path.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up, args=(path, 60)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert int(path.read_text()) == 240
    assert list(tmp_path.iterdir()) == [path]
