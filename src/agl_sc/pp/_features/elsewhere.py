"""HDF5 files of features, as TRIDENT and HEST write them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from scipy.spatial import cKDTree

from agl_sc.core.arrays import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from agl_sc._sdata.study import Study

_FEATURES = ("features", "embeddings")
_BARCODES = ("barcodes", "barcode")
_SIDES = ("patch_size_level0", "patch_size_src")
"""Attributes that hold the side of a tile in pixels of the finest level."""
_ROWS = 4096
"""Rows that are read at once."""
_BESIDE = 0.05
"""Distance between the centre of a tile and its spot, in sides of the tile."""


def features_of_file(study: "Study", path: Path, *, side_um: float) -> tuple[IntArray, Any]:
    """Row of every spot, -1 without one, and the features of those rows that spots have.

    Parameters
    ----------
    study
        Holds the spots.
    path
        The file.
    side_um
        Side of a tile in microns.

    Raises
    ------
    KeyError
        The file holds no features, or neither barcodes nor coordinates.
    ValueError
        The file is none of HDF5; it belongs to other spots.
    """
    try:
        file = h5py.File(path)
    except OSError as error:
        msg = f"'{path}' is no HDF5 file ({error}); is the file complete?"
        raise ValueError(msg) from error
    with file:
        _refuse_links(file, path)
        held = [name for name in _FEATURES if name in file]
        named = [name for name in _BARCODES if name in file]
        if not held or not (named or "coords" in file):
            msg = (
                f"'{path}' holds {', '.join(file) or 'nothing'}; features need 'features' or 'embeddings', and 'coords' or 'barcodes' that "
                "tell whose they are."
            )
            raise KeyError(msg)
        barcodes = [_text(each) for each in np.asarray(file[named[0]]).ravel()] if named else None
        corners = np.asarray(file["coords"], dtype=float) if "coords" in file else None
        side_px = _side_px(file)
        rows = (
            _rows_of_barcodes(study, barcodes, path)
            if barcodes is not None
            else _rows_of_corners(study, corners, path, side_px=side_px, side_um=side_um)
        )
        return _read_rows(file[held[0]], rows, path)


def _read_rows(matrix: Any, rows: IntArray, path: Path) -> tuple[IntArray, Any]:
    """The rows that spots have, block by block, and which of these every spot has, -1 without one."""
    shape: tuple[int, ...] = getattr(matrix, "shape", ())
    is_stacked = len(shape) == 3 and shape[0] == 1
    if len(shape) != 2 and not is_stacked:
        msg = f"The features of '{path}' have shape {shape}; they must be a matrix, (n_tiles, n_features)."
        raise ValueError(msg)
    n_rows = shape[-2]
    if rows.max() >= n_rows:
        msg = f"'{path}' has features of {n_rows} tiles and the places of more; is the file complete?"
        raise ValueError(msg)
    needed = np.unique(rows[rows >= 0])
    blocks = []
    for start in range(0, n_rows, _ROWS):
        wanted = needed[(needed >= start) & (needed < start + _ROWS)]
        if len(wanted):
            part = slice(start, start + _ROWS)
            blocks.append(np.asarray(matrix[0, part] if is_stacked else matrix[part])[wanted - start])
    found = np.where(rows >= 0, np.searchsorted(needed, rows), -1)
    return found, np.concatenate(blocks) if blocks else np.empty((0, shape[-1]))


def _refuse_links(file: Any, path: Path) -> None:
    """Refuse entries that lie in other files, which a file from elsewhere could make of any file here."""
    for name in (*_FEATURES, *_BARCODES, "coords"):
        link = file.get(name, getlink=True)
        is_elsewhere = isinstance(link, h5py.ExternalLink)
        if not is_elsewhere and name in file:
            is_elsewhere = bool(getattr(file[name], "external", None) or getattr(file[name], "is_virtual", False))
        if is_elsewhere:
            msg = f"{name!r} of '{path}' lies in another file, which is not opened; copy it into '{path.name}' itself."
            raise ValueError(msg)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _side_px(file: Any) -> float | None:
    for holder in (file.get("coords"), file):
        for name in _SIDES:
            if holder is not None and name in holder.attrs:
                return float(np.asarray(holder.attrs[name]).ravel()[0])
    return None


def _rows_of_barcodes(study: "Study", barcodes: list[str], path: Path) -> IntArray:
    table = study.table
    index = {barcode: row for row, barcode in enumerate(barcodes)}
    instances = table.obs[table.uns["spatialdata_attrs"]["instance_key"]].astype(str)
    rows = np.array([index.get(name, index.get(own, -1)) for name, own in zip(instances, table.obs_names, strict=True)])
    if not (rows >= 0).any():
        msg = f"No barcode of '{path}' ({', '.join(barcodes[:3])}) names a spot ({', '.join(instances[:3])}); take the file of the same sample."
        raise ValueError(msg)
    return rows


def _rows_of_corners(
    study: "Study", corners: FloatArray | None, path: Path, *, side_px: float | None, side_um: float
) -> IntArray:
    """By where the tiles lie: the spots are their centres."""
    sections = study.positioned
    if corners is None or corners.ndim != 2 or corners.shape[1] != 2 or len(sections) != 1:
        msg = f"'{path}' holds places of the tiles of one slide; pass shapes_key= with the region of that slide alone."
        raise ValueError(msg)
    (section,) = sections
    side = side_um / section.mpp() if side_px is None else side_px
    known: BoolArray = np.asarray(np.isfinite(section.centres).all(axis=1))
    distances, nearest = cKDTree(corners + side / 2).query(np.where(known[:, None], section.centres, -1e9))
    rows = np.full(study.table.n_obs, -1)
    hit = known & (distances <= _BESIDE * side)
    rows[section.rows[hit]] = nearest[hit]
    if hit.sum() < 0.5 * known.sum():
        msg = (
            f"{int(hit.sum())} of {int(known.sum())} spots lie where '{path}' has a tile of {side:.4g} px; its places are corners of tiles in pixels of "
            "the finest level, so take the file of the same slide, or the tiles themselves as spots."
        )
        raise ValueError(msg)
    return rows
