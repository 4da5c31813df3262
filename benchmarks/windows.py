"""Other fields of view over the same maps, and fewer passes: ridge on the folds of `real.py`, side by side.

    python -m benchmarks.windows ../shared/data sections      # HER2ST, sections and patients, an hour on one core
    python -m benchmarks.windows ../shared/data mousebrain    # Visium mouse brain A1 from B1 and back, ten minutes
    python -m benchmarks.windows ../shared/data mousebrain --recipes "tiles by maps" --moved 61

Windows are boxes, and rings that are boxes without their inner half, over maps at 1, 2, 4, 8 and 16 times the tile's scale. By default
tiles are by maps where they overlap, as on the mouse brain, and else laid once. Features by maps know a little of where in a window
of the encoder a place lies, and sections that lie alike have these windows at the same places: `--moved` moves those of the last section.
"""

import argparse
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import dask.array
import numpy as np
import torch
from benchmarks.real import DESIGNS, TILES, sections_of

import agl_sc
from agl_sc._sdata.records import remember
from agl_sc._sdata.reference import ReferenceRecord
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arrays import Float32Array, IntArray
from agl_sc.core.encoders import dense
from agl_sc.core.encoders.dense import Cells, Fields, Grid, Pass
from agl_sc.core.encoders.encode import Recipe, encoded_blocks
from agl_sc.core.encoders.folded import folded
from agl_sc.core.encoders.load import OFFLINE, load_encoder
from agl_sc.core.encoders.maps import maps_of
from agl_sc.pp._features.by_maps import fields_of
from agl_sc.pp._features.made_from import made_by_embed, placed_again
from agl_sc.pp._features.reference import reference_spots
from agl_sc.pp._features.tiles import TileSpec

Window = tuple[int, float, float, int]
"""Scale of the maps, outer and inner side in sides of the tile (0 of a box), and halo."""
Bank = Mapping[Window | str, Float32Array]


def fields(halo_px: int) -> list[Window]:
    return [(scale, scale, 0, halo_px) for scale in (2, 4, 8)]


def more(halo_px: int) -> dict[str, list[Window]]:
    return {
        "the spot itself": [(2, 0.5, 0, halo_px)],
        "rings": [(scale, scale, scale / 2, halo_px) for scale in (2, 4, 8)],
        "16 sides, maps of its own": [(16, 16, 0, halo_px)],
        "16 sides, maps of 8": [(8, 16, 0, halo_px)],
    }


