"""Slides as scanners write them, small."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

GLASS = 240


def painted(height: int = 240, width: int = 300, *, seed: int = 0) -> NDArray[np.uint8]:
    """Tissue (rows 60 to 180, columns 50 to 150) and fat right of it (to column 240) on glass, at 8 um per pixel."""
    rng = np.random.default_rng(seed)
    pixels = GLASS + rng.normal(0, 1.0, (height, width, 3))
    pixels[60:180, 50:150] = rng.normal((150, 90, 150), 25, (120, 100, 3))
    rows, columns = np.mgrid[60:180, 150:240]
    membrane = (rows % 8 < 2) | (columns % 8 < 2)  # of adipocytes of 64 um
    fat = pixels[60:180, 150:240]
    fat[membrane] = rng.normal((215, 170, 205), 6, (int(membrane.sum()), 3))
    return pixels.clip(0, 255).astype(np.uint8)


def write_svs(
    path: Path, pixels: NDArray[np.uint8], *, mpp: float = 0.25, magnification: float = 40, tile: int = 48
) -> Path:
    """A pyramid of three levels in the layout of Aperio."""
    height, width = pixels.shape[:2]
    description = f"Aperio Image Library v12.0.0\n{width}x{height} [0,0 {width}x{height}] |AppMag = {magnification:g}|MPP = {mpp:g}"
    options: dict[str, Any] = {
        "photometric": "rgb",
        "metadata": None,
        "compression": "jpeg",
        "compressionargs": {"level": 95},
    }
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(tile, tile), description=description, **options)
        file.write(pixels[::8, ::8], rowsperstrip=16, description="Aperio Image Library, thumbnail", **options)
        for step in (2, 4):
            file.write(pixels[::step, ::step], tile=(tile, tile), description="Aperio Image Library, level", **options)
    return path
