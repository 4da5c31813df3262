"""Open every page of ``docs/_build`` in headless Chromium: pages render, links and anchors resolve, the search finds.

``python docs/check_site.py [FOLDER]`` prints every fault and ends with 1 if there is one.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin, urlparse

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=8000",
]
SEARCHES = {
    "train": "agl_sc.tl.train",
    "how do I export": "Export to Seurat and scanpy",
    "which genes": "Which genes are predictable",
    "my mpp is unknown": "Questions",
    "GPU": "On a GPU",
    "cite": "How to cite",
}
"""What a person searches for, and what has to be among the first results."""
FIRST = 3


@dataclass
class Page(HTMLParser):
    """What a rendered page holds."""

    url: str
    title: str = ""
    text: str = ""
    anchors: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    results: list[str] = field(default_factory=list)
    """Titles that a search found, the best first."""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._is_result = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note anchors and links."""
        values = dict(attrs)
        self._open.append(tag)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        if tag == "a" and "data-score" in values:
            self.results.append("")
            self._is_result = True
        target = values.get("href" if tag == "a" else "src" if tag == "img" else "")
        if target:
            self.links.add(urljoin(self.url, target))

    def handle_endtag(self, tag: str) -> None:
        """Leave the element."""
        self._is_result = self._is_result and tag != "a"
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Note text."""
        if self._open and self._open[-1] == "title" and not self.title:
            self.title = data.strip()
        if self._is_result:
            self.results[-1] += data
        if not {"script", "style"} & set(self._open[-1:]):
            self.text += data


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        del format, args


def browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def render(url: str) -> str:
    """The page's document after its scripts have run."""
    with tempfile.TemporaryDirectory() as profile:
        command = [str(browser()), *_FLAGS, f"--user-data-dir={profile}", "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout


def check(folder: Path) -> list[str]:
    """Faults of the site, one line each; none where it is sound."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}/"
    try:
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.html"))]
        pages = {root + name: _page(root + name) for name in names if not name.startswith("_static/")}
        faults = [fault for page in pages.values() for fault in _faults(page, pages, root=root, folder=folder)]
        for words, expected in SEARCHES.items():
            found = _page(f"{root}search.html?q={quote(words)}").results[:FIRST]
            if not any(expected in title for title in found):
                faults.append(f"search.html?q={words} does not list {expected} among the first {FIRST}")
    finally:
        server.shutdown()
        server.server_close()
    return faults


def _page(url: str) -> Page:
    page = Page(url)
    page.feed(render(url))
    return page


def _faults(page: Page, pages: dict[str, Page], *, root: str, folder: Path) -> list[str]:
    name = page.url.removeprefix(root)
    faults = [] if page.title and page.text.strip() else [f"{name} does not render: no title or no text"]
    for link in sorted(page.links):
        target, anchor = urldefrag(link)
        if not target.startswith(root):
            continue
        target = target.split("?")[0]
        path = unquote(urlparse(target).path).lstrip("/") or "index.html"
        if not (folder / path).is_file():
            faults.append(f"{name} links to {path}, which does not exist")
        elif anchor and root + path in pages and unquote(anchor) not in pages[root + path].anchors:
            faults.append(f"{name} links to {path}#{anchor}, which has no such anchor")
    return faults


def main() -> int:
    """Check, print, and tell the exit code."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "_build"
    if browser() is None:
        sys.stderr.write(f"No browser was found; install one of {', '.join(BROWSERS)}.\n")
        return 1
    if not (folder / "index.html").is_file():
        sys.stderr.write(f"There is no site in {folder}; build it with python -m sphinx -W -n -b html docs {folder}.\n")
        return 1
    faults = check(folder)
    sys.stdout.write("\n".join(faults) + "\n" if faults else "The site is sound.\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
