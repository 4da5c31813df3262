"""From AnnData in scanpy's and squidpy's layout, without copying it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import TableModel

from agl_sc._sdata.geometry import HD, PITCH_UM, Bins, bin_side_um, check_mpp, is_positive_number
from agl_sc.io._image import Image, image_element, open_image, rgb_from_array
from agl_sc.io._layout import (
    INSTANCE_KEY,
    REGION_KEY,
    TABLE_KEY,
    check_centres,
    check_section_names,
    image_key_of,
    per_section,
    refuse_duplicates,
    scale_attrs,
    spot_circles,
)

logger = logging.getLogger(__name__)

_SPATIALDATA_ATTRS = "spatialdata_attrs"
_ONLY_LIBRARY = "section"
_SPOT_DIAMETER_UM = {"st": 100.0, "visium": 55.0}
_TECHNOLOGIES = (*PITCH_UM, HD)


def from_anndata(
    adata: AnnData,
    image: Any = None,
    *,
    library_key: str | None = None,
    image_key: str | None = None,
    technology: str | None = None,
    bin_um: float | Mapping[str, float] | None = None,
    image_mpp: float | Mapping[str, float] | None = None,
    patient: str | Mapping[str, str] | None = None,
) -> SpatialData:
    """Wrap an AnnData in scanpy's and squidpy's layout in a SpatialData whose table it is.

    ``adata`` itself, not a copy, becomes the table, so that whatever is written into the table later, such as
    predictions, is in ``adata`` too and ``squidpy.pl.spatial_scatter(adata, color=gene, layer="agl")`` draws it.
    What is added to it is listed under Returns; X, layers and everything else stay as they are. ``obsm["spatial"]``
    stays in full-resolution pixels as scanpy and squidpy expect, *not* in pixels of the image used; the circles of
    the SpatialData are in pixels of the image used.

    Parameters
    ----------
    adata
        Spots with centres (x, y, full-resolution pixels) in ``obsm["spatial"]`` and, per library,
        ``uns["spatial"][library]["scalefactors"]`` and ``["images"]``.
    image
        Full-resolution image: a path (JPEG, PNG, TIFF), an array, (y, x, c) or (c, y, x), or a mapping from library
        to these. None takes an image out of ``uns["spatial"]``.
    library_key
        Column of ``obs`` that says which library a spot is from. Needed with several libraries.
    image_key
        Image of ``uns["spatial"]`` to take. None takes ``"hires"``, or else ``"lowres"``.
    technology
        ``"st"``, ``"visium"`` or ``"visium_hd"``, whose spot pitch or side of bins tells, or checks, the microns per pixel.
        None if it is none of them.
    bin_um
        Side of the bins of Visium HD in microns, for all libraries or as a mapping from library. None takes
        ``scalefactors["bin_size_um"]`` if there, else the name of the library, such as ``"square_008um"``.
    image_mpp
        Microns per pixel of the image used, for all libraries or as a mapping from library. None takes
        ``scalefactors["microns_per_pixel"]`` (of the full-resolution image) if there, else the spot pitch of
        ``technology``, else leaves it unknown.
    patient
        Person or animal, for all libraries or as a mapping from library. None takes ``obs["patient"]`` if there, else
        each library as its own patient.

    Returns
    -------
    Per library ``S`` the multiscale image ``S_image`` and the circles ``S`` (of Visium HD those that fit in the bins), in
    a coordinate system named ``S`` whose unit is the pixel of the image used; ``adata`` as table ``table``; microns per
    pixel, technology and side of bins, where known, in ``attrs["agl_sc"]``. Added to ``adata``: ``obs["region"]``
    (library), ``obs["spot_id"]`` (names of the observations), ``obs["section"]`` and ``obs["patient"]`` where absent,
    ``uns["spatialdata_attrs"]``.

    Raises
    ------
    TypeError
        ``adata`` is not an AnnData, or an image is neither path nor array.
    KeyError
        ``obsm["spatial"]``, a library, its image or a scale factor is missing.
    ValueError
        ``adata`` is a view; names repeat; a column to be added holds something else; an image is not 3-channel
        uint8; ``image_mpp`` contradicts the spot pitch by more than 5 %; the size of the spots or bins is unknown, or no
        positive number.

    Examples
    --------
    >>> import agl_sc, squidpy as sq
    >>> adata = sq.datasets.visium_hne_adata()  # doctest: +SKIP
    >>> sdata = agl_sc.io.from_anndata(adata, technology="visium")  # doctest: +SKIP
    >>> sdata["table"] is adata  # doctest: +SKIP
    True
    """
    _check(adata, technology=technology, bin_um=bin_um)
    library_of_spot = _library_of_spot(adata, library_key)
    names = library_of_spot.categories.tolist()
    check_section_names(names)
    columns = _columns(adata, library_of_spot, patient=patient)
    sources = _sources(adata, names, image=image, image_key=image_key)
    stated_mpp = per_section(image_mpp, names, argument="image_mpp")
    sides_um = per_section(bin_um, names, argument="bin_um")
    libraries = [
        _resolve(
            sources[name],
            adata[library_of_spot == name],
            image_mpp=stated_mpp[name],
            technology=technology,
            bin_um=_side_um(sources[name], sides_um[name]) if technology == HD else None,
        )
        for name in names
    ]
    return _wrap(adata, libraries, columns)


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """Image of a library and what is known of its scale."""

    name: str
    """Library, which names the section."""
    image: Image
    """(c, y, x), uint8."""
    scale: float
    """Pixels of ``image`` per full-resolution pixel."""
    factors: Mapping[str, Any]
    """``uns["spatial"][library]["scalefactors"]``."""


@dataclass(frozen=True, slots=True, eq=False)
class _Library:
    """One library, resolved to what its elements are made of; lengths in pixels of the image."""

    source: _Source
    """Image and name."""
    spots: pd.Index
    """Instance ids."""
    centres_px: NDArray[np.float64]
    """(n_spots, 2), x and y."""
    radius_px: float
    """Of the spots."""
    image_mpp: float | None
    """Microns per pixel; None if unknown."""
    technology: str | None
    """``"st"``, ``"visium"``, ``"visium_hd"`` or None."""
    bin_um: float | None
    """Side of the bins of ``"visium_hd"`` in microns."""


def _check(adata: AnnData, *, technology: str | None, bin_um: float | Mapping[str, float] | None) -> None:
    if not isinstance(adata, AnnData):
        msg = f"adata is a {type(adata).__name__}, not an AnnData; a SpatialData needs no conversion."
        raise TypeError(msg)
    if technology is not None and technology not in _TECHNOLOGIES:
        msg = f"technology={technology!r} is unknown; use one of {sorted(_TECHNOLOGIES)}, or None."
        raise ValueError(msg)
    if bin_um is not None and technology != HD:
        msg = f"bin_um={bin_um!r} is the side of bins, but technology={technology!r} has none; pass technology={HD!r}, or no bin_um."
        raise ValueError(msg)
    if adata.is_view:
        msg = "adata is a view of another AnnData and would be copied on writing; pass adata.copy()."
        raise ValueError(msg)
    refuse_duplicates(adata.obs_names, "names of the observations")
    if "spatial" not in adata.obsm:
        msg = f"adata has no obsm['spatial'] (spot centres x, y); it has {', '.join(adata.obsm) or 'no obsm'}."
        raise KeyError(msg)
    if np.ndim(adata.obsm["spatial"]) != 2 or np.shape(adata.obsm["spatial"])[1] != 2:
        msg = f"obsm['spatial'] has shape {np.shape(adata.obsm['spatial'])}; it must be (n_spots, 2), x and y."
        raise ValueError(msg)


def _library_of_spot(adata: AnnData, library_key: str | None) -> pd.Categorical:
    """Library of every spot; the categories are those that have spots, in order."""
    known = list(adata.uns.get("spatial", {}))
    if library_key is None:
        if len(known) > 1:
            msg = f"adata has {len(known)} libraries ({', '.join(known)}); pass library_key=, the column of obs that tells."
            raise ValueError(msg)
        name = known[0] if known else _ONLY_LIBRARY
        return pd.Categorical([name] * adata.n_obs, categories=[name])
    if library_key not in adata.obs:
        msg = f"library_key={library_key!r} is not a column of obs, which has {', '.join(adata.obs) or 'none'}."
        raise KeyError(msg)
    column = adata.obs[library_key]
    if column.isna().any():
        msg = f"{column.isna().sum()} spots have no library in obs[{library_key!r}]; give them one, or drop them."
        raise ValueError(msg)
    order = column.cat.remove_unused_categories().cat.categories if column.dtype == "category" else column.unique()
    return pd.Categorical(column.astype(str), categories=[str(name) for name in order])


def _columns(
    adata: AnnData, library_of_spot: pd.Categorical, *, patient: str | Mapping[str, str] | None
) -> dict[str, pd.Categorical | pd.Index]:
    """Columns of ``obs`` to be added, refusing to replace others of the same name."""
    names = library_of_spot.categories.tolist()
    columns: dict[str, pd.Categorical | pd.Index] = {REGION_KEY: library_of_spot, INSTANCE_KEY: adata.obs_names}
    if "section" not in adata.obs:
        columns["section"] = library_of_spot
    if patient is not None or "patient" not in adata.obs:
        patient_of = per_section(patient, names, argument="patient")
        columns["patient"] = pd.Categorical([patient_of[name] or name for name in library_of_spot])
    for key, values in columns.items():
        if key in adata.obs and list(adata.obs[key]) != list(values):
            msg = (
                f"obs[{key!r}] already holds something else and would be replaced; rename it first: "
                f"adata.obs = adata.obs.rename(columns={{{key!r}: 'my_{key}'}})."
            )
            raise ValueError(msg)
    found = dict(adata.uns.get(_SPATIALDATA_ATTRS, _attrs(names)))
    found["region"] = np.atleast_1d(found.get("region", [])).tolist()  # an array after a round trip through h5ad
    if found != _attrs(names):
        msg = (
            f"adata is already the table of a SpatialData with other regions ({', '.join(map(str, found['region']))}); "
            f"use that SpatialData, or pass a copy without uns[{_SPATIALDATA_ATTRS!r}]."
        )
        raise ValueError(msg)
    return columns


def _attrs(names: list[str]) -> dict[str, Any]:
    return {"region": names, "region_key": REGION_KEY, "instance_key": INSTANCE_KEY}


def _sources(adata: AnnData, names: list[str], *, image: Any, image_key: str | None) -> dict[str, _Source]:
    if image is None:
        return {name: _source_in_uns(adata, name, image_key) for name in names}
    if image_key is not None:
        msg = f"image_key={image_key!r} names an image of uns['spatial'], but image= was given too; pass one of them."
        raise ValueError(msg)
    if not isinstance(image, Mapping) and len(names) > 1:
        msg = f"One image was given for {len(names)} libraries; pass a mapping with the keys {', '.join(names)}."
        raise ValueError(msg)
    images = per_section(image, names, argument="image")
    libraries = adata.uns.get("spatial", {})
    return {
        name: _Source(name, _open(images[name], name), 1.0, libraries.get(name, {}).get("scalefactors", {}))
        for name in names
    }


def _source_in_uns(adata: AnnData, name: str, image_key: str | None) -> _Source:
    libraries = adata.uns.get("spatial", {})
    if name not in libraries:
        msg = f"uns['spatial'] has no library {name!r}; it has {', '.join(libraries) or 'none'}; or pass image=."
        raise KeyError(msg)
    images, factors = (libraries[name].get(key, {}) for key in ("images", "scalefactors"))
    candidates = ["hires", "lowres"] if image_key is None else [image_key]
    chosen = next((key for key in candidates if images.get(key) is not None), None)
    if chosen is None:
        msg = f"Library {name!r} has no image {' or '.join(candidates)}; it has {', '.join(images) or 'none'}; or pass image=."
        raise KeyError(msg)
    if f"tissue_{chosen}_scalef" not in factors:
        msg = f"The scalefactors of library {name!r} lack 'tissue_{chosen}_scalef'; they are {', '.join(factors) or 'none'}."
        raise KeyError(msg)
    logger.info("%s: taking the %s image of uns['spatial']", name, chosen)
    return _Source(name, _open(images[chosen], name), float(factors[f"tissue_{chosen}_scalef"]), factors)


def _open(image: Any, name: str) -> Image:
    return open_image(image) if isinstance(image, str | Path) else rgb_from_array(image, name=name)


def _side_um(source: _Source, stated: float | None) -> float:
    """Side of the bins of a library in microns."""
    side = source.factors.get("bin_size_um", bin_side_um(source.name)) if stated is None else stated
    if side is None:
        msg = (
            f"The side of the bins of library {source.name!r} is unknown; pass bin_um= (8 for the usual ones), or name the "
            "library after it, such as 'square_008um'."
        )
        raise ValueError(msg)
    if not is_positive_number(side):
        msg = f"bin_um={side!r} of library {source.name!r} is not a positive number of microns; 2, 8 and 16 are usual."
        raise ValueError(msg)
    return float(side)


def _resolve(
    source: _Source, spots: AnnData, *, image_mpp: float | None, technology: str | None, bin_um: float | None
) -> _Library:
    centres_px = np.asarray(spots.obsm["spatial"], dtype=np.float64) * source.scale
    check_centres(centres_px, source.image.shape[1:], name=source.name)
    diameter_px = source.factors.get("spot_diameter_fullres")
    diameter_px = None if diameter_px is None else float(diameter_px) * source.scale
    if image_mpp is None and "microns_per_pixel" in source.factors:  # Visium HD, per full-resolution pixel
        image_mpp = float(source.factors["microns_per_pixel"]) / source.scale
    if image_mpp is not None or technology is not None:
        bins = Bins(bin_um, diameter_px) if technology == HD else None
        image_mpp = check_mpp(image_mpp, centres_px, technology, name=source.name, bins=bins)
    if diameter_px is None:
        if technology is None or image_mpp is None:
            msg = (
                f"The spot size of library {source.name!r} is unknown; put 'spot_diameter_fullres' into "
                f"uns['spatial'][{source.name!r}]['scalefactors'], or name the technology."
            )
            raise ValueError(msg)
        diameter_px = (bin_um or _SPOT_DIAMETER_UM[technology]) / image_mpp
    return _Library(
        source=source,
        spots=spots.obs_names,
        centres_px=centres_px,
        radius_px=diameter_px / 2,
        image_mpp=image_mpp,
        technology=technology,
        bin_um=bin_um,
    )


def _wrap(adata: AnnData, libraries: list[_Library], columns: Mapping[str, pd.Categorical | pd.Index]) -> SpatialData:
    names = [library.source.name for library in libraries]
    sdata = SpatialData(
        images={
            image_key_of(name): image_element(lib.source.image, name=name)
            for name, lib in zip(names, libraries, strict=True)
        },
        shapes={
            name: spot_circles(lib.centres_px, lib.radius_px, index=lib.spots, name=name)
            for name, lib in zip(names, libraries, strict=True)
        },
        attrs=scale_attrs(
            {lib.source.name: lib.image_mpp for lib in libraries},
            {lib.source.name: lib.technology for lib in libraries},
            {lib.source.name: lib.bin_um for lib in libraries},
        ),
    )
    added = [key for key in columns if key not in adata.obs]
    is_new = _SPATIALDATA_ATTRS not in adata.uns
    try:
        for key, values in columns.items():
            adata.obs[key] = values
        sdata[TABLE_KEY] = TableModel.parse(adata, **_attrs(names), overwrite_metadata=True)
    except Exception:  # spatialdata refuses some names that AnnData allows: leave adata as it was
        adata.obs = adata.obs.drop(columns=added)
        if is_new:
            adata.uns.pop(_SPATIALDATA_ATTRS, None)
        raise
    return sdata
