"""Every refusal that the tests see names only arguments that the called function has."""

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

NAMESPACES = ("pp", "tl", "pl", "io", "datasets")
_CALL = re.compile(r"[A-Za-z_][\w.]*\([^()]*\)")
_ARGUMENT = re.compile(r"(?<![\w.\"'-])(?<!--set )([a-z_][a-z_0-9]*)=")


def foreign_arguments(message: str, parameters: set[str]) -> list[str]:
    """Arguments that a message names and a function lacks; those inside a call that it spells out are of that call."""
    bare = message
    while _CALL.search(bare):
        bare = _CALL.sub("", bare)
    return [name for name in _ARGUMENT.findall(bare) if name not in parameters]


def unknown_in_calls(message: str) -> list[str]:
    """Arguments in the calls of agl_sc that a message spells out, which those functions lack."""
    found = []
    for call in re.findall(r"agl_sc\.((?:pp|tl|io|pl|datasets)\.\w+)\(([^()]*)\)", message):
        space, name = call[0].split(".")
        function = getattr(importlib.import_module(f"agl_sc.{space}"), name, None)
        if inspect.isfunction(function):
            known = set(inspect.signature(function).parameters)
            found += [f"{call[0]}({each}=)" for each in _ARGUMENT.findall(call[1]) if each not in known]
        elif not inspect.isclass(function):
            found.append(call[0])
    return found


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with a look at what it refuses with."""
    parameters = set(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except (ValueError, KeyError, TypeError, OSError) as error:
            message = str(error.args[0]) if error.args and len(error.args) == 1 else str(error)
            foreign = [*foreign_arguments(message, parameters), *unknown_in_calls(message)]
            if foreign:
                text = f"{function.__name__} refused with arguments that it lacks ({', '.join(foreign)}): {message}"
                raise AssertionError(text) from error
            raise

    return call


def watch() -> None:
    """From now on, everywhere in this process."""
    for space in NAMESPACES:
        namespace = importlib.import_module(f"agl_sc.{space}")
        for name in namespace.__all__:
            function = getattr(namespace, name)
            if inspect.isfunction(function):
                setattr(namespace, name, watched(function))
