"""Train a model on a SpatialData and write what it predicts and which genes it chose."""

import logging
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd
from accelerate import Accelerator

from agl_sc._paths import check_parent
from agl_sc._sdata.keys import Keys
from agl_sc._sdata.record import record, recorded, unchanged_on_failure
from agl_sc._sdata.sections import Names
from agl_sc._sdata.table import counts_of, get_table, section_of
from agl_sc.core.config import Method, Preset, TrainConfig
from agl_sc.core.training.result import FitResult
from agl_sc.model import Model
from agl_sc.pp._features.embed import embed
from agl_sc.pp._genes.targets_and_ranks import normalize_of, rank_auxiliary, role_of, target_genes
from agl_sc.pp._splits.split import split, split_hash, split_of
from agl_sc.tl._model.data import TrainingData, finetune_data, fit_arm, possible_method, training_data
from agl_sc.tl._model.predict import write_predictions

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
PACKAGES = ("accelerate", "agl-sc", "anndata", "numpy", "spatialdata", "timm", "torch")
_MANY_SECTIONS = 3
N_TARGETS = 50
"""Of highest variance, where nobody chose."""


def train(  # noqa: PLR0913 -- the entry point
    sdata: "SpatialData",
    *,
    method: Method = "dkgsb",
    finetune: bool = False,
    config: TrainConfig | None = None,
    preset: Preset | None = None,
    accelerator: Accelerator | None = None,
    checkpoint: str | Path | None = None,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    key_added: str = "agl",
    seed: int = 0,
) -> Model:
    """Learn to predict gene expression from H&E, with auxiliary genes.

    What :mod:`agl_sc.pp` has not prepared yet is prepared with its defaults: a split by section (by spatial block with
    fewer than three sections), the 50 most variable genes as targets, features of the offline encoder, and prior ranks
    by how well those predict a gene. A linear trunk and head start in closed form (reduced-rank ridge under the gene weights), and are
    then trained by 1 - Pearson per gene; validation spots pick penalty, cutoff and epoch. Test spots are not touched.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    method
        How auxiliary genes are weighted: ``"pgl"`` (none), ``"agl"`` (all) or ``"dkgsb"`` (the leading ones, their number
        learned). For comparison: ``"fixed_k"`` and ``"target_weight"`` (the best on validation spots of a few numbers of
        genes, or of weights of the targets among all genes), ``"uncertainty"`` (Kendall 2018), ``"auxilearn"`` (Navon
        2021), ``"amal"`` (Sivasubramanian 2023), ``"cosine"`` (Du 2018).
    finetune
        Train the whole encoder too, on tiles with flips and quarter turns, instead of the head on cached features.
    config
        Settings of training; :class:`agl_sc.tl.TrainConfig` with its defaults if None.
    preset
        Settings of a published variant of DkGSB, ``"paper"``, ``"released"`` or ``"warmstart"``, instead of ``config``;
        see :meth:`agl_sc.tl.TrainConfig.preset`.
    accelerator
        ``accelerate.Accelerator`` that says device, precision, accumulated steps, processes and trackers, such as
        ``Accelerator(mixed_precision="bf16", log_with="tensorboard", project_dir="logs")``; the first device, in full
        precision, by default. Under ``torchrun`` every process trains on its share of a batch.
    checkpoint
        Folder from which an interrupted run continues, to end with the same bytes as if nothing had stopped it. It holds
        ``model``, the best so far, and ``state.safetensors``, written after every epoch.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    layer
        Layer with raw counts; X by default.
    key_added
        Prefix of all slots.
    seed
        Seed of split, initial weights and batches.

    Returns
    -------
    The model. Writes ``layers["agl"]``, predicted expression of targets and selected auxiliary genes, float32, in the
    units of training (log1p CP10k by default), NaN elsewhere; ``var["agl_role"]``, ``var["agl_prior_rank"]``,
    ``var["agl_weight"]``, ``var["agl_selected"]``; ``obs["agl_split"]``; ``obsm["agl_features"]``; ``uns["agl"]``.
    On an error or an interrupt every slot is as it was.

    Raises
    ------
    ValueError
        Counts are not raw, the split leaves a set empty, or there are fewer training spots than a batch.
    KeyError
        A table, layer or element does not exist.

    References
    ----------
    Shiku et al., Auxiliary Gene Learning, AAAI 2026, arXiv 2511.18336.
    """
    if method not in get_args(Method):
        msg = f"method={method!r} is not one of {', '.join(map(repr, get_args(Method)))}."
        raise ValueError(msg)
    config = _config(config, preset)
    accelerator = accelerator or Accelerator()
    folder = None if checkpoint is None else _checkpoint_folder(checkpoint)
    table = get_table(sdata, table_key)
    counts_of(table, layer)
    keys = Keys(key_added)
    if layer == keys.layer:
        msg = f"layer={layer!r} holds the counts and would be overwritten by the predictions; pass another key_added."
        raise ValueError(msg)
    where: dict[str, Any] = {
        "table_key": table_key, "image_key": image_key, "shapes_key": shapes_key, "coordinate_system": coordinate_system
    }  # fmt: skip
    with unchanged_on_failure(table, keys):
        _prepare(sdata, table, where=where, how=(keys, layer, seed, config), finetune=finetune)
        data = training_data(table, keys, layer)
        method = possible_method(data, method)
        if finetune:
            data = finetune_data(sdata, table, where=where, data=data, keys=keys, device=accelerator.device)
        if folder is not None:
            folder.mkdir(exist_ok=True)
        tracking = bool(accelerator.log_with) and not accelerator.trackers
        if tracking:
            accelerator.init_trackers("agl_sc", config={"method": method, "seed": seed, **asdict(config)})
        describe = partial(_model, table, keys, data=data, how=(method, config, seed))
        result = fit_arm(
            data,
            method,
            config,
            accelerator=accelerator,
            seed=seed,
            on_improvement=None if folder is None else lambda best: describe(result=best).save(folder / "model"),
            checkpoint=None if folder is None else folder / "state.safetensors",
        )
        model = describe(result=result)
        _write(table, keys, model)
        write_predictions(sdata, table, keys=keys, model=model, where=where)
        if folder is not None and accelerator.is_main_process:
            model.save(folder / "model")
        if tracking:  # end_training() would end the processes' connection too, which the next training needs
            for tracker in accelerator.trackers:
                tracker.finish()
            accelerator.trackers = []
    return model


