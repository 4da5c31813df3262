"""Every public function has an example in its docstring, and the example is right."""

import doctest
import functools
import importlib
import inspect
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import duplicate

import agl_sc

NAMESPACES = ("io", "datasets", "pp", "tl", "pl")
METHODS = ("save", "load", "predict")
NEEDS_NETWORK = {"datasets.hest1k"}
FUNCTIONS = {
    f"{space}.{name}": function
    for space in NAMESPACES
    for name in importlib.import_module(f"agl_sc.{space}").__all__
    if inspect.isfunction(function := getattr(importlib.import_module(f"agl_sc.{space}"), name))
}
EXAMPLES: dict[str, Any] = {**FUNCTIONS, **{f"Model.{name}": getattr(agl_sc.Model, name) for name in METHODS}}


@functools.cache
def drawn(toy: Callable[..., Any], **options: Any) -> Any:
    """The toy tissue of some options, drawn once in all examples."""
    return toy(**options)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the files of an example, no window, and tissue that is drawn once."""
    import matplotlib.pyplot as plt

    toy = agl_sc.datasets.toy_tissue
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(agl_sc.datasets, "toy_tissue", lambda **options: duplicate(drawn(toy, **options)))
    yield
    plt.close("all")


def example_of(function: Any, name: str) -> doctest.DocTest:
    """The ``Examples`` section of a docstring."""
    docstring = inspect.getdoc(function) or ""
    _, head, section = docstring.partition("\nExamples\n--------\n")
    assert head, f"{name} has no section Examples"
    return doctest.DocTestParser().get_doctest(section, {}, name, name, 0)


def faults_of(test: doctest.DocTest) -> str:
    """What an example gets wrong when it is run; empty where nothing."""
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.write)
    return said.getvalue()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_right(name: str) -> None:
    test = example_of(EXAMPLES[name], name)
    calls = [each.source for each in test.examples if f"{name.rpartition('.')[2]}(" in each.source]
    assert calls, f"the example of {name} does not call it"
    faults = faults_of(test)
    assert not faults, faults


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_run(name: str) -> None:
    skipped = [each for each in example_of(EXAMPLES[name], name).examples if doctest.SKIP in each.options]
    assert bool(skipped) == (name in NEEDS_NETWORK)


def test_faults_of_examples_are_found() -> None:
    parse = doctest.DocTestParser().get_doctest
    assert "Expected:\n    3" in faults_of(parse(">>> 1 + 1\n3\n", {}, "sum", "sum", 0))
    assert "ZeroDivisionError" in faults_of(parse(">>> 1 / 0\n", {}, "ratio", "ratio", 0))
    with pytest.raises(AssertionError, match="len has no section Examples"):
        example_of(len, "len")
