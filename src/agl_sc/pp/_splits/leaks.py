"""What the sets of a split still share: patients, sections under two names, pixels."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agl_sc._sdata.records import FeatureRecord
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import as_text, section_of
from agl_sc.core.arrays import StrArray
from agl_sc.pp._features.context import WIDER, Views
from agl_sc.pp._features.tiles import TILE_UM
from agl_sc.pp._splits.blocks import Positions, locate, shared_pixels
from agl_sc.pp._splits.duplicates import same_profiles

if TYPE_CHECKING:
    from anndata import AnnData

_USUAL_TILE_UM = TILE_UM * max(WIDER)
"""The widest field of view of the features that are made by default."""

logger = logging.getLogger(__name__)


def tell_patients(table: "AnnData", splits: Sequence[StrArray]) -> None:
    """Warn of patients that are test while other spots of theirs train or pick."""
    if "patient" not in table.obs:
        return
    named = table.obs["patient"].notna().to_numpy()
    patients, sections = as_text(table.obs["patient"]), section_of(table).to_numpy(dtype=str)
    both: set[str] = set()
    for assigned in splits:
        fitted = named & np.isin(assigned, ("train", "validation"))
        both |= set(patients[fitted].tolist()) & set(patients[named & (assigned == "test")].tolist())
    for patient in sorted(both):
        logger.warning(
            "Sections of patient %r are in training and test (%s): sections of one tumour are not independent; "
            "divide by='patient' to hold out patients.",
            patient,
            ", ".join(sorted(set(sections[patients == patient].tolist()))),
        )


def tell_duplicates(table: "AnnData", splits: Sequence[StrArray]) -> None:
    """Warn of two sections of the same spots that are in different sets of a split."""
    sections = section_of(table).to_numpy(dtype=str)
    for first, second, share in [] if table.X is None else same_profiles(table.X, sections):
        pair = np.isin(sections, (first, second))
        if any(len(set(assigned[pair].tolist()) - {"unused"}) > 1 for assigned in splits):
            logger.warning(
                "%s and %s hold the same spots (%.0f %% have the same expression profile) and are in different sets: drop "
                "one of the two, or what is tested was trained on; see agl_sc.pp.duplicates(sdata).",
                first,
                second,
                100 * share,
            )


def count_shared_pixels(study: Study, *, splits: Sequence[StrArray], by: str = "section") -> dict[str, Any]:
    """Count the tiles of different sets that share pixels, in each of the splits; entries of their manifest.

    Without a scale, where only whole sections are divided, nothing is counted.
    """
    side = tile_um(study.features)
    try:
        places = locate(study)
    except (KeyError, ValueError) as error:
        logger.warning("Tiles of different sets that share pixels were not counted: %s", error.args[0])
        return {}
    found = [shared_pixels(places.centres_um, places.images, assigned, tile_um=side) for assigned in splits]
    counts = {name: sum(shared[name] for shared in found) for name in ("test", "validation")}
    for name, others in (("test", "training or validation"), ("validation", "training")):
        if counts[name]:
            n_tiles = sum(int((assigned == name).sum()) for assigned in splits)
            logger.warning(
                "%d of %d %s tiles of %g um share pixels with a %s tile.", counts[name], n_tiles, name, side, others
            )
    if by == "block" and any(counts.values()):
        _tell_price(places, splits, side)
    return {"tile_um": side, "shared_pixels": counts}


def _tell_price(places: Positions, splits: Sequence[StrArray], side: float) -> None:
    """What a buffer as wide as the field of view would leave."""
    buffer_um = float(np.ceil(side * np.sqrt(2)))  # so far apart, tiles do not meet at their corners either
    n_before = sum(int((assigned == "train").sum()) for assigned in splits)
    n_left = sum(int((places.with_buffer(assigned, buffer_um) == "train").sum()) for assigned in splits)
    logger.warning(
        "buffer_um=%g would keep them apart and leave %d of %d training spots; so would narrower fields of view, "
        "agl_sc.pp.embed(sdata, context=()).",
        buffer_um,
        n_left,
        n_before,
    )


def tile_um(features: FeatureRecord | None) -> float:
    """Side of the widest field of view of the features in place, of a usual tile where there are none, in microns."""
    if features is None:
        return _USUAL_TILE_UM
    return float(features.tile_px * features.mpp * max([1.0, *Views.of(features).context]))
