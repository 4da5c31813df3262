"""Every spot predicted out of fold, everything that is fitted fitted anew in every fold."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from agl_sc._paths import one_at_a_time
from agl_sc._sdata.predictions import WriteTo, check_place, write_predicted
from agl_sc._sdata.records import CrossValidationRecord, remember
from agl_sc._sdata.rollback import unchanged_on_failure
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc.core.config import TrainConfig
from agl_sc.core.evaluation.section_metrics import SPATIAL
from agl_sc.core.linear.baselines import PICKING
from agl_sc.core.numerics.constant import constant
from agl_sc.core.progress import Progress
from agl_sc.core.spots.genes import Normalize, normalize_counts
from agl_sc.pp._features.embed import FeatureRequest
from agl_sc.pp._genes.targets_and_ranks import ChooseBy, Score, check_choose_by, check_score, checked_targets
from agl_sc.pp._splits.folds import Fold, FoldPlan, folds_of, make_folds
from agl_sc.pp._splits.leaks import count_shared_pixels
from agl_sc.pp._splits.own_folds import OwnFolds, own_folds
from agl_sc.pp._splits.units import By
from agl_sc.tl._benchmark.arms import ARMS, check_methods
from agl_sc.tl._benchmark.between import pearson_between_sections, with_between
from agl_sc.tl._benchmark.provenance import fold_of, patients_of, provenance_of, versions, whole_provenance
from agl_sc.tl._benchmark.request import Request, requested
from agl_sc.tl._benchmark.result import CrossValidation
from agl_sc.tl._benchmark.runs import Outcome, Prepared, Protocol, RunData, Runs, run, run_path
from agl_sc.tl._evaluate import Measured, lattices_of
from agl_sc.tl._model.data import check_alone
from agl_sc.tl._model.train import ensure_features

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from agl_sc.core.arrays import FloatArray


logger = logging.getLogger(__name__)


def cross_validate(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    *,
    methods: str | Sequence[str] = "dkgsb",
    by: By | None = "section",
    n_folds: int | None = None,
    folds: OwnFolds | None = None,
    validation: float = 0.2,
    block_um: float = 500.0,
    buffer_um: float = 150.0,
    genes: int | Sequence[str] = 50,
    choose_by: ChooseBy = "variance",
    score: str = "predictability",
    normalize: Normalize = "log1p_cp10k",
    seeds: int = 1,
    predictions: str | None = None,
    metrics: Sequence[str] = ("pearson", "pearson_beyond_depth", "spearman", "mse"),
    finetune: bool = False,
    config: TrainConfig | None = None,
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
) -> CrossValidation:
    """Predict every spot out of fold, with everything that is fitted fitted anew in every fold.

    Target genes, prior ranks, scaling, penalties and calibration come from the training spots of the fold; validation
    spots pick; test spots are predicted once. A fold is what :func:`agl_sc.pp.split` and :func:`agl_sc.tl.train` would make
    of it. Features of the encoder, which is not fitted, are shared; features of the frozen encoder are computed where there
    are none.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    methods
        One arm or several. Those of :func:`agl_sc.tl.train`; ``"dkgsb_dispersion"``, ``"dkgsb_mean"``, ``"dkgsb_moran"``,
        ``"dkgsb_correlation"`` (other prior rankings), ``"random_k"`` (as many genes as DkGSB chooses, drawn at random);
        ``"dkgsb_paper"``, ``"dkgsb_released"``, ``"dkgsb_warmstart"`` (the published variants with their own settings); and
        the baselines ``"mean"``, ``"knn"``, ``"ridge"``, ``"weighted_ridge"`` (spots weighted by depth), ``"pca_ridge"``,
        ``"reduced_rank_ridge"``, ``"random_forest"``, ``"gradient_boosting"``. ``"pgl_denoised"``, ``"agl_denoised"``, ``"dkgsb_denoised"`` and
        ``"denoised_ridge"`` are trained on denoised targets (:class:`agl_sc.tl.Denoise`), the latter's controls
        ``"denoised_ridge_targets"``, ``"denoised_ridge_all"`` and ``"denoised_ridge_random"`` on targets denoised by themselves, by all
        auxiliary genes, and by as many drawn at random. And ``"depth"``, which sees no pixels: ridge on
        the log of a spot's own total counts, within sections. It is told the measured counts of the spots that it predicts, so
        it is no competitor, but says how much of a score depth alone explains.
    by
        Whole sections, all sections of a patient (``obs["patient"]``), spatial blocks within sections, or single spots.
        None takes the folds that :func:`agl_sc.pp.split` wrote.
    n_folds
        Number of folds. One per section or patient, 5 of blocks or spots, by default.
    folds
        Folds of your own, instead of ``by``: a column of ``obs``, every value of which is held out once (spots without one
        are in no set), or of every fold the set of every spot.
    validation
        What picks. A fraction of the units, or with blocks and spots of the spots, in every fold.
    block_um
        Side of a spatial block in microns.
    buffer_um
        With blocks, training and validation spots closer than this to a spot of another set are left out of both,
        in microns.
    genes
        How many genes are targets, chosen on the training spots of a fold, so that they differ between folds; or names, the
        same in all.
    choose_by
        What the genes taken are highest in: ``"variance"``, or ``"dispersion"`` as in the paper.
    score
        Prior ranking of the auxiliary genes. As :func:`agl_sc.pp.rank_auxiliary` takes it, by every fold's training spots; a
        column of ``var`` is taken as it is, so it must not come from these sections.
    normalize
        Units in which genes are modelled: log(1 + counts per 10,000), or log(1 + counts) as the paper's code does.
    seeds
        Number of seeds, counted from ``seed``; arms that draw nothing run once.
    predictions
        Method whose out-of-fold predictions are written; the first by default.
    metrics
        Metrics to compute. Any of :func:`agl_sc.tl.evaluate`, over the test spots of a fold in a section: with blocks or
        spots held out, those that go by neighbours see only neighbours that are test spots too. ``"pearson_between"`` is over
        the sections of all folds, and its mean is told in the log whether it is asked for or not.
    finetune
        Train the whole encoder too, on tiles with flips and quarter turns, instead of the head on cached features.
    config
        Settings of training; :class:`agl_sc.tl.TrainConfig` with its defaults if None.
    checkpoint
        Folder from which an interrupted run continues, to end with the same bytes as if nothing had stopped it. It holds
        an ``npz`` file for every fold, method and seed that is finished, named by a digest of data and settings.
    device
        ``"cpu"``, ``"cuda"`` (in half precision), ``"mps"``; the fastest there is by default. Of the encoder, where features
        are computed.
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
        Seed of folds, initial weights and batches.

    Returns
    -------
    The cross-validation: ``results``, one row per method, fold, seed, section, gene and metric, with its value over the test
    spots of the fold in the section, NaN where undefined; what was run; ``compare`` and ``save``. Writes ``layers["agl_oof"]``, the prediction of every spot when it was test by one of the methods,
    the mean over seeds, float32 in the units of the layer, NaN for genes that were no target in its fold, or
    ``sdata.tables["agl_oof_prediction"]`` with a column per target;
    ``obs["agl_fold"]``, the fold in which a spot was test; ``uns["agl"]["cross_validation"]``; and
    ``obsm["agl_features"]`` where there were none. On an error or an interrupt every slot is as it was.

    Raises
    ------
    ValueError
        A method or metric is unknown, the counts are not raw, a fold would be empty, or has fewer training spots than a
        batch or no validation spots where a method needs them.
    KeyError
        A table, layer, element or gene does not exist, or there is no ``obs["patient"]``.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> found = agl_sc.tl.cross_validate(sdata, methods=["ridge", "weighted_ridge"], genes=20)
    >>> found.methods
    ['ridge', 'weighted_ridge']
    >>> list(found.results)
    ['method', 'fold', 'seed', 'section', 'gene', 'metric', 'value']
    """
    request = requested(
        check_methods(methods),
        by=by,
        plan={"n_folds": n_folds, "validation": validation, "block_um": block_um, "buffer_um": buffer_um},
        protocol={
            "config": config,
            "genes": genes,
            "choose_by": choose_by,
            "score": score,
            "normalize": normalize,
            "finetune": finetune,
        },
        metrics=metrics,
        n_seeds=seeds,
        seed=seed,
        checkpoint=checkpoint,
        own_folds=folds,
        predictions=predictions,
        tiles=FeatureRequest(device=device, batch_size=batch_size),
    )
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    return run_all(replace(Study.of(sdata, address, key_added), write_to=write_to), request)


def run_all(study: Study, request: Request) -> CrossValidation:
    """Fit every arm to every fold, and write what one of them predicts."""
    table = study.table
    protocol = replace(request.protocol, genes=checked_targets(table, request.protocol.genes))
    request = replace(request, protocol=protocol)
    check_place(study)
    check_choose_by(protocol.choose_by)
    check_score(table, protocol.score)
    if study.address.layer == study.keys.oof:
        msg = f"layer={study.address.layer!r} holds the counts and would be overwritten by the predictions; pass another key_added."
        raise ValueError(msg)
    _ = study.counts  # refused before any work where they are not raw
    folds = _folds(study, request)
    lattices = lattices_of(study, optional=False) if set(request.metrics) & set(SPATIAL) else {}
    columns = [] if protocol.score in get_args(Score) else [protocol.score]
    _check_folds(folds, request, study.section_names)
    normalize = partial(normalize_counts, normalize=protocol.normalize)
    measured = Measured(study.counts, normalize, study.section_names, lattices)
    _check_genes(folds, protocol, table.var_names, measured=normalize(study.counts))
    with unchanged_on_failure(table, study.keys, study.sdata):
        ensure_features(study, request.tiles, finetune=protocol.finetune)
        if protocol.finetune:
            check_alone(study)
        shared = count_shared_pixels(
            study, splits=[fold.assigned for fold in folds], by=request.plan.by if request.plan else "section"
        )
        if request.folder is not None:
            request.folder.mkdir(exist_ok=True)
        runs = _run_all(RunData(study, columns), folds, request)
        results = _results(measured, table.var_names, folds, request=request, runs=runs)
        provenance = provenance_of(study, folds, request)
        _write(study, folds, request, runs=runs, provenance=provenance)
        study.remember_layer()
    whole = whole_provenance(study, request, runs, folds={"cross_validation": provenance}, shared=shared)
    return CrossValidation(results, whole, patients_of(table))


def _folds(study: Study, request: Request) -> list[Fold]:
    """The user's own, those in place, or made as asked."""
    if request.own_folds is not None:
        return own_folds(study, request.own_folds, request.plan or FoldPlan())
    return folds_of(study.table, study.keys) if request.plan is None else make_folds(study, request.plan)


