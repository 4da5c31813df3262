"""Options from a TOML file, and the options of a run as one."""

import tomllib
from pathlib import Path
from typing import Any

import typer

NAME = "agl-sc.toml"
_NOT_SETTINGS = {"config", "json", "force"}


def from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Take the file's values where the command line has none; anything that is no option is refused."""
    if path is None or context.resilient_parsing:
        return path
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}); name a TOML file of options"
        raise typer.BadParameter(msg) from error
    except ValueError as error:  # neither TOML nor even text
        msg = f"{path} is not TOML ({error}); write one option per line, such as method = 'dkgsb'"
        raise typer.BadParameter(msg) from error
    known = {_name(param): param for param in context.command.params if _name(param) not in _NOT_SETTINGS}
    unknown = [name for name in values if name not in known]
    if unknown:
        from agl_sc._sdata.table import near_matches

        msg = (
            f"{unknown[0]!r} in {path} is not an option of {context.command_path}, which are "
            f"{', '.join(sorted(known))}{near_matches(unknown, known)}"
        )
        raise typer.BadParameter(msg)
    context.default_map = {known[name].name: _value(known[name], name, value) for name, value in values.items()}
    return path


def _value(param: Any, name: str, value: Any) -> Any:
    several = isinstance(value, list)
    if getattr(param, "multiple", False):
        return [str(each) for each in value] if several else [str(value)]
    if several or isinstance(value, dict):
        msg = f"{name!r} takes one value, not {value!r}"
        raise typer.BadParameter(msg)
    return value if isinstance(value, bool) else str(value)


def settings_toml(context: typer.Context) -> str:
    """Every option of this run, given or default, as a file that ``--config`` takes."""
    import tomli_w

    from agl_sc import __version__

    values = {
        _name(param): _plain(context.params[param.name])
        for param in context.command.params
        if param.name in context.params and _name(param) not in _NOT_SETTINGS
    }
    given = {name: value for name, value in values.items() if value not in (None, [])}
    head = f"# Made by agl-sc {__version__}; {context.command_path} --config FILE runs it again.\n"
    return head + tomli_w.dumps(given)


def _name(param: Any) -> str:
    """As on the command line, without dashes."""
    name: str = max(param.opts, key=len).lstrip("-")
    return name


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value.absolute())
    return getattr(value, "value", value)  # of an enumeration
