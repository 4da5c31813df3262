"""A bare slide to a map, end to end, against the passes of the encoder alone, in one run.

python benchmarks/slide.py [--side 4000] [--encoder efficientnet_lite0]

The slide is a pyramidal TIFF of ``--side`` px at .5 um, about half of it tissue (copies of a synthetic section). End to end is
``read_slide``, ``predict`` and ``to_anndata`` with a model of the default features; the passes are those that were made on the
way, of the same networks over batches of windows of the same shapes, and nothing else. Seconds of all processors
tell the work on a machine that does other things besides.
"""

import argparse
import logging
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from agl_sc import Model, datasets, io, pp, tl

BATCH = 32


def painted(side: int) -> NDArray[np.uint8]:
    """Glass with tissue in the middle."""
    section = datasets.toy_tissue(n_sections=1, n_spots_per_side=12)["section_1_image"]["scale0"].image
    pixels = np.asarray(section).transpose(1, 2, 0)
    tissue = pixels[300:-300, 300:-300]
    inner = int(side * 0.7)
    tiled = np.tile(tissue, (inner // tissue.shape[0] + 1, inner // tissue.shape[1] + 1, 1))[:inner, :inner]
    slide = np.random.default_rng(0).integers(238, 243, (side, side, 3), dtype=np.uint8)
    low = (side - inner) // 2
    slide[low : low + inner, low : low + inner] = tiled
    return slide


def write(path: Path, pixels: NDArray[np.uint8]) -> None:
    """In tiles, with coarser levels, the scale in its tags."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        options = {"photometric": "rgb", "tile": (256, 256), "compression": "jpeg"}
        file.write(pixels, subifds=2, resolution=(2e4, 2e4), resolutionunit=3, **options)  # type: ignore[arg-type]
        for step in (4, 16):
            file.write(pixels[::step, ::step], subfiletype=1, **options)  # type: ignore[arg-type]


def trained(encoder: str) -> Model:
    """A model of the default features, of a small section."""
    sdata = datasets.toy_tissue(n_sections=2, n_spots_per_side=8)
    pp.embed(sdata, encoder=encoder, mpp=1.0, tile_px=112)
    pp.split(sdata, by="section", test=0, validation="section_2")
    return tl.train(sdata, config=tl.TrainConfig(batch_size=16, max_epochs=1))


class Seen:
    """Keeps how often, and of what shape, images go through networks while it is entered."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[int, torch.Size]] = Counter()
        self.samples: dict[tuple[int, torch.Size], tuple[torch.nn.Module, torch.Tensor]] = {}
        self._depth = 0

    @property
    def n_px(self) -> int:
        """Pixels that went through networks."""
        return sum(n * shape[0] * shape[2] * shape[3] for (_, shape), n in self.calls.items())

    def __enter__(self) -> "Seen":
        hooks = torch.nn.modules.module
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        if not self._depth and inputs and _is_image(inputs[0]) and not isinstance(module, torch.nn.Conv2d):
            key = (id(module), inputs[0].shape)
            self.calls[key] += 1
            if key not in self.samples:
                self.samples[key] = (module, inputs[0].clone())
        self._depth += 1

    def _leave(self, *_: object) -> None:
        self._depth -= 1

    def again(self) -> tuple[float, float]:
        """Seconds, and seconds of all processors, of as many passes of the same networks over images of the same shapes."""
        with torch.inference_mode():
            for module, images in self.samples.values():
                module(images)
            start = now()
            for key, (module, images) in self.samples.items():
                for _ in range(self.calls[key]):
                    module(images)
            return since(start)


def _is_image(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 4 and value.shape[1] == 3


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    wall, processors = now()
    return wall - start[0], processors - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=4000)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = trained(options.encoder)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write(path, painted(options.side))
        start = now()
        with Seen() as seen:
            sdata = io.read_slide(path)
            read = since(start)
            start_of_predict = now()
            tl.predict(sdata, model, batch_size=BATCH)
            predicted = since(start_of_predict)
            tl.to_anndata(sdata).write_h5ad(Path(folder) / "map.h5ad")
        whole = since(start)
    alone = seen.again()
    print(
        f"{options.side} x {options.side} px, {sdata['table'].n_obs:,} spots, {seen.n_px / 1e6:,.0f} million px encoded"
    )
    print("                          wall    processors")
    print(f"to the map         {whole[0]:8.1f} s    {whole[1]:8.1f} s")
    print(f"  reading, tissue  {read[0]:8.1f} s    {read[1]:8.1f} s")
    print(f"  predicting       {predicted[0]:8.1f} s    {predicted[1]:8.1f} s")
    print(f"encoder            {alone[0]:8.1f} s    {alone[1]:8.1f} s")
    print(f"ratio              {whole[0] / alone[0]:8.2f}      {whole[1] / alone[1]:8.2f}")


if __name__ == "__main__":
    main()
