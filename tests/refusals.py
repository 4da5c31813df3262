"""Every refusal that the tests see names only arguments that the called function has."""

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

NAMESPACES = ("pp", "tl", "pl", "io", "datasets")
_CALL = re.compile(r"(?:(?:[a-z_]+=(?=pd\.))?[A-Za-z_][\w.]*|(?<=[(=]))\([^()]*\)")  # and what is in brackets in one
_ARGUMENT = re.compile(r"(?<![\w.\"'-])(?<!--set )([a-z_][a-z_0-9]*)=")


def foreign_arguments(message: str, parameters: set[str]) -> list[str]:
    """Arguments that the mend of a message names and a function lacks.

    What comes before the first semicolon is what was found, such as what a record says. An argument may be another
    function's where the mend names that too: ``agl_sc.f(x=1)``, ``x=1 of agl_sc.f``.
    """
    mend = message.partition(";")[2] or message
    named = [_function(space, name) for space, name in re.findall(r"agl_sc\.(pp|tl|io|pl|datasets)\.(\w+)", mend)]
    of_others = {each for function in named if function for each in inspect.signature(function).parameters}
    while _CALL.search(mend):
        mend = _CALL.sub("", mend)
    return [name for name in _ARGUMENT.findall(mend) if name not in parameters | of_others]


def _function(space: str, name: str) -> Callable[..., Any] | None:
    found = getattr(importlib.import_module(f"agl_sc.{space}"), name, None)
    return found if inspect.isfunction(found) else None


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
