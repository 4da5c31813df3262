"""Folder of Visium HD, as Space Ranger 3 writes it, of a table and a picture of the caller's."""

import json
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import scipy.sparse
from PIL import Image

PX = 20
"""Side of a bin of 8 um in pixels."""


def write_hd(folder: Path, pixels: Any, counts: Any, *, symbols: list[str], kinds: list[str] | None = None) -> Path:
    """Bins of 8 um in rows of equal length, and the image beside the folder, whose path is returned."""
    side = int(np.sqrt(counts.shape[0]))
    (folder / "spatial").mkdir(parents=True)
    layout = json.dumps({"file_format": "1.0", "transform": np.eye(3).ravel().tolist()})
    with h5py.File(folder / "feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": layout, "transform_matrices": {}})
    factors = {
        "tissue_hires_scalef": 0.5,
        "tissue_lowres_scalef": 0.25,
        "spot_diameter_fullres": float(PX),
        "bin_size_um": 8.0,
    }
    factors["microns_per_pixel"] = 8 / PX
    bins = folder / "binned_outputs/square_008um"
    (bins / "spatial").mkdir(parents=True)
    image = Image.fromarray(pixels)
    for place in (folder, bins):
        (place / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
        for name, by in (("hires", 2), ("lowres", 4)):
            image.reduce(by).save(place / f"spatial/tissue_{name}_image.png")
    rows, columns = np.divmod(np.arange(side**2), side)
    names = [f"s_008um_{row:05d}_{column:05d}-1" for row, column in zip(rows, columns, strict=True)]
    positions = {"barcode": names, "in_tissue": 1, "array_row": rows, "array_col": columns}
    places = {"pxl_row_in_fullres": PX * (rows + 1.5), "pxl_col_in_fullres": PX * (columns + 1.5)}
    pd.DataFrame({**positions, **places}).to_parquet(bins / "spatial/tissue_positions.parquet", index=False)
    _write_counts(bins / "filtered_feature_bc_matrix.h5", counts, names, symbols=symbols, kinds=kinds)
    image.save(folder.parent / "full.tif")
    return folder.parent / "full.tif"


def _write_counts(path: Path, counts: Any, names: list[str], *, symbols: list[str], kinds: list[str] | None) -> None:
    matrix = scipy.sparse.csc_matrix(counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = matrix.data.astype("i4"), matrix.indices, matrix.indptr
        group["shape"], group["barcodes"] = np.array(matrix.shape, "i4"), np.array(names, "S")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(symbols))], "S")
        features["name"], features["genome"] = np.array(symbols, "S"), np.array(["GRCh38"] * len(symbols), "S")
        features["feature_type"] = np.array(kinds or ["Gene Expression"] * len(symbols), "S")
        features["_all_tag_keys"] = np.array(["genome"], "S")
