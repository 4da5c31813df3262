"""Predictions as an AnnData in scanpy's layout, small enough to take along."""

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agl_sc._sdata.predictions import Predicted, Prediction, bounds_of, genes_table, predicted_of
from agl_sc._sdata.sections import Names, Scales, Section
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import is_number
from agl_sc.tl._model.belongs import chosen_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def to_anndata(
    sdata: "SpatialData",
    *,
    prediction: Prediction = "model",
    sections: Names = None,
    max_image_px: int = 600,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    key_added: str = "agl",
) -> "AnnData":
    """Predicted genes alone as an AnnData that scanpy, squidpy and Seurat read.

    The table of a SpatialData keeps measured and predicted genes side by side; this takes what was predicted out, with
    positions and a small image in the layout of scanpy, so that ``scanpy.pl.spatial`` and ``squidpy.pl.spatial_scatter``
    draw it and ``write_h5ad(path, compression="gzip")`` gives a file of a few megabytes.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections. Predictions are there already.
    prediction
        ``"model"`` for the predictions of one model, or ``"oof"`` for those out of fold that
        ``agl_sc.tl.cross_validate`` wrote, each by a model that had not seen the spot.
    sections
        Name or names of the sections to use; all by default.
    max_image_px
        Longer side of the image that goes along with every region, in pixels; 0 for none.
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
    key_added
        Prefix of all slots.

    Returns
    -------
    A new AnnData, spots with a prediction x predicted genes: ``X``, float32, in the units of training; ``obs`` of the table,
    and ``obs["library_id"]``, the region; ``var`` of the table for these genes, with the scores that it has;
    ``obsm["spatial"]``, centres (x, y) in pixels of the full image; ``uns["spatial"]``, by region the image (``hires`` and, for
    Seurat, the same as ``lowres``) and the scale factors; ``uns["agl_sc"]``, units and kind of the predictions. Where
    there are intervals, ``layers["lower"]`` and ``layers["upper"]``. ``sdata`` is left as it is.

    Raises
    ------
    KeyError
        There are no predictions yet, or no such section.
    ValueError
        None of the sections has a prediction.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
    >>> model = agl_sc.tl.train(sdata, config=config)
    >>> adata = agl_sc.tl.to_anndata(sdata, sections="section_3")
    >>> adata.n_vars == model.n_predicted
    True
    >>> adata.write_h5ad("section_3.h5ad", compression="gzip")
    """
    if not is_number(max_image_px) or int(max_image_px) != max_image_px or max_image_px < 0:
        msg = f"max_image_px={max_image_px!r} is not a whole number of pixels; pass such as 600, or 0 for no image."
        raise ValueError(msg)
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
    )
    study = Study.of(sdata, address, key_added)
    return anndata_of(study, prediction=prediction, sections=sections, max_image_px=int(max_image_px))


def anndata_of(
    study: Study, *, prediction: Prediction = "model", sections: Names = None, max_image_px: int = 600
) -> "AnnData":
    """As :func:`to_anndata`, of what is resolved already."""
    from anndata import AnnData

    found = predicted_of(study, prediction)
    regions, chosen = study.pictured, chosen_sections(study, sections)
    inside = np.zeros(study.table.n_obs, dtype=bool)
    for _, rows in chosen:
        inside[rows] = True
    values, rows, genes = _predicted_part(found, inside)
    of_genes, table = genes_table(study, prediction), study.table
    obs, var = table.obs.iloc[rows].copy(), of_genes.var.loc[genes].copy()
    for name in obs.select_dtypes("category"):
        obs[name] = obs[name].cat.remove_unused_categories()
    centres, library = np.full((table.n_obs, 2), np.nan), np.empty(table.n_obs, dtype=object)
    for region in regions:
        centres[region.rows], library[region.rows] = region.centres, region.name
    obs["library_id"] = pd.Categorical(library[rows])
    shown = [region for region in regions if inside[region.rows].any()]
    layers = {} if prediction == "oof" else _bounds(study, genes, rows)
    uns: dict[str, Any] = {
        "spatial": {each.name: _library(each, study, max_image_px) for each in shown if each.levels},
        "agl_sc": {"units": study.normalize, "prediction": prediction, "version": version("agl-sc")},
    }
    if study.normalize.startswith("log1p"):
        uns["log1p"] = {}  # what scanpy asks for before it tests differences of genes
    return AnnData(values, obs=obs, var=var, obsm={"spatial": centres[rows]}, layers=layers, uns=uns)


def _bounds(study: Study, genes: list[str], rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Lower and upper bounds of some spots, where the predictions have intervals."""
    bounds = bounds_of(study, genes)
    return {} if bounds is None else {"lower": bounds[0][rows], "upper": bounds[1][rows]}


def _predicted_part(
    found: Predicted, inside: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """What is predicted of some spots: values, rows and genes; the spots and genes without any prediction left out."""
    known = np.isfinite(found.values)
    rows = np.flatnonzero(inside & known.any(axis=1))
    if not len(rows):
        msg = f"{found.slot} holds no prediction of these sections; run agl_sc.tl.predict on them, or name others with sections=."
        raise ValueError(msg)
    left_out = int(inside.sum()) - len(rows)
    if left_out:
        logger.warning("%d spots without a prediction are left out.", left_out)
    columns = np.flatnonzero(known[rows].any(axis=0))
    values = np.ascontiguousarray(found.values[np.ix_(rows, columns)], dtype=np.float32)
    n_partial = int(np.isnan(values).any(axis=0).sum())
    if n_partial:
        logger.warning(
            "%d of %d genes are predicted in some of the spots alone, and are NaN in the others.",
            n_partial,
            len(columns),
        )
    return values, rows, [str(name) for name in found.genes[columns]]


def _library(region: Section, study: Study, max_image_px: int) -> dict[str, Any]:
    """An entry of ``uns["spatial"]``."""
    factors = {"spot_diameter_fullres": 2.0 * region.radius}
    try:
        factors["microns_per_pixel"] = region.mpp()
    except ValueError as error:  # which a figure does without
        logger.info("%s: no scale goes along (%s)", region.name, error)
    metadata = {"made_by": f"agl-sc {version('agl-sc')}", "units": study.normalize}
    if not max_image_px:
        return {"images": {}, "scalefactors": factors, "metadata": metadata}
    image, scale = thumbnail(region.levels, max_image_px)
    factors |= {"tissue_hires_scalef": scale, "tissue_lowres_scalef": scale}
    return {"images": {"hires": image, "lowres": image}, "scalefactors": factors, "metadata": metadata}


def thumbnail(levels: tuple[Any, ...], longest_px: int) -> tuple[NDArray[np.uint8], float]:
    """A small image, (y, x, 3) uint8, and its pixels per pixel of the finest level.

    Every pixel is the mean of a whole square of pixels of the coarsest level that is large enough, read chunk by chunk.

    Parameters
    ----------
    levels
        Lazy arrays (3, y, x) uint8, finest first.
    longest_px
        Longer side that it has at most.
    """
    import dask.array as da

    enough = [level for level in levels if max(level.shape[1:]) >= longest_px]
    level = enough[-1] if enough else levels[0]
    step = -(-max(level.shape[1:]) // longest_px)
    means = da.coarsen(np.mean, level, {1: step, 2: step}, trim_excess=True)
    pixels = np.asarray(da.rint(means).astype(np.uint8).compute())
    to_level = float(np.mean([small / full for small, full in zip(level.shape[1:], levels[0].shape[1:], strict=True)]))
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), to_level / step
