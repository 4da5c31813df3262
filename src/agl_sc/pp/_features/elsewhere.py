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
_BESIDE = 0.05
"""Distance between the centre of a tile and its spot, in sides of the tile."""


def features_of_file(study: "Study", path: Path, *, side_um: float) -> tuple[IntArray, Any]:
    """Row of every spot, -1 without one, and the features of all rows.

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
        held = [name for name in _FEATURES if name in file]
        named = [name for name in _BARCODES if name in file]
        if not held or not (named or "coords" in file):
            msg = (
                f"'{path}' holds {', '.join(file) or 'nothing'}; features need 'features' or 'embeddings', and 'coords' or 'barcodes' that "
                "tell whose they are."
            )
            raise KeyError(msg)
        values = np.asarray(file[held[0]])
        barcodes = [_text(each) for each in np.asarray(file[named[0]]).ravel()] if named else None
        corners = np.asarray(file["coords"], dtype=float) if "coords" in file else None
        side_px = _side_px(file)
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    rows = (
        _rows_of_barcodes(study, barcodes, path)
        if barcodes is not None
        else _rows_of_corners(study, corners, path, side_px=side_px, side_um=side_um)
    )
    if rows.max() >= len(values):
        msg = f"'{path}' has features of {len(values)} tiles and the places of more; is the file complete?"
        raise ValueError(msg)
    return rows, values


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
