"""Methods against each other in the same folds: results, paired differences, and a report of both."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agl_sc._sdata.sections import Names, Scales
from agl_sc.core.config import TrainConfig
from agl_sc.core.spots.genes import Normalize
from agl_sc.pp._genes.targets_and_ranks import ChooseBy
from agl_sc.pp._splits.own_folds import OwnFolds
from agl_sc.pp._splits.units import By
from agl_sc.tl._benchmark.arms import ARMS, check_methods
from agl_sc.tl._benchmark.cross_validate import cross_validate
from agl_sc.tl._benchmark.result import Benchmark

if TYPE_CHECKING:
    from spatialdata import SpatialData


def benchmark(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    *,
    methods: Sequence[str] | None = None,
    reference: str = "ridge",
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
    seeds: int = 3,
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
    key_added: str = "agl",
    seed: int = 0,
) -> Benchmark:
    """Compare methods, control arms and baselines in the same folds, with the same features and settings.

    Every arm goes through :func:`agl_sc.tl.cross_validate`. Networks train under one ``config``, so for as many updates at
    most; the published variants of DkGSB keep their own settings. Differences are paired: the same genes, spots and folds,
    averaged over seeds, with a bootstrap interval over independent units: patients with ``by="patient"``, else sections,
    else, with fewer than three sections, the folds of blocks. With fewer than three units the interval is over genes, and
    says so.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    methods
        One arm or several. As :func:`agl_sc.tl.cross_validate` takes them; by default all that cost about one training at
        most.
    reference
        Arm that all others are compared with. Besides, ``"agl"`` is with ``"pgl"``, and ``"dkgsb"`` with ``"agl"`` and ``"depth"``.
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
        Prior ranking of the auxiliary genes. As :func:`agl_sc.tl.cross_validate` takes it; some arms have their own.
    normalize
        Units in which genes are modelled: log(1 + counts per 10,000), or log(1 + counts) as the paper's code does.
    seeds
        Number of seeds, counted from ``seed``; arms that draw nothing run once.
    predictions
        Method whose out-of-fold predictions are written; the first by default.
    metrics
        Metrics to compute. As :func:`agl_sc.tl.cross_validate` takes them.
    finetune
        Train the whole encoder too, on tiles with flips and quarter turns, instead of the head on cached features.
    config
        Settings of training; :class:`agl_sc.tl.TrainConfig` with its defaults if None.
    checkpoint
        Folder from which an interrupted run continues, to end with the same bytes as if nothing had stopped it.
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
    key_added
        Prefix of all slots.
    seed
        Seed of folds, initial weights, batches and bootstrap.

    Returns
    -------
    The benchmark: results, differences, and a report of both. Writes what :func:`agl_sc.tl.cross_validate` writes.

    Raises
    ------
    ValueError
        A method, the reference or a metric is unknown, or a fold cannot be fitted to.
    KeyError
        A table, layer, element or gene does not exist, or there is no ``obs["patient"]``.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> report = agl_sc.tl.benchmark(sdata, methods=["weighted_ridge", "ridge"], genes=20, metrics=["pearson"])
    >>> list(report.differences["method"]), list(report.differences["reference"])
    (['weighted_ridge'], ['ridge'])
    >>> report.save("report")
    """
    chosen = [name for name, arm in ARMS.items() if arm.cheap] if methods is None else check_methods(methods)
    chosen += [name for name in check_methods(reference) if name not in chosen]
    done = cross_validate(
        sdata,
        methods=chosen,
        by=by,
        n_folds=n_folds,
        folds=folds,
        validation=validation,
        block_um=block_um,
        buffer_um=buffer_um,
        genes=genes,
        choose_by=choose_by,
        score=score,
        normalize=normalize,
        seeds=seeds,
        predictions=predictions,
        metrics=metrics,
        finetune=finetune,
        config=config,
        checkpoint=checkpoint,
        device=device,
        batch_size=batch_size,
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
        key_added=key_added,
        seed=seed,
    )
    return done.compare(reference, seed=seed)
