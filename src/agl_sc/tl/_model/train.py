"""Train a model on a SpatialData and write what it predicts and which genes it chose."""

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from accelerate import Accelerator

from agl_sc._paths import check_parent, holding
from agl_sc._sdata.predictions import WriteTo, check_place
from agl_sc._sdata.records import PredictionRecord, SettingsRecord, TrainingRecord, forget, remember
from agl_sc._sdata.rollback import unchanged_on_failure
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc._sdata.table import X
from agl_sc.core.arguments import check_flag, check_seed
from agl_sc.core.arrays import BoolArray
from agl_sc.core.config import Denoise, Method, Preset, TrainConfig, checked_config
from agl_sc.core.once import NOT_SHARED, Once
from agl_sc.core.training.recipe import TrainingData, fit_arm
from agl_sc.core.training.result import FitResult
from agl_sc.core.weighting import MakeWeighting, MethodSpec, method_spec, with_auxiliary
from agl_sc.model import Model
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.embed import FeatureRequest, embed_study
from agl_sc.pp._features.made_from import check_tiles, made_by_embed
from agl_sc.pp._genes.targets_and_ranks import choose_targets, rank_study, role_of
from agl_sc.pp._splits.drawn import SplitRequest
from agl_sc.pp._splits.split import assigned_in, split_hash, split_study
from agl_sc.tl._model.belongs import counts_digest, places_of
from agl_sc.tl._model.continued import Start, check_init, continued_card, prepare_continued
from agl_sc.tl._model.data import finetune_data, training_data
from agl_sc.tl._model.kept import kept_on_failure
from agl_sc.tl._model.levels import levels_of
from agl_sc.tl._model.predict import forget_predictions, write_predictions
from agl_sc.tl._model.trust import distance_of, with_trust, without_room, write_distance

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
PACKAGES = ("accelerate", "agl-sc", "anndata", "numpy", "spatialdata", "timm", "torch")
_MANY_SECTIONS = 3
N_TARGETS = 50
"""Of highest variance, where nobody chose."""


