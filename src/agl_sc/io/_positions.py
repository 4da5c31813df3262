"""Positions of the spots of 10x Visium, as Space Ranger 1 to 4 write them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from agl_sc.core.arrays import BoolArray, FloatArray
from agl_sc.io._cells import numbers_in, read_cells
from agl_sc.io._layout import refuse_duplicates
from agl_sc.io._readable import readable

_BARCODE = "barcode"
_NUMBERS = ("in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_STRAY_PITCHES = 3.0
"""How far a spot may lie from the grid that all of them describe; a section that is warped to another image stays below."""


def read_positions(path: Path) -> pd.DataFrame:
    """Read the positions of all spots of an array.

    Parameters
    ----------
    path
        CSV file, with a header (columns in any order) or without one (columns in Space Ranger's order), or Parquet file. Where
        semicolons or tabs part the columns, as spreadsheets write them, commas are decimal points.

    Returns
    -------
    Table with a row per spot, named by its barcode, and the columns ``in_tissue`` (0 or 1), ``array_row``, ``array_col``,
    ``pxl_row_in_fullres`` and ``pxl_col_in_fullres``, as numbers.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        The file is damaged; barcodes repeat; an entry is no number; spots lie far off the grid of the others.
    """
    table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    missing = [column for column in (_BARCODE, *_NUMBERS) if column not in table]
    if missing:
        msg = f"'{path}' has no column {', '.join(missing)} (it has {', '.join(map(str, table.columns))}); give the file that Space Ranger wrote."
        raise KeyError(msg)
    if table.empty:
        msg = f"'{path}' has a header and no spots; is the file complete?"
        raise ValueError(msg)
    barcodes = table[_BARCODE].astype(str).tolist()
    refuse_duplicates(barcodes, f"barcodes of '{path}'")
    numbers = pd.DataFrame({column: numbers_in(table[column], barcodes, path) for column in _NUMBERS})
    if not numbers["in_tissue"].isin([0, 1]).all():
        odd = numbers.loc[~numbers["in_tissue"].isin([0, 1]), "in_tissue"].iloc[0]
        msg = f"Column in_tissue of '{path}' has the entry {odd:g}; it must be 1 in tissue and 0 outside."
        raise ValueError(msg)
    array = numbers[["array_row", "array_col"]].to_numpy()
    centres = numbers[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    refuse_strays(array, centres, barcodes, path=path, pitch=2)  # neighbours in a row are two columns apart
    return numbers.set_axis(barcodes, axis=0)


def _read_parquet(path: Path) -> pd.DataFrame:
    with readable(path, kind=" as a Parquet table"):
        table = pd.read_parquet(path)
    return table if _BARCODE in table or table.index.name != _BARCODE else table.reset_index()


def _read_csv(path: Path) -> pd.DataFrame:
    cells = read_cells(path, kind=" as comma-separated positions")
    first = cells.iloc[0].astype(str).str.strip().tolist()
    if {*first} & {*_NUMBERS}:
        if _BARCODE not in first and first[0] not in _NUMBERS:  # pandas and R leave out or change the name of row names
            first[0] = _BARCODE
        return cells.iloc[1:].set_axis(first, axis=1)
    if cells.shape[1] != 1 + len(_NUMBERS):
        msg = (
            f"'{path}' has {cells.shape[1]} columns and no header that names {_NUMBERS[0]}; give the comma-separated file that "
            f"Space Ranger wrote, with the columns {', '.join((_BARCODE, *_NUMBERS))}."
        )
        raise ValueError(msg)
    return cells.set_axis([_BARCODE, *_NUMBERS], axis=1)


def refuse_strays(
    array: FloatArray, centres: FloatArray, names: Sequence[str], *, path: Path, pitch: float = 1.0
) -> None:
    """Refuse spots far from where the grid has them: a digit that was lost, or a row of another array.

    Parameters
    ----------
    array
        Array coordinates, (n_spots, 2).
    centres
        In pixels, (n_spots, 2).
    names
        Of the spots.
    path
        File they are from.
    pitch
        Steps of the second array coordinate between neighbours.
    """
    design = np.column_stack([np.ones(len(array)), array])
    kept: BoolArray = np.ones(len(array), dtype=bool)
    for _ in range(3):  # without what the fit before found farthest off
        grid, _, rank, _ = np.linalg.lstsq(design[kept], centres[kept], rcond=None)
        if rank < 3:
            return
        off = np.linalg.norm(centres - design @ grid, axis=1)
        kept = off <= max(np.quantile(off, 0.9), 1e-6)
    pitch_px = pitch * np.linalg.norm(grid[2])
    strays = np.flatnonzero(off > _STRAY_PITCHES * pitch_px)
    if strays.size:
        worst = int(off.argmax())
        msg = (
            f"{strays.size} of {len(array)} spots of '{path}' lie far from where their array coordinates put them (the worst is "
            f"{names[worst]!r}, {off[worst]:.0f} px away, at a pitch of {pitch_px:.0f} px); is the file complete and unedited?"
        )
        raise ValueError(msg)
