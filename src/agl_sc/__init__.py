"""Spatial gene expression from H&E, with auxiliary genes chosen by bi-level optimisation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agl_sc import datasets, io, pl, pp, tl
    from agl_sc.model import Model

__version__ = "0.2.0"
__all__ = ["Model", "datasets", "io", "pl", "pp", "tl"]


def __getattr__(name: str) -> Any:
    if name == "Model":
        return import_module("agl_sc.model").Model
    if name in __all__:
        return import_module(f"agl_sc.{name}")
    msg = f"module 'agl_sc' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
