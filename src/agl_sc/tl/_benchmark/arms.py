"""Arms of a benchmark: methods, control arms and baselines, fitted to the split, roles and features in place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.record import record
from agl_sc._sdata.table import get_table
from agl_sc.core.config import Method, Preset, TrainConfig
from agl_sc.core.linear.baselines import WITH_AUXILIARY, Samples, fit_baseline
from agl_sc.model import Model
from agl_sc.pp._genes.targets_and_ranks import normalize_of, rank_auxiliary
from agl_sc.tl._evaluate import evaluate
from agl_sc.tl._model.data import training_data
from agl_sc.tl._model.train import train

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of a benchmark."""

    label: str
    """In tables and figures."""
    method: Method | None = None
    """As :func:`agl_sc.tl.train` takes it; None for a baseline."""
    score: str | None = None
    """Prior ranking of the auxiliary genes, as :func:`agl_sc.pp.rank_auxiliary` takes it; the one in place if None."""
    preset: Preset | None = None
    """Published variant whose settings replace the common ones."""
    random_k: bool = False
    """Auxiliary genes are drawn at random, as many as DkGSB chooses."""
    cheap: bool = True
    """Costs about one training at most."""
    drawn: bool = True
    """Whether the seed changes anything."""


ARMS = {
    "mean": Arm("training mean", drawn=False),
    "knn": Arm("kNN", drawn=False),
    "ridge": Arm("ridge", drawn=False),
    "weighted_ridge": Arm("ridge, weighted by depth", drawn=False),
    "pca_ridge": Arm("PCA-256 + ridge", drawn=False),
    "reduced_rank_ridge": Arm("reduced-rank ridge", drawn=False),
    "random_forest": Arm("random forest", cheap=False),
    "gradient_boosting": Arm("gradient boosting", cheap=False, drawn=False),
    "pgl": Arm("targets only", "pgl"),
    "agl": Arm("all auxiliary", "agl"),
    "dkgsb": Arm("DkGSB", "dkgsb"),
    "random_k": Arm("random genes, k of DkGSB", "agl", score="random", random_k=True),
    "dkgsb_dispersion": Arm("DkGSB, ranked by dispersion", "dkgsb", score="dispersion"),
    "dkgsb_mean": Arm("DkGSB, ranked by mean", "dkgsb", score="mean"),
    "dkgsb_moran": Arm("DkGSB, ranked by Moran's I", "dkgsb", score="moran"),
    "dkgsb_correlation": Arm("DkGSB, ranked by correlation", "dkgsb", score="correlation"),
    "uncertainty": Arm("uncertainty", "uncertainty"),
    "fixed_k": Arm("fixed k", "fixed_k", cheap=False),
    "target_weight": Arm("tuned target weight", "target_weight", cheap=False),
    "auxilearn": Arm("AuxiLearn", "auxilearn", cheap=False),
    "amal": Arm("AMAL", "amal", cheap=False),
    "cosine": Arm("gradient cosine", "cosine", cheap=False),
    "dkgsb_paper": Arm("DkGSB, paper", "dkgsb", score="dispersion", preset="paper", cheap=False),
    "dkgsb_released": Arm("DkGSB, released", "dkgsb", score="dispersion", preset="released", cheap=False),
    "dkgsb_warmstart": Arm("DkGSB, warm start", "dkgsb", score="dispersion", preset="warmstart", cheap=False),
}
"""Every arm by the name that ``methods=`` takes."""


def check_methods(methods: str | Sequence[str]) -> list[str]:
    """Names of arms, refused where one is unknown or stands twice."""
    names = [methods] if isinstance(methods, str) else list(methods)
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        which = f"{unknown[0]!r} is not a method" if unknown else "methods= is empty"
        msg = f"{which}; the methods are {', '.join(ARMS)}."
        raise ValueError(msg)
    if len(set(names)) < len(names):
        msg = f"methods={names!r} names one of them twice; name each once."
        raise ValueError(msg)
    return names


def settings_of(name: str, config: TrainConfig) -> TrainConfig:
    """Settings of an arm: the common ones, or a published variant's own, at the common batch size."""
    preset = ARMS[name].preset
    return config if preset is None else TrainConfig.preset(preset, batch_size=config.batch_size)


