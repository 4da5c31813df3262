"""Some tiles of every section as they look at their own scale and would at others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agl_sc._sdata.records import FeatureRecord
from agl_sc._sdata.study import Study
from agl_sc.core.arrays import Float32Array, FloatArray, IntArray
from agl_sc.core.encoders.encode import Recipe, precision_of
from agl_sc.core.encoders.folded import folded
from agl_sc.core.encoders.load import load_encoder
from agl_sc.core.encoders.maps import Centred, maps_of
from agl_sc.pp._features.cache import cache_folder
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.embed import FeatureRequest, encode
from agl_sc.pp._features.made_from import check_weights, made_by_embed, placed_again, tiles_digest
from agl_sc.pp._features.placed import Placed
from agl_sc.pp._features.reference import spread_over
from agl_sc.pp._features.tiles import TileSpec, boxes_of

_MOST, _FEWEST, _MOST_OF_SECTION = 120, 6, 48
_MOST_KEPT = 256
_kept: dict[str, Float32Array] = {}
"""Features by what they are made from, so that training again on the same tissue does not make them anew."""


@dataclass(frozen=True, slots=True, eq=False)
class OtherScales:
    """Tiles at their own scale and at others."""

    rows: IntArray
    """Row of the table of every tile, (n_tiles,)."""
    steps: FloatArray
    """Power of two of its scale at which it is seen, (n_tiles,)."""
    features: Float32Array
    """(n_tiles, n_features), of the tile itself without wider fields of view."""


def at_other_scales(study: Study, rows: IntArray, steps: Sequence[float], *, tiles: FeatureRequest) -> OtherScales:
    """Encode 6 to 48 tiles of every section, evenly spread, at each scale that its image allows; 120 in all where that lies between.

    Parameters
    ----------
    study
        With features and images.
    rows
        Of the table, from which tiles are taken.
    steps
        Powers of two of their scale: 0 as they are, 1 for twice the microns per pixel.
    tiles
        Where the encoder runs.

    Raises
    ------
    ValueError
        The encoder's weights are others than those of the features in place.
    OSError
        They are not to be had.
    ImportError
        The encoder needs a package that is not installed.
    """
    made_from = made_by_embed(study)
    placed, of_rows, of_steps = _placed_at(study, rows, steps, tile_px=made_from.tile_px)
    way = f"{made_from.weights_digest} {made_from.tile_px} {made_from.stages} {made_from.maps} {precision_of(tiles.device)}"
    names = [f"{way} {tiles_digest(boxes)}" for _, boxes in placed]
    missing = [index for index, name in enumerate(names) if name not in _kept]
    if missing:
        recipe = _recipe(made_from, tiles)
        if recipe.tile_px != made_from.tile_px:
            placed, _, _ = _placed_at(study, rows, steps, tile_px=recipe.tile_px)
        views = Views(stages=made_from.stages, maps="none" if recipe.maps is None else "all")
        found = _encoded(study, [placed[index] for index in missing], recipe=recipe, views=views)
        for index, features in zip(missing, found, strict=True):
            _kept[names[index]] = features
    features = np.concatenate([_kept[name] for name in names]) if names else np.empty((0, 0), dtype=np.float32)
    while len(_kept) > _MOST_KEPT:
        del _kept[next(iter(_kept))]
    return OtherScales(np.array(of_rows, dtype=np.int64), np.array(of_steps, dtype=float), features)


def _recipe(made_from: FeatureRecord, tiles: FeatureRequest) -> Recipe:
    """From tiles alone to features of the kind that a record describes.

    Tiles by maps of a local network are the middle of larger ones, one pass each: maps would go over all the tissue between them.
    """
    network = load_encoder(made_from.encoder, stages=made_from.stages)
    check_weights(made_from, network)
    network = replace(network, module=folded(network.module, network.input_px))
    maps = maps_of(network) if made_from.maps == "all" else None
    tile_px = made_from.tile_px
    if maps is not None and maps.local:
        centred = Centred(maps, tile_px)
        network = replace(network, module=centred, n_features=maps.n_features, digest=f"{network.digest} {tile_px}")
        maps, tile_px = None, centred.tile_px
    return Recipe(network, tile_px, 1, tiles.batch_size, tiles.device, maps=maps)


def _placed_at(
    study: Study, rows: IntArray, steps: Sequence[float], *, tile_px: int
) -> tuple[Placed, list[int], list[float]]:
    """Sections of some of their spots at every scale, with the boxes of their tiles; row and step of every tile."""
    own = placed_again(study, quietly=True)
    n_each = min(_MOST_OF_SECTION, max(_FEWEST, _MOST // max(len(own), 1)))
    placed, of_rows, of_steps = [], [], []
    for section, boxes in own:
        usable = np.flatnonzero(np.isin(section.rows, rows))
        picked = usable[spread_over(section.centres[usable], n_each)]
        some = replace(section, rows=np.arange(len(picked)), centres=section.centres[picked], array=None)
        for step in steps if len(picked) else ():
            spec = TileSpec(tile_px, boxes.mpp * 2.0**step)
            try:
                seen = boxes_of(some, spec, section.mpp(section.image_mpp), may_exceed=True)
            except ValueError:  # the image is too coarse, or made of patches
                continue
            placed.append((some, seen))
            of_rows += section.rows[picked].tolist()
            of_steps += [step] * len(picked)
    return placed, of_rows, of_steps


def _encoded(study: Study, placed: Placed, *, recipe: Recipe, views: Views) -> list[Float32Array]:
    """Features of the tiles of every part, lying as they do."""
    ends = np.cumsum([len(section.rows) for section, _ in placed])
    numbered = [
        (replace(section, rows=section.rows + end - len(section.rows)), boxes)
        for (section, boxes), end in zip(placed, ends.tolist(), strict=True)
    ]
    features = encode(recipe, numbered, n_obs=int(ends[-1]), views=views, folder=cache_folder(study.sdata))
    return np.split(features, ends[:-1])
