"""Predict expression of sections from their images and write it."""

import logging
import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from agl_sc._model_text import NO_LEVELS
from agl_sc._sdata.genes import find_genes, near_genes
from agl_sc._sdata.predictions import WriteTo, check_place, forget_predicted, write_predicted
from agl_sc._sdata.records import FeatureRecord, PredictionRecord, SettingsRecord, forget, remember
from agl_sc._sdata.rollback import unchanged_on_failure
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc._sdata.table import region_of
from agl_sc.core.arguments import is_number
from agl_sc.core.arrays import BoolArray, FloatArray, Floats, IntArray
from agl_sc.core.encoders.encode import Recipe
from agl_sc.core.encoders.load import without_path
from agl_sc.core.evaluation.section_metrics import COVERAGE, NAMES
from agl_sc.model import Model, check_encoder_is_trusted
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.embed import FeatureRequest, embed_study, encode
from agl_sc.pp._features.made_from import check_tiles, placed_again
from agl_sc.pp._features.reference import check_enough_tissue, reference_of, reference_record
from agl_sc.pp._features.tiles import TileSpec
from agl_sc.pp._splits.split import assigned_in, split_hash
from agl_sc.pp._splits.units import SETS
from agl_sc.tl._model.belongs import seen_spots
from agl_sc.tl._model.intervals import check_level, promises, write_intervals
from agl_sc.tl._model.trust import below_gate, distance_of, tell_gated, without_room, write_distance, write_scores

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

