"""What the features of a section are centred on: the mean over a fixed set of its tissue tiles, whatever the table holds."""

import logging
from dataclasses import replace
from typing import Protocol

import numpy as np

from agl_sc._sdata.records import remembered
from agl_sc._sdata.reference import ReferenceRecord
from agl_sc._sdata.sections import Section
from agl_sc._sdata.shapes import all_points, element_of, find_instances
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import off_tissue, region_of
from agl_sc.core.arrays import Float32Array, FloatArray, Floats, IntArray
from agl_sc.core.spots.scaling import section_means
from agl_sc.pp._features.placed import Placed
from agl_sc.pp._features.tiles import TileSpec, boxes_of

logger = logging.getLogger(__name__)

MOST_TILES = 512
"""Tiles of a reference: the mean of so many that are spread over the tissue is off by a few per cent of a spread."""
FEWEST_TILES = 8
"""The mean of fewer is off by more than a third of a spread, as that of half a section is from that of the whole."""

_TOLD_OLD = (
    'uns["%s"] holds no reference of %s: features are centred on the mean over the spots that the table holds now.'
)


class Encode(Protocol):
    """How tiles are encoded."""

    def __call__(self, placed: Placed, *, n_obs: int) -> Float32Array:
        """Features (n_obs, n_features) of placed tiles in their rows."""
        ...


def reference_record(
    study: Study, placed: Placed, features: Float32Array, *, spec: TileSpec, neighbors_from: int | None, encode: Encode
) -> ReferenceRecord:
    """The reference of every placed section, by its region.

    Its tiles are those of the spots that the region's element holds, on the image and not off the tissue, whether the
    table has a row of them or not; of more than 512 as many, evenly spread. Those without a row are encoded in addition.

    Parameters
    ----------
    study
        Images, shapes and the table.
    placed
        Sections and the boxes of the tiles of their rows.
    features
        Of the rows, (n_obs, n_features).
    spec
        Of these tiles.
    neighbors_from
        First of the columns of neighbours, of which there are as many as of the tiles themselves, which come first; None
        where features have none.
    encode
        How further tiles are encoded.
    """
    chosen = [reference_spots(study, section) for section, _ in placed]
    further = _further(placed, chosen, spec)
    n_further = sum(len(section.rows) for section, _ in further)
    encoded = np.empty((0, features.shape[1]), dtype=np.float32)
    if n_further:
        told = "Encoding %d tiles more, of spots that have no row in the table, for the means of their sections."
        logger.info(told, n_further)
        encoded = encode(further, n_obs=n_further)
    means, n_tiles, start = {}, {}, 0
    for (section, _), (rows, _) in zip(placed, chosen, strict=True):
        own, is_row = np.empty((len(rows), features.shape[1]), dtype=np.float32), rows >= 0
        n_own = int((~is_row).sum())
        own[is_row], own[~is_row] = features[rows[is_row]], encoded[start : start + n_own]
        start += n_own
        if neighbors_from is not None:  # their mean is that of the tiles themselves, but for the edge of the tissue
            own[:, neighbors_from:] = own[:, : own.shape[1] - neighbors_from]
        means[section.name] = own.mean(axis=0, dtype=float) if len(own) else np.zeros(own.shape[1])
        n_tiles[section.name] = len(own)
    return ReferenceRecord(means, n_tiles)


def _further(placed: Placed, chosen: list[tuple[IntArray, FloatArray]], spec: TileSpec) -> Placed:
    """Sections of the reference tiles that the table has no row of, with their boxes; rows are numbered through."""
    further, start = [], 0
    for (section, _), (rows, centres) in zip(placed, chosen, strict=True):
        lacking = centres[rows < 0]
        if len(lacking):
            own = replace(section, rows=np.arange(start, start + len(lacking)), centres=lacking, array=None)
            further.append((own, boxes_of(own, spec, section.mpp(section.image_mpp))))
            start += len(lacking)
    return further