def train(  # noqa: PLR0913 -- the entry point
    sdata: "SpatialData",
    *,
    method: Method | MethodSpec | MakeWeighting = "dkgsb",
    finetune: bool = False,
    init: Model | None = None,
    config: TrainConfig | None = None,
    preset: Preset | None = None,
    accelerator: Accelerator | None = None,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    batch_size: int = 32,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    layer: str | None = None,
    write_to: WriteTo = "auto",
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
        2021), ``"amal"`` (Sivasubramanian 2023), ``"cosine"`` (Du 2018). ``"denoiser"`` trains on none of them, and has them
        denoise the targets (:class:`agl_sc.tl.Denoise`), which the others do where ``config`` says so. Or a weighting of your own: a subclass of
        :class:`agl_sc.tl.Weighting`, or a :class:`agl_sc.tl.MethodSpec` that makes one.
    finetune
        Train the whole encoder too, on tiles with flips and quarter turns, instead of the head on cached features.
    init
        Model to go on from, on new sections: with its genes and their weights, its encoder, tiles and scale of features, all of which
        are checked. Epoch 0 is the model as it is, calibrated anew; the method and the cutoff stay, and a search is not repeated.
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
    device
        ``"cpu"``, ``"cuda"`` (in half precision), ``"mps"``; the fastest there is by default. Of the encoder, where features
        are computed; ``accelerator`` says where the network trains.
    batch_size
        Tiles per forward pass. Those of the encoder; spots per step are ``config.batch_size``.
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
    write_to
        Where predictions go: ``"layer"``, ``"table"`` (one of their own, spots x predicted genes) or ``"auto"``, the layer
        where it takes no more memory than the counts do, or than 256 MB.
    key_added
        Prefix of all slots.
    seed
        Seed of split, initial weights and batches.

    Returns
    -------
    The model. Writes ``layers["agl"]``, predicted expression of targets and selected auxiliary genes, float32, in the
    units of training (log1p CP10k by default), NaN elsewhere, or ``sdata.tables["agl_prediction"]`` with a column per predicted gene; ``var["agl_role"]``, ``var["agl_prior_rank"]``,
    ``var["agl_weight"]``, ``var["agl_selected"]``; ``var["agl_held_out_pearson"]`` and so forth, held-out scores of all
    modelled genes as :func:`agl_sc.tl.predictable_genes` has them, from training and validation spots by closed form;
    ``obs["agl_distance"]``, as :func:`agl_sc.tl.predict` writes it; ``obs["agl_split"]``; ``obsm["agl_features"]``; ``uns["agl"]``.
    On an error or an interrupt every slot is as it was; after the model was trained, all but the predictions are written,
    and the error says where the model is.

    Raises
    ------
    ValueError
        Counts are not raw, the predictions would not fit into memory, the split leaves a set empty, or there are fewer training spots than a batch.
    KeyError
        A table, layer or element does not exist.

    References
    ----------
    Shiku et al., Auxiliary Gene Learning, AAAI 2026, arXiv 2511.18336.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> model.n_targets
    50
    >>> sdata["table"].layers["agl"].shape
    (121, 400)
    """
    spec, config = method_spec(method), checked_config(config, preset)
    if accelerator is not None and not isinstance(accelerator, Accelerator):
        msg = f"accelerator is a {type(accelerator).__name__}, not an accelerate.Accelerator; None makes one."
        raise TypeError(msg)
    accelerator = accelerator or Accelerator()
    folder = None if checkpoint is None else _checkpoint_folder(checkpoint)
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    study = replace(Study.of(sdata, address, key_added), write_to=write_to)
    if study.address.layer == study.keys.layer:
        msg = f"layer={layer!r} holds the counts and would be overwritten by the predictions; pass another key_added."
        raise ValueError(msg)
    tiles = FeatureRequest(device=device, batch_size=batch_size)
    if init is not None:
        check_init(init, spec.name, config, finetune=finetune)
    request = TrainRequest(spec, config, accelerator, finetune, init, folder=folder, tiles=tiles, seed=seed)
    with holding(folder if accelerator.is_main_process else None):
        return train_study(study, request)


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What :func:`train` is asked for."""

    spec: MethodSpec
    """How auxiliary genes are weighted."""
    config: TrainConfig
    """Settings of training."""
    accelerator: Accelerator
    """Device, precision, processes, trackers."""
    finetune: bool = False
    """Train the whole encoder too."""
    init: Model | None = None
    """Model to go on from."""
    folder: Path | None = None
    """Checkpoint."""
    tiles: FeatureRequest = field(default_factory=FeatureRequest)
    """How features are made where there are none."""
    seed: int = 0
    """Seed of split, initial weights and batches."""
    once: Once = field(default_factory=lambda: Once(NOT_SHARED))
    """What trainings on the same spots have in common."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_flag("finetune", self.finetune)
        if self.spec.denoises and self.config.denoise is None:
            object.__setattr__(self, "config", replace(self.config, denoise=Denoise()))


def train_study(study: Study, asked: TrainRequest) -> Model:
    """As :func:`train`, of what is resolved already."""
    accelerator, folder = asked.accelerator, asked.folder
    _ = study.counts  # refused before any work where they are not raw
    check_place(study)
    tracking = bool(accelerator.log_with) and not accelerator.trackers
    with unchanged_on_failure(study.table, study.keys, study.sdata):
        model, fitted = _fitted(study, asked, tracking=tracking)
        _write(study, model)
    with kept_on_failure(study, model, folder):
        seen = PredictionRecord(
            units=model.card["normalize"],
            split=split_hash(study),
            layer=study.address.layer or X,
            counts=counts_digest(study),
        )
        write_predictions(study, model, record=seen, tiles=asked.tiles, left_out=without_room(study, model))
        write_distance(study, model, distance_of(study, model, fitted))
    if tracking:  # end_training() would end the processes' connection too, which the next training needs
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []
    return model


def _fitted(study: Study, asked: TrainRequest, *, tracking: bool) -> tuple[Model, BoolArray]:
    """The model, and which spots it was fitted among: what it was fitted to is gone before predictions need the memory."""
    accelerator, config, folder = asked.accelerator, asked.config, asked.folder
    start = _prepare(study, asked)
    data = training_data(study, start, whole=asked.finetune)
    spec = with_auxiliary(asked.spec, len(data.genes) - data.n_targets) if start is None else start.spec
    if asked.finetune:
        data = finetune_data(study, data, accelerator.device)
    if folder is not None:
        folder.mkdir(exist_ok=True)
    if tracking:
        said = {"method": spec.name, "seed": asked.seed, **config.plain()}
        accelerator.init_trackers("agl_sc", config=said)
    describe = partial(_model, study, data=data, spec=spec, asked=asked)
    result = fit_arm(
        data,
        spec,
        config,
        accelerator=accelerator,
        seed=asked.seed,
        on_improvement=None if folder is None else lambda best: describe(result=best).save(folder / "model"),
        checkpoint=None if folder is None else folder / "state.safetensors",
        start=None if start is None else (start.choices, start.earlier),
        once=asked.once,
    )
    model = describe(result=result)
    if not study.is_scratch:  # of which no model is kept
        model = with_trust(study, data, model, tiles=asked.tiles, seed=asked.seed)
    if folder is not None and accelerator.is_main_process:
        model.save(folder / "model")
    return model, data.train | data.validation


def _checkpoint_folder(path: str | Path) -> Path:
    """The folder, refused where it is something else."""
    folder = check_parent(path)
    names = {path.name.lstrip(".") for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if folder.exists() and not all(name.startswith(("model", "state.safetensors")) for name in names):
        msg = f"checkpoint={str(path)!r} exists and is not a checkpoint; choose another path."
        raise FileExistsError(msg)
    return folder


def _prepare(study: Study, asked: TrainRequest) -> Start | None:
    """Whatever is missing, the quick and the refusals first; what training goes on from where there is a model to."""
    table, keys = study.table, study.keys
    split_if_missing(study, seed=asked.seed)
    check_enough(study, asked.config)
    if asked.init is not None:
        study.remember_layer()
        return prepare_continued(study, asked.init, asked.tiles)
    if keys.role not in table.var:
        choose_targets(study, genes=min(N_TARGETS, table.n_vars))
    ensure_features(study, asked.tiles, finetune=asked.finetune)
    if keys.prior_rank not in table.var:
        rank_study(study)
    study.remember_layer()
    return None


def split_if_missing(study: Study, *, seed: int) -> None:
    """Split by section, or by block with few of them, as small as the sections need, where the table has no split."""
    if study.keys.split not in study.table.obs:
        by_section = len(set(study.section_names.tolist())) >= _MANY_SECTIONS
        split_study(study, SplitRequest(by="section" if by_section else "block", seed=seed), may_fit=True)


def smaller_batch(n_train: int, *, with_changes: bool = False) -> str:
    """How to mend a batch that is larger than the training set, of settings that are given, or of ``changes=`` to a preset."""
    size = max(8, n_train // 2)
    how = f'changes={{"batch_size": {size}}}' if with_changes else f"config=TrainConfig(batch_size={size})"
    return f"pass {how}, or --set batch_size={size} on the command line"


def check_enough(study: Study, config: TrainConfig) -> None:
    """Refuse a split with too few training or validation spots."""
    assigned = assigned_in(study)
    n_train = int((assigned == "train").sum())
    if n_train < config.batch_size:
        msg = (
            f"There are {n_train} training spots, fewer than batch_size={config.batch_size}; {smaller_batch(n_train)}."
        )
        raise ValueError(msg)
    _, per_section = np.unique(study.section_names[assigned == "validation"], return_counts=True)
    if per_section.max(initial=0) < 2:
        msg = f'obs["{study.keys.split}"] has {per_section.sum()} validation spots, no two of them in one section, and validation picks the epoch by Pearson; run agl_sc.pp.split(sdata, validation=0.2).'
        raise ValueError(msg)


def ensure_features(study: Study, tiles: FeatureRequest, *, finetune: bool) -> None:
    """Features of the offline encoder where there are none, of the tile alone for fine-tuning; others' are refused."""
    if study.keys.features not in study.table.obsm:
        views = Views(stages=True) if finetune else tiles.views
        embed_study(study, replace(tiles, views=views))
        return
    made_by_embed(study)
    check_tiles(study)


