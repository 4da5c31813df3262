"""Which genes the H&E of a tissue shows: all of them, held out, in closed form."""

import logging
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd

from agl_sc._sdata.records import PredictableRecord, SplitRecord, remember, remembered
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import check_choice, check_seed, is_whole
from agl_sc.core.arrays import BoolArray
from agl_sc.core.evaluation.gene_scores import COLUMNS
from agl_sc.core.spots.spots import usable_spots
from agl_sc.pp._features.embed import FeatureRequest
from agl_sc.pp._splits.leaks import tell_duplicates, tell_patients
from agl_sc.pp._splits.split import assigned_in
from agl_sc.pp._splits.units import among_sets, check_patients_named, patient_of
from agl_sc.tl._evaluate import lattices_of
from agl_sc.tl._model.held_out import HeldOut, HeldOutBy, held_out_of, score_genes
from agl_sc.tl._model.train import ensure_features

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
_SHOWN = 5
SIGNIFICANT = 0.05
"""False discovery rate below which a gene is said to be shown."""


def predictable_genes(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    *,
    by: HeldOutBy | None = None,
    min_spots: int = 10,
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
) -> pd.DataFrame:
    """Find the genes that H&E shows in a tissue: predict every detected gene in spots that were held out.

    Every gene is predicted by ridge regression from the encoder's features, in folds in which everything is fitted anew, and
    compared with its counts. The Pearson correlation is within sections, averaged over them. A trained network does a
    little better than this; what ridge cannot predict at all, it seldom can. No model has to be trained for it.

    Where the table has a split, its test spots are left out, so that genes may be chosen by the result.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    by
        What is held out: ``"patient"``, ``"section"``, or ``"block"`` for spatial blocks of 500 um with a buffer of 150 um.
        By default patients where there are three of them, else sections where there are two, else blocks. It decides what the
        scores speak of: another patient, another section of these patients, or another place in the same section.
    min_spots
        Spots that a gene is in at least.
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
        Seed of the count splitting behind the noise ceiling.

    Returns
    -------
    A row per detected gene, the best first: ``pearson``, held out, within sections; ``n_spots`` and ``n_sections`` that it
    is over; ``noise_ceiling``, the Pearson correlation that a perfect prediction could expect given the noise of the counts;
    ``pearson_of_ceiling``, the share of it that is reached; ``q_value``, of Pearson above 0 by toroidal shifts, after
    Benjamini-Hochberg over the genes. NaN where something is undefined. Also writes ``var["agl_predictable_pearson"]`` and
    so forth, and ``obsm["agl_features"]`` where there are none.

    Raises
    ------
    ValueError
        There are too few spots or units to hold any out, no gene is detected, or the counts are not raw.
    KeyError
        A table, layer or element does not exist, or ``by="patient"`` without a column ``patient``.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> genes = agl_sc.tl.predictable_genes(sdata)
    >>> list(genes)
    ['pearson', 'n_spots', 'n_sections', 'noise_ceiling', 'pearson_of_ceiling', 'q_value']
    """
    if by is not None:
        check_choice("by", by, get_args(HeldOutBy))
    if not is_whole(min_spots) or min_spots < 1:
        msg = f"min_spots={min_spots!r} is not a positive number of spots; 10 is usual."
        raise ValueError(msg)
    check_seed(seed)
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    tiles = FeatureRequest(device=device, batch_size=batch_size)
    return predictable_study(Study.of(sdata, address, key_added), tiles, by=by, min_spots=min_spots, seed=seed)


def predictable_study(
    study: Study, tiles: FeatureRequest, *, by: HeldOutBy | None, min_spots: int, seed: int
) -> pd.DataFrame:
    """As :func:`predictable_genes`, of what is resolved already."""
    table, keys = study.table, study.keys
    counts = study.counts
    if by == "patient":
        patient_of(table)
        check_patients_named(study)
    within = _looked_at(study)
    ensure_features(study, tiles, finetune=False)
    usable = within & usable_spots(np.asarray(table.obsm[keys.features]), counts)
    if not usable.any():
        msg = f'No spot has both features in obsm["{keys.features}"] and counts; run agl_sc.pp.embed(sdata) again.'
        raise ValueError(msg)
    columns = np.flatnonzero(counts[usable].getnnz(axis=0) >= min_spots)
    if not len(columns):
        msg = f"No gene is detected in min_spots={min_spots} of the {int(usable.sum())} spots; pass a smaller number."
        raise ValueError(msg)
    spots = held_out_of(study, usable, by=by)
    _tell_shared(study, spots)
    genes = score_genes(study, spots, columns, lattices=lattices_of(study, optional=True), seed=seed)
    for name in COLUMNS:
        table.var[keys.predictable(name)] = genes[name].reindex(table.var_names).to_numpy(dtype=float)
    said = {"by": spots.by, "sections": spots.names, "n_spots": len(spots.rows), "words": spots.words}
    remember(table, keys, PredictableRecord(said))
    genes = genes.sort_values("pearson", ascending=False, kind="stable")
    _tell(study, genes, spots)
    return genes


def _looked_at(study: Study) -> BoolArray:
    """Spots on tissue that no split keeps for testing, (n_obs,)."""
    within = among_sets(study)
    record = remembered(study.table, study.keys, SplitRecord)
    if study.keys.split not in study.table.obs or (record is not None and record.names is not None):
        return within
    assigned = assigned_in(study)
    kept: BoolArray = within & np.isin(assigned, ("train", "validation"))
    if (within & ~kept).any():
        logger.info(
            '%d spots that obs["%s"] calls test or unused are left out.', (within & ~kept).sum(), study.keys.split
        )
    return kept


def _tell_shared(study: Study, spots: HeldOut) -> None:
    """Warn of what folds still share."""
    splits = []
    for fold in spots.folds:
        assigned = np.full(study.table.n_obs, "unused", dtype="<U10")
        assigned[spots.rows[fold.fit]], assigned[spots.rows[fold.held]] = "train", "test"
        splits.append(assigned)
    if spots.by == "section":
        tell_patients(study.table, splits)
    tell_duplicates(study.table, splits)


def _tell(study: Study, genes: pd.DataFrame, spots: HeldOut) -> None:
    shown = (genes["q_value"] < SIGNIFICANT) & (genes["pearson"] > 0)
    best = ", ".join(f"{name} {value:.2f}" for name, value in genes["pearson"].dropna().iloc[:_SHOWN].items())
    study.tell_written(
        logger,
        'Wrote var["%s"]: %d of %d genes are shown by the H&E (false discovery rate %.2f), held out by %s; best %s.',
        study.keys.predictable("pearson"),
        shown.sum(),
        len(genes),
        SIGNIFICANT,
        spots.by,
        best or "none",
    )
