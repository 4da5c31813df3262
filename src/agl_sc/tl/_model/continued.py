"""Training that goes on from a model: what has to agree, what it starts from, and what its card remembers."""

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from agl_sc._sdata.genes import find_genes, near_genes
from agl_sc._sdata.records import SettingsRecord, remember, remembered
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import region_of
from agl_sc.core.arrays import FloatArray
from agl_sc.core.choices import Choices, Earlier
from agl_sc.core.config import TrainConfig
from agl_sc.core.encoders.load import weights_digest
from agl_sc.core.weighting import METHODS, MethodSpec
from agl_sc.model import Model
from agl_sc.pp._features.embed import FeatureRequest
from agl_sc.pp._genes.targets_and_ranks import ROLES, role_of
from agl_sc.pp._splits.split import assigned_in, record_fitted_on
from agl_sc.tl._model.belongs import seen_spots
from agl_sc.tl._model.predict import prepare_features

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What training goes on from."""

    genes: list[str]
    """The model's predicted genes as the table calls them, targets first."""
    n_targets: int
    """Number of leading genes that are targets."""
    scale: FloatArray
    """What its features are divided by, (n_features,)."""
    spec: MethodSpec
    """Its method, with the weights it has."""
    choices: Choices
    """What it was trained with."""
    earlier: Earlier
    """Its parameters and gene weights."""


def check_init(init: Any, method: str, config: TrainConfig, *, finetune: bool) -> None:
    """Refuse, before any work, a model that training could not go on from as it is asked for.

    Raises
    ------
    TypeError
        It is no model.
    ValueError
        It is fine-tuned, or fine-tuning is asked for; it was trained with another loss or method.
    """
    if not isinstance(init, Model):
        msg = f"init is a {type(init).__name__}, not an agl_sc.Model; read it with agl_sc.Model.load, or leave it out."
        raise TypeError(msg)
    if init.finetuned or finetune:
        what = "init is a fine-tuned model" if init.finetuned else "finetune=True is asked for with init="
        msg = f"{what}, and training goes on from the features of an encoder as it is; train with finetune=True from the start, without init=."
        raise ValueError(msg)
    loss = init.card.get("params", {}).get("loss", config.loss)
    if loss != config.loss:
        msg = f"init was trained with loss={loss!r}, and config has {config.loss!r}; pass config=TrainConfig(loss={loss!r})."
        raise ValueError(msg)
    if method not in ("dkgsb", init.method):
        msg = f"method={method!r} is not that of init, {init.method!r}, whose gene weights stay; leave method= out, or train without init=."
        raise ValueError(msg)


def prepare_continued(study: Study, init: Model, tiles: FeatureRequest) -> Start:
    """Features, roles and ranks as the model has them, refused where the table has others.

    Raises
    ------
    ValueError
        Genes are missing; features come from another encoder or other tiles; targets or units are others; or a test spot is one
        that the model was fitted on.
    """
    genes = _own_genes(study, init)
    _check_units(study, init)
    prepare_features(study, init, tiles)
    seen = seen_spots(study, init.card) & (assigned_in(study) == "test")
    if seen.any():
        regions = ", ".join(sorted(set(region_of(study.table)[seen])))
        msg = f'init was fitted on {regions}, of which obs["{study.keys.split}"] calls {int(seen.sum())} spots test; call them train with agl_sc.pp.split(sdata, assignments=).'
        raise ValueError(msg)
    _write_roles(study, genes, init.n_targets)
    remember_units(study, init)
    return start_of(init, genes)


def _own_genes(study: Study, init: Model) -> list[str]:
    """The table's names of all genes that the model predicts."""
    columns = find_genes(study.table, init.predicted_genes)
    missing = [gene for gene, column in zip(init.predicted_genes, columns, strict=True) if column < 0]
    if missing:
        msg = (
            f"The table lacks {len(missing)} of the {init.n_predicted} genes that init predicts (e.g. {missing[0]!r})"
            f"{near_genes(study.table, missing)}; name its genes as in training, or train without init=."
        )
        raise ValueError(msg)
    if len(set(columns.tolist())) < len(columns):
        msg = "Two genes of init are one gene in the table; name its genes as in training, or train without init=."
        raise ValueError(msg)
    return [str(name) for name in study.table.var_names[columns]]


