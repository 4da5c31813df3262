"""One line for an error, one object for a machine, an exit code for both."""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from agl_sc._paths import replacing
from agl_sc.cli import _frame
from agl_sc.cli._frame import OneLine, command, plain

Run = Callable[..., Result]


@pytest.fixture
def try_out() -> Callable[..., Result]:
    """Run a body as the command ``try`` of an application with another command, ``other``."""

    def run(body: Callable[..., _frame.Result], *args: str) -> Result:
        app = typer.Typer(cls=OneLine, rich_markup_mode=None, pretty_exceptions_enable=False)
        command(app, "try")(body)
        command(app, "other")(lambda: _frame.Result({}, ""))
        return CliRunner().invoke(app, ["try", *args])

    return run


def raising(error: BaseException) -> Callable[[], _frame.Result]:
    def body() -> _frame.Result:
        """Fail.

        For example:
          agl-sc try
          agl-sc try --json
        """
        raise error

    return body


def test_result_goes_to_stdout_and_all_else_to_stderr(try_out: Run) -> None:
    def body(*, number: int = 1) -> _frame.Result:
        sys.stdout.write("a dependency talks\n")
        logging.getLogger("agl_sc").warning("the library warns")
        _frame.say("progress")
        return _frame.Result({"number": number, "nothing": float("nan")}, f"number {number}")

    done = try_out(body, "--number", "3")
    assert (done.exit_code, done.stdout) == (0, "number 3\n")
    assert "a dependency talks\n" in done.stderr
    assert "progress\n" in done.stderr
    assert json.loads(try_out(body, "--json").stdout) == {"number": 1, "nothing": None}


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        pytest.param(FileNotFoundError("No store here; name another."), 2, "No store here; name another.", id="file"),
        pytest.param(OSError(28, "No space left on device"), 2, "[Errno 28] No space left on device", id="full disk"),
        pytest.param(KeyboardInterrupt(), 130, "interrupted; nothing was written.", id="interrupt"),
        pytest.param(_frame.Terminated(), 143, "terminated; nothing was written.", id="termination"),
    ],
)
def test_error_is_one_line_and_one_object(try_out: Run, *, error: BaseException, code: int, text: str) -> None:
    done = try_out(raising(error))
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", f"agl-sc: {text}\n")
    done = try_out(raising(error), "--json")
    assert (done.exit_code, done.stderr) == (code, f"agl-sc: {text}\n")
    assert json.loads(done.stdout) == {"error": text, "exit_code": code}


def test_an_interrupt_names_what_was_finished_and_is_still_there(try_out: Run, tmp_path: Path) -> None:
    def body(*, many: bool = False) -> _frame.Result:
        for name in ("a", "b", *(("c", "d") if many else ())):
            with replacing(tmp_path / name) as fresh:
                fresh.write_text("")
        (tmp_path / "b").unlink()
        raise KeyboardInterrupt

    done = try_out(body)
    assert done.stderr == f"agl-sc: interrupted; what was finished by then is kept: {tmp_path / 'a'}.\n"
    (tmp_path / "a").unlink()
    assert "is kept: " in try_out(body, "--many").stderr
    assert try_out(raising(KeyboardInterrupt())).stderr == "agl-sc: interrupted; nothing was written.\n"


def test_a_signal_to_end_is_an_interrupt_once_and_what_was_set_before_comes_back(try_out: Run) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def body() -> _frame.Result:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)
        return _frame.Result({}, "")

    done = try_out(body)
    assert (done.exit_code, done.stderr) == (143, "agl-sc: terminated; nothing was written.\n")
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_refusal_of_the_library_is_bad_input_and_a_fault_is_not_hidden(try_out: Run) -> None:
    def refused() -> _frame.Result:
        from agl_sc.pp._features.tiles import TileSpec

        TileSpec(tile_px=1)
        return _frame.Result({}, "")

    done = try_out(refused)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "tile_px=1 is not a whole number of at least 8 pixels" in done.stderr
    done = try_out(raising(KeyError("a bug")))
    assert done.exit_code == 1
    assert isinstance(done.exception, KeyError)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(["--numbr", "3"], r"No such option: --numbr", id="option"),
        pytest.param(["--number", "x"], r"Invalid value for '--number'", id="value"),
        pytest.param(["more"], r"unexpected extra argument", id="argument"),
    ],
)
def test_wrong_usage_is_one_line(try_out: Run, args: list[str], message: str) -> None:
    def body(*, number: int = 1) -> _frame.Result:
        return _frame.Result({}, str(number))

    done = try_out(body, *args)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
    assert done.stderr.rstrip().endswith("see root try --help.")
    done = try_out(body, *args, "--json")
    assert message in json.loads(done.stdout)["error"]


def test_help_keeps_the_lines_of_examples_and_lists_exit_codes(try_out: Run, run: Run) -> None:
    done = try_out(raising(KeyError()), "--help")
    assert "  For example:\n    agl-sc try\n    agl-sc try --json\n" in done.stdout
    assert " ".join(_frame.EXIT_CODES.split()) in " ".join(done.stdout.split())
    alone = run()
    assert alone.exit_code == 0
    assert "Exit codes: 0 done" in alone.stdout
    assert all(name in alone.stdout for name in ("demo", "train", "predict", "evaluate", "benchmark", "doctor"))


@pytest.mark.parametrize("name", ["demo", "train", "predict", "evaluate", "benchmark", "encoders", "doctor"])
def test_every_command_has_examples(run: Run, name: str) -> None:
    done = run(name, "--help")
    assert f"  For example:\n    agl-sc {name}" in done.stdout
    assert "--config" in done.stdout
    assert "--json" in done.stdout


def test_plain_values() -> None:
    import numpy as np

    values: dict[str, Any] = {"a": np.float64("inf"), "b": [np.int64(2), (True, None)], "c": {"d": np.bool_(1)}}
    assert plain(values) == {"a": None, "b": [2, [True, None]], "c": {"d": True}}
