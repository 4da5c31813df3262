"""What features were made from, and whether it is still so."""

import hashlib
import logging
from dataclasses import fields, replace

import numpy as np
import pandas as pd

from agl_sc._sdata.records import FeatureRecord, TileRecord, remembered
from agl_sc._sdata.sections import Section
from agl_sc._sdata.study import TILES_CHECKED, Study
from agl_sc.core.arrays import IntArray
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.tiles.reader import Boxes
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.placed import Placed, place_section, placed_quietly
from agl_sc.pp._features.tiles import Mpp, TileSpec

logger = logging.getLogger(__name__)
_BY_SECTION = ("image_mpp", "images", "sections")


def feature_record(network: Encoder, spec: TileSpec, placed: Placed, *, views: Views, precision: str) -> FeatureRecord:
    """What features depend on: encoder, tiles, and per section the scale and digests of the image and of the tiles."""
    mpp = float(np.mean([boxes.mpp for _, boxes in placed])) if spec.mpp == "image" else spec.mpp
    return FeatureRecord(
        encoder=network.name,
        weights_digest=network.digest,
        tile_px=spec.tile_px,
        mpp=mpp,
        image_mpp={
            section.name: section.mpp() if section.image_mpp is None else section.image_mpp for section, _ in placed
        },
        images={section.name: boxes.overview_digest for section, boxes in placed},
        sections={section.name: tiles_digest(boxes) for section, boxes in placed},
        **views.plain(),
        precision=precision,
    )


def tile_record(study: Study, placed: Placed) -> TileRecord:
    """Fingerprints of the tiles of all spots."""
    parts = [_fingerprints(study, section, boxes) for section, boxes in placed]
    return TileRecord(np.sort(np.concatenate(parts)))


def _fingerprints(study: Study, section: Section, boxes: Boxes) -> IntArray:
    """Fingerprint of every spot's name and tile, (n_spots,)."""
    table = study.table
    frame = pd.DataFrame(
        {
            "spot": table.obs[table.uns["spatialdata_attrs"]["instance_key"]]
            .iloc[section.rows]
            .astype(str)
            .to_numpy(object),
            "y": boxes.origins[:, 0],
            "x": boxes.origins[:, 1],
            "image": f"{boxes.image.shape} {boxes.side} {boxes.overview_digest}",
        }
    )
    return pd.util.hash_pandas_object(frame, index=False).to_numpy().view(np.int64)


def is_made_from(study: Study, made_from: FeatureRecord, tiles: TileRecord, *, placed: Placed) -> bool:
    """Whether the features in place are these, of these spots alone; of a table of which spots were dropped since, too."""
    before, known = study.features, remembered(study.table, study.keys, TileRecord)
    if before is None or known is None:
        return before == made_from
    same = (
        replace(before, image_mpp=made_from.image_mpp, images=made_from.images, sections=made_from.sections)
        == made_from
    )
    others = np.ones(study.table.n_obs, dtype=bool)
    for section, _ in placed:
        others[section.rows] = False
    of_others = np.isfinite(np.asarray(study.table.obsm[study.keys.features])[others]).any()
    return same and not of_others and bool(np.isin(tiles.fingerprints, known.fingerprints).all())


def tell_made_anew(study: Study, made_from: FeatureRecord) -> None:
    """Say in what the features that are replaced differ from those that are made, where there are any."""
    if study.keys.features not in study.table.obsm:
        return
    before = study.features
    if before is None:
        why = "what they were made from is not recorded"
    else:
        pairs = {
            each.name: (getattr(before, each.name), getattr(made_from, each.name))
            for each in fields(made_from)
            if each.name not in _BY_SECTION
        }
        changed = [f"{name} was {old!r} and is {new!r}" for name, (old, new) in pairs.items() if old != new]
        why = ", ".join(changed) or "image, tiles or spots are others"
    logger.info('Features in obsm["%s"] are made anew: %s.', study.keys.features, why)


def check_tiles(study: Study) -> None:
    """Refuse features that were made from other tiles than the spots have now: of another image, alignment, scale or spot."""
    table, keys = study.table, study.keys
    made_from, known = study.features, remembered(table, keys, TileRecord)
    if TILES_CHECKED in study.memo or made_from is None or known is None or not len(study.sdata.images):
        return
    has_features = np.isfinite(np.asarray(table.obsm[keys.features][:, 0]))
    n_other = 0
    for section in study.positioned:
        if not section.levels:  # nothing to compare with
            continue
        same = np.zeros(int(np.isfinite(section.centres).all(axis=1).sum()), dtype=bool)
        for mpp in (made_from.mpp, "image"):  # of several scales of their own, the record holds the mean
            if not same.all():
                own, boxes, _ = placed_quietly(section, TileSpec(made_from.tile_px, mpp), None)
                same |= np.isin(_fingerprints(study, own, boxes), known.fingerprints)
        n_other += int((~same & has_features[own.rows]).sum())
    if n_other:
        msg = (
            f'obsm["{keys.features}"] of {n_other} of {int(has_features.sum())} spots was made from other tiles than these spots '
            "have now (another image, alignment or scale, or tables put together); run agl_sc.pp.embed(sdata) again."
        )
        raise ValueError(msg)
    study.memo[TILES_CHECKED] = True


def tiles_digest(boxes: Boxes) -> str:
    """Digest of the image and of where the tiles lie in it."""
    sha = hashlib.sha256(f"{boxes.image.shape} {boxes.side} {boxes.overview_digest}".encode())
    sha.update(boxes.origins.tobytes())
    return sha.hexdigest()


def placed_again(study: Study, *, quietly: bool = False) -> Placed:
    """Sections and boxes of the tiles that the features in place were made from, with a word on odd ones or without."""
    made_from, found = made_by_embed(study), []
    for section in study.imaged:
        image_mpp = made_from.image_mpp.get(section.name)
        spec = TileSpec(made_from.tile_px, _own_mpp(section, made_from, image_mpp))
        found.append(
            placed_quietly(section, spec, image_mpp)[:2] if quietly else place_section(section, spec, image_mpp)
        )
    return found


def _own_mpp(section: Section, made_from: FeatureRecord, image_mpp: float | None) -> Mpp:
    """Microns per pixel of the tiles of a section; of several at a scale of their own, the record holds the mean."""
    _, boxes, _ = placed_quietly(section, TileSpec(made_from.tile_px, "image"), image_mpp)
    return "image" if tiles_digest(boxes) == made_from.sections.get(section.name) else made_from.mpp


def made_by_embed(study: Study) -> FeatureRecord:
    """What the features in place were made from; refused where nobody knows."""
    made_from = study.features
    if made_from is None:
        msg = f'obsm["{study.keys.features}"] was not made by agl_sc.pp.embed; run it, so that the model knows its encoder and tiles.'
        raise ValueError(msg)
    return made_from


def check_weights(made_from: FeatureRecord, network: Encoder) -> None:
    """Refuse an encoder whose weights are not those that features were made with."""
    if made_from.weights_digest != network.digest:
        msg = f"The weights of encoder={network.name!r} are not those the features were made with; run agl_sc.pp.embed again."
        raise ValueError(msg)
