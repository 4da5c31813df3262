"""A folder in the layout of HEST-1k, small."""

import json
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import tifffile
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

SLIDE_MPP = 1.75
"""Microns per pixel of the slides: a patch of 112 um is 64 pixels there and 32 in its file, of 3.5 um."""
SIDE_PX, SLIDE_SIDE_PX = 32, 64
GENES = [f"GENE{i}" for i in range(12)]


def centres(n_columns: int = 4, n_rows: int = 3) -> NDArray[np.float64]:
    """Hexagonal grid of 100 um, x and y in pixels of the slide, off whole pixels."""
    columns, rows = np.meshgrid(np.arange(n_columns), np.arange(n_rows))
    pitch = 100 / SLIDE_MPP
    x = (columns + 0.5 * (rows % 2)) * pitch + 60.3
    return np.stack([x.ravel(), (rows * pitch * np.sqrt(0.75) + 50.6).ravel()], axis=1)


def slide(seed: int, size: tuple[int, int] = (300, 400)) -> NDArray[np.uint8]:
    """Smooth colours, (y, x, 3)."""
    y, x = np.mgrid[: size[0], : size[1]]
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(x / 31 + phase) * np.cos(y / 23 - phase) for phase in phases]
    pixels: NDArray[np.uint8] = np.rint(127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)
    return pixels


def counts(n_spots: int, seed: int, genes: list[str] = GENES) -> csr_matrix:
    return csr_matrix(np.random.default_rng(seed).poisson(3, (n_spots, len(genes))).astype(np.float32))


def write_sample(  # noqa: PLR0917
    folder: Path,
    name: str = "TENX152",
    seed: int = 0,
    positions: NDArray[np.float64] | None = None,
    genes: list[str] = GENES,
    wsi: bool = False,
    **metadata: Any,
) -> Path:
    """Write a sample as HEST-1k has it: the last spot has no patch, patches are in another order than spots."""
    positions = centres() if positions is None else positions
    for kind in ("st", "metadata", "patches", "wsis"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    spots = [f"{'ACGT'[i % 4]}{i:03d}-1" for i in range(len(positions))]
    x, y = positions.max(axis=0).astype(int) + SLIDE_SIDE_PX
    pixels = slide(seed, (max(300, y), max(400, x)))
    table = AnnData(
        X=counts(len(spots), seed, genes),
        obs=pd.DataFrame({"in_tissue": 1, "pxl_col_in_fullres": positions[:, 0]}, index=spots),
        var=pd.DataFrame({"feature_types": "Gene Expression"}, index=genes),
        obsm={"spatial": positions},
        uns={"spatial": {"ST": {"images": {"downscaled_fullres": pixels[::8, ::8]}}}},
    )
    table.write_h5ad(folder / "st" / f"{name}.h5ad")
    said = {
        "id": name, "dataset_title": "A study", "species": "Homo sapiens", "organ": "Bowel", "patient": "Patient 1",
        "st_technology": "Visium", "inter_spot_dist": 100.0, "spot_diameter": 55.0, "nb_genes": len(genes),
        "pixel_size_um_embedded": SLIDE_MPP * 0.97, "pixel_size_um_estimated": SLIDE_MPP, "magnification": "10x",
    }  # fmt: skip
    (folder / "metadata" / f"{name}.json").write_text(json.dumps({**said, **metadata}))
    write_patches(
        folder / "patches" / f"{name}.h5", spots=spots[:-1][::-1], positions=positions[:-1][::-1], slide=pixels
    )
    if wsi:
        levels: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
        with tifffile.TiffWriter(folder / "wsis" / f"{name}.tif") as file:
            file.write(pixels, **levels)
            file.write(pixels[::2, ::2], subfiletype=1, **levels)
    return folder


def write_patches(path: Path, *, spots: list[str], positions: NDArray[np.float64], slide: NDArray[np.uint8]) -> None:
    corners = (positions - SLIDE_SIDE_PX // 2).astype(int)
    crops = [np.pad(slide, ((64, 64), (64, 64), (0, 0)))[y + 64 : y + 128, x + 64 : x + 128] for x, y in corners]
    half = np.stack([crop.reshape(SIDE_PX, 2, SIDE_PX, 2, 3).mean(axis=(1, 3)) for crop in crops])
    with h5py.File(path, "w") as file:
        file.create_dataset("img", data=np.rint(half).astype(np.uint8), chunks=(1, SIDE_PX, SIDE_PX, 3))
        file["coords"] = corners
        file["coords"].attrs["patch_size_src"] = SLIDE_SIDE_PX
        file["coords"].attrs["patch_size_target"] = SIDE_PX
        file["barcode"] = np.array(spots, dtype=object)[:, None].astype("S")


def write_encoder(path: Path) -> str:
    """Weights of a tiny network, drawn at random, and the name that ``encoder=`` takes."""
    import timm
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_resnet", pretrained=False)
    torch.save(module.state_dict(), path)
    return f"test_resnet@{path}"