def _config(config: TrainConfig | None, preset: Preset | None) -> TrainConfig:
    if preset is None:
        return TrainConfig() if config is None else config
    if config is not None:
        msg = (
            f"preset={preset!r} and config= exclude each other; pass config=TrainConfig.preset({preset!r}, ...) alone."
        )
        raise ValueError(msg)
    return TrainConfig.preset(preset)


def _checkpoint_folder(path: str | Path) -> Path:
    """The folder, refused where it is something else."""
    folder = check_parent(path)
    names = {path.name.lstrip(".") for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if folder.exists() and not all(name.startswith(("model", "state.safetensors")) for name in names):
        msg = f"checkpoint={str(path)!r} exists and is not a checkpoint; choose another path."
        raise FileExistsError(msg)
    return folder


def _prepare(
    sdata: "SpatialData",
    table: "AnnData",
    *,
    where: dict[str, Any],
    how: tuple[Keys, str | None, int, TrainConfig],
    finetune: bool,
) -> None:
    """Whatever is missing, the quick and the refusals first."""
    keys, layer, seed, config = how
    common: dict[str, Any] = {"table_key": where["table_key"], "key_added": keys.key_added}
    split_if_missing(sdata, table, keys=keys, seed=seed)
    check_enough(table, keys, config)
    if keys.role not in table.var:
        target_genes(sdata, genes=min(N_TARGETS, table.n_vars), layer=layer, **common)
    ensure_features(sdata, table, keys=keys, where=where, finetune=finetune)
    if keys.prior_rank not in table.var:
        rank_auxiliary(sdata, layer=layer, **common)


def split_if_missing(
    sdata: "SpatialData", table: "AnnData", *, keys: Keys, seed: int, image_mpp: float | None = None
) -> None:
    """Split by section, or by block with few of them, where the table has no split."""
    if keys.split not in table.obs:
        by_section = section_of(table).nunique() >= _MANY_SECTIONS
        name = next(name for name, each in sdata.tables.items() if each is table)
        where: dict[str, Any] = {"table_key": name, "key_added": keys.key_added}
        split(sdata, by="section" if by_section else "block", image_mpp=image_mpp, seed=seed, **where)


def smaller_batch(n_train: int) -> str:
    """How to mend a batch that is larger than the training set."""
    size = max(8, n_train // 2)
    return f"pass config=TrainConfig(batch_size={size}), or --set batch_size={size} on the command line"


def check_enough(table: "AnnData", keys: Keys, config: TrainConfig) -> None:
    """Refuse a split with too few training or validation spots."""
    assigned = split_of(table, keys)
    n_train = int((assigned == "train").sum())
    if n_train < config.batch_size:
        msg = (
            f"There are {n_train} training spots, fewer than batch_size={config.batch_size}; {smaller_batch(n_train)}."
        )
        raise ValueError(msg)
    per_section = section_of(table)[assigned == "validation"].value_counts()
    if per_section.max() < 2 or per_section.empty:
        msg = f'obs["{keys.split}"] has {per_section.sum()} validation spots, no two of them in one section, and validation picks the epoch by Pearson; run agl_sc.pp.split(sdata, validation=0.2).'
        raise ValueError(msg)


def ensure_features(
    sdata: "SpatialData", table: "AnnData", *, keys: Keys, where: dict[str, Any], finetune: bool
) -> None:
    """Features of the offline encoder where there are none, of the tile alone for fine-tuning; others' are refused."""
    if keys.features not in table.obsm:
        alone: dict[str, Any] = {"context": (), "orientations": 1} if finetune else {}
        embed(sdata, **alone, **where, key_added=keys.key_added)
    if recorded(table, keys, "features") is None:
        msg = f'obsm["{keys.features}"] was not made by agl_sc.pp.embed; run it, so that the model knows its encoder and tiles.'
        raise ValueError(msg)


def _model(
    table: "AnnData", keys: Keys, *, data: TrainingData, how: tuple[Method, TrainConfig, int], result: FitResult
) -> Model:
    method, config, seed = how
    learned = method in ("dkgsb", "fixed_k")
    card = {
        "features": recorded(table, keys, "features"),
        "normalize": normalize_of(table, keys),
        "params": {
            "method": method,
            "seed": seed,
            "alpha": result.choices.alpha,
            "target_weight": result.choices.target_weight,
            **asdict(config),
        },
        "versions": {name: version(name) for name in PACKAGES},
        "fitted_on": data.section_digests,
        "split": split_hash(table, keys),
    }
    return Model(
        tensors=data.calibrated(result, config),
        genes=data.genes[: len(result.weights)],
        weights=result.weights,
        n_targets=data.n_targets,
        selected=result.selected,
        method=method,
        search=config.search if method == "dkgsb" else None,
        cutoff=result.choices.cutoff if learned else None,
        best_epoch=result.choices.n_epochs,
        card=card,
        history=result.history,
        cutoff_trace=result.cutoff_trace,
    )


def _write(table: "AnnData", keys: Keys, model: Model) -> None:
    weight = pd.Series(model.weights, index=model.genes).reindex(table.var_names)
    table.var[keys.weight] = weight.to_numpy()
    table.var[keys.selected] = table.var_names.isin(model.predicted_genes) & (role_of(table, keys) == "auxiliary")
    trace = {name: model.cutoff_trace[name].to_numpy(dtype=float) for name in model.cutoff_trace}
    entries = {
        "params": {**model.card["params"], "normalize": model.card["normalize"]},
        "versions": model.card["versions"],
        "history": {name: model.history[name].to_numpy() for name in model.history},
        "cutoff_trace": trace,
        "best_epoch": model.best_epoch,
    }
    table.uns[keys.uns].pop("cutoff", None)  # of an earlier training
    record(table, keys, entries if model.cutoff is None else {**entries, "cutoff": model.cutoff})
    selected = int(table.var[keys.selected].sum())
    logger.info('Wrote var["%s"], var["%s"]: %d auxiliary genes selected.', keys.weight, keys.selected, selected)