MOST_MISSING = 0.5
"""Share of a model's target genes that a table may lack; with more missing, it is another panel or another naming."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN = 5
"""Names of missing genes in a message."""


def predict(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    model: Model,
    *,
    device: str | None = None,
    batch_size: int = 32,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    write_to: WriteTo = "auto",
    min_r: float | None = None,
    interval: float | None = None,
    key_added: str = "agl",
) -> None:
    """Predict expression of sections the model has never seen.

    Features are taken from ``obsm["agl_features"]`` where the model's encoder and tiles made them, and computed otherwise.
    No counts are needed: a table without X, or without any genes, will do. Genes that
    ``var_names`` call otherwise are found by a column of ``var`` with the other naming, such as ``gene_ids``.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    model
        A trained model.
    device
        ``"cpu"``, ``"cuda"`` (in half precision), ``"mps"``; the fastest there is by default.
    batch_size
        Tiles per forward pass.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    image_mpp
        Microns per pixel of the full image, a number or a mapping by section; from metadata or spot pitch by default.
    write_to
        Where predictions go: ``"layer"``, ``"table"`` (one of their own, spots x predicted genes) or ``"auto"``, the layer
        where it takes no more memory than the counts do, or than 256 MB.
    min_r
        Genes whose held-out Pearson correlation in training is below this are not written, and the log says which; 0.1
        keeps what may be worth a look. By default all genes are written. Genes without a score always are.
    interval
        Share of the spots that intervals around the predictions are to cover: 0.5, 0.68, 0.8, 0.9 or 0.95; None for none. They
        come from spots that were held out: across patients where training held enough of them out (nine for 0.9, nineteen for
        0.95), else from measured spots of the section (of a model that :func:`agl_sc.tl.adapt` made, as many), else within the section
        alone, of a patient of whom training had two sections. A section of which nothing can be promised has none.
    key_added
        Prefix of all slots.

    Returns
    -------
    Nothing; writes ``layers["agl"]``, float32 in the units of the model's training layer, NaN for genes that are not
    predicted and spots without a tile, or ``sdata.tables["agl_prediction"]`` with a column per predicted gene (with ``write_to="auto"`` 2 GB at most:
    of the targets, then of the genes of highest held-out score); and, where there is none yet, ``obs["agl_split"]``: train for spots of sections
    the model was fitted on, test otherwise. Of a model that knows them also ``var["agl_held_out_pearson"]``,
    ``..._n_spots``, ``..._n_sections``, ``..._noise_ceiling``, ``..._pearson_of_ceiling`` and ``..._q_value``, scores of
    its genes on training spots that were held out; and ``obs["agl_distance"]``, the share of held-out training spots that lie
    nearer to the rest of the training tissue than the spot does, in [0, 1], NaN for spots that the model was fitted
    among, and 1 for all spots of a section that lies beyond as a whole: above .99 a spot is beyond what the model knows, and a section most of which is, is named in the log.
    With ``interval`` also ``layers["agl_lower"]`` and ``layers["agl_upper"]`` beside the predictions, NaN where nothing is
    promised; the log and ``uns["agl"]["interval"]`` say what is.

    Raises
    ------
    ValueError
        No gene has a held-out score of ``min_r``, no interval can be promised of any section, the table lacks more than half of the model's targets, the features come from another encoder or other tiles, the image is too
        coarse for the model's tiles, or the table carries another split of sections that the model was fitted on.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> other = agl_sc.datasets.toy_tissue(n_sections=1, n_spots_per_side=6, seed=1)
    >>> agl_sc.tl.predict(other, model)
    >>> other["table"][:, model.targets].layers["agl"].shape
    (38, 50)
    """
    if not isinstance(model, Model):
        msg = f"model is a {type(model).__name__}, not an agl_sc.Model; train one with agl_sc.tl.train or read it with agl_sc.Model.load."
        raise TypeError(msg)
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
    )
    if min_r is not None and not (is_number(min_r) and -1 <= min_r <= 1):
        msg = f"min_r={min_r!r} is not a correlation from -1 to 1; 0 leaves out what came out the wrong way round, None writes all genes."
        raise ValueError(msg)
    check_level(interval)
    n_layers = 1 if interval is None else 3
    study = replace(Study.of(sdata, address, key_added), write_to=write_to, n_layers=n_layers)
    tiles = FeatureRequest(device=device, batch_size=batch_size)
    predict_study(study, model, tiles, min_r=min_r, interval=interval)


def predict_study(
    study: Study, model: Model, tiles: FeatureRequest, *, min_r: float | None = None, interval: float | None = None
) -> None:
    """As :func:`predict`, of what is resolved already."""
    table, keys = study.table, study.keys
    below = below_gate(model, min_r)
    left_out = without_room(study, model, below)
    check_place(study)
    if table.n_vars:
        check_genes(table, model)
    with unchanged_on_failure(table, keys, study.sdata):
        prepare_features(study, model, tiles)
        seen = _seen(study, model)
        share = distance_of(study, model, seen)
        _write_split(study, seen)
        fitted = seen & np.isin(assigned_in(study), ("train", "validation"))
        promised = None if interval is None else promises(study, model, interval, share=share, fitted=fitted)
        split = split_hash(study) if seen.any() else None
        record = PredictionRecord(model.card["normalize"], split)
        write_predictions(study, model, record=record, tiles=tiles, left_out=left_out)
        tell_gated(model, below, min_r)
        write_distance(study, model, share)
        if promised is not None:
            genes = written_genes(table, model, left_out)
            write_intervals(study, model, promised, genes=genes, fitted=fitted)
        values = {**model.card["params"], "normalize": model.card["normalize"]}
        remember(table, keys, SettingsRecord(values, model.card["versions"]))


def prepare_features(study: Study, model: Model, tiles: FeatureRequest) -> None:
    """Features of the model's encoder and tiles: those in place, refused where they are others, or made now."""
    _check_features(study, model)
    if study.keys.features in study.table.obsm:
        check_tiles(study)
        return
    made_from = FeatureRecord.read(model.card["features"])
    _check_embeddable(made_from)
    views = Views.of(made_from)
    own = replace(tiles, encoder=made_from.encoder, tile_px=made_from.tile_px, mpp=made_from.mpp, views=views)
    check_encoder_is_trusted(model)
    embed_study(study, own)
    _check_features(study, model)


