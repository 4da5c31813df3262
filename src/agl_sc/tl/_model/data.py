"""From table slots to the arrays that are trained on, everything fitted on training spots."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from agl_sc._sdata.study import Study
from agl_sc._sdata.table import region_of
from agl_sc.core.arrays import BoolArray, Float32Array, FloatArray, Floats, IntArray
from agl_sc.core.encoders.load import load_encoder
from agl_sc.core.linear.directions import MOST_BYTES, directions
from agl_sc.core.linear.predictability import MOST_SPOTS
from agl_sc.core.network.sources import EncodedTiles
from agl_sc.core.spots.counts import Counts
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.genes import normalize_counts, with_data
from agl_sc.core.spots.scaling import row_slices, scaled_rows, spread_about
from agl_sc.core.spots.spots import Spots, usable_spots
from agl_sc.core.spots.thinned import thinned
from agl_sc.core.tiles.dataset import TileDataset
from agl_sc.core.tiles.reader import MAX_BYTES
from agl_sc.core.training.recipe import TrainingData
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.made_from import check_weights, made_by_embed, placed_again
from agl_sc.pp._features.reference import reference_of
from agl_sc.pp._genes.targets_and_ranks import positions_of, role_of
from agl_sc.pp._splits.split import assigned_in, check_fitted_on
from agl_sc.tl._model.continued import Start

logger = logging.getLogger(__name__)


def training_data(study: Study, start: Start | None = None, *, whole: bool = False) -> TrainingData:
    """Collect features, expression and sets from the slots that :mod:`agl_sc.pp` wrote.

    Features are centred on the reference of their region, which is of images alone: that tiles of test spots are among its
    tiles tells nothing of their expression. Genes and scale are those of ``start`` where training goes on from a model. Features of so
    many spots that they would take 2 GiB are projected on few directions, but for ``whole``, and where training goes on from a network of all features.
    """
    table, counts = study.table, study.counts
    raw = np.asarray(table.obsm[study.keys.features])
    codes = pd.factorize(study.section_names, sort=True)[0].astype(np.int64)
    usable = usable_spots(raw, counts)
    assigned = assigned_in(study)
    train, validation = (usable & (assigned == name) for name in ("train", "validation"))
    _tell_unusable(usable, assigned)
    if not train.any():
        msg = f'No training spot has both features in obsm["{study.keys.features}"] and counts; run agl_sc.pp.embed(sdata) again.'
        raise ValueError(msg)
    regions, names = pd.factorize(region_of(table))
    reference = reference_of(study)
    means = np.array([reference[name] for name in names])
    if not any(_varies(raw, np.flatnonzero(train & (codes == code))) for code in np.unique(codes[train])):
        msg = (
            f'obsm["{study.keys.features}"] is the same in all {int(train.sum())} training spots, so that nothing can be learned '
            "from it; embed larger tiles with agl_sc.pp.embed(sdata, tile_px=224)."
        )
        raise ValueError(msg)
    if start is None:
        scale = spread_about(raw, means, regions, rows=np.flatnonzero(train))
        genes, n_targets = ordered_genes(study)
    else:
        scale, genes, n_targets = start.scale, start.genes, start.n_targets
    normalize = study.normalize
    columns = table.var_names.get_indexer(genes)
    modelled = counts[:, columns]
    library = np.asarray(counts.sum(axis=1), dtype=float).ravel()
    expression = with_data(modelled, normalize_counts(counts, normalize)[:, columns].data)
    units = 1e4 if normalize == "log1p_cp10k" else float(library[train].mean())
    few = None
    if start is None and not whole and 4 * raw.size > MOST_BYTES:
        rows = np.flatnonzero(train)
        rows = rows[thinned(codes[rows], MOST_SPOTS)]
        some = scaled_rows(raw[rows], means, regions[rows], scale=scale)
        measured, own = Expression.fitted(expression[rows], codes[rows]), Counts(modelled[rows], library[rows], units)
        few = _few_directions(study, Spots(some, measured, codes[rows], own), n_targets)
    digests = made_by_embed(study).images
    fitted = set(region_of(table)[train | validation])
    return TrainingData(
        genes=genes,
        n_targets=n_targets,
        features=scaled_rows(raw, means, regions, scale=scale, directions=few),
        directions=few,
        feature_scale=scale,
        expression=expression,
        counts=modelled,
        library=library,
        units=units,
        sections=codes,
        train=train,
        validation=validation,
        centres=_centres(study),
        section_digests={name: digest for name, digest in digests.items() if name in fitted},
    )


def _varies(features: Floats, rows: IntArray) -> bool:
    """Whether any of these rows differs from the first."""
    blocks = row_slices(len(rows), features.shape[1])
    return any(bool((features[rows[some]] != features[rows[0]]).any()) for some in blocks)


def _few_directions(study: Study, some: Spots, n_targets: int) -> Float32Array | None:
    """Directions to train on, found on some of the training spots; says so."""
    found = directions(some, n_targets)
    if found is not None:
        told = "Training on %d directions of the %d features, which predict the targets about as well."
        study.tell_written(logger, told, found.shape[1], found.shape[0])
    return found


def _centres(study: Study) -> FloatArray | None:
    """Where spots lie, if anybody knows."""
    try:
        return positions_of(study)[0]
    except (KeyError, ValueError):
        return None


def ordered_genes(study: Study) -> tuple[list[str], int]:
    """Targets in table order, then auxiliary genes by prior rank, and the number of targets."""
    table, keys = study.table, study.keys
    role = role_of(study)
    targets = list(table.var_names[role == "target"])
    if not targets:
        msg = f'var["{keys.role}"] names no target gene; run agl_sc.pp.target_genes(sdata) again.'
        raise ValueError(msg)
    if keys.prior_rank not in table.var:
        msg = f'var["{keys.prior_rank}"] is missing; run agl_sc.pp.rank_auxiliary(sdata) first.'
        raise KeyError(msg)
    check_fitted_on(study, "prior_rank", by="rank_auxiliary")
    rank = table.var[keys.prior_rank]
    unranked = list(table.var_names[(role == "auxiliary") & rank.isna().to_numpy()])
    if unranked:
        msg = f'var["{keys.prior_rank}"] is NaN for {len(unranked)} auxiliary genes, {unranked[0]!r} the first; run agl_sc.pp.rank_auxiliary(sdata) again.'
        raise ValueError(msg)
    auxiliary = list(rank[role == "auxiliary"].sort_values(kind="stable").index)
    return [*targets, *auxiliary], len(targets)


def _tell_unusable(usable: BoolArray, assigned: NDArray[Any]) -> None:
    n_left = int((~usable & np.isin(assigned, ("train", "validation"))).sum())
    if n_left:
        logger.warning("%d training or validation spots have no tile or no counts and are left out.", n_left)


def check_alone(study: Study) -> None:
    """Refuse to fine-tune on features of more than the tiles themselves."""
    views = Views.of(made_by_embed(study))
    alone = Views(stages=views.stages).plain()
    beside = {name: value for name, value in views.plain().items() if value != alone[name]}
    if beside:
        said = ", ".join(f"{name}={value!r}" for name, value in beside.items())
        msg = f'finetune=True trains on the tiles alone, and obsm["{study.keys.features}"] was made with {said}; run agl_sc.pp.embed(sdata, context=(), orientations=1, maps="none") first.'
        raise ValueError(msg)


def finetune_data(study: Study, data: TrainingData, device: torch.device) -> TrainingData:
    """The same data with the tiles of training and validation spots and the encoder to fine-tune."""
    check_alone(study)
    made_from = made_by_embed(study)
    encoder = load_encoder(made_from.encoder, stages=made_from.stages)
    check_weights(made_from, encoder)
    placed = placed_again(study)

    def source(rows: BoolArray) -> EncodedTiles:
        position = np.cumsum(rows) - 1
        parts = []
        for section, boxes in placed:
            wanted = np.flatnonzero(rows[section.rows])
            if len(wanted):
                parts.append((position[section.rows[wanted]], replace(boxes, origins=boxes.origins[wanted])))
        return EncodedTiles(
            TileDataset(parts, made_from.tile_px, max_bytes=MAX_BYTES // 2),
            data.sections[rows],
            data.feature_scale,
            encoder=encoder,
            batch_size=64,
            device=device,
        )

    return replace(data, sources=(source(data.train), source(data.validation)))
