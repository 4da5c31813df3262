"""What predictions belong to: split, counts and places; whoever scores or draws them asks here."""

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.predictions import Prediction, predicted_of
from agl_sc._sdata.records import CrossValidationRecord, PredictionRecord, remembered
from agl_sc._sdata.sections import Names, in_regions
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import X, near_matches, region_of
from agl_sc.core.arrays import BoolArray, IntArray
from agl_sc.pp._features.sketch import is_same_tissue
from agl_sc.pp._splits.split import assigned_in, split_hash

logger = logging.getLogger(__name__)


def oof_method(study: Study) -> str:
    """What the out-of-fold predictions are of, as tables call it; empty where nobody recorded it."""
    found = remembered(study.table, study.keys, CrossValidationRecord)
    if found is None:
        return ""
    methods = [str(name) for name in found.values.get("methods", [])]  # an older record has no label
    return str(found.values.get("label", next(iter(methods), "")))


def metric_column(keys: Keys, name: str, prediction: Prediction = "model") -> str:
    """Column of ``var`` that holds a test metric of predictions."""
    return keys.metric(name if prediction == "model" else f"oof_{name}")


def chosen_sections(study: Study, sections: Names) -> list[tuple[str, IntArray]]:
    """Names and rows of the sections that are asked for, in that order; all by default.

    A section is what ``obs["section"]`` names, else a region; a region's own name is taken too where no section has it.
    """
    names, regions = study.section_names, region_of(study.table).to_numpy(dtype=str)
    within = in_regions(study.table, study.address.shapes_key)
    known = sorted(set(names[within].tolist()))
    if sections is None:
        return [(name, np.flatnonzero(within & (names == name))) for name in known]
    found = []
    for name in listed(sections, "sections"):
        of = names if name in known else regions
        rows = np.flatnonzero(within & (of == name))
        if not len(rows):
            near = near_matches([name], known)
            msg = f"Section {name!r} is not among the sections of the table: {', '.join(known)}{near}."
            raise KeyError(msg)
        found.append((name, rows))
    return found


def listed(names: Any, argument: str) -> list[str]:
    """Names as a list without repeats."""
    items = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if not items:
        msg = f"{argument} is empty; name at least one."
        raise ValueError(msg)
    strange = [name for name in items if not isinstance(name, str)]
    if strange:
        msg = f"{argument} holds {strange[0]!r}, a {type(strange[0]).__name__}; pass names."
        raise TypeError(msg)
    return list(dict.fromkeys(items))


def counts_digest(study: Study) -> str:
    """Of the counts that a model is fitted to, those of training and validation spots, with the names of spots and genes."""
    table, fitted = study.table, np.isin(assigned_in(study), ("train", "validation"))
    counts = study.counts[fitted]
    sha = hashlib.sha256()
    for names in (table.obs_names[fitted], table.var_names):
        sha.update("\n".join(map(str, names)).encode())
    for array in (counts.data, counts.indices, counts.indptr):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def check_belongs(study: Study) -> None:
    """Refuse to compare predictions with what the model may have seen; tell where they were fitted to other counts.

    Raises
    ------
    ValueError
        They were made under another split than is in place, or in other units.
    """
    keys, found = study.keys, remembered(study.table, study.keys, PredictionRecord)
    if found is None:
        return
    slot = predicted_of(study, "model").slot
    if found.units != study.normalize:
        msg = (
            f'{slot} was predicted in units of normalize={found.units!r}, but uns["{keys.uns}"]["params"] now records '
            f"{study.normalize!r}; run agl_sc.tl.train or agl_sc.tl.predict again, or agl_sc.pp.target_genes with normalize={found.units!r}."
        )
        raise ValueError(msg)
    if found.split is not None and keys.split in study.table.obs and found.split != split_hash(study):
        msg = (
            f'{slot} was predicted under another split than obs["{keys.split}"] (other sets, or other spots), which may '
            "call spots test that the model was fitted on; run agl_sc.tl.train again."
        )
        raise ValueError(msg)
    _tell_other_counts(study, found, slot)


def _tell_other_counts(study: Study, found: PredictionRecord, slot: str) -> None:
    layer = study.address.layer or X
    if found.layer is not None and found.layer != layer:
        logger.warning(
            "%s was fitted to the counts of layer %r and is compared with those of layer %r.",
            slot,
            found.layer,
            layer,
        )
    elif found.counts is not None and study.table.X is not None and found.counts != counts_digest(study):
        logger.warning("%s was fitted to other counts of layer %r than are there now.", slot, layer)


def places_of(study: Study, rows: BoolArray) -> dict[str, list[float]]:
    """Box around the spots ``rows`` of every region: left, top, right, bottom in pixels of the finest level of its image."""
    boxes = {}
    for section in study.positioned:
        centres = section.centres[rows[section.rows] & np.isfinite(section.centres).all(axis=1)]
        if len(centres) and section.levels:
            boxes[section.name] = [*map(float, centres.min(axis=0)), *map(float, centres.max(axis=0))]
    return boxes


def seen_spots(study: Study, card: dict[str, Any]) -> BoolArray:
    """Spots on an image that a model was fitted on, within the box of the spots it was fitted on, (n_obs,)."""
    seen = np.zeros(study.table.n_obs, dtype=bool)
    features = study.features
    if features is None:
        return seen
    for section in study.positioned:
        for name, digest in card["fitted_on"].items():
            if not is_same_tissue(features.images.get(section.name, ""), digest):
                continue
            box = card.get("places", {}).get(name)
            if box is None or not section.levels:  # of an older model, or of positions alone
                seen[section.rows] = True
            else:
                inside = (section.centres >= box[:2]) & (section.centres <= box[2:])
                seen[section.rows] |= inside.all(axis=1)
    return seen
