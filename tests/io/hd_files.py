"""Folder of Visium HD, as Space Ranger 3 writes it, of a table and a picture of the caller's."""

import json
import shutil
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


def write_cells(folder: Path, counts: Any, *, symbols: list[str], kinds: list[str] | None = None) -> None:
    """Cells as Space Ranger 4 segments them, in the folder that holds nothing else."""
    shutil.copytree(folder.parent / "spatial", folder / "spatial")
    names = [f"cellid_{number + 1:09d}-1" for number in range(len(counts))]
    _write_counts(folder / "filtered_feature_cell_matrix.h5", counts, names, symbols=symbols, kinds=kinds)
    corners = [[40, 40], [60, 40], [60, 60], [40, 40]]
    features = [
        {
            "type": "Feature",
            "properties": {"cell_id": number + 1},
            "geometry": {"type": "Polygon", "coordinates": [corners]},
        }
        for number in range(len(counts))
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (folder / "cell_segmentations.geojson").write_text(text)


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