def _model(study: Study, *, data: TrainingData, spec: MethodSpec, asked: TrainRequest, result: FitResult) -> Model:
    config = asked.config
    levels = levels_of(study, data, result.selected)
    tensors = {**data.calibrated(result, config), **levels.tensors}
    if "offset" in tensors:
        tensors["intercept"] = tensors["intercept"] + tensors.pop("offset")
    card = {
        "features": made_by_embed(study).plain(),
        "normalize": study.normalize,
        "params": {
            "method": spec.name,
            "seed": asked.seed,
            "alpha": result.choices.alpha,
            "target_weight": result.choices.target_weight,
            **config.plain(),
            **({} if config.denoise is None else result.denoising.chosen.plain()),
        },
        "versions": {name: version(name) for name in PACKAGES},
        "fitted_on": data.section_digests,
        "places": places_of(study, data.train | data.validation),
        "split": split_hash(study),
        "levels": levels.card,
    }
    init = asked.init
    return Model(
        tensors=tensors,
        genes=data.genes[: len(result.weights)],
        weights=result.weights,
        n_targets=data.n_targets,
        selected=result.selected,
        method=spec.name,
        search=config.search if spec.searches else None,
        cutoff=(result.choices.cutoff if spec.has_cutoff else None) if init is None else init.cutoff,
        best_epoch=result.choices.n_epochs,
        card=card if init is None else continued_card(card, init),
        history=result.history,
        cutoff_trace=result.cutoff_trace,
    )


def _write(study: Study, model: Model) -> None:
    table, keys = study.table, study.keys
    weight = pd.Series(model.weights, index=model.genes).reindex(table.var_names)
    table.var[keys.weight] = weight.to_numpy()
    table.var[keys.selected] = table.var_names.isin(model.predicted_genes) & (role_of(study) == "auxiliary")
    forget(table, keys, "cutoff")  # of an earlier training, as these
    forget_predictions(study)
    settings = SettingsRecord({**model.card["params"], "normalize": model.card["normalize"]}, model.card["versions"])
    remember(table, keys, settings, TrainingRecord(model.history, model.cutoff_trace, model.best_epoch, model.cutoff))
    selected = int(table.var[keys.selected].sum())
    told = 'Wrote var["%s"], var["%s"]: %d auxiliary genes selected.'
    study.tell_written(logger, told, keys.weight, keys.selected, selected)