def _check_units(study: Study, init: Model) -> None:
    found = remembered(study.table, study.keys, SettingsRecord)
    if found is not None and "normalize" in found.values and found.normalize != init.card["normalize"]:
        msg = f"init models genes in {init.card['normalize']!r}, and the table records {found.normalize!r}; choose targets with agl_sc.pp.target_genes(sdata, normalize={init.card['normalize']!r})."
        raise ValueError(msg)


def remember_units(study: Study, init: Model) -> None:
    """The model's units for the table."""
    before = remembered(study.table, study.keys, SettingsRecord) or SettingsRecord({})
    remember(study.table, study.keys, SettingsRecord({**before.values, "normalize": init.card["normalize"]}))


def _write_roles(study: Study, genes: list[str], n_targets: int) -> None:
    """Targets and auxiliary genes are the model's; other targets that somebody chose are refused."""
    table, keys = study.table, study.keys
    targets = set(genes[:n_targets])
    if keys.role in table.var:
        others = sorted(set(table.var_names[role_of(study) == "target"]) ^ targets)
        if others:
            msg = f'var["{keys.role}"] has other targets than init ({others[0]!r} the first); take it away with del table.var[{keys.role!r}], or train without init=.'
            raise ValueError(msg)
    role = np.where(table.var_names.isin(genes[n_targets:]), "auxiliary", "excluded")
    role = np.where(table.var_names.isin(list(targets)), "target", role)
    table.var[keys.role] = pd.Categorical(role, categories=list(ROLES))
    rank = pd.Series(np.arange(len(genes) - n_targets, dtype=float), index=genes[n_targets:])
    table.var[keys.prior_rank] = rank.reindex(table.var_names).to_numpy()
    record_fitted_on(study, "role")
    record_fitted_on(study, "prior_rank")


def start_of(init: Model, genes: list[str]) -> Start:
    """From a model, with its genes as the table calls them."""
    params = init.card.get("params", {})
    state = {name: tensor for name, tensor in init.tensors.items() if name.startswith("network.")}
    n_auxiliary = init.n_predicted - init.n_targets
    choices = Choices(
        alpha=float(params.get("alpha") or 1.0),
        rank=len(state["network.linear.weight"]),
        cutoff=1.0 if n_auxiliary else 0.0,
        n_epochs=0,
        target_weight=float(params.get("target_weight") or 1.0),
    )
    spec = replace(METHODS["agl" if n_auxiliary else "pgl"], name=init.method)
    weights = init.weights[init.selected].copy()
    scale = init.tensors["feature_scale"].double().numpy()
    return Start(genes, init.n_targets, scale, spec, choices, Earlier(state, weights))


def continued_card(card: dict[str, Any], init: Model) -> dict[str, Any]:
    """The card of the new model with all that the earlier one has seen, and which that was."""
    before_images, before_places = init.card.get("fitted_on", {}), init.card.get("places", {})
    images, places = dict(card["fitted_on"]), dict(card["places"])
    for name, image in before_images.items():
        box = before_places.get(name)
        if images.get(name, image) != image:  # another section of that name
            name = f"{name} ({image[:8]})"
        elif name in images and name in places and box is not None:
            low, high = np.minimum(places[name][:2], box[:2]), np.maximum(places[name][2:], box[2:])
            box = [*map(float, low), *map(float, high)]
        images[name] = image
        if box is not None:
            places[name] = box
        else:
            places.pop(name, None)
    return {**card, "fitted_on": images, "places": places, "continued_from": digest_of(init)}


def digest_of(model: Model) -> str:
    """SHA-256 over names and parameters of a model."""
    of_tensors = weights_digest(dict(sorted(model.tensors.items())))
    return hashlib.sha256("\n".join([of_tensors, *model.genes]).encode()).hexdigest()