RECIPES: dict[str, list[Window | str]] = {
    "halo of 32 px, tiles laid twice": ["two", *fields(32)],
    "halo of 32 px, tiles laid once": ["one", *fields(32)],
    "halo of 32 px, tiles by maps": [(1, 1, 0, 32), *fields(32)],
    "tiles laid twice": ["two", *fields(64)],
    "tiles laid once": ["one", *fields(64)],
    "tiles by maps": [(1, 1, 0, 32), *fields(64)],
    **{f"tiles laid once, with {name}": ["one", *fields(64), *windows] for name, windows in more(64).items()},
    **{f"tiles by maps, with {name}": [(1, 1, 0, 32), *fields(64), *windows] for name, windows in more(64).items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("design", choices=["sections", "mousebrain"])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--moved", type=int, default=0, help="windows of the last section, in their pixels")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    sdata = sections_of(asked.data, asked.design)
    tiles = TILES.get(asked.design, {})
    wanted = [RECIPES[name] for name in asked.recipes]
    bank: dict[Window | str, Float32Array] = {}
    wants_two = any("two" in recipe for recipe in wanted)
    for name, orientations in (("two", 2), ("one", 1)):  # the record of the last is that of all recipes
        if name == "two" and not wants_two:
            continue
        agl_sc.pp.embed(sdata, context=(), maps="none", orientations=orientations, device="cpu", **tiles)
        bank[name] = np.asarray(sdata["table"].obsm["agl_features"]).copy()
    study = Study.of(sdata, Address(), "agl")
    windows = {part for recipe in wanted for part in recipe if not isinstance(part, str)}
    bank |= windows_of(study, windows, moved_px=asked.moved)
    designs = ["sections", "patients"] if asked.design == "sections" else ["mousebrain"]
    print(f"| {asked.design} | design | fold | ridge | weighted |\n|---|---|---|---|---|")
    for name in asked.recipes:
        for design in designs:
            for fold, (plain, weighted) in scores(study, bank, RECIPES[name], design=design).items():
                print(f"| {name} | {design} | {fold} | {plain:.4f} | {weighted:.4f} |", flush=True)


def scores(study: Study, bank: Bank, recipe: Sequence[Window | str], *, design: str) -> dict[str, tuple[float, float]]:
    """Mean test Pearson of the targets in every fold, and the mean over folds."""
    table = study.table
    features = np.hstack([bank[part] for part in recipe])
    table.obsm[study.keys.features] = features
    rows = {section.name: reference_spots(study, section)[0] for section in study.imaged}
    means = {name: features[own].mean(axis=0, dtype=float) for name, own in rows.items()}
    remember(table, study.keys, ReferenceRecord(means, {name: len(own) for name, own in rows.items()}))
    found = agl_sc.tl.benchmark(
        study.sdata,
        methods=["ridge", "weighted_ridge"],
        seeds=1,
        score="random",
        metrics=["pearson"],
        **DESIGNS[design],
    ).results
    by_section = found[found["metric"] == "pearson"].groupby(["fold", "method", "section"])["value"].mean()
    by_fold = by_section.groupby(["fold", "method"]).mean().unstack()[["ridge", "weighted_ridge"]]
    by_fold.loc["mean"] = by_fold.mean()
    return {str(fold): (float(plain), float(weighted)) for fold, plain, weighted in by_fold.itertuples()}


def windows_of(study: Study, wanted: Iterable[Window], *, moved_px: int) -> dict[Window | str, Float32Array]:
    """Features (n_obs, n_features) of every window of every spot; the maps of a scale and a halo are made once."""
    bank: dict[Window | str, Float32Array] = {}
    windows = sorted(set(wanted))
    for scale, halo_px in sorted({(window[0], window[3]) for window in windows}):
        own = [window for window in windows if (window[0], window[3]) == (scale, halo_px)]
        network = load_encoder(OFFLINE, stages=True)
        network = replace(network, module=folded(network.module, network.input_px))
        maps = maps_of(network)
        recipe = Recipe(
            network,
            made_by_embed(study).tile_px,
            2,
            device="cpu",
            maps=maps,
            tile_orientations=1,
            wider_halo_px=halo_px,
        )
        features = of_windows(recipe, study, own, moved_px=moved_px)
        bank |= dict(zip(own, np.split(features, len(own), axis=1), strict=True))
    return bank


def of_windows(recipe: Recipe, study: Study, windows: Sequence[Window], *, moved_px: int) -> Float32Array:
    """Features of some windows over the same maps, side by side."""
    width = recipe.mapped.n_features * len(windows)
    features = np.full((study.table.n_obs, width), np.nan, dtype=np.float32)
    scale, widest = windows[0][0], max(window[1] for window in windows)
    placed = placed_again(study, quietly=True)
    for section, boxes in placed:
        spec = TileSpec(recipe.tile_px, scale * boxes.mpp)
        seen = fields_of(section, spec, recipe.encoder, wider=scale > 1)
        tile = seen.side / scale
        seen = replace(seen, side=tile * widest)
        sides = [(tile * outer, tile * inner) for _, outer, inner, _ in windows]
        seen = moved(seen, moved_px) if section is placed[-1][0] else seen
        rows = recipe.rows(seen)
        with patch.object(dense, "_features", partial(side_by_side, sides=sides)):
            for block, values in encoded_blocks(recipe, seen, range(len(rows))):
                features[section.rows[rows[block]]] = values
    return features


def moved(seen: Fields, by_px: int) -> Fields:
    """The same fields of view in an image with more background before it, so that other windows of the encoder see them."""
    more_px = round(by_px * seen.ratio)
    more = ((0, 0), (more_px, 0), (more_px, 0))
    image = dask.array.pad(seen.image, more, mode="constant", constant_values=int(seen.background.min()))
    return replace(seen, image=image, centres=seen.centres + more_px)


def side_by_side(
    how: Pass,
    grid: Grid,
    seen: Fields,
    *,
    rows: IntArray,
    cells: dict[tuple[int, ...], Cells],
    sides: Sequence[tuple[float, float]],
) -> Float32Array:
    """Features of windows of some outer and inner sides, from the cells of the widest."""
    found = []
    with torch.inference_mode():
        for outer, inner in sides:
            sums, area = dense.field_sums(how, grid, replace(seen, side=outer), rows=rows, cells=cells)
            if inner:
                less, hole = dense.field_sums(how, grid, replace(seen, side=inner), rows=rows, cells=cells)
                sums, area = [one - other for one, other in zip(sums, less, strict=True)], area - hole
            found.append(how.maps.features([each / area for each in sums]))
    features: Float32Array = torch.cat(found, dim=1).numpy()
    return features


if __name__ == "__main__":
    main()
