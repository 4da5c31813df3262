"""House rules that a linter cannot express."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agl_sc

SRC = Path(agl_sc.__file__).parent
PUBLIC = [
    pytest.param(getattr(namespace, name), id=f"{namespace.__name__}.{name}")
    for namespace in (agl_sc.io, agl_sc.datasets, agl_sc.pp, agl_sc.tl, agl_sc.pl)
    for name in namespace.__all__
    if inspect.isfunction(getattr(namespace, name))
]
FORBIDDEN_IN_CORE = {"anndata", "spatialdata", "scanpy", "squidpy", "matplotlib"}


def documented(func: Callable[..., Any]) -> dict[str, str]:
    """Return ``{parameter: description}`` of a numpydoc ``Parameters`` section."""
    doc = inspect.getdoc(func) or ""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}\n|\Z)", doc, re.M | re.S)
    body = section[1] if section else ""
    return {m[1]: " ".join(m[2].split()) for m in re.finditer(r"^(\w+)\n((?: {4}.*\n?|\n)+)", body, re.M)}


@pytest.mark.parametrize("func", PUBLIC)
def test_signature(func: Callable[..., Any]) -> None:
    params = inspect.signature(func).parameters.values()
    positional = [p for p in params if p.kind is not p.KEYWORD_ONLY]
    assert len(positional) <= 3
    assert all(p.annotation is not p.empty for p in params)


@pytest.mark.parametrize("func", PUBLIC)
def test_every_parameter_is_documented(func: Callable[..., Any]) -> None:
    assert list(documented(func)) == list(inspect.signature(func).parameters)


def test_shared_parameters_read_the_same() -> None:
    seen: dict[str, set[str]] = {}
    for param in PUBLIC:
        func: Callable[..., Any] = param.values[0]  # type: ignore[assignment]
        if func.__module__.startswith(("agl_sc.io", "agl_sc.datasets")):
            continue  # a reader's patient or image is an input, not an address in a SpatialData
        for name, text in documented(func).items():
            seen.setdefault(name, set()).add(text.split(".")[0])
    own = {"ax", "genes", "seed"}  # mean something of their own in every function
    assert not {name: texts for name, texts in seen.items() if name not in own and len(texts) > 1}


@pytest.mark.parametrize("path", sorted((SRC / "core").rglob("*.py")), ids=lambda p: p.stem)
def test_core_is_plain_torch(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    from_imports = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not (imported | {module.split(".")[0] for module in from_imports}) & FORBIDDEN_IN_CORE
    assert all(module.startswith("agl_sc.core") for module in from_imports if module.startswith("agl_sc"))


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_files_stay_small_and_raise_proper_errors(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 400
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text)))


def test_import_brings_no_heavy_library() -> None:
    code = "import sys, agl_sc; print(sorted({'torch', 'anndata', 'squidpy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_namespaces_are_listed() -> None:
    assert {"pp", "tl", "pl", "io", "datasets", "Model"} <= set(dir(agl_sc))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = agl_sc.nothing