def fit_in_place(
    sdata: "SpatialData",
    name: str,
    *,
    config: TrainConfig,
    finetune: bool = False,
    where: dict[str, Any] | None = None,
    layer: str | None = None,
    keys: Keys | None = None,
    seed: int = 0,
) -> Model | None:
    """Fit one arm and write its predictions.

    Parameters
    ----------
    sdata
        With split, roles, prior ranks and features.
    name
        One of :data:`ARMS`.
    config
        Settings of training, those that a preset does not set.
    finetune
        Train the whole encoder too, where the arm is a network.
    where
        ``table_key``, ``image_key``, ``shapes_key`` and ``coordinate_system`` as :func:`agl_sc.tl.train` takes them.
    layer
        Layer with raw counts; X by default.
    keys
        Names of the slots.
    seed
        Of training, and of a random ranking.

    Returns
    -------
    The model, or None for a baseline. Writes the prediction layer; prior ranks where the arm has its own.
    """
    arm, keys, where = ARMS[name], keys or Keys(), where or {}
    table = get_table(sdata, where.get("table_key"))
    if arm.method is None:
        _write_baseline(table, name, keys=keys, layer=layer, seed=seed)
        return None
    common: dict[str, Any] = {"layer": layer, "key_added": keys.key_added, "seed": seed}
    fitting: dict[str, Any] = {**where, **common, "finetune": finetune, "config": settings_of(name, config)}
    n_random = _learned_k(sdata, fitting) if arm.random_k else None
    if arm.score is not None:
        rank_auxiliary(sdata, score=arm.score, table_key=where.get("table_key"), **common)
    if n_random is None:
        return train(sdata, method=arm.method, **fitting)
    roles = table.var[keys.role].copy()
    try:
        table.var.loc[table.var[keys.prior_rank] >= n_random, keys.role] = "excluded"
        return train(sdata, method=arm.method, **fitting)
    finally:
        table.var[keys.role] = roles


def _learned_k(sdata: "SpatialData", fitting: dict[str, Any]) -> int:
    """Number of auxiliary genes that DkGSB chooses; what is found before training is not trained for."""
    config: TrainConfig = fitting["config"]
    if config.search != "gradient" and config.start != "agl":
        fitting = {**fitting, "config": replace(config, max_epochs=0, refit=False), "finetune": False}
    model = train(sdata, method="dkgsb", **fitting)
    return int(model.selected.sum()) - model.n_targets


def _write_baseline(table: "AnnData", name: str, *, keys: Keys, layer: str | None, seed: int) -> None:
    """Fit on training and validation spots, as the other arms are in the end."""
    data = training_data(table, keys, layer)
    n_genes = None if name in WITH_AUXILIARY else data.n_targets
    fitted_on = data.train | data.validation
    samples = Samples(
        data.spots(fitted_on, n_genes), data.spots(data.train, n_genes), data.held_out(), data.n_targets, seed
    )
    written = np.full(table.shape, np.nan, dtype=np.float32)
    written[:, table.var_names.get_indexer(data.genes[: data.n_targets])] = fit_baseline(name, samples)(data.features)
    table.layers[keys.layer] = written
    record(table, keys, {"units": normalize_of(table, keys)})


def compare_arms(
    sdata: "SpatialData",
    arms: Sequence[str] = ("ridge", "pgl", "agl", "dkgsb"),
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, Model | None]:
    """Test Pearson of the targets under every arm, on the split in place; what the last arm wrote stays.

    Returns
    -------
    One row per arm, section and gene (arm, seed, section, gene, pearson), and the last model.
    """
    model = None
    tables = []
    for arm in check_methods(arms):
        model = fit_in_place(sdata, arm, config=config or TrainConfig(), seed=seed) or model
        tables.append(evaluate(sdata, metrics=["pearson"])[["section", "gene", "pearson"]].assign(arm=arm, seed=seed))
    return pd.concat(tables, ignore_index=True), model


def summary(result: pd.DataFrame) -> pd.DataFrame:
    """Mean Pearson over targets (an undefined one left out) and seeds: a row per arm, a column per section."""
    table = result.groupby(["arm", "section"], sort=False)["pearson"].mean().unstack()
    labels = {name: arm.label for name, arm in ARMS.items()}
    return table.rename(index=labels).rename_axis(index=None, columns=None)
