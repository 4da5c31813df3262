"""What a model knows of its own reliability: held-out scores of genes, the training tissue, residuals of held-out spots."""

import logging
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from agl_sc._model_domain import OF_DOMAIN, OF_NEIGHBOURS, OF_SEEN_SCALE
from agl_sc._sdata.genes import find_genes
from agl_sc._sdata.predictions import genes_table
from agl_sc._sdata.records import HeldOutRecord, forget, remember
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import region_of
from agl_sc.core.arrays import BoolArray, FloatArray, IntArray, StrArray
from agl_sc.core.evaluation.domain import BEYOND, MOSTLY, Domain, Reference
from agl_sc.core.evaluation.gene_scores import COLUMNS
from agl_sc.core.evaluation.neighbours import Neighbours
from agl_sc.core.evaluation.seen_scale import SeenScale
from agl_sc.core.numerics.tensors import part
from agl_sc.core.spots.scaling import row_slices
from agl_sc.core.training.recipe import TrainingData
from agl_sc.model import Model
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.embed import FeatureRequest
from agl_sc.pp._features.reference import reference_of
from agl_sc.tl._model.held_out import HeldOut, held_out_of, lattices_in, score_genes
from agl_sc.tl._model.intervals import Residuals, named_patients
from agl_sc.tl._model.seen_scale import seen_scale_of

logger = logging.getLogger(__name__)

MOST_BYTES = 2 * 10**9
"""Of predictions that nobody said the place of."""
_OWN = ("units", "held_out", "limit")
_DIGITS = 5
_SHOWN = 3
_TOLD_BEYOND = (
    "%.0f %% of the spots of %s lie farther from the training tissue than %.0f %% of a held-out training %s: another stain, scanner, "
    "scale, focus or organ than the model knows; do not rely on predictions there.",
    "%.0f %% of the spots of %s lie farther from the training tissue than %.0f %% of held-out %ss of its one training section. From one "
    "section nobody can tell whether sections of the same tissue lie as far or stain, scanner, scale, focus or organ are others; "
    "train on several.",
)
_TOLD_SCALE = (
    "The tissue of %s looks as that of training does %.1f times %s, or more: its image_mpp seems to be about %.2g times what it is "
    "taken for, or its stain is another; check both, and do not rely on predictions there."
)


def with_trust(study: Study, data: TrainingData, model: Model, *, tiles: FeatureRequest, seed: int) -> Model:
    """The model with scores of all its genes, its residuals and the place of its training tissue, from training and validation spots.

    Where the spots are too few to hold any out, the model stays as it is, and the log says why.
    """
    try:
        spots = held_out_of(study, data.train | data.validation)
    except (KeyError, ValueError) as error:
        logger.warning("The model has no held-out scores and does not know its training tissue: %s", error.args[0])
        return model
    columns = study.table.var_names.get_indexer(model.genes)
    residuals = Residuals(spots, named_patients(study)[spots.rows], model.selected)
    scores = score_genes(study, spots, columns, lattices=lattices_in(study), seed=seed, also=residuals.add)
    said = {"by": spots.by, "sections": spots.names, "words": spots.words}
    listed = {name: [round(float(value), _DIGITS) for value in scores[name]] for name in COLUMNS}
    domain = _domain_tensors(domain_in(study, spots, tiles=tiles))
    card = {**model.card, "scores": {**said, "columns": listed}}
    return residuals.kept_by(replace(model, card=card, tensors={**model.tensors, **domain}))


def domain_in(study: Study, spots: HeldOut, *, tiles: FeatureRequest | None = None) -> Domain:
    """Where spots lie, by the features of their tiles alone; with ``tiles``, what says where encoders run, how other scales look too."""
    features, width = np.asarray(study.table.obsm[study.keys.features]), width_of_tile(study)
    codes, means = _regions(study)
    of_tiles = {code: mean[:width] for code, mean in means.items()}
    domain = Domain.fitted(features[spots.rows, :width], codes[spots.rows], spots.folds, means=of_tiles)
    scale = None if tiles is None else seen_scale_of(study, spots, codes, width=width, tiles=tiles)
    return replace(domain, seen_scale=scale)


