"""Adapt a model to a section of which some spots are measured."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from agl_sc._sdata.records import FittedRecord, forget, remember, remembered
from agl_sc._sdata.rollback import unchanged_on_failure
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc._sdata.table import near_matches, region_of
from agl_sc.core.arguments import check_seed
from agl_sc.core.arrays import BoolArray, FloatArray
from agl_sc.core.linear.adaptation import Adaptation, MeasuredSpots, adapted_to, held_out_adapted
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.model import Model
from agl_sc.pp._features.embed import FeatureRequest
from agl_sc.pp._splits.split import assigned_in, split_hash
from agl_sc.pp._splits.units import SETS
from agl_sc.tl._model.belongs import places_of, seen_spots
from agl_sc.tl._model.intervals import adapted_intervals
from agl_sc.tl._model.predict import check_genes, features_of, forget_predictions, prepare_features, written_genes

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

FEWEST = 5
"""Measured spots below which nothing can be held out among them."""


def adapt(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    model: Model,
    spots: str | Sequence[bool] | NDArray[np.bool_],
    *,
    device: str | None = None,
    batch_size: int = 32,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    layer: str | None = None,
    key_added: str = "agl",
    seed: int = 0,
) -> Model:
    """Adapt a model to sections of which some spots are measured.

    A model that comes from other sections has their level, their contrast, and their relation of morphology to expression. A few
    measured spots tell what is different here. Per gene a shift and a slope, each shrunk towards the model's own, and ridge of
    what is left on the model's shared representation are tried, one after the other, and each is taken only where it lowers
    the error of measured spots that are held out in turn. Where nothing helps, the model comes back as it was.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    model
        A trained model.
    spots
        The measured spots: a column of ``obs`` of True and False, or that for every spot of the table. At least five; their counts alone are looked at.
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
    layer
        Layer with raw counts; X by default.
    key_added
        Prefix of all slots.
    seed
        Seed of what is held out among the measured spots.

    Returns
    -------
    The adapted model, to predict with by :func:`agl_sc.tl.predict`, from nine measured spots on with intervals of 90 % for the others (``interval=0.9``); its card says what was adapted (``card["adapted"]``). Writes
    ``obs["agl_split"]``, in which the measured spots are train, so that :func:`agl_sc.tl.evaluate` scores the others alone, and
    ``obsm["agl_features"]`` where there were none; predictions of the model before are taken away.

    Raises
    ------
    KeyError
        There is no such column.
    TypeError
        ``spots`` is neither the name of a column nor True and False.
    ValueError
        There are fewer than five measured spots, or counts are not raw; the features come from another encoder or other tiles.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> other = agl_sc.datasets.toy_tissue(n_sections=1, n_spots_per_side=6, seed=1)
    >>> other["table"].obs["measured"] = [number < 10 for number in range(other["table"].n_obs)]
    >>> adapted = agl_sc.tl.adapt(other, model, "measured")
    >>> agl_sc.tl.predict(other, adapted)
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
        layer=layer,
    )
    study = Study.of(sdata, address, key_added)
    return adapt_study(study, model, spots, tiles=FeatureRequest(device=device, batch_size=batch_size), seed=seed)


def adapt_study(study: Study, model: Model, spots: Any, *, tiles: FeatureRequest, seed: int = 0) -> Model:
    """As :func:`adapt`, of what is resolved already."""
    check_seed(seed)
    chosen = _mask(study, spots)
    measured = chosen & (np.asarray(study.counts.sum(axis=1)).ravel() > 0)
    _check_enough(measured, chosen)
    check_genes(study.table, model)
    with unchanged_on_failure(study.table, study.keys, study.sdata):
        prepare_features(study, model, tiles)
        data, rows, known = _measured_spots(study, model, measured, tiles=tiles)
        found = adapted_to(data, residual="base" not in model.tensors, seed=seed)
        _mark(study, model, rows)
        forget_predictions(study)
        adapted = _adapted(model, found, known)
        held = held_out_adapted(data, found.shrinkage, seed=seed)
        adapted = adapted_intervals(adapted, data.measured - held, predicted=held, known=known)
        card = {**adapted.card, **_card(study, model, rows, found=found)}
    logger.info(
        "Adapted to %d measured spots: %s; %.1f %% of the squared error of held-out ones is saved.",
        rows.sum(),
        _words(found),
        100 * found.saved,
    )
    return replace(adapted, card=card)


def _mask(study: Study, spots: Any) -> BoolArray:
    """Which spots are named, (n_obs,)."""
    table = study.table
    if isinstance(spots, str):
        if spots not in table.obs:
            msg = f"spots={spots!r} is no column of obs{near_matches([spots], table.obs.columns)}; write one that is True for the measured spots."
            raise KeyError(msg)
        column = table.obs[spots]
        if column.isna().any() or not pd.api.types.is_bool_dtype(column):
            msg = f'obs["{spots}"] holds {column.dtype}, not True or False for every spot; make it such as obs["measured"] = obs["{spots}"] == "yes".'
            raise TypeError(msg)
        named: BoolArray = column.to_numpy(dtype=bool)
        return named
    mask: BoolArray = np.asarray(spots)
    if mask.dtype != bool or mask.shape != (table.n_obs,):
        msg = f"spots is {mask.dtype} of shape {mask.shape}; pass True or False for each of the {table.n_obs} spots, or the name of such a column of obs."
        raise TypeError(msg)
    return mask


