"""What every command has: ``--config``, ``--json``, one line for an error, an exit code."""

import functools
import inspect
import json
import logging
import math
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agl_sc.cli._settings import from_file

REFUSALS = (OSError, KeyError, TypeError, ValueError)
BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143
EXIT_CODES = "Exit codes: 0 done, 1 a fault of agl-sc itself, 2 bad input, 130 interrupted, 143 terminated (nothing half written)."
_MANY_PATHS = 3
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # click's, which newer typer carries within itself

Force = Annotated[bool, typer.Option("--force", help="Replace what is at the place of the results.")]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        is_eager=True,
        callback=from_file,
        help="TOML file of options by name, as every result has one beside it; the command line goes before it.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, also for an error.")]


@dataclass(frozen=True, slots=True)
class Result:
    """What a command prints."""

    values: dict[str, Any]
    """For machines: plain values, lists and dicts; NaN becomes null."""
    text: str
    """For people."""
    exit_code: int = 0
    """How the process ends."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as batch systems do."""


class OneLine(TyperGroup):
    """A group of commands that says in one line what is wrong with its arguments."""

    def main(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Run, and exit with the code of the command; the options are those of the base."""
        args = list(sys.argv[1:] if args is None else args)
        exits = options.pop("standalone_mode", True)
        try:
            code = super().main(args, standalone_mode=False, **options)
        except _UsageError as error:
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "agl-sc"
            text = " ".join(error.format_message().split())  # type: ignore[attr-defined]
            tell_error(f"{text.rstrip('.')}; see {path} --help.", as_json="--json" in args, exit_code=BAD_INPUT)
            code = BAD_INPUT
        if exits:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Mount a function that returns a :class:`Result` as a command of ``app``.

    Its parameters are the options, to which ``--config`` and ``--json`` are added. What it prints goes to standard error,
    errors of the library become one line, and an interrupt exit code 130. A paragraph of its docstring that
    starts with ``For example:`` keeps its lines.
    """

    def mount(body: Callable[..., Result]) -> Callable[..., Result]:
        signature = inspect.signature(body)

        def run(context: typer.Context, *, config: Config = None, as_json: Json = False, **options: Any) -> None:
            del config  # acted when it was parsed
            own = {"context": context} if "context" in signature.parameters else {}
            result = _guarded(functools.partial(body, **own, **options), as_json=as_json)
            typer.echo(json.dumps(plain(result.values), indent=1) if as_json else result.text)
            if result.exit_code:
                raise typer.Exit(result.exit_code)

        first, *added, _ = inspect.signature(run).parameters.values()
        options = [each for each in signature.parameters.values() if each.name != first.name]
        parameters = sorted([first, *options, *added], key=lambda each: each.kind)
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        run.__name__ = body.__name__
        text = (inspect.getdoc(body) or "").replace("For example:", "\b\nFor example:")
        app.command(name, help=text, epilog=EXIT_CODES)(run)
        return body

    return mount


def _guarded(body: Callable[[], Result], *, as_json: bool) -> Result:
    from agl_sc.cli._store import holding_destinations
    from agl_sc.core.writing.staging import forget_written

    forget_written()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Warnings are of dependencies, some of which set filters of their own; what this package has to say is logged.
    with warnings.catch_warnings(record=True), redirect_stdout(sys.stderr), _terminable():
        try:
            with holding_destinations():
                return body()
        except Terminated:
            text, code = f"terminated; {_left_behind()}", TERMINATED
        except KeyboardInterrupt:
            text, code = f"interrupted; {_left_behind()}", INTERRUPTED
        except REFUSALS as error:
            if not is_refusal(error):
                raise
            text, code = message_of(error), BAD_INPUT
    tell_error(text, as_json=as_json, exit_code=code)
    raise typer.Exit(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the body as an interrupt does, once: what cleans up is not stopped in turn."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _left_behind() -> str:
    """What was written before the end, and is still there."""
    from agl_sc.core.writing.staging import written_so_far

    paths = written_so_far()
    if len(paths) > _MANY_PATHS:
        paths = list(dict.fromkeys(path.parent for path in paths))
    if not paths:
        return "nothing was written."
    return f"what was finished by then is kept: {', '.join(map(str, paths))}."


def message_of(error: Exception) -> str:
    """Its sentence; ``str`` of a KeyError would quote it."""
    return str(error.args[0] if len(error.args) == 1 else error)


def is_refusal(error: Exception) -> bool:
    """Whether the library itself refused something, or a file did; anything else is a fault, and shows where."""
    if isinstance(error, OSError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("agl_sc.")


def tell_error(text: str, *, as_json: bool, exit_code: int) -> None:
    """One line on standard error, and the object that ``--json`` promises."""
    typer.echo(f"agl-sc: {text}", err=True)
    if as_json:
        typer.echo(json.dumps({"error": text, "exit_code": exit_code}))


def say(text: str) -> None:
    """Progress, on standard error."""
    typer.echo(text, err=True)


def plain(value: Any) -> Any:
    """The same in what JSON knows."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "item"):  # of numpy
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
