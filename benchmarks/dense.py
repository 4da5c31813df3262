"""What maps cost: passes of the encoder over a section, and `pp.embed` against the encoder alone on the same windows.

    python benchmarks/dense.py                            # passes, and both sides on a small section, three minutes
    python benchmarks/dense.py --her2st ../shared/data    # HER2ST with defaults too, one thread

Passes are tile-equivalents: pixels that go through the network in all orientations, by those of a tile of 224 px. Seconds are of
the processor, for machines are shared. Goals: at most 9,000 passes for 6.5 mm with 5,000 spots, 1.1 times that with 500,000
bins, 1.1 times the encoder's time, and 150 s for HER2ST.
"""

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dask.array
import numpy as np
import torch

from agl_sc import datasets, pp
from agl_sc.core.encoders import dense
from agl_sc.core.encoders import folded as folding
from agl_sc.core.encoders.encode import Recipe
from agl_sc.core.encoders.folded import folded
from agl_sc.core.encoders.load import OFFLINE, load_encoder
from agl_sc.core.encoders.maps import maps_of
from agl_sc.io._st import read_st_folder
from agl_sc.pp._features.context import WIDER
from agl_sc.pp._features.embed import FeatureRequest

MM, MPP, TILE_PX = 6.5, 0.5, 224
SECTIONS = ("B4", "C2", "C3", "C4", "C5", "C6")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--her2st", type=Path, help="the folder that holds her2st/")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    recipe = default_recipe()
    counted = {n: passes(recipe, n) for n in (5_000, 500_000)}
    for n, count in counted.items():
        print(f"{n:>9,} spots on {MM} mm: {count:,} passes by maps, {8 * n:,} by tiles")
    print(f"ratio of the two {counted[500_000] / counted[5_000]:.2f} (goal 1.1); goal for 5,000 spots 9,000")
    fused_and_not()
    against_the_encoder()
    if asked.her2st is not None:
        sdata = read_st_folder(asked.her2st / "her2st", sections=list(SECTIONS))
        start = time.process_time()
        pp.embed(sdata, device="cpu")
        print(f"HER2ST, {sdata['table'].n_obs:,} spots: {time.process_time() - start:.0f} s (goal 150)")


def fused_and_not() -> None:
    """Seconds of the network with fused convolutions, and with normalisation folded alone, on tiles and on a window."""
    networks = {"fused": default_recipe().mapped}
    with patch.object(folding, "can_fuse", return_value=False):
        networks["folded"] = default_recipe().mapped
    for n, side in ((8, TILE_PX), (1, 576)):
        tiles = torch.randn(n, 3, side, side).contiguous(memory_format=torch.channels_last)
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(5):
            for name, network in networks.items():
                start = time.process_time()
                with torch.inference_mode():
                    network.to(memory_format=torch.channels_last)(tiles)
                seconds[name].append(time.process_time() - start)
        fused, plain = (1000 * min(seconds[name]) / (n * side**2 / TILE_PX**2) for name in ("fused", "folded"))
        print(f"{n} x {side} px: {fused:.1f} ms a pass, unfused {plain:.1f} ms, ratio {plain / fused:.2f}")


def default_recipe() -> Recipe:
    network = load_encoder(OFFLINE, stages=True)
    network = replace(network, module=folded(network.module, network.input_px))
    views = FeatureRequest().views
    return Recipe(
        network,
        TILE_PX,
        views.orientations,
        device="cpu",
        maps=maps_of(network),
        tile_orientations=views.of_tiles,
        wider_halo_px=views.halo_px,
    )


def passes(recipe: Recipe, n_spots: int) -> int:
    """Of the default recipe on a square section with spots everywhere, their own tiles by maps where they overlap."""
    per_side = int(np.sqrt(n_spots))
    overlap = MM * 1000 / per_side < TILE_PX * MPP
    total = 0 if overlap else n_spots * (recipe.tile_orientations or recipe.orientations)
    for factor in (1, *WIDER) if overlap else WIDER:
        side = int(MM * 1000 / (MPP * factor))
        places = (np.arange(per_side) + 0.5) * side / per_side
        centres = np.stack(np.meshgrid(places, places), axis=2).reshape(-1, 2)
        image: Any = dask.array.zeros((3, side, side), dtype=np.uint8, chunks=1024)
        white = np.full(3, 255, dtype=np.uint8)
        total += recipe.n_passes(dense.Fields(image, centres, float(TILE_PX), 1.0, white, "", "", factor > 1))
    return total


def against_the_encoder() -> None:
    """Seconds of `pp.embed` of a section, all by maps, and of the network on the windows that it passed."""
    sdata = datasets.toy_tissue(n_sections=1, n_spots_per_side=24)
    seen: list[torch.Tensor] = []
    passed = dense.window_cells

    def noted(how: dense.Pass, windows: torch.Tensor) -> dense.Cells:
        seen.extend([windows] * len(how.ways))
        return passed(how, windows)

    dense.window_cells = noted
    start = time.process_time()
    pp.embed(sdata, tile_px=208, context=(2, 4), maps="all", device="cpu")
    whole = time.process_time() - start
    dense.window_cells = passed
    recipe = default_recipe()
    module = recipe.mapped.to(memory_format=torch.channels_last)
    start = time.process_time()
    with torch.inference_mode():
        for window in seen:
            module(recipe.encoder.scale(window).contiguous(memory_format=torch.channels_last))
    alone = time.process_time() - start
    told = f"{sdata['table'].n_obs} spots, {len(seen)} passes of a window"
    print(f"{told}: embed {whole:.1f} s, encoder alone {alone:.1f} s, ratio {whole / alone:.2f} (goal 1.1)")


if __name__ == "__main__":
    main()