def _check_enough(measured: BoolArray, chosen: BoolArray) -> None:
    n_left_out = int(chosen.sum() - measured.sum())
    if measured.sum() < FEWEST:
        without = f" ({n_left_out} more have no counts or no features)" if n_left_out else ""
        msg = f"{int(measured.sum())} measured spots{without} are too few to adapt to, since some are held out to see what helps; name at least {FEWEST} with spots=."
        raise ValueError(msg)


def _measured_spots(
    study: Study, model: Model, measured: BoolArray, *, tiles: FeatureRequest
) -> tuple[MeasuredSpots, BoolArray, BoolArray]:
    """Measured and predicted expression of the genes that the table has, the spots they are of, and which genes these are."""
    features, reference = features_of(study, model, tiles)
    regions = region_of(study.table).to_numpy(dtype=str)
    inside = measured & np.isfinite(features).all(axis=1)
    _check_enough(inside, measured)
    rows = np.flatnonzero(inside)
    own, of = np.asarray(features)[rows], regions[rows]
    genes, known = written_genes(study.table, model)
    predicted = _stacked(model, own, of, reference=reference)[:, known]
    basis = _stacked(_trunk_alone(model), own, of, reference=reference)
    columns = study.table.var_names.get_indexer(pd.Index(genes))
    expression = normalize_counts(study.counts[rows], model.card["normalize"])[:, columns].toarray()
    return MeasuredSpots(expression.astype(float), predicted, basis), inside, known


def _stacked(model: Model, features: Any, regions: NDArray[Any], *, reference: dict[str, FloatArray]) -> FloatArray:
    blocks = [values for _, values in model.predicted_blocks(features, regions, reference)]
    stacked: FloatArray = np.concatenate(blocks).astype(float) if blocks else np.empty((0, 0))
    return stacked


def _trunk_alone(model: Model) -> Model:
    """A model whose predictions are the shared representation."""
    rank = len(model.tensors["network.linear.weight"])
    head = {"network.head.weight": torch.eye(rank), "network.head.bias": torch.zeros(rank)}
    line = {"slope": torch.ones(rank), "intercept": torch.zeros(rank)}
    kept = {name: tensor for name, tensor in model.tensors.items() if name != "base"}
    return replace(model, tensors={**kept, **head, **line})


def _adapted(model: Model, found: Adaptation, known: BoolArray) -> Model:
    """The model with other parameters for the genes that the table has."""
    slope, intercept = (model.tensors[name].double().numpy().copy() for name in ("slope", "intercept"))
    head = model.tensors["network.head.weight"].double().numpy().copy()
    bias = model.tensors["network.head.bias"].double().numpy().copy()
    slope[known] *= found.slope
    intercept[known] = found.slope * intercept[known] + found.shift
    if found.weights.any():  # which are in the units of the layer: slopes go into the head
        head, bias = head * slope[:, None], bias * slope
        head[known] += found.weights.T
        slope = np.ones_like(slope)
    changed = {"network.head.weight": head, "network.head.bias": bias, "slope": slope, "intercept": intercept}
    own = {name: torch.from_numpy(values.astype(np.float32)) for name, values in changed.items()}
    return replace(model, tensors={**model.tensors, **own})


def _mark(study: Study, model: Model, rows: BoolArray) -> None:
    """Call the measured spots train; others keep their set, or are test where nothing is said yet."""
    table, keys = study.table, study.keys
    before = None
    if keys.split in table.obs:
        assigned, before = assigned_in(study).astype(object), split_hash(study)
    else:
        assigned = np.where(seen_spots(study, model.card), "train", "test").astype(object)
    assigned = np.where(rows, "train", assigned)
    table.obs[keys.split] = pd.Categorical(assigned, categories=list(SETS))
    forget(table, keys, "split")
    study.memo.clear()
    fitted = remembered(table, keys, FittedRecord)
    if fitted is not None and before is not None:  # roles and ranks were fitted on fewer spots, which are train still
        now = split_hash(study)
        remember(table, keys, FittedRecord({what: now if by == before else by for what, by in fitted.by.items()}))


def _card(study: Study, model: Model, rows: BoolArray, *, found: Adaptation) -> dict[str, Any]:
    """What the card says of the sections that the model was adapted to, which it has seen from now on."""
    features = study.features
    images = {} if features is None else features.images
    regions = sorted(set(region_of(study.table)[rows]))
    fitted_on = {**model.card.get("fitted_on", {}), **{name: images[name] for name in regions if name in images}}
    places = {**model.card.get("places", {}), **places_of(study, rows)}
    shrinkage = found.shrinkage
    adapted = {
        "n_spots": int(rows.sum()),
        "sections": ", ".join(regions),
        "spots": hashlib.sha256("\n".join(map(str, study.table.obs_names[rows])).encode()).hexdigest(),
        "shift": shrinkage.shift,
        "slope": shrinkage.slope,
        "residual": shrinkage.residual,
        "saved": found.saved,
    }
    return {"fitted_on": fitted_on, "places": places, "split": split_hash(study), "adapted": adapted}


def _words(found: Adaptation) -> str:
    shrinkage = found.shrinkage
    parts = {"shift": shrinkage.shift, "slope": shrinkage.slope, "residual": shrinkage.residual}
    return ", ".join(name for name, value in parts.items() if value is not None) or "nothing helps"
