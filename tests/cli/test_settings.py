"""Options from a file, and back."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner, Result

from agl_sc.cli import _frame
from agl_sc.cli._settings import settings_toml

Run = Callable[..., Result]


def body(
    context: typer.Context,
    store: Annotated[Path, typer.Argument()],
    *,
    tile_px: int = 224,
    mpp: float | None = None,
    test: list[str] | None = None,
    finetune: Annotated[bool, typer.Option("--finetune")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set")] = None,
    force: Annotated[bool, typer.Option("--force")] = False,
) -> _frame.Result:
    values = {"store": store, "tile_px": tile_px, "mpp": mpp, "test": test, "finetune": finetune, "set": settings}
    return _frame.Result({**values, "toml": settings_toml(context)}, "")


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., dict[str, object]]:
    """Options as the command got them, after a configuration file and arguments."""
    app = typer.Typer(cls=_frame.OneLine, rich_markup_mode=None)
    _frame.command(app, "body")(body)
    app.command("other")(lambda: None)

    def run(toml: str | bytes, *args: str) -> dict[str, object]:
        file = tmp_path / "given.toml"
        file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        done = CliRunner().invoke(app, ["body", *args, "--config", str(file), "--json"])
        values: dict[str, object] = json.loads(done.stdout)
        return values

    return run


FILE = 'store = "a.zarr"\ntile-px = 64\nmpp = 1\ntest = ["C6", "B4"]\nfinetune = true\nset = "lr=1"\n'


def test_file_gives_what_the_command_line_does_not(options: Callable[..., dict[str, object]]) -> None:
    values = options(FILE)
    assert values | {"toml": ""} == {
        "store": "a.zarr", "tile_px": 64, "mpp": 1.0, "test": ["C6", "B4"], "finetune": True, "set": ["lr=1"], "toml": ""
    }  # fmt: skip
    values = options(FILE, "b.zarr", "--tile-px", "32", "--test", "C5")
    assert (values["store"], values["tile_px"], values["test"], values["mpp"]) == ("b.zarr", 32, ["C5"], 1.0)


def test_resolved_options_run_again(options: Callable[..., dict[str, object]]) -> None:
    first = options('mpp = 0.5\ntest = "C6"\n', "/data/a.zarr", "--force")
    toml = str(first["toml"])
    assert tomllib.loads(toml) == {
        "store": "/data/a.zarr", "tile-px": 224, "mpp": 0.5, "test": ["C6"], "finetune": False
    }  # fmt: skip
    assert toml.startswith("# Made by agl-sc ")
    assert options(toml) == first


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        pytest.param(
            "tile_px = 64",
            "'tile_px' in .* is not an option of .*, which are .*; did you mean tile-px",
            id="near match",
        ),
        pytest.param("force = true", "'force' in .* is not an option", id="force is said every time"),
        pytest.param("tile-px = [1, 2]", r"'tile-px' takes one value, not \[1, 2\]", id="several"),
        pytest.param("tile-px = 'wide'", "Invalid value for '--tile-px'", id="kind"),
        pytest.param("tile-px 64", r"is not TOML \(.*\); write one option per line", id="no TOML"),
        pytest.param(b"\xff\xfe", r"is not TOML \(.*\); write one option per line", id="no text"),
    ],
)
def test_bad_file(options: Callable[..., dict[str, object]], toml: str | bytes, message: str) -> None:
    error = options(toml, "a.zarr")
    assert error["exit_code"] == 2
    assert re.search(message, str(error["error"]))


def test_missing_file(run: Run) -> None:
    done = run("doctor", "--config", "nowhere.toml")
    assert done.exit_code == 2
    assert "nowhere.toml cannot be read (No such file or directory); name a TOML file of options" in done.stderr
