"""The program itself: streams, and an interrupt in the middle of work."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import Result

if TYPE_CHECKING:
    from collections.abc import Iterator

Run = Callable[..., Result]

# A shell that starts something in the background makes it deaf to interrupts, and so what it starts.
PROGRAM = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from agl_sc.cli import app; app()"


@contextmanager
def started(*arguments: str | Path) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_interrupted_demo_leaves_nothing(*, tmp_path: Path, number: int, code: int, said: str) -> None:
    with started("demo", "--output", tmp_path) as process:
        assert process.stderr is not None
        assert "Embedding tiles\n" in process.stderr  # read up to there
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert process.returncode == code
    assert out == ""
    assert err.splitlines()[-1] == f"agl-sc: {said}; nothing was written."
    assert list(tmp_path.iterdir()) == []


def test_stdout_is_one_object(store: Path) -> None:
    with started("doctor", store, "--json") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert json.loads(out)["store"] == str(store)
    assert "Traceback" not in err


HOLD = "import sys; from pathlib import Path; from agl_sc.core.writing.claims import claimed\nwith claimed(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_the_second_of_two_runs_is_refused_before_any_work(run: Run, store: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "m"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        done = run("train", store, "--output", tmp_path / "m")
        other.kill()
    assert done.exit_code == 2
    assert done.stderr == (
        f"agl-sc: Another process is writing to {tmp_path / 'm'}; wait until it is done, or choose another path.\n"
    )


def test_one_place_for_two_results_is_refused(run: Run, store: Path, tmp_path: Path) -> None:
    done = run("train", store, "--output", tmp_path / "m", "--write", tmp_path / "m")
    assert done.exit_code == 2
    assert done.stderr == f"agl-sc: {tmp_path / 'm'} is named for two results; choose another place for one of them.\n"
    assert list(tmp_path.iterdir()) == []
