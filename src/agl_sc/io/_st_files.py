"""Counts and positions of legacy Spatial Transcriptomics, in the forms that the field's tools write."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from agl_sc.core.arrays import FloatArray
from agl_sc.io._cells import numbers_in, read_cells, rows_of
from agl_sc.io._layout import refuse_duplicates
from agl_sc.io._positions import refuse_strays

logger = logging.getLogger(__name__)

ARRAY_COLUMNS = (("x", "y"), ("new_x", "new_y"))
"""Array coordinates in a file of positions: as designed, and as the spots were found to lie (ST Spot Detector)."""
FRAME_TOLERANCE = 0.05
"""Of the pitch along x, along y and by the stated scale."""
_FRAME_PITCHES = np.array([32.0, 34.0])
_PIXELS = ["pixel_x", "pixel_y"]
_NAME = re.compile(r"(?:X|[A-Za-z]\w*[_-](?=\d+(?:\.\d+)?x))?(\d+(?:\.\d+)?)(?:\s*[xX_:-]\s*|\s+)(\d+(?:\.\d+)?)")
"""R puts an X in front of names that begin with a number; tables of several sections have that of the section there."""
_TABLE = " as a table"

Place = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class SpotCounts:
    """Counts of a section."""

    path: Path
    """The file."""
    spots: list[str]
    """Names as in the file, unique."""
    genes: list[str]
    """Names, unique."""
    matrix: csr_matrix
    """(n_spots, n_genes)."""

    def places(self) -> list[Place | None]:
        """Array coordinates by which spots are named; None for a name that is none."""
        return [place_of(name) for name in self.spots]


def place_of(name: str) -> Place | None:
    """Array coordinates of a spot named ``"{x}x{y}"``, or with another mark between; with ``X`` or a section in front."""
    found = _NAME.fullmatch(name)
    return (round(float(found[1]), 6), round(float(found[2]), 6)) if found else None


def read_counts(path: Path, *, sum_duplicate_genes: bool = False) -> SpotCounts:
    """Read raw counts, spots in rows or, where only the columns are named like spots, in columns.

    Row by row rather than through pandas, which spends seconds on 15,000 columns and renames those that repeat.

    Parameters
    ----------
    path
        Text with tabs, semicolons or commas between; gzip by suffix.
    sum_duplicate_genes
        Whether the counts of columns that share a gene's name are summed rather than refused.

    Raises
    ------
    ValueError
        The file is damaged; an entry is no number; names repeat.
    """
    rows = rows_of(path, kind=_TABLE)
    header = next(rows, [])
    names, columns, data = [], [], []
    n_cells = 0
    for cells in rows:
        n_cells = n_cells or len(cells)
        if len(cells) != n_cells:
            msg = f"Row {cells[0]!r} of '{path}' has {len(cells)} cells, the first has {n_cells}; is the file complete?"
            raise ValueError(msg)
        values = _numbers(cells, path)
        names.append(cells[0])
        columns.append(np.flatnonzero(values))
        data.append(values[columns[-1]])
    # R's write.table leaves out the empty cell above the row names.
    others = header if len(header) == n_cells - 1 else header[1:]
    if n_cells < 2 or len(others) != n_cells - 1:
        msg = f"'{path}' has {len(header)} cells of gene names above rows of {n_cells} cells; is the file complete, with tabs, semicolons or commas between all cells?"
        raise ValueError(msg)
    starts = np.cumsum([0, *(len(row) for row in columns)])
    matrix = csr_matrix((np.concatenate(data), np.concatenate(columns), starts), shape=(len(names), len(others)))
    if all(map(place_of, others)) and not any(map(place_of, names)):
        names, others, matrix = others, names, matrix.T.tocsr()
    refuse_duplicates(names, f"spots of '{path}'")
    if sum_duplicate_genes:
        others, matrix = _summed(others, matrix, path)
    mend = "pass sum_duplicate_genes=True to add up their counts, or rename them"
    refuse_duplicates(others, f"gene names of '{path}'", mend=mend)
    return SpotCounts(path, names, others, matrix)


def _summed(genes: list[str], matrix: csr_matrix, path: Path) -> tuple[list[str], csr_matrix]:
    """One column per name, at its first place."""
    codes, unique = pd.factorize(np.array(genes, dtype=object))
    if len(unique) == len(genes):
        return genes, matrix
    logger.info("'%s': %d genes are sums of columns that share a name", path, (np.bincount(codes) > 1).sum())
    to_sum = csr_matrix((np.ones(len(codes), np.float32), (np.arange(len(codes)), codes)))
    return unique.tolist(), matrix @ to_sum


def _numbers(cells: list[str], path: Path) -> NDArray[np.float32]:
    try:
        return np.array(cells[1:], dtype=np.float32)
    except ValueError as error:
        msg = f"Spot {cells[0]!r} of '{path}' has an entry that is not a number ({error}); give raw counts."
        raise ValueError(msg) from error


def read_positions(path: Path, names: Sequence[str]) -> dict[Place, tuple[float, float]]:
    """Read where spots are on the image.

    Parameters
    ----------
    path
        Text as for counts, with columns ``x``, ``y``, ``pixel_x``, ``pixel_y`` and, optionally, ``new_x``, ``new_y`` and
        ``selected``.
    names
        Spots that have counts. Where more of them are named by ``new_x`` and ``new_y``, these are taken for ``x`` and ``y``.

    Returns
    -------
    Centre (x, y) in pixels per pair of array coordinates, of the selected spots.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        The file is damaged; an entry is no number; spots repeat; spots lie far off the grid of the others.
    """
    cells = read_cells(path, kind=_TABLE)
    table = cells.iloc[1:].set_axis(cells.iloc[0].str.strip().tolist(), axis=1)
    missing = [column for column in (*ARRAY_COLUMNS[0], *_PIXELS) if column not in table]
    if missing:
        msg = f"'{path}' has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}."
        raise KeyError(msg)
    if "selected" in table:
        table = table[_numbers_in(table, ["selected"], path)["selected"] != 0]
    pairs = [pair for pair in ARRAY_COLUMNS if {*pair} <= {*table.columns}]
    table = _numbers_in(table, [*(column for pair in pairs for column in pair), *_PIXELS], path)
    wanted = {place_of(name) for name in names}
    places = [_places(table, pair) for pair in pairs]
    chosen = max(places, key=lambda found: len(wanted.intersection(found)))
    whole = all(place is None or place[0] % 1 == place[1] % 1 == 0 for place in wanted)
    if chosen is places[0] and whole and any(x % 1 or y % 1 for x, y in chosen):
        msg = f"Columns x, y of '{path}' are not whole numbers; use the array coordinates that name the spots, such as {names[0]}."
        raise ValueError(msg)
    shown = [shown_place(place) for place in chosen]
    refuse_duplicates(shown, f"spots of '{path}'")
    centres = table[_PIXELS].to_numpy(dtype=np.float64)
    refuse_strays(np.array(chosen, dtype=np.float64).reshape(-1, 2), centres, shown, path=path)
    return dict(zip(chosen, map(tuple, centres.tolist()), strict=True))


def shown_place(place: Place) -> str:
    """As the name of a spot."""
    return f"{place[0]:g}x{place[1]:g}"


def _places(table: pd.DataFrame, pair: tuple[str, str]) -> list[Place]:
    return [(round(x, 6), round(y, 6)) for x, y in table[[*pair]].to_numpy(dtype=np.float64).tolist()]


def _numbers_in(table: pd.DataFrame, columns: Sequence[str], path: Path) -> pd.DataFrame:
    """Columns of text as numbers."""
    names = table["x"].str.cat(table["y"], sep="x").tolist()
    return pd.DataFrame({name: numbers_in(table[name], names, path) for name in columns}, index=table.index)


def place_on_frame(counts: SpotCounts, size_px: tuple[int, int], image: Path) -> tuple[FloatArray, FloatArray]:
    """Put spots by their names on an image that is cropped to the frame of the array.

    The frame passes through the outermost of 33 x 35 places, counted from 1, so that a pitch is a 32nd of the width and a 34th
    of the height: by this the ``pixel_x`` and ``pixel_y`` of ST Spot Detector follow from its ``new_x`` and ``new_y``.

    Parameters
    ----------
    counts
        The spots.
    size_px
        Width and height of the image.
    image
        Its file, for messages.

    Returns
    -------
    Centres (n_spots, 2) as x and y in pixels; and the pitch along x and y in pixels, (2,).

    Raises
    ------
    ValueError
        A spot is named otherwise, or lies beyond the frame; the image is not cropped to it.
    """
    mend = "give spots=, a tab-separated table with the columns x, y, pixel_x and pixel_y"
    places = counts.places()
    odd = next((name for name, place in zip(counts.spots, places, strict=True) if place is None), None)
    if odd is not None:
        msg = f"Spot {odd!r} of '{counts.path}' is not named by its array coordinates, as in '3.942x25.915'; {mend}."
        raise ValueError(msg)
    array = np.array(places, dtype=np.float64)
    pitch_px = np.array(size_px) / _FRAME_PITCHES
    beyond = np.flatnonzero(((array < 0.5) | (array > _FRAME_PITCHES + 1.5)).any(axis=1))
    if beyond.size:
        msg = f"Spot {counts.spots[beyond[0]]!r} of '{counts.path}' lies beyond an array of 33 x 35 spots; {mend}."
        raise ValueError(msg)
    if abs(pitch_px[0] / pitch_px[1] - 1) > FRAME_TOLERANCE:
        msg = (
            f"'{image}' of {size_px[0]} x {size_px[1]} px is not cropped to the frame of an array (32 by 34 pitches), so the names "
            f"of the spots do not tell where they are; {mend}."
        )
        raise ValueError(msg)
    return (array - 1) * pitch_px, pitch_px