def _check_folds(folds: Sequence[Fold], request: Request, sections: NDArray[Any]) -> None:
    """Refuse folds that an arm could not be fitted to, before any of them is."""
    networks = [name for name in request.methods if ARMS[name].method is not None]
    picking = [*networks, *(name for name in request.methods if name in PICKING)]
    for fold in folds:
        n_train = int((fold.assigned == "train").sum())
        batch_size = request.protocol.config.batch_size
        if networks and n_train < batch_size:
            msg = f"Fold {fold.name!r} has {n_train} training spots, fewer than batch_size={batch_size}; {request.smaller_batch(n_train)}."
            raise ValueError(msg)
        _, n_picking = np.unique(sections[fold.assigned == "validation"], return_counts=True)
        if picking and n_picking.max(initial=0) < 2:
            msg = f"Fold {fold.name!r} has no two validation spots in one section, and {picking[0]!r} picks by Pearson on them; {request.more_validation()}."
            raise ValueError(msg)


def _check_genes(
    folds: Sequence[Fold], protocol: Protocol, names: "pd.Index[str]", *, measured: scipy.sparse.csr_matrix
) -> None:
    """Refuse named genes that are constant over the training spots of a fold."""
    if isinstance(protocol.genes, int | np.integer):
        return
    genes = [protocol.genes] if isinstance(protocol.genes, str) else list(protocol.genes)
    own = measured[:, names.get_indexer(pd.Index(genes))].tocsr()
    for fold in folds:
        training = own[fold.assigned == "train"].toarray()
        flat = np.array(genes)[constant(training)]
        if len(flat):
            msg = f"Target genes {', '.join(flat[:3])} are constant over the training spots of fold {fold.name!r}; leave them out."
            raise ValueError(msg)


