"""Features that were computed elsewhere, with what they were made of declared."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from agl_sc._sdata.records import FeatureRecord, forget, remember
from agl_sc._sdata.sections import Names, in_regions
from agl_sc._sdata.study import Address, Study
from agl_sc._sdata.table import region_of
from agl_sc.core.arguments import check_name
from agl_sc.core.arrays import BoolArray, Float32Array, StrArray
from agl_sc.core.spots.half import storage_type
from agl_sc.core.spots.scaling import row_slices
from agl_sc.pp._features.elsewhere import features_of_file
from agl_sc.pp._features.sketch import sketch_of
from agl_sc.pp._features.tiles import TileSpec, overview

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
NOT_STATED = "not stated"
"""Weights of features that somebody else computed and did not name."""


def use_features(
    sdata: "SpatialData",
    features: "np.ndarray[Any, Any] | AnnData | str | Path",
    *,
    encoder: str,
    tile_px: int,
    mpp: float,
    weights: str | None = None,
    table_key: str | None = None,
    shapes_key: Names = None,
    key_added: str = "agl",
) -> None:
    """Take features that were computed elsewhere, by LazySlide, TRIDENT or HEST, in place of those of :func:`agl_sc.pp.embed`.

    No image is needed; where there is one, it tells a model which sections it was fitted on. What the features were made of has to be declared, is recorded, and is compared when a model predicts:
    a model trained on features of one encoder, tile and weights takes no others.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    features
        Array with a row per spot of the table, (n_spots, n_features); an AnnData with them in ``X`` whose rows are named like the
        spots or their instances; the name of such a table of ``sdata``, as LazySlide writes it; or the path of an HDF5 file as
        TRIDENT (``features``, ``coords``) or HEST (``embeddings``, ``barcodes``) write it. Coordinates are corners of tiles
        in pixels of the finest level, and have to meet the spots.
    encoder
        Name of the encoder, such as ``"uni"``.
    tile_px
        Side of the tiles in pixels, as the encoder saw them.
    mpp
        Microns per pixel of a tile.
    weights
        Which weights the encoder had: a version, or a digest such as ``model.card["features"]["weights_digest"]``. None records
        that nobody says, which agrees with nothing else.
    table_key
        Table to use; the only one by default.
    shapes_key
        Regions to use; all by default. Files of several slides are taken one by one, each with its region.
    key_added
        Prefix of all slots.

    Returns
    -------
    Nothing; writes ``obsm["agl_features"]``, (n_spots, n_features), float32, or float16 of more than 50,000 spots where rounding
    loses nothing that counts, NaN for spots without a row; and
    ``uns["agl"]["features"]``, what was declared. Features of regions that ``shapes_key`` leaves out stay where the same was
    declared of them, and are NaN otherwise.

    Raises
    ------
    KeyError
        There is no such table, or the file lacks what its kind has.
    ValueError
        No encoder, tile or scale is declared; features are not finite numbers, or belong to other spots.
    TypeError
        ``features`` is of another kind.

    Examples
    --------
    >>> import agl_sc
    >>> import numpy as np
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=1, n_spots_per_side=6)
    >>> features = np.random.default_rng(0).normal(size=(sdata["table"].n_obs, 16))
    >>> agl_sc.pp.use_features(sdata, features, encoder="uni", tile_px=224, mpp=0.5)
    >>> sdata["table"].obsm["agl_features"].shape[1]
    16
    """
    check_name("encoder", encoder)
    if weights is not None:
        check_name("weights", weights)
    spec = TileSpec(tile_px, mpp)
    if spec.mpp == "image":
        msg = "mpp='image' declares nothing; pass the microns per pixel of the tiles that the encoder saw, such as 0.5."
        raise ValueError(msg)
    study = Study.of(sdata, Address(table_key=table_key, shapes_key=shapes_key), key_added)
    inside = in_regions(study.table, shapes_key)
    found = _placed(study, features, inside, side_um=spec.tile_px * float(spec.mpp))
    made_from = FeatureRecord(
        encoder=encoder,
        weights_digest=NOT_STATED if weights is None else weights,
        tile_px=int(spec.tile_px),
        mpp=float(spec.mpp),
        image_mpp={},
        images={},
        sections={},
    )
    before, known = study.table.obsm.get(study.keys.features), study.features
    digests = _digests(study, found)
    if before is not None and before.shape == found.shape and known is not None and _same(known, made_from):
        found[~inside] = np.asarray(before)[~inside]
        left = set(region_of(study.table)[~inside])
        digests = {name: digest for name, digest in known.images.items() if name in left} | digests
    study.table.obsm[study.keys.features] = found.astype(storage_type(found, len(found)), copy=False)
    remember(study.table, study.keys, replace(made_from, images=digests))
    for entry in ("tiles", "reference"):  # of features that were here before
        forget(study.table, study.keys, entry)
    n_with = int(np.isfinite(found[:, 0]).sum())
    logger.info(
        'Wrote obsm["%s"]: %d features of %s for %d of %d spots.',
        study.keys.features,
        found.shape[1],
        encoder,
        n_with,
        len(found),
    )


def _same(before: FeatureRecord, made_from: FeatureRecord) -> bool:
    """Whether features were declared to be made as these."""
    return replace(before, images={}) == made_from


def _digests(study: Study, found: Float32Array) -> dict[str, str]:
    """What every region with features is known by, so that a model knows those it was fitted on: its image, else its features."""
    regions = region_of(study.table).to_numpy(dtype=str)
    names = sorted(set(regions[np.isfinite(found[:, 0])].tolist()))
    digests = {name: sketch_of(found[regions == name]) for name in names}
    try:
        sections = study.of_regions(names).positioned
    except (KeyError, ValueError):  # nobody says where the spots lie
        sections = []
    return digests | {section.name: overview(section).digest for section in sections if section.levels}


def _placed(study: Study, features: Any, inside: BoolArray, *, side_um: float) -> Float32Array:
    """Features (n_obs, n_features) of the spots ``inside``, (n_obs,); NaN where there are none."""
    table = study.table
    if isinstance(features, str) and features in study.sdata.tables:
        features = study.sdata.tables[features]
    if hasattr(features, "obs_names") and hasattr(features, "X"):
        rows, values = _rows_by_name(study, features, inside), _checked(_dense(features.X), "features.X")
    elif isinstance(features, str | Path):
        path = Path(features)
        if not path.is_file():
            msg = f"features={str(features)!r} is neither a table of sdata ({', '.join(sorted(study.sdata.tables))}) nor a file; name one of them."
            raise KeyError(msg)
        rows, values = features_of_file(study, path, side_um=side_um)
        values = _checked(values, f"'{path}'")
    elif isinstance(features, np.ndarray):
        rows, values = np.arange(table.n_obs), _checked(features, "features")
        if len(values) != table.n_obs:
            msg = f"features has {len(values)} rows for the {table.n_obs} spots of the table; pass a row for every spot, in the order of the table."
            raise ValueError(msg)
    else:
        msg = f"features is a {type(features).__name__}; pass an array, an AnnData, the name of a table, or the path of an HDF5 file."
        raise TypeError(msg)
    rows = np.where(inside, rows, -1)
    _check_one_region(study, rows)
    placed = np.full((table.n_obs, values.shape[1]), np.nan, dtype=np.float32)
    known = np.flatnonzero(rows >= 0)
    for some in (known[each] for each in row_slices(len(known), values.shape[1])):
        placed[some] = values[rows[some]]
    return placed


def _check_one_region(study: Study, rows: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
    """Refuse rows of features that are of nobody, or whose names are those of spots on several slides, as barcodes are."""
    regions = region_of(study.table).to_numpy(dtype=str)
    pairs = pd.DataFrame({"row": rows, "region": regions})[rows >= 0].drop_duplicates()
    if pairs.empty:
        msg = "No row of features is of a spot of these regions; pass shapes_key= with the region that they are of."
        raise ValueError(msg)
    shared = pairs["region"][pairs["row"].duplicated(keep=False)]
    if len(shared):
        msg = (
            f"Rows of features are named like spots of several regions ({', '.join(sorted(set(shared)))}); pass shapes_key= with the "
            "region that they are of, and the others in calls of their own."
        )
        raise ValueError(msg)


def _rows_by_name(study: Study, other: "AnnData", inside: BoolArray) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Row of every spot in another table, -1 without one: by the names of the rows, or of the instances that both annotate.

    Of these the way by which the spots ``inside`` have most rows.
    """
    table = study.table
    names = [table.obs_names.astype(str).to_numpy(), _instances(table)]
    others = [
        other.obs_names.astype(str).to_numpy(),
        *([_instances(other)] if "spatialdata_attrs" in other.uns else []),
    ]
    best = np.full(table.n_obs, -1)
    for own in names:
        for each in others:
            index = {name: row for row, name in enumerate(each)}
            rows = np.array([index.get(name, -1) for name in own])
            if len(index) == len(each) and _n_known(rows[inside]) > _n_known(best[inside]):
                best = rows
    if not (best >= 0).any():
        msg = (
            f"No row of features is named like a spot (rows {', '.join(map(str, others[0][:3]))}, spots {', '.join(names[0][:3])}); "
            "name its rows like the spots, or pass features.X in the order of the table."
        )
        raise ValueError(msg)
    return best


def _n_known(rows: "np.ndarray[Any, np.dtype[np.int64]]") -> int:
    return len(np.unique(rows[rows >= 0]))


def _instances(table: "AnnData") -> StrArray:
    names: StrArray = table.obs[table.uns["spatialdata_attrs"]["instance_key"]].astype(str).to_numpy(dtype=object)
    return names


def _dense(matrix: Any) -> Any:
    return matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)


def _checked(values: Any, what: str) -> "np.ndarray[Any, Any]":
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or 0 in array.shape:
        msg = f"{what} holds {array.dtype} of shape {array.shape}; pass a matrix of numbers, (n_spots, n_features)."
        raise ValueError(msg)
    partly, is_empty = np.zeros(len(array), dtype=bool), True
    for some in row_slices(*array.shape):
        block = array[some]
        finite = np.isfinite(block)
        partly[some] = ~finite.all(axis=1) & finite.any(axis=1) | np.isinf(block).any(axis=1)
        is_empty &= not finite.any()
    if partly.any() or is_empty:
        msg = (
            f"{what} holds NaN or infinite values in {int(partly.sum()) or len(array)} of {len(array)} rows; compute the features of these spots "
            "again, or set their whole rows to NaN."
        )
        raise ValueError(msg)
    return array
