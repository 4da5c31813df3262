"""A bare slide to a map, end to end, against the passes of the encoder alone, in one run.

python benchmarks/slide.py [--side 4000] [--encoder efficientnet_lite0]

The slide is a pyramidal TIFF of ``--side`` px at .5 um, about half of it tissue (copies of a synthetic section). End to end is
``read_slide``, ``predict`` and ``to_anndata`` with a model of the default features; the passes are as many batches of random
tiles through the same network as hold the pixels that went through it on the way, and nothing else. Seconds of all processors
tell the work on a machine that does other things besides.
"""

import argparse
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from agl_sc import Model, datasets, io, pp, tl
from agl_sc._sdata.records import FeatureRecord
from agl_sc.core.encoders.folded import folded
from agl_sc.core.encoders.load import load_encoder
from agl_sc.pp._features.context import Views

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
    """Counts the pixels that go through networks while it is entered."""

    def __init__(self) -> None:
        self.n_px = 0
        self._depth = 0

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

    def _enter(self, _: torch.nn.Module, inputs: Any) -> None:
        if not self._depth and inputs and getattr(inputs[0], "ndim", 0) == 4:
            self.n_px += inputs[0].shape[0] * inputs[0].shape[2] * inputs[0].shape[3]
        self._depth += 1

    def _leave(self, *_: object) -> None:
        self._depth -= 1


def passes(model: Model, n_px: int) -> tuple[float, float]:
    """Seconds, and seconds of all processors, of the encoder's own passes over so many pixels."""
    made_from = FeatureRecord.read(model.card["features"])
    encoder = load_encoder(made_from.encoder, stages=Views.of(made_from).stages)
    encoder = replace(encoder, module=folded(encoder.module, encoder.input_px).to(memory_format=torch.channels_last))
    tiles = torch.randint(0, 256, (BATCH, 3, made_from.tile_px, made_from.tile_px), dtype=torch.uint8)
    with torch.inference_mode():
        encoder(tiles)
        start = now()
        for _ in range(max(1, round(n_px / (BATCH * made_from.tile_px**2)))):
            encoder(tiles)
        return since(start)


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
            tl.predict(sdata, model, batch_size=BATCH)
            tl.to_anndata(sdata).write_h5ad(Path(folder) / "map.h5ad")
        whole = since(start)
    alone = passes(model, seen.n_px)
    print(
        f"{options.side} x {options.side} px, {sdata['table'].n_obs:,} spots, {seen.n_px / 1e6:,.0f} million px encoded"
    )
    print("                          wall    processors")
    print(f"to the map         {whole[0]:8.1f} s    {whole[1]:8.1f} s")
    print(f"  reading, tissue  {read[0]:8.1f} s    {read[1]:8.1f} s")
    print(f"encoder            {alone[0]:8.1f} s    {alone[1]:8.1f} s")
    print(f"ratio              {whole[0] / alone[0]:8.2f}      {whole[1] / alone[1]:8.2f}")


if __name__ == "__main__":
    main()