def width_of_tile(study: Study) -> int:
    """Features of the tile itself, which come first.

    Those of wider fields of view follow. Blocks of a section share their pixels, and no two patients have the same
    surroundings: by these every other section would lie far off.
    """
    width, made_from = study.table.obsm[study.keys.features].shape[1], study.features
    n_views = 1 if made_from is None else Views.of(made_from).n_views
    return int(width if width % n_views else width // n_views)


def _regions(study: Study) -> tuple[IntArray, dict[int, FloatArray]]:
    """Number of the region of every spot, and what is remembered of the mean features of its tissue."""
    names, codes = np.unique(region_of(study.table).to_numpy(dtype=str), return_inverse=True)
    reference = reference_of(study)
    return codes.astype(np.int64), {code: reference[name] for code, name in enumerate(names.tolist())}


def _domain_tensors(domain: Domain) -> dict[str, torch.Tensor]:
    arrays: dict[str, Any] = {each.name: getattr(domain.reference, each.name) for each in fields(Reference)}
    arrays |= {name: getattr(domain, name) for name in _OWN}
    arrays |= {f"{OF_NEIGHBOURS}{each.name}": getattr(domain.neighbours, each.name) for each in fields(Neighbours)}
    arrays["measures"] = domain.measures
    if domain.seen_scale is not None:
        arrays |= {f"{OF_SEEN_SCALE}{each.name}": getattr(domain.seen_scale, each.name) for each in fields(SeenScale)}
    return {f"{OF_DOMAIN}{name}": torch.from_numpy(values.astype(np.float32)) for name, values in arrays.items()}


def domain_of(model: Model) -> Domain | None:
    """Where the training tissue of a model lies; None of a model that does not know."""
    tensors = part(model.tensors, OF_DOMAIN)
    arrays = {name: tensor.numpy().astype(float) for name, tensor in tensors.items()}
    if not arrays:
        return None
    own = {name: arrays.pop(name) for name in _OWN}
    measures = arrays.pop("measures", None)
    near = {each.name: arrays.pop(f"{OF_NEIGHBOURS}{each.name}") for each in fields(Neighbours) if measures is not None}
    at_scale = [name for name in arrays if name.startswith(OF_SEEN_SCALE)]
    seen = {name.removeprefix(OF_SEEN_SCALE): arrays.pop(name) for name in at_scale}
    return Domain(
        Reference(**arrays),
        **own,
        neighbours=Neighbours(**near) if near else None,
        measures=measures,
        seen_scale=SeenScale(**seen) if seen else None,
    )


def below_gate(model: Model, min_r: float | None) -> BoolArray:
    """Predicted genes whose held-out score is below ``min_r``, (n_predicted,); a gene without a score is not.

    Raises
    ------
    ValueError
        No gene is left.
    """
    if min_r is None or model.scores.empty:
        return np.zeros(model.n_predicted, dtype=bool)
    scores = model.scores["pearson"].reindex(model.predicted_genes)
    below: BoolArray = (scores < min_r).to_numpy()
    if below.all():
        best = str(scores.idxmax())
        msg = f"No gene of the model has a held-out r of min_r={min_r:g} or more, the best is {best} with {scores.max():.2f}; pass a smaller min_r, or min_r=None for all genes."
        raise ValueError(msg)
    return below


def tell_gated(model: Model, below: BoolArray, min_r: float | None) -> None:
    """Say which genes are not written, or should not have been."""
    n_wrong = 0 if model.scores.empty else int((model.scores["pearson"].reindex(model.predicted_genes) < 0).sum())
    if min_r is None and n_wrong:
        logger.info(
            "%d of %d genes have a held-out r below 0; min_r=0 would leave them out.", n_wrong, model.n_predicted
        )
    if below.any():
        names = [gene for gene, is_below in zip(model.predicted_genes, below, strict=True) if is_below]
        logger.warning(
            "%d of %d genes have a held-out r below min_r=%g and are not written (%s); min_r=None writes them.",
            len(names),
            len(below),
            min_r,
            ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else ""),
        )