def _run_all(data: RunData, folds: Sequence[Fold], request: Request) -> Runs:
    """Outcomes of all runs; those that are finished are read."""
    protocol, finished = request.protocol, {}
    made_from = {"data": data.digest(), "protocol": protocol.plain(), "versions": versions()}
    seconds = dict.fromkeys(request.methods, 0.0)
    prepared: tuple[int, Prepared] | None = None
    runs = request.runs(folds)
    paths = [
        None if request.folder is None else run_path(request.folder, fold, name=name, seed=seed, made_from=made_from)
        for fold, name, seed in runs
    ]
    with closing(one_at_a_time(zip(runs, paths, strict=True))) as todo:
        for (fold, name, seed), path in Progress(todo, total=len(runs), desc="runs", unit="run"):
            if path is not None and path.exists():
                finished[fold.number, name, seed] = Outcome.read(path)
                continue
            if prepared is None or prepared[0] != fold.number:
                prepared = fold.number, data.prepared(fold, protocol)
            start = time.perf_counter()
            outcome = run(prepared[1], fold, name=name, seed=seed, protocol=protocol)
            seconds[name] += time.perf_counter() - start
            if path is not None:
                outcome.write(path)
            finished[fold.number, name, seed] = outcome
    for name, spent in seconds.items():
        logger.info("%s took %.1f s over all folds and seeds.", ARMS[name].label, spent)
    return {key: finished[key] for key in ((fold.number, name, seed) for fold, name, seed in runs)}


