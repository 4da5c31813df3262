"""The files of a benchmark: written together, replaced only where they are a benchmark's, read with a sentence."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from agl_sc._paths import check_folder, replacing, replacing_all

REPORT, RESULTS, DIFFERENCES, PROVENANCE = "report.md", "results.csv", "differences.csv", "provenance.json"
_TEXT = ("method", "fold", "section", "gene", "metric", "reference", "unit")
_NUMBERS = ("value", "mean", "low", "high")
_NEEDED = {RESULTS: {"method", "fold", "metric", "value"}, DIFFERENCES: {"method", "reference", "metric", "mean"}}
_IN_EVERY_REPORT = ("# Benchmark\n", "Hash of the folds: `")


def check_report_folder(folder: str | Path) -> Path:
    """Absolute path of a folder that a benchmark can be written to, refused where it would replace something else.

    Raises
    ------
    FileNotFoundError
        The folder that it would lie in does not exist.
    FileExistsError
        It is a file, or a file in it by the name of one of a benchmark's is none.
    """
    path = check_folder(folder)
    names = [name for name in (PROVENANCE, REPORT, RESULTS, DIFFERENCES) if (path / name).exists()]
    for name in names:
        if PROVENANCE not in names or not _is_ours(path / name):
            msg = f"{path / name} is not of a benchmark and is not replaced; choose another folder."
            raise FileExistsError(msg)
    return path


def write_files(path: Path, texts: Mapping[str, str]) -> None:
    """Write all files of a benchmark or none; a folder that exists keeps what else is in it."""
    if not path.exists():
        with replacing(path) as fresh:
            fresh.mkdir()
            for name, text in texts.items():
                (fresh / name).write_text(text, encoding="utf-8")
        return
    with replacing_all([path / name for name in texts]) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write_text(text, encoding="utf-8")


def read_table(file: Path) -> pd.DataFrame:
    """A table as it was written; numbers as text first, for pandas 2 rounds what it reads as numbers.

    Raises
    ------
    ValueError
        It is no such table.
    """
    try:
        frame = pd.read_csv(file, dtype=dict.fromkeys((*_TEXT, *_NUMBERS), str))
        numbers = frame.astype({name: float for name in _NUMBERS if name in frame})
    except (ValueError, OSError) as error:  # pandas' own are ValueErrors
        raise _damaged(file, error) from error
    missing = sorted(_NEEDED[file.name] - set(numbers))
    if missing:
        raise _damaged(file, f"the column {missing[0]!r} is missing")
    return numbers


def read_provenance(file: Path) -> dict[str, Any]:
    """What the benchmark was made from.

    Raises
    ------
    ValueError
        It is no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(file, error) from error
    if not isinstance(found, dict):
        raise _damaged(file, "it is no JSON object")
    return found


def _is_ours(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8")
        if file.name == REPORT:
            return text.startswith(_IN_EVERY_REPORT[0]) and _IN_EVERY_REPORT[1] in text
        if file.name == PROVENANCE:
            found = json.loads(text)
            return isinstance(found, dict) and (not found or "cross_validation" in found)
    except (ValueError, RecursionError, OSError):
        return False
    header = set(text.partition("\n")[0].split(","))
    return header >= {"method", "metric"}


def _damaged(file: Path, why: object) -> ValueError:
    first = next(iter(str(why).splitlines()), "")
    return ValueError(f"{file} is damaged ({first}); save the benchmark again.")
