"""Sphinx: ``python -m sphinx -W -n -b html docs docs/_build``, from a clean clone, without network."""

import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.ext.napoleon.docstring import NumpyDocstring
from sphinx.util.inspect import TypeAliasForwardRef
from typer.main import get_command
from typer.testing import CliRunner

import agl_sc
from agl_sc.cli import app as cli

project = "agl-sc"
author = "the agl-sc developers"
copyright = f"2026, {author}"
version = release = agl_sc.__version__
SOURCE = "https://github.com/agl-sc/agl-sc"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.linkcode",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
exclude_patterns = [
    "_build",
    "_templates",
    "_generated",
    "jupyter_execute",
    "benchmark",
    "tutorials/.ipynb_checkpoints",
]
autosummary_generate = True  # a page for every name in the tables
autosummary_filename_map = {
    "agl_sc.tl.Benchmark": "agl_sc.tl.Benchmark.class"
}  # beside "benchmark" where case does not matter
templates_path = ["_templates"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_theme = "sphinx_book_theme"
html_title = f"agl-sc {release}"
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_math_renderer = "mathml"  # of setup(), below: every browser draws it, and no script is fetched
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "repository_url": SOURCE,
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "navbar_persistent": [],
}
toc_object_entries_show_parents = "hide"
html_copy_source = False

# Tutorials are committed as they ran, and a test runs them; docs/tutorials is a link to tutorials/.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings: numpydoc sections, types and defaults from the signature. "Returns" is prose here, not "name : type".
napoleon_google_docstring = False
napoleon_custom_sections = ["Returns"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
# Imported for type checkers alone, so that the package stays cheap to import; named here for the links.
autodoc_type_aliases = {
    "AnnData": "anndata.AnnData",
    "SpatialData": "spatialdata.SpatialData",
    "pd.DataFrame": "pandas.DataFrame",
    "Client": "distributed.Client",
    "Axes": "matplotlib.axes.Axes",
}


def whole_attribute(docstring: NumpyDocstring) -> tuple[str, list[str]]:
    """Text of an attribute, with no type before its first colon: types are annotated."""
    lines = docstring._dedent(docstring._consume_to_end())
    return "", NumpyDocstring(lines, docstring._config).lines()


NumpyDocstring._consume_inline_attribute = whole_attribute
TypeAliasForwardRef.__repr__ = lambda self: str(self.name)  # what Sphinx prints of it in a union

# Links into other projects need their inventories, which are on the network. The build must pass without one, the same
# everywhere, so they are fetched only where it is asked for: by Read the Docs, or AGL_SC_INTERSPHINX=1. Without them
# names of these projects stay plain text and nitpick is told so; names of ours are always checked.
_INVENTORIES = {
    "python": "https://docs.python.org/3/",
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "spatialdata": "https://spatialdata.scverse.org/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
_fetch = "READTHEDOCS" in os.environ or os.environ.get("AGL_SC_INTERSPHINX") == "1"
intersphinx_mapping = {name: (url, None) for name, url in _INVENTORIES.items()} if _fetch else {}
nitpick_ignore_regex = [(r"py:.*", r"(?!agl_sc).*")]


def paths_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Names of a command and of those below it."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from paths_of(below, (*path, name))


def write_command_help() -> None:
    """What ``--help`` says, for the page of the command line: it cannot differ from the program."""
    sections = []
    for path in paths_of(get_command(cli)):
        text = CliRunner().invoke(cli, [*path, "--help"], prog_name="agl-sc").stdout
        sections.append(f"## `{' '.join(['agl-sc', *path])}`\n\n```text\n{text}```\n")
    folder = Path(__file__).parent / "_generated"
    folder.mkdir(exist_ok=True)
    page, text = folder / "cli.md", "\n".join(sections)
    if not page.is_file() or page.read_text(encoding="utf-8") != text:  # another build may be reading it
        page.write_text(text, encoding="utf-8")


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where the source of an entry lies in the repository, at this version."""
    found: Any = sys.modules.get(info["module"]) if domain == "py" else None
    for name in info["fullname"].split("."):
        found = getattr(found, name, None)
    found = inspect.unwrap(found) if callable(found) else None
    if not (inspect.isfunction(found) or inspect.isclass(found)) or not found.__module__.startswith("agl_sc"):
        return None
    lines, first = inspect.getsourcelines(found)
    path = Path(inspect.getsourcefile(found) or "").relative_to(Path(agl_sc.__file__).parents[2])
    return f"{SOURCE}/blob/v{release}/{path.as_posix()}#L{first}-L{first + len(lines) - 1}"


def shorten_types(app: Any, document: nodes.document, page: str) -> None:
    """The last part of names of types that have no page of their own."""
    del app, page
    for node in document.findall(nodes.emphasis):
        if node.astext().startswith("~"):
            node.children = [nodes.Text(node.astext().rpartition(".")[2])]


def typed_defaults(*event: Any) -> tuple[str, str | None] | None:
    """A signature whose defaults can be typed: functions by their names, settings that are all default by their class."""
    *_, signature, returns = event
    if signature is None:  # of an attribute
        return None
    signature = signature.replace(repr(agl_sc.tl.GradientSearch()), "GradientSearch()").replace("<factory>", "{}")
    return re.sub(r"<function (\w+)(?: at 0x\w+)?>", r"\1", signature), returns


def visit_math(translator: Any, node: nodes.Element) -> None:
    """A formula as MathML."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-signature", typed_defaults)
    app.connect("doctree-resolved", shorten_types)
    app.connect("builder-inited", lambda _: write_command_help())