def _check_embeddable(made_from: FeatureRecord) -> None:
    """Refuse to compute features that a model knows by a declaration alone, which none that are computed here would meet."""
    if not made_from.sections and not _DIGEST.fullmatch(made_from.weights_digest):
        msg = (
            f"The model takes features of {made_from.encoder!r} that were computed elsewhere (weights: {made_from.weights_digest}); "
            "compute them there for these spots too, and pass them to agl_sc.pp.use_features first."
        )
        raise ValueError(msg)


def features_of(study: Study, model: Model, tiles: FeatureRequest) -> tuple[Floats, dict[str, FloatArray]]:
    """What a model predicts from, and what those of every region are centred on."""
    return _own_features(study, model, tiles) if model.finetuned else _features(study)


def write_predictions(
    study: Study,
    model: Model,
    *,
    record: PredictionRecord,
    tiles: FeatureRequest,
    left_out: BoolArray | None = None,
) -> None:
    """Write predictions from the features in place, without the genes ``left_out``, (n_predicted,), and what is known of all."""
    table = study.table
    features, reference = features_of(study, model, tiles)
    genes, known = written_genes(table, model, left_out)
    blocks = model.predicted_blocks(features, region_of(table).to_numpy(dtype=str), reference, genes=known)
    written = ((rows, genes, values) for rows, values in blocks)
    slot = write_predicted(study, "model", genes=genes, blocks=written)
    remember(table, study.keys, record)
    forget_metrics(study)
    write_scores(study, model)
    if model.levels is None:
        study.tell_written(logger, "Levels of sections are %s.", NO_LEVELS)
    study.tell_written(logger, "Wrote %s: %d genes of %d spots.", slot, known.sum(), table.n_obs)


def written_genes(table: "AnnData", model: Model, left_out: BoolArray | None = None) -> tuple[list[str], BoolArray]:
    """The table's names of the predicted genes that it has, and which these are; all of them for a table without genes."""
    wanted = np.ones(model.n_predicted, dtype=bool) if left_out is None else ~left_out
    if table.n_vars == 0:
        return [gene for gene, is_wanted in zip(model.predicted_genes, wanted, strict=True) if is_wanted], wanted
    columns = find_genes(table, model.predicted_genes, quiet=True)
    known: BoolArray = wanted & (columns >= 0)
    return [str(name) for name in table.var_names[columns[known]]], known


def forget_metrics(study: Study) -> None:
    """Take away the test metrics of earlier predictions."""
    table, keys = study.table, study.keys
    for metric in (*NAMES, COVERAGE):
        if keys.metric(metric) in table.var:
            del table.var[keys.metric(metric)]


def forget_predictions(study: Study) -> None:
    """Take away the predictions of an earlier model, with what is recorded of them."""
    table, keys = study.table, study.keys
    forget_predicted(study, "model")
    for name in ("units", "prediction"):
        forget(table, keys, name)
    forget_metrics(study)


def _features(study: Study) -> tuple[Floats, dict[str, FloatArray]]:
    """The features in place, and what those of every region are centred on."""
    return np.asarray(study.table.obsm[study.keys.features]), reference_of(study)


def _own_features(study: Study, model: Model, tiles: FeatureRequest) -> tuple[Floats, dict[str, FloatArray]]:
    """Those of a fine-tuned encoder; they stay with the prediction, the slot keeps those of the encoder it names."""
    made_from = FeatureRecord.read(model.card["features"])
    recipe = Recipe(model.encoder(), made_from.tile_px, batch_size=tiles.batch_size, device=tiles.device)
    placed = placed_again(study)
    features = encode(recipe, placed, n_obs=study.table.n_obs)
    spec = TileSpec(made_from.tile_px, made_from.mpp)
    record = reference_record(study, placed, features, spec=spec, neighbors_from=None, encode=partial(encode, recipe))
    for name, n_tiles in record.n_tiles.items():
        check_enough_tissue(name, n_tiles)
    return features, record.means


