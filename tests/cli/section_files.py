"""Sections of the toy tissue as the files that people have."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse
import tifffile
import zarr
from anndata import AnnData
from numpy.typing import NDArray
from ome_zarr.writer import write_multiscale

if TYPE_CHECKING:
    from spatialdata import SpatialData


def pixels_of(sdata: "SpatialData", section: str) -> NDArray[np.uint8]:
    return np.asarray(sdata[f"{section}_image"]["scale0"].image).transpose(1, 2, 0)


def write_tiff(sdata: "SpatialData", section: str, path: Path) -> Path:
    """A slide of 1 um per pixel, which its tags state."""
    tifffile.imwrite(
        path, pixels_of(sdata, section), photometric="rgb", tile=(256, 256), resolution=(1e4, 1e4), resolutionunit=3
    )
    return path


def write_ome_zarr(sdata: "SpatialData", section: str, path: Path) -> Path:
    """The same as OME-Zarr, of which the axes state the unit."""
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx")]
    group = zarr.open_group(path, mode="w")
    scale: list[list[dict[str, Any]]] = [[{"type": "scale", "scale": [1, 1, 1]}]]
    pixels = pixels_of(sdata, section).transpose(2, 0, 1)
    write_multiscale([pixels], group, axes=axes, coordinate_transformations=scale)
    said: Any = group.attrs["ome"]
    said["multiscales"][0]["axes"] = axes  # with their units, which some versions drop
    group.attrs["ome"] = said
    return path


def spots_of(sdata: "SpatialData", section: str) -> AnnData:
    table = sdata["table"]
    return table[table.obs["section"] == section].copy()


def write_outs(sdata: "SpatialData", section: str, folder: Path) -> Path:
    """A folder of Space Ranger whose hires image is the full-resolution one."""
    spots = spots_of(sdata, section)
    counts, spatial = folder / "filtered_feature_bc_matrix", folder / "spatial"
    counts.mkdir(parents=True)
    spatial.mkdir()
    names = [f"BC{number}-1" for number in range(spots.n_obs)]
    scipy.io.mmwrite(counts / "matrix.mtx", scipy.sparse.coo_matrix(np.asarray(spots.X.toarray()).T.astype(int)))
    (counts / "barcodes.tsv").write_text("\n".join(names))
    genes = [f"ENSG{number}\t{gene}\tGene Expression" for number, gene in enumerate(spots.var_names)]
    (counts / "features.tsv").write_text("\n".join(genes))
    x, y = spots.obsm["spatial"].T
    rows = np.round((y - y.min()) / (100 * np.sqrt(0.75))).astype(int)
    columns = np.round((x - x.min()) / 50).astype(int)
    columns += (columns + rows)[0] % 2
    entries = {"barcode": names, "in_tissue": 1, "array_row": rows, "array_col": columns}
    entries |= {"pxl_row_in_fullres": y, "pxl_col_in_fullres": x}
    pd.DataFrame(entries).to_csv(spatial / "tissue_positions.csv", index=False)
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 55.0}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    from PIL import Image

    Image.fromarray(pixels_of(sdata, section)).save(spatial / "tissue_hires_image.png")
    return folder


def write_h5ad(sdata: "SpatialData", section: str, path: Path) -> Path:
    """In scanpy's layout."""
    spots = spots_of(sdata, section)
    scales = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 55.0}
    adata = AnnData(spots.X, obs=pd.DataFrame(index=spots.obs_names), var=spots.var[[]])
    adata.obsm["spatial"] = spots.obsm["spatial"]
    adata.uns["spatial"] = {section: {"images": {"hires": pixels_of(sdata, section)}, "scalefactors": scales}}
    adata.write_h5ad(path)
    return path
