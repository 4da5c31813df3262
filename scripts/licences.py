# ruff: noqa: T201 -- a script that prints
"""Licences and sizes of all that an installation brings: ``scripts/in-env python scripts/licences.py [EXTRA ...]``.

Follows the requirements of agl-sc, with the extras that are named, through the environment that runs it. What is listed as
unknown says nothing in its metadata; look at its page.
"""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_LICENCE = "License :: OSI Approved :: "


def licence(found: Distribution) -> str:
    """What the metadata say in one line; ``unknown`` where nothing."""
    stated = found.metadata.get("License-Expression") or ""
    classified = [each for each in found.metadata.get_all("Classifier") or [] if each.startswith("License :: ")]
    named = "; ".join(sorted(each.removeprefix(_LICENCE).removeprefix("License :: ") for each in classified))
    first = (found.metadata.get("License") or "").strip().partition("\n")[0]
    return stated or named or first[:60] or "unknown"


def megabytes(found: Distribution) -> float:
    """Size of the files that it installed."""
    paths = (Path(str(found.locate_file(file))) for file in found.files or [])
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def required(of: list[Requirement], extras: set[str]) -> Iterator[Requirement]:
    """Requirements that hold here, for some extras."""
    for each in of:
        contexts = [{"extra": extra} for extra in extras | {""}]
        if each.marker is None or any(each.marker.evaluate(context) for context in contexts):
            yield each


def installed(extras: list[str]) -> dict[str, Distribution]:
    """All that agl-sc with extras needs, by name."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    of_extras = [text for extra in extras for text in project["optional-dependencies"][extra]]
    waiting = [Requirement(text) for text in [*project["dependencies"], *of_extras]]
    seen: set[tuple[str, str]] = set()
    found: dict[str, Distribution] = {}
    while waiting:
        each = waiting.pop()
        if each.name == project["name"]:  # an extra of ours that names others
            waiting += [Requirement(text) for extra in each.extras for text in project["optional-dependencies"][extra]]
            continue
        fresh = {extra for extra in {"", *each.extras} if (canonicalize_name(each.name), extra) not in seen}
        seen |= {(canonicalize_name(each.name), extra) for extra in fresh}
        if not fresh:
            continue
        try:
            found[canonicalize_name(each.name)] = distribution(each.name)
        except PackageNotFoundError:
            continue  # for another platform, or an extra that is not here
        below = [Requirement(text) for text in found[canonicalize_name(each.name)].requires or []]
        waiting += required(below, set(each.extras))
    return dict(sorted(found.items()))


def main(extras: list[str]) -> int:
    """Print the table, largest first, and the sum."""
    known = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    if unknown := [extra for extra in extras if extra not in known]:
        print(f"{unknown[0]!r} is not an extra; they are {', '.join(known)}.", file=sys.stderr)
        return 2
    rows = [(megabytes(each), name, each.version, licence(each)) for name, each in installed(extras).items()]
    for size, name, version, text in sorted(rows, reverse=True):
        print(f"{size:8.1f} MB  {name:32} {version:16} {' '.join(text.split())}")
    print(f"{sum(row[0] for row in rows):8.1f} MB  in {len(rows)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
