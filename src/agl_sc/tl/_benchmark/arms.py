"""Arms of a benchmark: methods, control arms and baselines, fitted to the split, roles and features in place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from accelerate import Accelerator
from numpy.typing import NDArray

from agl_sc._sdata.predictions import write_predicted
from agl_sc._sdata.records import PredictionRecord, remember
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import X
from agl_sc.core.arguments import check_names
from agl_sc.core.config import Denoise, Method, Preset, TrainConfig
from agl_sc.core.linear.baselines import WITH_AUXILIARY, Samples, fit_baseline
from agl_sc.core.linear.depth import depth_feature
from agl_sc.core.once import NOT_SHARED, Once
from agl_sc.core.training.recipe import TrainingData
from agl_sc.core.weighting import METHODS, method_spec
from agl_sc.model import Model
from agl_sc.pp._genes.targets_and_ranks import rank_study
from agl_sc.pp._splits.split import split_hash
from agl_sc.tl._evaluate import evaluate_study
from agl_sc.tl._model.belongs import counts_digest
from agl_sc.tl._model.data import training_data
from agl_sc.tl._model.train import TrainRequest, train_study

if TYPE_CHECKING:
    from spatialdata import SpatialData


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of a benchmark."""

    label: str
    """What tables and figures call it."""
    method: Method | None = None
    """Method, as :func:`agl_sc.tl.train` takes it; None for a baseline."""
    score: str | None = None
    """Prior ranking of the auxiliary genes, as :func:`agl_sc.pp.rank_auxiliary` takes it; the one in place if None."""
    preset: Preset | None = None
    """Published variant whose settings replace the common ones."""
    random_k: bool = False
    """Auxiliary genes are drawn at random, as many as DkGSB chooses."""
    cheap: bool = True
    """Whether it costs about one training at most."""
    denoise: bool = False
    """Targets are denoised, by the default candidates where the common settings name none."""
    drawn: bool = True
    """Whether the seed changes anything."""


ARMS = {
    "mean": Arm("training mean", drawn=False),
    "depth": Arm("depth alone, measured", drawn=False),
    "knn": Arm("kNN", drawn=False),
    "ridge": Arm("ridge", drawn=False),
    "weighted_ridge": Arm("ridge, weighted by depth", drawn=False),
    "denoised_ridge": Arm("ridge, denoised targets", cheap=False, drawn=False),
    "denoised_ridge_targets": Arm("ridge, denoised by targets", cheap=False, drawn=False),
    "denoised_ridge_random": Arm("ridge, denoised by random", score="random", cheap=False),
    "denoised_ridge_all": Arm("ridge, denoised by all", cheap=False, drawn=False),
    "pca_ridge": Arm("PCA-256 + ridge", drawn=False),
    "reduced_rank_ridge": Arm("reduced-rank ridge", drawn=False),
    "random_forest": Arm("random forest", cheap=False),
    "gradient_boosting": Arm("gradient boosting", cheap=False, drawn=False),
    "pgl": Arm(METHODS["pgl"].label, "pgl"),
    "agl": Arm(METHODS["agl"].label, "agl"),
    "dkgsb": Arm(METHODS["dkgsb"].label, "dkgsb"),
    "denoiser": Arm(METHODS["denoiser"].label, "denoiser", cheap=False),
    "pgl_denoised": Arm("targets only, denoised", "pgl", denoise=True, cheap=False),
    "agl_denoised": Arm("all auxiliary, denoised", "agl", denoise=True, cheap=False),
    "dkgsb_denoised": Arm("DkGSB, denoised", "dkgsb", denoise=True, cheap=False),
    "random_k": Arm("random genes, k of DkGSB", "agl", score="random", random_k=True),
    "dkgsb_dispersion": Arm("DkGSB, ranked by dispersion", "dkgsb", score="dispersion"),
    "dkgsb_mean": Arm("DkGSB, ranked by mean", "dkgsb", score="mean"),
    "dkgsb_moran": Arm("DkGSB, ranked by Moran's I", "dkgsb", score="moran"),
    "dkgsb_correlation": Arm("DkGSB, ranked by correlation", "dkgsb", score="correlation"),
    "uncertainty": Arm(METHODS["uncertainty"].label, "uncertainty"),
    "fixed_k": Arm(METHODS["fixed_k"].label, "fixed_k", cheap=False),
    "target_weight": Arm(METHODS["target_weight"].label, "target_weight", cheap=False),
    "auxilearn": Arm(METHODS["auxilearn"].label, "auxilearn", cheap=False),
    "amal": Arm(METHODS["amal"].label, "amal", cheap=False),
    "cosine": Arm(METHODS["cosine"].label, "cosine", cheap=False),
    "dkgsb_paper": Arm("DkGSB, paper", "dkgsb", score="dispersion", preset="paper", cheap=False),
    "dkgsb_released": Arm("DkGSB, released", "dkgsb", score="dispersion", preset="released", cheap=False),
    "dkgsb_warmstart": Arm("DkGSB, warm start", "dkgsb", score="dispersion", preset="warmstart", cheap=False),
}
"""Every arm by the name that ``methods=`` takes."""


