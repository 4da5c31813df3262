"""From AnnData in scanpy's and squidpy's layout, without copying it."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import TableModel

from agl_sc._sdata.geometry import HD, PITCH_UM, Bins, bin_side_um, check_mpp, is_positive_number, technology_named
from agl_sc._sdata.table import off_tissue
from agl_sc.core.arguments import check_name, label_of
from agl_sc.core.arrays import FloatArray
from agl_sc.io._anndata_checks import (
    refuse_gaps,
    refuse_names,
    refuse_shared_places,
    tell_outside_tissue,
    tell_transposed,
)
from agl_sc.io._anndata_libraries import ONLY_LIBRARY, Source, libraries_of, source_given, source_in_uns
from agl_sc.io._anndata_positions import array_of, centres_of
from agl_sc.io._image import image_element
from agl_sc.io._layout import (
    INSTANCE_KEY,
    REGION_KEY,
    SPOT_UM,
    TABLE_KEY,
    check_centres,
    check_section_names,
    image_key_of,
    patients_of,
    per_section,
    refuse_duplicates,
    scale_attrs,
    spot_circles,
)
from agl_sc.io._scale import compare_with_spots

_SPATIALDATA_ATTRS = "spatialdata_attrs"
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
        ``uns["spatial"][library]["scalefactors"]`` and ``["images"]``. A data frame in ``obsm["spatial"]`` is read by the
        names of its columns (``pxl_row_in_fullres``, ``imagecol``, ``x``). Flags beside the libraries, such as
        ``is_single``, are passed over, and numbers are names too. May be opened with ``backed="r"``.
    image
        Full-resolution image: a path (JPEG, PNG, TIFF; with the name or number of one of several images behind it, as in
        ``"slide.tif#1"``), an array, (y, x, c) or (c, y, x), or a mapping from library to these. None takes an image out of ``uns["spatial"]``.
    library_key
        Column of ``obs`` that says which library a spot is from. Needed with several libraries.
    image_key
        Image of ``uns["spatial"]`` to take. None takes the finest of ``"fullres"``, ``"hires"`` and ``"lowres"``, or else the
        only one there is. Names around these, as in ``"hires_image"``, do not matter.
    technology
        ``"st"``, ``"visium"`` or ``"visium_hd"``, in any usual spelling (``"10x Visium"``), whose spot pitch or side of bins
        tells, or checks, the microns per pixel. None if it is none of them.
    bin_um
        Side of the bins of Visium HD in microns, for all libraries or as a mapping from library. None takes
        ``scalefactors["bin_size_um"]`` if there, else the name of the library, such as ``"square_008um"``.
    image_mpp
        Microns per pixel of the image used, for all libraries or as a mapping from library. None takes
        ``scalefactors["microns_per_pixel"]`` (of the full-resolution image) if there, else the spot pitch of
        ``technology`` by ``obs["array_row"]`` and ``obs["array_col"]`` or by the lattice that the spots show, else, without
        technology, leaves it unknown.
    patient
        Person or animal, for all libraries or as a mapping from library. None takes ``obs["patient"]`` if there, else
        each library as its own patient, which ``attrs["agl_sc"]["patients_assumed"]`` then says.

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
        ``adata`` is a view; names repeat, or SpatialData cannot store them; a column to be added holds something else;
        spots have no library, section or patient, or share a position; columns of positions do not say which is x; spots
        lie outside the image, or all in one corner; an image is not 3-channel uint8; ``image_mpp`` contradicts the spot
        pitch by more than 5 %, or is missing where nothing tells the pitch; the size of the spots or bins is unknown,
        greater than their distance, or no positive number. Nothing of ``adata`` is changed then.

    Examples
    --------
    >>> import agl_sc
    >>> import anndata, numpy as np
    >>> x, y = np.meshgrid([50.0, 150.0, 250.0], [50.0, 150.0, 250.0])
    >>> adata = anndata.AnnData(np.ones((9, 2), dtype=np.float32))
    >>> adata.obsm["spatial"] = np.column_stack([x.ravel(), y.ravel()])
    >>> adata.uns["spatial"] = {
    ...     "A1": {
    ...         "images": {"hires": np.full((300, 300, 3), 200, dtype=np.uint8)},
    ...         "scalefactors": {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 55.0},
    ...     }
    ... }
    >>> sdata = agl_sc.io.from_anndata(adata, image_mpp=1.0)
    >>> sdata["table"] is adata
    True
    """
    for argument, value in (("library_key", library_key), ("image_key", image_key), ("technology", technology)):
        check_name(argument, value)
    known = _check(adata, technology=technology, bin_um=bin_um)
    centres, array = centres_of(adata), array_of(adata.obs, is_array=known is not None)
    found = libraries_of(adata.uns)
    library_of_spot = _library_of_spot(adata, found, library_key)
    names = library_of_spot.categories.tolist()
    check_section_names(names)
    columns, assumed = _columns(adata, library_of_spot, patient=patient)
    refuse_names(adata, list(columns))
    sources = _sources(found, names, image=image, image_key=image_key)
    stated_mpp = per_section(image_mpp, names, argument="image_mpp")
    sides_um = per_section(bin_um, names, argument="bin_um")
    libraries = []
    for name in names:
        rows = np.asarray(library_of_spot == name)
        refuse_shared_places(adata, centres, array, rows=rows, name=name)
        spots = _Spots(adata.obs_names[rows], centres[rows], None if array is None else array[rows])
        tell_transposed(adata, spots.centres, spots.array, name=name)
        side_um = _side_um(sources[name], sides_um[name]) if known == HD else None
        libraries.append(_resolve(sources[name], spots, image_mpp=stated_mpp[name], technology=known, bin_um=side_um))
    files = (
        {label_of(key): file for key, file in image.items()}
        if isinstance(image, Mapping)
        else dict.fromkeys(names, image)
    )
    for library in libraries:
        compare_with_spots(files.get(library.source.name), library.image_mpp, name=library.source.name)
    off = off_tissue(adata.obs)
    sdata = _wrap(adata, libraries, columns, assumed=assumed)
    tell_outside_tissue(off)
    return sdata


