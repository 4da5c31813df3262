"""The documentation builds without a warning, and the site that comes out is sound."""

import html
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.refusals import unknown_in_calls

import agl_sc

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SRC = Path(agl_sc.__file__).parent
LONGEST = 80
"""Letters of a line of code that the column of the site holds."""
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx_book_theme", reason="Sphinx is not installed; pip install .[doc]")
    pytest.importorskip("myst_nb", reason="MyST is not installed; pip install .[doc]")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def loaded(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    return loaded("check_site")


def test_every_public_name_has_a_page_of_its_own_with_its_source(site: Path) -> None:
    for namespace in (agl_sc.io, agl_sc.datasets, agl_sc.pp, agl_sc.tl, agl_sc.pl):
        for name in namespace.__all__:
            full = f"{namespace.__name__}.{name}"
            page = site / "api" / "generated" / f"{full}{'.class' if full == 'agl_sc.tl.Benchmark' else ''}.html"
            text = page.read_text(encoding="utf-8")
            assert f'id="{full}"' in text
            assert f"/blob/v{agl_sc.__version__}/src/agl_sc/" in text, f"{full} has no link to its source"


def test_every_page_of_the_reference_is_a_table_of_its_names() -> None:
    for namespace in (agl_sc.io, agl_sc.datasets, agl_sc.pp, agl_sc.tl, agl_sc.pl):
        page = (DOCS / "api" / f"{namespace.__name__.removeprefix('agl_sc.')}.md").read_text(encoding="utf-8")
        assert re.findall(r"^   (\w+)$", page, re.MULTILINE) == namespace.__all__


def test_defaults_are_values_that_can_be_typed(site: Path) -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (site / "api" / "generated").glob("*.html")}
    assert [name for name, text in pages.items() if re.search(r"&lt;(?:function|factory|object)\b", text)] == []
    for name, default in (
        ("agl_sc.pl.residual_map", "RdBu_r"),
        ("agl_sc.pp.embed", "(2, 4, 8)"),
        ("agl_sc.pp.split", "0.2"),
    ):
        signature = pages[name].split("</dt>")[0].split("<dt ")[1]
        assert default in html.unescape(re.sub("<[^>]+>", "", signature)).replace("'", "")


def test_the_benchmark_starts_with_the_table_of_its_report() -> None:
    report = (DOCS / "benchmark" / "report.md").read_text(encoding="utf-8")
    table = re.search(r"## Out-of-fold results\n\n(.+?)\n\npearson by section:", report, re.DOTALL)
    assert table is not None
    page = (DOCS / "benchmark.md").read_text(encoding="utf-8")
    assert table[1].strip() in page.split("## ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_site_puts_in_is_said_where_github_shows_the_page(page: Path) -> None:
    for before in re.split(r"^```{(?:literal)?include}.*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[:-1]:
        assert "https://" in before[-400:], "no line says where the text is"


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    return loaded("gallery")


def test_gallery_shows_every_figure_with_its_call(gallery: ModuleType) -> None:
    figures = gallery.figures()
    assert {re.match(r"agl\.pl\.(\w+)\(", call)[1] for call in figures.values()} == set(agl_sc.pl.__all__)  # type: ignore[index]
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert page.count("agl.pl.") == len(figures) == page.count("](gallery/")
    assert sorted(figures) == sorted(f"gallery/{path.name}" for path in (DOCS / "gallery").iterdir())
    assert max((DOCS / image).stat().st_size for image in figures) < 350_000


def test_calls_of_the_gallery_are_run_as_they_stand(gallery: ModuleType) -> None:
    assert gallery.with_save("agl.pl.history(\n    model,\n)", Path("a.png")) == "agl.pl.history(model, save='a.png')"
    with pytest.raises(TypeError, match=r"'model' is no call; the page shows one function of agl\.pl in a block"):
        gallery.with_save("model", Path("a.png"))


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_code_fits_the_column(page: Path) -> None:
    blocks = re.findall(r"^```(?:python|bash|r)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > LONGEST] == []


def test_site_is_sound(site: Path, checker: ModuleType) -> None:
    if checker.browser() is None:
        pytest.skip("no Chromium; apt-get install chromium")
    assert checker.check(site) == []


def test_faults_are_found(tmp_path: Path, checker: ModuleType) -> None:
    if checker.browser() is None:
        pytest.skip("no Chromium; apt-get install chromium")
    page = "<title>A</title><p id='here'>text</p><a href='#here'>a</a><a href='b.html'>b</a><a href='#there'>c</a>"
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    (tmp_path / "search.html").write_text("<title></title>", encoding="utf-8")
    assert checker.check(tmp_path) == [
        "index.html links to b.html, which does not exist",
        "index.html links to index.html#there, which has no such anchor",
        "search.html does not render: no title or no text",
        *[
            f"search.html?q={words} does not list {expected} among the first 3"
            for words, expected in checker.SEARCHES.items()
        ],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_calls_in_the_pages_name_arguments_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert unknown_in_calls(re.sub(r"\bagl\.", "agl_sc.", text)) == []


def test_unknown_calls_in_the_pages_would_be_found() -> None:
    assert unknown_in_calls("agl_sc.tl.train(sdata, layers=1)") == ["tl.train(layers=)"]


def test_the_map_names_every_room() -> None:
    text = (DOCS / "contributing.md").read_text(encoding="utf-8")
    rooms = {str(path.parent.relative_to(SRC)) for path in SRC.rglob("__init__.py")} - {".", "core", "pp", "tl"}
    named = set(re.findall(r"`([a-z_/]+)`", text))
    assert rooms - named == set()
    files = [name for name in re.findall(r"`([a-z_/]+\.py)`", text) if not name.startswith("tests")]
    assert [name for name in files if not list(SRC.rglob(name)) and not (ROOT / name).is_file()] == []


def test_signatures_are_printed() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "signatures.py"), "pp"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    head, *rows = lines[1:]
    assert lines[0] == "agl_sc.pp"
    assert head.split() == ["parameter", *agl_sc.pp.__all__]
    takes = [
        ("!" if "sdata" in inspect.signature(getattr(agl_sc.pp, name)).parameters else ".")
        for name in agl_sc.pp.__all__
    ]
    assert set(takes) == {"!", "."}
    assert next(row.split() for row in rows if row.startswith("sdata ")) == ["sdata", *takes]
    refused = subprocess.run([*command[:-1], "pq"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.strip()) == (
        2,
        "'pq' is not a namespace; they are io, datasets, pp, tl, pl.",
    )