def without_room(study: Study, model: Model, left_out: BoolArray | None = None) -> BoolArray:
    """Predicted genes ``left_out`` already and those that there is no room for, (n_predicted,).

    Where nobody says where predictions go, they take 2 GB at most: those of the targets come first, then those of the genes of
    highest held-out score.
    """
    left_out = np.zeros(model.n_predicted, dtype=bool) if left_out is None else left_out
    n_room = max(model.n_targets, MOST_BYTES // (4 * max(study.table.n_obs, 1) * study.n_layers))
    if study.write_to != "auto" or (~left_out).sum() <= n_room:
        return left_out
    scores = np.full(model.n_predicted, np.nan)
    if not model.scores.empty:
        scores = model.scores["pearson"].reindex(model.predicted_genes).to_numpy(dtype=float, copy=True)
    scores[: model.n_targets] = np.inf
    order = np.argsort(-np.nan_to_num(scores, nan=-2.0), kind="stable")
    kept = order[~left_out[order]][:n_room]
    fewer = np.ones_like(left_out)
    fewer[kept] = False
    logger.warning(
        "Predictions of %d genes of %d spots would take more than %.0f GB: those of the targets and of the genes of highest held-out "
        'score are written, %d in all; min_r= says which are worth it, and write_to="table" writes all.',
        *((~left_out).sum(), study.table.n_obs, MOST_BYTES / 1e9, len(kept)),
    )
    return fewer


def write_scores(study: Study, model: Model) -> None:
    """Write held-out scores to ``var``; those of an earlier model go."""
    described = genes_table(study, "model")
    for name in COLUMNS:
        if study.keys.held_out(name) in described.var:
            del described.var[study.keys.held_out(name)]
    forget(study.table, study.keys, HeldOutRecord.entry)
    scores = model.scores
    if scores.empty:
        return
    columns = find_genes(described, scores.index, quiet=True)
    known = columns >= 0
    for name in COLUMNS:
        values = np.full(described.n_vars, np.nan)
        values[columns[known]] = scores[name].to_numpy(dtype=float)[known]
        described.var[study.keys.held_out(name)] = values
    said = model.card["scores"]
    remember(study.table, study.keys, HeldOutRecord({name: said[name] for name in ("by", "sections", "words")}))


def distance_of(study: Study, model: Model, seen: BoolArray) -> FloatArray | None:
    """How far every spot lies from the training tissue, NaN for those that the model was fitted among, (n_obs,).

    None of a model that does not know its training tissue.
    """
    domain = domain_of(model)
    if domain is None:
        return None
    share = np.full(study.table.n_obs, np.nan)
    codes, means = _regions(study)
    features = np.asarray(study.table.obsm[study.keys.features])
    asked = np.flatnonzero(~seen)
    for rows in (asked[some] for some in row_slices(len(asked), features.shape[1])):
        share[rows] = domain.distance(features[rows], codes[rows], means=means)
    return share


def write_distance(study: Study, model: Model, share: FloatArray | None) -> None:
    """Write what :func:`distance_of` gives, and tell of sections beyond; an earlier one goes where there is none."""
    table, keys = study.table, study.keys
    if share is None:
        if keys.distance in table.obs:
            del table.obs[keys.distance]
        return
    table.obs[keys.distance] = share
    others = _tell_other_scales(study, model, share)
    names = study.section_names
    _tell_beyond(np.where(np.isin(names, others), np.nan, share), names, by=model.card["scores"]["by"])


def _tell_beyond(share: FloatArray, sections: StrArray, *, by: str) -> None:
    known = np.isfinite(share)
    beyond = pd.Series(share[known] > BEYOND).groupby(sections[known]).mean()
    for name, part_beyond in beyond[beyond > MOSTLY].items():
        logger.warning(_TOLD_BEYOND[by == "block"], 100 * part_beyond, name, 100 * BEYOND, by)


def _tell_other_scales(study: Study, model: Model, share: FloatArray) -> list[str]:
    """Tell of sections that look like training tissue at another scale, of which nothing else is odd; and which they are."""
    domain, (codes, means), names = domain_of(model), _regions(study), study.section_names
    told: list[str] = []
    for code in np.unique(codes[np.isfinite(share)]):
        power = None if domain is None or domain.is_moved(means[code]) else domain.other_scale(means[code])
        if power is None:
            continue
        own = sorted(set(names[codes == code].tolist()))
        logger.warning(_TOLD_SCALE, ", ".join(own), 2 ** abs(power), "larger" if power < 0 else "smaller", 2.0**power)
        told += own
    return told
