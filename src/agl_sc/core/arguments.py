"""What an argument may be, said once: numbers, names, seeds."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

LARGEST_SEED = 2**32 - 1
"""What every generator that is seeded takes."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+[^/]")
"""How addresses on the web and in buckets begin, also where a path was made of them; a drive of Windows has one letter."""


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def label_of(name: object) -> str:
    """A name as text: sections and patients are numbered in some files, and numbers with gaps become floats."""
    return str(int(name)) if is_number(name) and float(name).is_integer() else str(name)


def check_seed(seed: object) -> None:
    """Refuse what seeds no generator."""
    if not is_whole(seed) or not 0 <= seed <= LARGEST_SEED:
        msg = f"seed={seed!r} is not a whole number from 0 to {LARGEST_SEED}; 0 is usual."
        raise ValueError(msg)


def check_flag(argument: str, value: object) -> None:
    """Refuse what is neither True nor False, of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        msg = f"{argument}={value!r} is a {type(value).__name__}, not True or False; pass one of these."
        raise TypeError(msg)


def check_choice(argument: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is none of the words that are there to choose from."""
    if not isinstance(value, str) or value not in choices:
        msg = f"{argument}={value!r} is not one of {', '.join(map(repr, choices))}."
        raise ValueError(msg)


def check_name(argument: str, value: object) -> None:
    """Refuse what is neither a name nor None."""
    if value is not None and not isinstance(value, str):
        msg = f"{argument}={value!r} is a {type(value).__name__}, not a name; pass a string, or None for the default."
        raise TypeError(msg)


def path_of(argument: str, value: object) -> Path:
    """A path, however it was given, with ``~`` as the home folder; refused where it is none, or an address on the web."""
    if not isinstance(value, str | PathLike) or (isinstance(value, str) and not value.strip()):
        msg = f"{argument}={value!r} is a {type(value).__name__}, not a path; pass a string or a pathlib.Path."
        raise TypeError(msg)
    if _ADDRESS.match(str(value)):
        msg = f"{argument}={str(value)!r} is an address, and files are read from disk; download it, unless it is there, and pass the path of the file."
        raise ValueError(msg)
    return from_home(Path(value))


def from_home(path: Path) -> Path:
    """The path with ``~`` at its beginning as the home folder."""
    return path.expanduser() if path.parts[:1] == ("~",) else path


def check_names(argument: str, value: object) -> None:
    """Refuse what is neither a name, nor names that can be read twice, nor None."""
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, Iterable) or isinstance(value, Mapping | Iterator | bytes):
        msg = f"{argument}={value!r} is a {type(value).__name__}, not a name or a list of names; None takes all."
        raise TypeError(msg)
    strange: list[Any] = [each for each in value if not isinstance(each, str)]
    if strange:
        example = f", such as {label_of(strange[0])!r}" if is_number(strange[0]) else ""
        msg = f"{argument} holds {strange[0]!r}, a {type(strange[0]).__name__}; pass names{example}."
        raise TypeError(msg)


def check_scales(value: object) -> None:
    """Refuse an ``image_mpp`` that is neither a number, nor a mapping of numbers by name, nor None."""
    scales = value.values() if isinstance(value, Mapping) else () if value is None else (value,)
    for scale in scales:
        if not is_number(scale):
            msg = (
                f"image_mpp={scale!r} is a {type(scale).__name__}, not a number of microns per pixel; "
                "pass one for all images, or a mapping by section."
            )
            raise TypeError(msg)