def check_genes(table: "AnnData", model: Model) -> None:
    columns = find_genes(table, model.predicted_genes)
    _check_apart(table, model, columns)
    lacking = [name for name, column in zip(model.predicted_genes, columns, strict=True) if column < 0]
    targets = set(model.targets)
    missing = [name for name in lacking if name in targets]
    if len(missing) == model.n_targets:
        msg = (
            f"The table has none of the model's {model.n_targets} target genes (e.g. {missing[0]!r})"
            f"{near_genes(table, missing)}; name its genes as in training."
        )
        raise ValueError(msg)
    if len(missing) > MOST_MISSING * model.n_targets:
        msg = (
            f"The table lacks {len(missing)} of the model's {model.n_targets} target genes ({_listed(missing)}), more than "
            f"{MOST_MISSING:.0%}{near_genes(table, missing)}; name its genes as in training, or train a model of those it has."
        )
        raise ValueError(msg)
    if lacking:
        n_others, n_selected = len(lacking) - len(missing), model.n_predicted - model.n_targets
        parts = [f"{len(missing)} of {model.n_targets} target genes"] if missing else []
        parts += [f"{n_others} of {n_selected} selected auxiliary genes"] if n_others else []
        logger.warning(
            "%s are not in the table (e.g. %s) and are not written.", " and ".join(parts), _listed([*missing, *lacking])
        )


def _listed(names: list[str]) -> str:
    """The first of some names, each once."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _check_apart(table: "AnnData", model: Model, columns: IntArray) -> None:
    """Refuse two genes of the model that are one in the table."""
    first: dict[int, str] = {}
    for name, column in zip(model.predicted_genes, columns.tolist(), strict=True):
        if column >= 0 and first.setdefault(column, name) != name:
            own = table.var_names[column]
            msg = f"{first[column]!r} and {name!r} of the model are both {own!r} in the table; name its genes as in training."
            raise ValueError(msg)


def _check_features(study: Study, model: Model) -> None:
    """Refuse features in the slot that the model's encoder and tiles did not make."""
    slot = study.keys.features
    if slot not in study.table.obsm:
        return
    made_from, wanted = study.features, FeatureRecord.read(model.card["features"])
    for name in ("encoder", *Views().plain(), "weights_digest", "tile_px", "mpp"):
        found, needed = getattr(made_from, name, None), getattr(wanted, name)
        if found != needed and not (
            (name == "encoder" and without_path(str(found)) == without_path(needed))
            or (name == "mpp" and np.isclose(found or 0, needed, rtol=0.05))
        ):
            msg = (
                f'obsm["{slot}"] was made with {name}={found!r}, the model with {needed!r}; '
                f'delete obsm["{slot}"], or use another key_added.'
            )
            raise ValueError(msg)
    n_found, n_needed = study.table.obsm[slot].shape[1], len(model.tensors["feature_scale"])
    if n_found != n_needed:
        msg = f'obsm["{slot}"] has {n_found} columns, but the model needs {n_needed}; delete obsm["{slot}"], or use another key_added.'
        raise ValueError(msg)


def _seen(study: Study, model: Model) -> BoolArray:
    """Spots that the model was fitted among, (n_obs,); refused where another split would call them test."""
    seen, keys = seen_spots(study, model.card), study.keys
    if seen.any() and keys.split in study.table.obs and split_hash(study) != model.card["split"]:
        msg = (
            f'The model was fitted on {_named(study, seen)}, under another split than obs["{keys.split}"], which could call '
            "spots that it has seen test; predict with another key_added."
        )
        raise ValueError(msg)
    return seen


def _named(study: Study, seen: BoolArray) -> str:
    return ", ".join(sorted(set(region_of(study.table)[seen])))


def _write_split(study: Study, seen: BoolArray) -> None:
    """Say which spots the model has seen, where nothing is said yet."""
    table, keys = study.table, study.keys
    if keys.split in table.obs:
        return
    if seen.any():
        logger.warning("The model was fitted on %s: predictions there are not evidence.", _named(study, seen))
    table.obs[keys.split] = pd.Categorical(np.where(seen, "train", "test"), categories=list(SETS))
