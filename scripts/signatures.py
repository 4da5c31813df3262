#!/usr/bin/env python
# ruff: noqa: T201 -- a script that prints
"""Print the parameters of all public functions, with their defaults: scripts/in-env python scripts/signatures.py [NAMESPACE ...].

A row per parameter, a column per function; "!" marks a parameter that has no default, "." a function without it. What the
same word means everywhere has one default in its row.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

NAMESPACES = ("io", "datasets", "pp", "tl", "pl")
ABSENT = "."
REQUIRED = "!"
GAP = "  "


def functions_of(space: str) -> dict[str, Callable[..., Any]]:
    """Public functions of a namespace by name."""
    namespace = importlib.import_module(f"agl_sc.{space}")
    named = {name: getattr(namespace, name) for name in namespace.__all__}
    return {name: function for name, function in named.items() if inspect.isfunction(function)}


def default_of(parameter: inspect.Parameter) -> str:
    """Default of a parameter as it is written."""
    return REQUIRED if parameter.default is parameter.empty else repr(parameter.default)


def table_of(functions: Mapping[str, Callable[..., Any]]) -> list[list[str]]:
    """Head and rows: parameters in order of appearance, those of most functions first."""
    signatures = {name: inspect.signature(function).parameters for name, function in functions.items()}
    names = list(dict.fromkeys(name for parameters in signatures.values() for name in parameters))
    names.sort(key=lambda name: -sum(name in parameters for parameters in signatures.values()))
    rows = [
        [name, *(default_of(found[name]) if name in found else ABSENT for found in signatures.values())]
        for name in names
    ]
    return [["parameter", *signatures], *rows]


def aligned(table: Iterable[list[str]]) -> str:
    """The table with columns of one width."""
    rows = list(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(spaces: list[str]) -> int:
    """Print a table per namespace; all by default."""
    unknown = [space for space in spaces if space not in NAMESPACES]
    if unknown:
        print(f"{unknown[0]!r} is not a namespace; they are {', '.join(NAMESPACES)}.", file=sys.stderr)
        return 2
    tables = [f"agl_sc.{space}\n{aligned(table_of(functions_of(space)))}" for space in spaces or NAMESPACES]
    print("\n\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