def reference_spots(study: Study, section: Section) -> tuple[IntArray, FloatArray]:
    """Row of the table of every reference spot of a section, -1 without one, and its centre, (n_spots, 2)."""
    names, points = all_points(element_of(study.sdata, section.name))
    centres = section.placed(points)
    table = study.table
    in_region = np.flatnonzero((region_of(table) == section.name).to_numpy())
    instances = table.obs[table.uns["spatialdata_attrs"]["instance_key"]].iloc[in_region]
    rows = np.full(len(names), -1)
    rows[find_instances(names, instances)] = in_region
    off = np.zeros(len(names), dtype=bool)
    off[rows >= 0] = off_tissue(table.obs)[rows[rows >= 0]]
    known = np.isfinite(centres).all(axis=1)
    if section.levels:
        known &= ((centres >= 0) & (centres <= section.levels[0].shape[:0:-1])).all(axis=1)
    usable = np.flatnonzero(known & ~off if (known & ~off).any() else known)
    picked = usable[spread_over(centres[usable], MOST_TILES)]
    return rows[picked], centres[picked]


def spread_over(points: FloatArray, most: int) -> IntArray:
    """Which of some points to take so that at most so many are evenly spread over all, by their positions alone.

    They are gone through row by row, a row as high as one of the points taken has room, and every so many is taken.

    Parameters
    ----------
    points
        (n, 2).
    most
        How many are taken at most.
    """
    low, extent = points.min(axis=0, initial=np.inf), np.ptp(points, axis=0) if len(points) else np.zeros(2)
    height = np.sqrt(extent.prod() / most)
    band = np.floor((points[:, 1] - low[1]) / height) if height > 0 else np.zeros(len(points))
    order = np.lexsort((points[:, 1], points[:, 0], band))
    n_taken = min(most, len(points))
    taken: IntArray = order[((np.arange(n_taken) + 0.5) * len(points) / max(n_taken, 1)).astype(np.int64)]
    return np.sort(taken)


def reference_of(study: Study, features: Floats | None = None) -> dict[str, FloatArray]:
    """What the features of every region are centred on, (n_features,) each.

    As it was recorded; where it was not, of features that are older or come from elsewhere, the mean over the spots of the
    table.

    Parameters
    ----------
    study
        With features.
    features
        Other features of the same spots, (n_obs, n_features), of which nothing is recorded.

    Raises
    ------
    ValueError
        A region with features has too little tissue.
    """
    found = remembered(study.table, study.keys, ReferenceRecord) if features is None else None
    values = np.asarray(study.table.obsm[study.keys.features]) if features is None else features
    regions = region_of(study.table).to_numpy(dtype=str)
    with_features = sorted(set(regions[np.isfinite(values[:, 0])].tolist()))
    means, n_tiles = ({}, {}) if found is None else (dict(found.means), dict(found.n_tiles))
    lacking = [name for name in with_features if name not in means or means[name].shape != values.shape[1:]]
    if lacking:
        if features is None:
            study.tell_written(logger, _TOLD_OLD, study.keys.uns, ", ".join(lacking))
        own = record_of_rows(study, values, lacking)
        means |= own.means
        n_tiles |= own.n_tiles
    for name in with_features:
        check_enough_tissue(name, n_tiles[name])
    return {**dict.fromkeys(regions.tolist(), np.zeros(values.shape[1])), **means}


def has_reference(study: Study, placed: Placed) -> bool:
    """Whether the reference of every placed section is recorded, over as much tissue as it takes or as there is."""
    found = remembered(study.table, study.keys, ReferenceRecord)
    if found is None:
        return False
    n_tiles = [(section, found.n_tiles.get(section.name, 0)) for section, _ in placed]
    return all(n >= FEWEST_TILES or n == len(reference_spots(study, section)[0]) for section, n in n_tiles)


def record_of_rows(study: Study, features: Floats, names: list[str]) -> ReferenceRecord:
    """The reference of some regions over the spots that the table holds, those off the tissue left out."""
    regions, off = region_of(study.table).to_numpy(dtype=str), off_tissue(study.table.obs)
    codes = np.full(len(regions), -1)
    for code, name in enumerate(names):
        inside = (regions == name) & np.isfinite(features[:, 0])
        codes[inside & ~off if (inside & ~off).any() else inside] = code
    means = section_means(features, codes)
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    return ReferenceRecord(dict(zip(names, means, strict=True)), dict(zip(names, counts.tolist(), strict=True)))


def check_enough_tissue(name: str, n_tiles: int) -> None:
    """Refuse a region whose mean would say little of its tissue."""
    if n_tiles < FEWEST_TILES:
        msg = (
            f"Region {name!r} has {n_tiles} tiles of tissue, and what its features are centred on takes {FEWEST_TILES} or more: "
            f"add spots over the rest of its tissue to sdata.shapes[{name!r}] and run agl_sc.pp.embed(sdata) again, or drop its "
            "spots from the table."
        )
        raise ValueError(msg)