@dataclass(frozen=True, slots=True, eq=False)
class _Spots:
    """Spots of one library."""

    names: pd.Index
    """Instance ids."""
    centres: FloatArray
    """(n_spots, 2), x and y in full-resolution pixels."""
    array: FloatArray | None
    """(n_spots, 2), row and column on the array; None if unknown."""


@dataclass(frozen=True, slots=True, eq=False)
class _Library:
    """One library, resolved to what its elements are made of; lengths in pixels of the image."""

    source: Source
    """Image and name."""
    spots: pd.Index
    """Instance ids."""
    centres_px: NDArray[np.float64]
    """(n_spots, 2), x and y."""
    radius_px: float
    """Radius of the spots."""
    image_mpp: float | None
    """Microns per pixel; None if unknown."""
    technology: str | None
    """``"st"``, ``"visium"``, ``"visium_hd"`` or None."""
    bin_um: float | None
    """Side of the bins of ``"visium_hd"`` in microns."""


def _check(adata: AnnData, *, technology: str | None, bin_um: float | Mapping[str, float] | None) -> str | None:
    """Refuse what cannot be converted at all; returns the technology by its own name."""
    if not isinstance(adata, AnnData):
        msg = f"adata is a {type(adata).__name__}, not an AnnData; a SpatialData needs no conversion."
        raise TypeError(msg)
    known = technology_named(technology)
    if technology is not None and known is None:
        msg = f"technology={technology!r} is unknown; use one of {sorted(_TECHNOLOGIES)}, or None."
        raise ValueError(msg)
    if bin_um is not None and known != HD:
        msg = f"bin_um={bin_um!r} is the side of bins, but technology={technology!r} has none; pass technology={HD!r}, or no bin_um."
        raise ValueError(msg)
    if not isinstance(adata.obs, pd.DataFrame):
        msg = "adata was read lazily, with obs on disk, where nothing can be added to it; pass adata.to_memory()."
        raise ValueError(msg)
    if adata.is_view:
        msg = "adata is a view of another AnnData and would be copied on writing; pass adata.copy()."
        raise ValueError(msg)
    mend = "run adata.obs_names_make_unique(), or put sections together with anndata.concat(..., index_unique='-')"
    refuse_duplicates(adata.obs_names, "names of the observations", mend=mend)
    return known


def _library_of_spot(
    adata: AnnData, libraries: Mapping[str, Mapping[str, Any]], library_key: str | None
) -> "pd.Categorical[Any]":
    """Library of every spot; the categories are those that have spots, in order."""
    if library_key is None:
        if len(libraries) > 1:
            msg = f"adata has {len(libraries)} libraries ({', '.join(libraries)}); pass library_key=, the column of obs that tells, or take those without spots out of uns['spatial']."
            raise ValueError(msg)
        name = next(iter(libraries), ONLY_LIBRARY)
        return pd.Categorical([name] * adata.n_obs, categories=[name])
    if library_key not in adata.obs:
        msg = (
            f"library_key={library_key!r} is not a column of obs, which has {', '.join(map(str, adata.obs)) or 'none'}."
        )
        raise KeyError(msg)
    column = adata.obs[library_key]
    refuse_gaps(column, what="library", mend="give them one, or drop them")
    order = column.cat.remove_unused_categories().cat.categories if column.dtype == "category" else column.unique()
    names = [label_of(name) for name in order]
    refuse_duplicates(names, f"libraries of obs[{library_key!r}]")
    return pd.Categorical([label_of(name) for name in column], categories=names)