def check_methods(methods: str | Sequence[str]) -> list[str]:
    """Names of arms, refused where one is unknown or stands twice."""
    check_names("methods", methods)
    names = [methods] if isinstance(methods, str) else list(() if methods is None else methods)
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
    if ARMS[name].denoise:
        return replace(config, denoise=config.denoise or Denoise())
    return config if preset is None else TrainConfig.preset(preset, batch_size=config.batch_size)


def fit_in_place(
    study: Study, name: str, *, config: TrainConfig, finetune: bool = False, seed: int = 0, once: Once | None = None
) -> Model | None:
    """Fit one arm and write its predictions.

    Parameters
    ----------
    study
        With split, roles, prior ranks and features.
    name
        One of :data:`ARMS`.
    config
        Settings of training, those that a preset does not set.
    finetune
        Train the whole encoder too, where the arm is a network.
    seed
        Of training, and of a random ranking.
    once
        What runs on the same split have in common; nothing by default.

    Returns
    -------
    The model, or None for a baseline. Writes the prediction layer; prior ranks where the arm has its own.
    """
    arm = ARMS[name]
    if arm.method is None:
        if arm.score is not None:
            rank_study(study, score=arm.score, seed=seed)
        _write_baseline(study, name, seed=seed)
        return None
    once = once or Once(NOT_SHARED)
    spec, settings = method_spec(arm.method), settings_of(name, config)
    asked = TrainRequest(spec, settings, Accelerator(), finetune, seed=seed, once=once)
    n_random = _learned_k(study, asked) if arm.random_k else None
    if arm.score is not None:
        rank_study(study, score=arm.score, seed=seed, once=once)
    if n_random is None:
        return train_study(study, asked)
    table, keys = study.table, study.keys
    roles = table.var[keys.role].copy()
    try:
        table.var.loc[table.var[keys.prior_rank] >= n_random, keys.role] = "excluded"
        return train_study(study, asked)
    finally:
        table.var[keys.role] = roles


def _learned_k(study: Study, asked: TrainRequest) -> int:
    """Number of auxiliary genes that DkGSB chooses; what is found before training is not trained for."""
    config = asked.config
    if config.search != "gradient" and config.start != "agl":
        asked = replace(asked, config=replace(config, max_epochs=0, refit=False), finetune=False)
    model = train_study(study, replace(asked, spec=method_spec("dkgsb")))
    return int(model.selected.sum()) - model.n_targets


def _write_baseline(study: Study, name: str, *, seed: int) -> None:
    """Fit on training and validation spots, as the other arms are in the end."""
    table, data = study.table, training_data(study)
    if name == "depth":
        data = replace(data, features=_depth_of(data))
    n_genes = None if name in WITH_AUXILIARY else data.n_targets
    fitted_on = data.train | data.validation
    samples = Samples(
        data.spots(fitted_on, n_genes), data.spots(data.train, n_genes), data.held_out(), data.n_targets, seed
    )
    targets = data.genes[: data.n_targets]
    predicted = fit_baseline(name, samples)(data.features)
    write_predicted(study, "model", genes=targets, blocks=[(slice(None), targets, predicted)])
    layer = study.address.layer or X
    remember(table, study.keys, PredictionRecord(study.normalize, split_hash(study), layer, counts_digest(study)))


def _depth_of(data: TrainingData) -> NDArray[np.float32]:
    """Depth in place of features, of the spots that have features, so that every arm predicts the same."""
    depth = depth_feature(data.library, data.sections, data.train)
    known = np.isfinite(data.features).all(axis=1, keepdims=True)
    return np.where(known, depth, np.nan).astype(np.float32)


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
    model, study = None, Study.of(sdata)
    tables = []
    for arm in check_methods(arms):
        model = fit_in_place(study, arm, config=config or TrainConfig(), seed=seed) or model
        scores = evaluate_study(study, metrics=["pearson"])[["section", "gene", "pearson"]]
        tables.append(scores.assign(arm=arm, seed=seed))
    return pd.concat(tables, ignore_index=True), model


def summary(result: pd.DataFrame) -> pd.DataFrame:
    """Mean Pearson over targets (an undefined one left out) and seeds: a row per arm, a column per section."""
    table = result.groupby(["arm", "section"], sort=False)["pearson"].mean().unstack()
    labels = {name: arm.label for name, arm in ARMS.items()}
    return table.rename(index=labels).rename_axis(index=None, columns=None)
