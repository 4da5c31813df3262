"""Tables in text files, as R, pandas and spreadsheets write them."""

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd

from agl_sc.core.arrays import FloatArray
from agl_sc.io._readable import readable

_TRUTHS = {"true": "1", "false": "0"}
_PARTED = re.compile(r"\d{1,3}(,\d{3})+")


def rows_of(path: Path, *, kind: str) -> Iterator[list[str]]:
    """Cells of every line that holds something, without the quotes around them.

    Parameters
    ----------
    path
        Text with tabs, semicolons or commas between cells; gzip by suffix.
    kind
        What it should be, such as ``" as a table"``.

    Raises
    ------
    ValueError
        The file is damaged.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with readable(path, kind=kind), opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        lines = (line for line in file if line.strip())
        first = list(islice(lines, 2))  # a header of one cell has no mark
        # a spreadsheet writes semicolons where commas are decimal points
        mark = next((mark for mark in ("\t", ";") if mark in "".join(first)), ",")
        for row in csv.reader(chain(first, lines), delimiter=mark):
            if any(cell.strip() for cell in row):  # a spreadsheet keeps rows whose cells were emptied
                yield row


def read_cells(path: Path, *, kind: str) -> pd.DataFrame:
    """All cells of a table as text, the header, if any, as the first row; numbers have decimal points.

    Parameters
    ----------
    path
        As in :func:`rows_of`; where semicolons or tabs part the cells, commas are decimal points.
    kind
        As in :func:`rows_of`.

    Raises
    ------
    ValueError
        The file is damaged, or empty; a row has more or fewer cells than others; commas may part thousands as well as decimals.
    """
    rows = list(rows_of(path, kind=kind))
    if not rows:
        msg = f"'{path}' is empty; is the file complete?"
        raise ValueError(msg)
    if len(rows) > 1 and len(rows[1]) == len(rows[0]) + 1:  # R's write.table has no cell above the names of rows
        rows[0].insert(0, "")
    odd = next((row for row in rows if len(row) != len(rows[0])), None)
    if odd is not None:
        msg = f"Row {odd[0]!r} of '{path}' has {len(odd)} cells, the first has {len(rows[0])}; is the file complete?"
        raise ValueError(msg)
    cells = pd.DataFrame(rows, dtype=object)
    commas = [text for text in cells.to_numpy().ravel().tolist() if "," in text]  # none where commas part cells
    if commas and all(_PARTED.fullmatch(text.strip()) for text in commas):
        msg = f"'{path}' has numbers such as {commas[0]!r}, whose comma may part thousands or decimals; save it with decimal points and without marks between thousands."
        raise ValueError(msg)
    return cells.replace(",", ".", regex=True) if commas else cells


def numbers_in(column: pd.Series, names: Sequence[str], path: Path) -> FloatArray:
    """Numbers of a column of text, true and false as 1 and 0; refused where one is none, with the name of its row."""
    texts = column.astype(str).str.strip().str.lower().replace(_TRUTHS)
    values = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        entry, name = column.iloc[wrong[0]], names[wrong[0]]
        msg = f"Column {column.name} of '{path}' has the entry {entry!r} for spot {name!r}, which is not a number; is the file complete?"
        raise ValueError(msg)
    return values
