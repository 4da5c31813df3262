"""The paper's own protocol: its filters, its way of choosing targets, its folds, its settings of training."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from agl_sc._sdata.records import PaperRecord, remember, remembered
from agl_sc._sdata.rollback import unchanged_on_failure
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study, around
from agl_sc._sdata.table import find_table
from agl_sc.core.arguments import is_whole
from agl_sc.core.config import Preset, TrainConfig
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.embed import FeatureRequest, embed_study
from agl_sc.pp._features.tiles import Mpp
from agl_sc.pp._genes.targets_and_ranks import assign_roles
from agl_sc.tl._benchmark.arms import check_methods
from agl_sc.tl._benchmark.cross_validate import run_all
from agl_sc.tl._benchmark.request import requested
from agl_sc.tl._benchmark.result import CrossValidation

if TYPE_CHECKING:
    from spatialdata import SpatialData

TargetsOn = Literal["training", "all"]

logger = logging.getLogger(__name__)

METHODS = ("pgl", "agl", "dkgsb", "depth")
METRICS = ("mse", "pearson", "pearson_beyond_depth", "spearman")
_NORMALIZE: Literal["log1p"] = "log1p"


def paper_prepare(
    sdata: "SpatialData",
    *,
    n_targets: int = 50,
    min_genes: int = 200,
    min_spots: int = 3,
    table_key: str | None = None,
    layer: str | None = None,
    key_added: str = "agl",
) -> "SpatialData":
    """Filter spots and genes, and choose target genes, as the paper does.

    Spots with fewer than ``min_genes`` genes are left out, then genes in fewer than ``min_spots`` spots. The genes of
    highest normalised dispersion (scanpy, flavour seurat) of log(1 + counts), without library size, over *all* spots are
    marked as the paper's targets; :func:`paper_benchmark` chooses them on the training spots of every fold unless it is
    told to take these.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    n_targets
        Number of target genes. 25, 50, 75 and 100 are the paper's.
    min_genes
        Genes that a spot has at least.
    min_spots
        Spots that a gene is in at least.
    table_key
        Table to use; the only one by default.
    layer
        Layer with raw counts; X by default.
    key_added
        Prefix of all slots.

    Returns
    -------
    Another SpatialData with the same images, shapes and a table ``table`` of what is left, raw counts in X. It has
    ``var["agl_paper_target"]``, and in ``uns["agl"]["paper"]`` what was asked for and left out.

    Raises
    ------
    ValueError
        Nothing is left, there are fewer genes than targets, or the counts are not raw.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> prepared = agl_sc.tl.paper_prepare(sdata, n_targets=25)
    >>> int(prepared["table"].var["agl_paper_target"].sum())
    25
    """
    from anndata import AnnData

    for name, value in (("n_targets", n_targets), ("min_genes", min_genes), ("min_spots", min_spots)):
        if not is_whole(value) or value < 1:
            msg = f"{name}={value!r} is not a whole number of at least 1; the paper has n_targets=50, min_genes=200, min_spots=3."
            raise ValueError(msg)
    study = Study.of(sdata, Address(table_key=table_key, layer=layer), key_added)
    table, keys, counts = study.table, study.keys, study.counts
    rich = counts.getnnz(axis=1) >= min_genes
    common = counts[rich].getnnz(axis=0) >= min_spots
    if common.sum() < n_targets:
        msg = (
            f"Of {table.n_obs} spots and {table.n_vars} genes, {rich.sum()} spots with {min_genes} genes and {common.sum()} genes in "
            f"{min_spots} of them are left, fewer than n_targets={n_targets}; lower min_genes, min_spots or n_targets."
        )
        raise ValueError(msg)
    kept = counts[rich][:, common]
    names = table.var_names[common]
    role = assign_roles(normalize_counts(kept, _NORMALIZE), names, genes=n_targets, choose_by="dispersion")
    var = pd.DataFrame({keys.paper_target: role == "target"}, index=names)
    own = AnnData(kept, obs=table.obs[rich].copy(), var=var)
    own.obsm.update({name: values[rich] for name, values in table.obsm.items() if name != keys.features})
    own.uns["spatialdata_attrs"] = dict(table.uns["spatialdata_attrs"])
    left_out = {"n_spots_left_out": int((~rich).sum()), "n_genes_left_out": int((~common).sum())}
    asked = {"n_targets": n_targets, "min_genes": min_genes, "min_spots": min_spots, "normalize": _NORMALIZE}
    remember(own, keys, PaperRecord({**asked, **left_out}))
    logger.info("Kept %d of %d spots and %d of %d genes.", rich.sum(), table.n_obs, common.sum(), table.n_vars)
    return around(sdata, own)


@dataclass(frozen=True, slots=True)
class PaperFolds:
    """How the paper divides spots: as :func:`agl_sc.tl.cross_validate` takes it."""

    by: Literal["spot", "patient"]
    """Single spots of one patient; whole patients of several."""
    n_folds: int | None
    """Five folds of spots, or one per patient."""
    validation: float
    """Share that picks; of spots it makes 3:1:1."""


def paper_folds(sdata: "SpatialData", *, table_key: str | None = None) -> PaperFolds:
    """Five random spot folds, 3:1:1; or, with several patients, one patient left out at a time.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    table_key
        Table to use; the only one by default.
    """
    obs = find_table(sdata, table_key).obs
    n_patients = obs["patient"].nunique() if "patient" in obs else 1
    return PaperFolds("patient", None, 0.2) if n_patients > 1 else PaperFolds("spot", 5, 0.2)


def paper_benchmark(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    *,
    methods: str | Sequence[str] = METHODS,
    preset: Preset = "paper",
    n_targets: int | None = None,
    targets_on: TargetsOn = "training",
    encoder: str = "resnet18",
    tile_px: int | None = None,
    mpp: Mpp = 0.5,
    changes: Mapping[str, Any] | None = None,
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
) -> CrossValidation:
    """Fine-tune an encoder under the paper's protocol, and measure every method on the test spots of its folds.

    Five random spot folds (3:1:1), which share pixels and expression, so that every method is flattered, or with several
    patients one left out at a time; log(1 + counts); the targets of highest dispersion; a whole ResNet18 trained on tiles
    with flips and quarter turns, by Adam, under the settings of a published variant. Two things differ from the paper's code, which
    looks at test spots for them: targets are chosen on the training spots of a fold, unless ``targets_on="all"``, and prior
    ranks always are.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    methods
        One arm or several. Those of :func:`agl_sc.tl.cross_validate`. By default the paper's, and ``"depth"``: the counts that
        the paper models are not divided by their total, so that a model that sees no pixels, but the total counts of every
        spot, explains much of them.
    preset
        Settings of a published variant of DkGSB, ``"paper"``, ``"released"`` or ``"warmstart"``, instead of ``config``;
        see :meth:`agl_sc.tl.TrainConfig.preset`. They are those of all methods.
    n_targets
        Number of target genes. That of :func:`paper_prepare` by default, else 50.
    targets_on
        ``"training"`` chooses targets on the training spots of every fold; ``"all"`` takes those of
        :func:`paper_prepare`, chosen on all spots, test included, as the paper's are.
    encoder
        ``"efficientnet_lite0"`` (ImageNet weights that need no network), a pathology encoder of
        :func:`agl_sc.pp.encoders`, any timm or ``hf-hub:`` name, and whatever else :func:`agl_sc.pp.embed` takes. The weights
        of the paper's, ``"resnet18"``, are downloaded once.
    tile_px
        Side of a tile in pixels. 224 by default, or with ``mpp="image"`` what covers the same 112 um.
    mpp
        Microns per pixel of a tile, or ``"image"`` for the image's own resolution whatever it is.
    changes
        Fields of the preset to set otherwise, such as ``{"max_epochs": 20}``.
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
        Seed of folds, initial weights and batches.

    Returns
    -------
    As :func:`agl_sc.tl.cross_validate`, with mse, pearson, pearson beyond depth and spearman; :func:`paper_summary` makes the paper's table of it.
    Writes what that writes, and ``obsm["agl_features"]`` of the encoder before fine-tuning.

    Raises
    ------
    KeyError
        ``targets_on="all"`` without :func:`paper_prepare`.
    ValueError
        A name is unknown, or there are fewer training spots than a batch.
    ConnectionError
        The encoder's weights could not be downloaded.

    References
    ----------
    Shiku et al., Auxiliary Gene Learning, AAAI 2026, arXiv 2511.18336.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> prepared = agl_sc.tl.paper_prepare(sdata, n_targets=10, min_genes=20)
    >>> found = agl_sc.tl.paper_benchmark(
    ...     prepared,
    ...     methods="pgl",
    ...     encoder="efficientnet_lite0",
    ...     tile_px=32,
    ...     mpp=1.0,
    ...     changes={"max_epochs": 1, "batch_size": 16},
    ... )
    >>> found.methods
    ['pgl']
    """
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    study = Study.of(sdata, address, key_added)
    config = TrainConfig.preset(preset, **(changes or {}))
    genes = _targets(study, n_targets=n_targets, targets_on=targets_on)
    names = check_methods(methods)
    folds = paper_folds(sdata, table_key=table_key)
    if targets_on == "all":
        logger.warning(
            "Targets were chosen on all spots, test spots included, as in the paper: every method is flattered."
        )
    tiles = FeatureRequest(encoder, tile_px, mpp, Views(), batch_size, device)
    request = requested(
        names,
        by=folds.by,
        plan={"n_folds": folds.n_folds, "validation": folds.validation},
        protocol={
            "config": config,
            "genes": genes,
            "choose_by": "dispersion",
            "score": "dispersion",
            "normalize": _NORMALIZE,
            "finetune": True,
        },
        metrics=METRICS,
        n_seeds=1,
        seed=seed,
        checkpoint=checkpoint,
        tiles=FeatureRequest(device=device, batch_size=batch_size),
        is_preset=True,
    )
    with unchanged_on_failure(study.table, study.keys, study.sdata):
        embed_study(study, tiles)
        return run_all(study.recalled(), request)


def _targets(study: Study, *, n_targets: int | None, targets_on: TargetsOn) -> int | list[str]:
    """How many target genes to choose in every fold, or their names."""
    if targets_on not in get_args(TargetsOn):
        msg = f"targets_on={targets_on!r} is not one of {', '.join(map(repr, get_args(TargetsOn)))}."
        raise ValueError(msg)
    table, keys = study.table, study.keys
    prepared = remembered(table, keys, PaperRecord) or PaperRecord({})
    n_prepared = int(prepared.values.get("n_targets", 50))
    if targets_on == "training":
        return n_prepared if n_targets is None else n_targets
    if keys.paper_target not in table.var:
        msg = f'targets_on="all" takes var["{keys.paper_target}"], which is missing; run agl_sc.tl.paper_prepare(sdata) first.'
        raise KeyError(msg)
    if n_targets not in (None, n_prepared):
        msg = f'n_targets={n_targets} contradicts the {n_prepared} targets of var["{keys.paper_target}"]; run agl_sc.tl.paper_prepare(sdata, n_targets={n_targets}) again.'
        raise ValueError(msg)
    return list(table.var_names[table.var[keys.paper_target].to_numpy(dtype=bool)])


def paper_summary(results: pd.DataFrame | CrossValidation) -> pd.DataFrame:
    """Mean and standard deviation over folds of the mean over target genes, as the paper's tables have them.

    Parameters
    ----------
    results
        Of :func:`paper_benchmark` or :func:`agl_sc.tl.cross_validate`, or their table.

    Returns
    -------
    A row per method; columns are pairs of a metric and ``"mean"``, ``"sd"`` (of a sample, NaN of one fold). Undefined values
    are left out; a fold is the mean of its sections and seeds.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> found = agl_sc.tl.cross_validate(sdata, methods=["ridge", "weighted_ridge"], genes=20)
    >>> agl_sc.tl.paper_summary(found).index.tolist()
    ['ridge', 'weighted_ridge']
    """
    results = results.results if isinstance(results, CrossValidation) else results
    columns_of = results if isinstance(results, pd.DataFrame) else ()
    missing = [name for name in ("method", "fold", "gene", "metric", "value") if name not in columns_of]
    if missing:
        msg = f"results has no column {missing[0]!r}; pass what agl_sc.tl.cross_validate returned."
        raise KeyError(msg)
    by_fold = results.groupby(["method", "metric", "fold"], sort=False)["value"].mean().unstack("metric")
    over_folds = by_fold.groupby("method", sort=False)
    columns = {}
    for name in (name for name in METRICS if name in by_fold):
        columns[name, "mean"], columns[name, "sd"] = over_folds[name].mean(), over_folds[name].std()
    return pd.DataFrame(columns).rename_axis(index=None)
