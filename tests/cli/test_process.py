"""The program itself: streams, and an interrupt in the middle of work."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    with started("demo", "--output", tmp_path) as process:
        assert process.stderr is not None
        assert "Embedding tiles\n" in process.stderr  # read up to there
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "agl-sc: interrupted; nothing was written."
    assert list(tmp_path.iterdir()) == []


def test_stdout_is_one_object(store: Path) -> None:
    with started("doctor", store, "--json") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert json.loads(out)["store"] == str(store)
    assert "Traceback" not in err