def _columns(
    adata: AnnData, library_of_spot: "pd.Categorical[Any]", *, patient: str | Mapping[str, str] | None
) -> tuple[dict[str, "pd.Categorical[Any] | pd.Index"], list[str]]:
    """Columns of ``obs`` to be added, refusing to replace others of the same name; and libraries of which no one named a patient."""
    names = library_of_spot.categories.tolist()
    columns: dict[str, pd.Categorical[Any] | pd.Index] = {REGION_KEY: library_of_spot, INSTANCE_KEY: adata.obs_names}
    for key in ("section", "patient"):
        if key in adata.obs:
            refuse_gaps(adata.obs[key], what=key, mend=f"name it for all of them, or rename the column to 'my_{key}'")
    if "section" not in adata.obs:
        columns["section"] = library_of_spot
    patient_of = patients_of(patient, names)
    assumed = [name for name in names if patient_of[name] is None]
    if patient is not None or "patient" not in adata.obs:
        columns["patient"] = pd.Categorical([patient_of[name] or name for name in library_of_spot])
    elif _SPATIALDATA_ATTRS not in adata.uns or list(adata.obs["patient"]) != list(library_of_spot):
        assumed = []  # obs names them, rather than an earlier conversion that had no names
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
    return columns, assumed


def _attrs(names: list[str]) -> dict[str, Any]:
    return {"region": names, "region_key": REGION_KEY, "instance_key": INSTANCE_KEY}


def _sources(
    libraries: Mapping[str, Mapping[str, Any]], names: list[str], *, image: Any, image_key: str | None
) -> dict[str, Source]:
    if image is None:
        return {name: source_in_uns(libraries, name, image_key) for name in names}
    if image_key is not None:
        msg = f"image_key={image_key!r} names an image of uns['spatial'], but image= was given too; pass one of them."
        raise ValueError(msg)
    if not isinstance(image, Mapping) and len(names) > 1:
        msg = f"One image was given for {len(names)} libraries; pass a mapping with the keys {', '.join(names)}."
        raise ValueError(msg)
    images = per_section(image, names, argument="image")
    return {name: source_given(libraries, name, images[name]) for name in names}


def _side_um(source: Source, stated: float | None) -> float:
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
    source: Source, spots: _Spots, *, image_mpp: float | None, technology: str | None, bin_um: float | None
) -> _Library:
    centres_px = spots.centres * source.scale
    check_centres(centres_px, source.image.shape[1:], name=source.name)
    diameter = source.number("spot_diameter_fullres")
    diameter_px = None if diameter is None else diameter * source.scale
    in_factors = source.number("microns_per_pixel") if image_mpp is None else None
    if in_factors is not None:  # Visium HD, per full-resolution pixel
        image_mpp = in_factors / source.scale
    if image_mpp is not None or technology is not None:
        image_mpp = check_mpp(
            image_mpp,
            centres_px,
            technology,
            name=source.name,
            bins=Bins(bin_um, diameter_px) if technology == HD else None,
            array=spots.array,
            diameter_px=diameter_px,
        )
    if diameter_px is None:
        if technology is None or image_mpp is None:
            msg = (
                f"The spot size of library {source.name!r} is unknown; put it, in full-resolution pixels, into adata.uns.setdefault('spatial', {{}})"
                f".setdefault({source.name!r}, {{}}).setdefault('scalefactors', {{}})['spot_diameter_fullres'], or name the technology."
            )
            raise ValueError(msg)
        diameter_px = (bin_um or SPOT_UM[technology]) / image_mpp
    return _Library(
        source=source,
        spots=spots.names,
        centres_px=centres_px,
        radius_px=diameter_px / 2,
        image_mpp=image_mpp,
        technology=technology,
        bin_um=bin_um,
    )


def _wrap(
    adata: AnnData,
    libraries: list[_Library],
    columns: Mapping[str, "pd.Categorical[Any] | pd.Index"],
    *,
    assumed: list[str],
) -> SpatialData:
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
            assumed=assumed,
        ),
    )
    obs, attrs = adata.obs.copy(deep=False), deepcopy(adata.uns.get(_SPATIALDATA_ATTRS))
    try:
        for key, values in columns.items():
            adata.obs[key] = values
        sdata[TABLE_KEY] = TableModel.parse(adata, **_attrs(names), overwrite_metadata=True)
    except Exception as error:
        # spatialdata refuses what AnnData allows, perhaps more in later versions: leave adata as it was
        adata.obs = obs
        adata.uns.pop(_SPATIALDATA_ATTRS, None)
        if attrs is not None:
            adata.uns[_SPATIALDATA_ATTRS] = attrs
        if isinstance(error, TypeError):
            msg = f"A column of obs holds entries that cannot be stored ({error}); keep numbers and text there, and drop the others."
            raise TypeError(msg) from error
        raise
    return sdata
