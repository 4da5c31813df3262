"""Coarser levels of an image whose file has none: halved by whole numbers, against what spatialdata makes; the same pixels.

    python benchmarks/levels.py                               # an image of 9,000 x 9,000 px in memory
    python benchmarks/levels.py ../shared/data/her2st/C3.jpg

Seconds are of the processor, for machines are shared; a JPEG is decoded before.
"""

import sys
import time
from typing import Any

import dask.array
import numpy as np
from spatialdata.models import Image2DModel

from agl_sc.io._image import image_element, open_image

CHUNKS = (3, 512, 512)


def main() -> None:
    if len(sys.argv) > 1:
        image: Any = open_image(sys.argv[1])
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (3, 9_000, 9_000), dtype=np.uint8)
        image = dask.array.from_array(pixels, chunks=CHUNKS)  # type: ignore[no-untyped-call]
    image[:, :1, :1].compute()
    own = image_element(image, name="A")
    factors = [2] * (len(own.children) - 1)
    other = Image2DModel.parse(image, dims=("c", "y", "x"), scale_factors=factors, chunks=CHUNKS)
    for level in list(own.children)[1:]:
        (found, seconds), (expected, seconds_other) = computed(own, level), computed(other, level)
        same = "same pixels" if np.array_equal(found, expected) else "OTHER PIXELS"
        print(
            f"{level} {found.shape[1:]}: {seconds:.2f} s, spatialdata {seconds_other:.2f} s, ratio {seconds_other / seconds:.1f}, {same}"
        )


def computed(element: Any, level: str) -> tuple[Any, float]:
    start = time.process_time()
    pixels = element[level]["image"].data.compute(scheduler="synchronous")
    return pixels, time.process_time() - start


if __name__ == "__main__":
    main()
