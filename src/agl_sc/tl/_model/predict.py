"""Predict expression of sections from their images and write it."""

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.record import record, recorded, unchanged_on_failure
from agl_sc._sdata.sections import Names
from agl_sc._sdata.table import get_table, near_matches, region_of, section_of
from agl_sc.core.encoders.encode import Recipe
from agl_sc.core.encoders.load import without_path
from agl_sc.core.evaluation.section_metrics import NAMES
from agl_sc.model import Model
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.embed import embed, encode, placed_again
from agl_sc.pp._splits.split import split_hash
from agl_sc.pp._splits.units import SETS

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def predict(
    sdata: "SpatialData",
    model: Model,
    *,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    key_added: str = "agl",
) -> None:
    """Predict expression of sections the model has never seen.

    Features are taken from ``obsm["agl_features"]`` where the model's encoder and tiles made them, and computed otherwise.
    No counts are needed: a table without X whose ``var_names`` are the model's ``predicted_genes`` will do.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    model
        A trained model.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    key_added
        Prefix of all slots.

    Returns
    -------
    Nothing; writes ``layers["agl"]``, float32 in the units of the model's training layer, NaN for genes that are not
    predicted and spots without a tile, and, where there is none yet, ``obs["agl_split"]``: train for spots of sections
    the model was fitted on, test otherwise.

    Raises
    ------
    ValueError
        The table has no genes or none of the model's, the features come from another encoder or other tiles, the image is too
        coarse for the model's tiles, or the table carries another split of sections that the model was fitted on.
    """
    if not isinstance(model, Model):
        msg = f"model is a {type(model).__name__}, not an agl_sc.Model; train one with agl_sc.tl.train or read it with agl_sc.Model.load."
        raise TypeError(msg)
    table = get_table(sdata, table_key)
    keys = Keys(key_added)
    _check_genes(table, model)
    where: dict[str, Any] = {
        "table_key": table_key, "image_key": image_key, "shapes_key": shapes_key, "coordinate_system": coordinate_system
    }  # fmt: skip
    with unchanged_on_failure(table, keys):
        _check_features(table, keys, model)
        if keys.features not in table.obsm:
            made_from = model.card["features"]
            tiles: dict[str, Any] = {name: made_from[name] for name in ("encoder", "tile_px", "mpp")}
            embed(sdata, **tiles, **asdict(Views.recorded(made_from)), **where, key_added=key_added)
            _check_features(table, keys, model)
        seen = _seen_sections(table, keys, model)
        write_predictions(sdata, table, keys=keys, model=model, where=where)
        _write_provenance(table, keys, model, seen=seen)


def write_predictions(
    sdata: "SpatialData", table: "AnnData", *, keys: Keys, model: Model, where: dict[str, Any]
) -> None:
    """Write the prediction layer from the features in place."""
    features = (
        _own_features(sdata, table, keys=keys, model=model, where=where)
        if model.finetuned
        else np.asarray(table.obsm[keys.features])
    )
    predicted = model.predict(features, section_of(table).to_numpy())
    columns = table.var_names.get_indexer(model.predicted_genes)
    layer = np.full(table.shape, np.nan, dtype=np.float32)
    layer[:, columns[columns >= 0]] = predicted[:, columns >= 0]
    table.layers[keys.layer] = layer
    record(table, keys, {"units": model.card["normalize"]})
    for metric in NAMES:  # of earlier predictions
        if keys.metric(metric) in table.var:
            del table.var[keys.metric(metric)]
    logger.info('Wrote layers["%s"]: %d genes of %d spots.', keys.layer, (columns >= 0).sum(), table.n_obs)


def _own_features(
    sdata: "SpatialData", table: "AnnData", *, keys: Keys, model: Model, where: dict[str, Any]
) -> NDArray[np.float32]:
    """Features of a fine-tuned encoder; they stay with the prediction, the slot keeps those of the encoder it names."""
    elements = {name: where[name] for name in ("image_key", "shapes_key", "coordinate_system")}
    placed = placed_again(sdata, table, keys, elements=elements)
    tile_px = int(model.card["features"]["tile_px"])
    return encode(Recipe(model.encoder(), tile_px), placed, n_obs=table.n_obs)


def _check_genes(table: "AnnData", model: Model) -> None:
    if table.n_vars == 0:
        msg = (
            "The table has no genes, and a prediction needs a column for each; "
            "make it with var=pd.DataFrame(index=model.predicted_genes), without X."
        )
        raise ValueError(msg)
    missing = [name for name in model.targets if name not in table.var_names]
    if len(missing) == model.n_targets:
        msg = (
            f"The table has none of the model's {model.n_targets} target genes (e.g. {missing[0]!r})"
            f"{near_matches(missing, table.var_names)}; name its genes as in training."
        )
        raise ValueError(msg)
    if missing:
        logger.warning(
            "%d of %d target genes are not in the table (e.g. %s) and are not written.",
            len(missing),
            model.n_targets,
            missing[0],
        )


def _check_features(table: "AnnData", keys: Keys, model: Model) -> None:
    """Refuse features in the slot that the model's encoder and tiles did not make."""
    if keys.features not in table.obsm:
        return
    made_from, wanted = (
        {**Views().record(), **(each or {})} for each in (recorded(table, keys, "features"), model.card["features"])
    )
    for name in ("encoder", *Views().record(), "weights_digest", "tile_px", "mpp"):
        if made_from.get(name) != wanted[name] and not (
            (name == "encoder" and without_path(str(made_from.get(name))) == without_path(wanted[name]))
            or (name == "mpp" and np.isclose(made_from.get(name, 0), wanted[name], rtol=0.05))
        ):
            msg = (
                f'obsm["{keys.features}"] was made with {name}={made_from.get(name)!r}, the model with {wanted[name]!r}; '
                f'delete obsm["{keys.features}"], or use another key_added.'
            )
            raise ValueError(msg)


def _seen_sections(table: "AnnData", keys: Keys, model: Model) -> list[str]:
    """Sections whose image the model was fitted on; refused where another split would call their spots test."""
    images = recorded(table, keys, "features")["images"]
    known = set(model.card["fitted_on"].values())
    seen = sorted(name for name, digest in images.items() if digest in known)
    if seen and keys.split in table.obs and split_hash(table, keys) != model.card["split"]:
        msg = (
            f'The model was fitted on {", ".join(seen)}, under another split than obs["{keys.split}"], which could call '
            "spots that it has seen test; predict with another key_added."
        )
        raise ValueError(msg)
    return seen


def _write_provenance(table: "AnnData", keys: Keys, model: Model, *, seen: list[str]) -> None:
    """Say how the layer was made, and which spots the model has seen."""
    record(
        table,
        keys,
        {"params": {**model.card["params"], "normalize": model.card["normalize"]}, "versions": model.card["versions"]},
    )
    if keys.split in table.obs:
        return
    if seen:
        logger.warning("The model was fitted on %s: predictions there are not evidence.", ", ".join(seen))
    assigned = np.where(region_of(table).isin(seen), "train", "test")
    table.obs[keys.split] = pd.Categorical(assigned, categories=list(SETS))