def _results(
    of: Measured, names: "pd.Index[str]", folds: Sequence[Fold], *, request: Request, runs: Runs
) -> pd.DataFrame:
    """Metrics of every run, by section."""
    frames = []
    for (number, name, seed), outcome in runs.items():
        fold = folds[number]
        rows = np.flatnonzero(fold.assigned == "test")
        known = np.isfinite(outcome.predicted).all(axis=1)
        columns = names.get_indexer(pd.Index(outcome.genes))
        for section in np.unique(of.sections[rows[known]]):
            inside = known & (of.sections[rows] == section)
            values = of.metrics(outcome.predicted[inside], rows=rows[inside], columns=columns, names=request.metrics)
            long = values.assign(gene=outcome.genes).melt("gene", var_name="metric")
            frames.append(long.assign(method=name, fold=fold.name, seed=seed, section=section))
    results = with_between(
        pd.concat(frames, ignore_index=True), pearson_between_sections(of, names=names, folds=folds, runs=runs)
    )
    undefined = int(results["value"].isna().sum())
    if undefined:
        logger.warning(
            "%d of %d values are undefined, where a measured or predicted gene is constant over the test spots of a section.",
            undefined,
            len(results),
        )
    return results[["method", "fold", "seed", "section", "gene", "metric", "value"]]


def _write(study: Study, folds: Sequence[Fold], request: Request, *, runs: Runs, provenance: Mapping[str, Any]) -> None:
    table, keys, name = study.table, study.keys, request.written
    blocks = []
    for fold in folds:
        outcomes = [runs[fold.number, name, seed] for seed in request.seeds_of(name)]
        rows = np.flatnonzero(fold.assigned == "test")
        mean: FloatArray = np.mean([outcome.predicted for outcome in outcomes], axis=0, dtype=np.float64)
        blocks.append((rows, outcomes[0].genes, mean))
    targets = {gene for _, genes, _ in blocks for gene in genes}
    slot = write_predicted(study, "oof", genes=[gene for gene in table.var_names if gene in targets], blocks=blocks)
    names = [fold.name for fold in folds]
    tested = pd.Series(fold_of(folds, names))
    table.obs[keys.fold] = pd.Categorical(tested.where(tested.isin(names)), categories=names)
    lists = {key: np.array(value) for key, value in provenance.items() if isinstance(value, list)}
    remember(table, keys, CrossValidationRecord({**provenance, **lists, "label": ARMS[name].label}))
    logger.info('Wrote %s and obs["%s"]: out-of-fold predictions of %s.', slot, keys.fold, ARMS[name].label)
