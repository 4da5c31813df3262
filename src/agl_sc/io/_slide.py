"""Reader of slides that were never sequenced."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, TableModel
from spatialdata.transformations import Scale

from agl_sc._sdata.geometry import is_positive_number
from agl_sc._sdata.mask import mask_key_of
from agl_sc.core.arguments import check_flag, check_name, path_of
from agl_sc.core.arrays import Float32Array, FloatArray
from agl_sc.io._image import image_element, is_tiff, open_levels, split_name
from agl_sc.io._layout import (
    INSTANCE_KEY,
    REGION_KEY,
    TABLE_KEY,
    by_name,
    check_section_names,
    image_key_of,
    name_after,
    patients_of,
    per_section,
    scale_attrs,
    spot_circles,
)
from agl_sc.io._ngff import is_ome_zarr, open_ome_zarr
from agl_sc.io._openslide import open_slide_levels, refuse_unopened, series_in, slide_properties, vendor_of
from agl_sc.io._scale import FileScale, agreed_mpp, scale_of_properties, scale_of_tiff
from agl_sc.io._tissue import Tissue, find_tissue, given_tissue

logger = logging.getLogger(__name__)

Lattice = Literal["hex", "square"]
_RADIUS = 0.275
"""Of a spot, in spacings, as on Visium: 55 um wide and 100 um apart."""
_FEWEST_ON_TISSUE = 0.5
"""Share of a spot that lies on tissue."""
_MOST_SPOTS = 2_000_000


def read_slide(
    path: str | Path | Mapping[str, str | Path],
    *,
    name: str | None = None,
    spacing_um: float = 100.0,
    lattice: Lattice = "hex",
    image_mpp: float | Mapping[str, float] | None = None,
    trust_file: bool = True,
    tissue: Any = None,
    patient: str | Mapping[str, str] | None = None,
) -> SpatialData:
    """Read slides of H&E alone, find their tissue, and lay spots on it to predict at.

    With the extra ``slides`` (``pip install 'agl-sc[slides]'``) everything that OpenSlide opens is read: SVS, NDPI, MRXS, SCN,
    BIF, DICOM, Zeiss CZI, and tiled TIFF; without it TIFF, SVS and OME-TIFF, OME-Zarr, JPEG and PNG. Pixels stay in the
    file until they are asked for, tile by tile. Microns per pixel are read from the file and checked.

    Parameters
    ----------
    path
        The slide, a file or the folder of an OME-Zarr or a DICOM series, or a mapping from section name to slides.
    name
        Name of the section when ``path`` is one slide. None takes the file's name up to its first dot.
    spacing_um
        Distance of neighbouring spots in microns. A model predicts best at the spacing that it was trained on.
    lattice
        ``"hex"``, where spots have six neighbours as on Visium, or ``"square"``.
    image_mpp
        Microns per pixel of the finest level, for all slides or as a mapping from section. None takes it from the file.
    trust_file
        Refuse an ``image_mpp`` that contradicts the file. False takes it all the same.
    tissue
        Mask of the tissue, (y, x), truth values or labels that cover the whole slide at any resolution; or a mapping from section
        to masks. None finds the tissue by ``squidpy.experimental.im.detect_tissue``.
    patient
        Person or animal the slides are from, for all or as a mapping from section. None takes each as its own patient.

    Returns
    -------
    Per section ``S`` the multiscale image ``S_image``, the labels ``S_tissue`` (1 on tissue, 2 where it is so dense that it is
    folded or covered, 0 on glass, ink and black borders) and the circles ``S``, in a coordinate system named ``S`` whose unit is
    the pixel of the finest level; one table ``table`` without genes that annotates the circles, with ``obs["section"]``,
    ``obs["patient"]``, ``obs["tissue_share"]`` and ``obs["dark_share"]`` (shares of a spot that are tissue and dark tissue) and
    ``obsm["spatial"]`` (pixels); microns per pixel in ``attrs["agl_sc"]``. Spots of which less than half is tissue are left out.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    KeyError
        A section has no entry in a mapping.
    TypeError
        A path, name or patient is none.
    ValueError
        The file is damaged, or of no format that is read; microns per pixel are unknown, outside .1 to 20, unequal in x and y, off
        the magnification, or contradict ``image_mpp``; there is no tissue, or nothing else; no spot fits on it.

    Examples
    --------
    >>> import agl_sc
    >>> import numpy as np, tifffile
    >>> pixels = np.full((600, 800, 3), 240, dtype=np.uint8)
    >>> pixels[150:450, 200:600] = np.random.default_rng(0).integers(60, 200, (300, 400, 3)) * (1.0, 0.6, 0.9)
    >>> tifffile.imwrite("slide.tif", pixels, photometric="rgb", tile=(256, 256))
    >>> sdata = agl_sc.io.read_slide("slide.tif", image_mpp=4.0)
    >>> sdata["table"].shape[1], bool((sdata["table"].obs["tissue_share"] >= 0.5).all())
    (0, True)
    """
    check_flag("trust_file", trust_file)
    files = _files(path, name)
    _check_lattice(spacing_um, lattice)
    names = list(files)
    stated = per_section(image_mpp, names, argument="image_mpp")
    patients = patients_of(patient, names)
    masks = per_section(tissue, names, argument="tissue")
    slides = [_open(section, files[section], stated[section], trust_file=trust_file) for section in names]
    laid = [_lay(slide, masks[slide.name], spacing_um=float(spacing_um), lattice=lattice) for slide in slides]
    return assemble_slides(laid, patients)


@dataclass(frozen=True, slots=True, eq=False)
class Slide:
    """An open slide."""

    name: str
    """Section."""
    levels: Sequence[da.Array]
    """(3, y, x) uint8, finest first."""
    image_mpp: float
    """Microns per pixel of the finest level."""


@dataclass(frozen=True, slots=True, eq=False)
class LaidSlide:
    """A slide with its tissue and the spots on it."""

    slide: Slide
    """The slide."""
    tissue: Tissue | None
    """Its mask; None where somebody else laid the spots and left none."""
    spots: Sequence[str]
    """Names of the spots."""
    centres_px: FloatArray
    """(n_spots, 2), x and y in pixels of the finest level."""
    radius_px: float
    """Of a spot, in the same pixels."""
    shares: Float32Array | None
    """Share of tissue and of dark tissue of every spot, (n_spots, 2)."""


def is_slide(whole: Path) -> bool:
    """Whether a path is a file, or the folder of an OME-Zarr or a DICOM series, and no store."""
    path, _ = split_name(whole)
    return path.is_file() or (path.is_dir() and (is_ome_zarr(path) or series_in(path) is not None))


def open_slide(whole: Path) -> tuple[list[da.Array], FileScale | None]:
    """Levels of a slide, finest first, and its scale as the file states it; an image of a TIFF may be named behind ``#``."""
    path, image = split_name(whole)
    if path.is_dir():
        found = series_in(path)
        if found is None:
            return open_ome_zarr(path)
        path = found
    if not path.is_file():
        msg = f"The slide '{path}' does not exist."
        raise FileNotFoundError(msg)
    if not image and vendor_of(path) is not None:
        return open_slide_levels(path), scale_of_properties(slide_properties(path))
    if not is_tiff(path):
        refuse_unopened(path)
    return open_levels(whole), scale_of_tiff(path, image) if is_tiff(path) else None


def _files(path: str | Path | Mapping[str, str | Path], name: str | None) -> dict[str, Path]:
    if isinstance(path, Mapping):
        if name is not None:
            msg = f"name={name!r} is for one slide; the keys of path name the sections ({', '.join(path)})."
            raise ValueError(msg)
        files = {section: path_of("path", file) for section, file in by_name(path).items()}
    else:
        check_name("name", name)
        file = path_of("path", path)
        files = {name_after(file.name.split(".")[0]) if name is None else name: file}
    check_section_names(list(files))
    return files


def _check_lattice(spacing_um: float, lattice: str) -> None:
    if not is_positive_number(spacing_um):
        msg = f"spacing_um={spacing_um!r} is not a positive number of microns; 100 is that of Visium."
        raise ValueError(msg)
    if lattice not in get_args(Lattice):
        msg = f"lattice={lattice!r} is not one of {', '.join(get_args(Lattice))}; hex is that of Visium."
        raise ValueError(msg)


def _open(name: str, path: Path, image_mpp: float | None, *, trust_file: bool) -> Slide:
    levels, scale = open_slide(path)
    mpp = agreed_mpp(image_mpp, scale, path, name=name, on_conflict="refuse" if trust_file else "stated")
    told = "as stated" if image_mpp is not None or scale is None else scale.source
    logger.info("%s: %d x %d px of %.4g um (%s)", name, *levels[0].shape[:0:-1], mpp, told)
    return Slide(name, levels, mpp)


def _lay(slide: Slide, mask: Any, *, spacing_um: float, lattice: Lattice) -> LaidSlide:
    """Spots on the tissue of a slide."""
    height, width = slide.levels[0].shape[1:]
    places, centres = lattice_points((height, width), spacing_um / slide.image_mpp, lattice, name=slide.name)
    tissue = (
        find_tissue(slide.levels, slide.image_mpp, name=slide.name)
        if mask is None
        else given_tissue(mask, (height, width), name=slide.name)
    )
    radius = _RADIUS * spacing_um / slide.image_mpp
    shares = tissue.shares(centres, radius)
    kept = shares[:, 0] >= _FEWEST_ON_TISSUE
    area = float((tissue.labels > 0).mean()) * height * width * slide.image_mpp**2 / 1e6
    if not kept.any():
        msg = f"The tissue of {slide.name!r} ({area:.2g} mm2) is too small for a spot at spacing_um={spacing_um:g}; pass a smaller spacing_um=, or tissue= a mask of it."
        raise ValueError(msg)
    logger.info("%s: %d spots on %.3g mm2 of tissue", slide.name, kept.sum(), area)
    spots = [f"{row}x{column}" for row, column in places[kept]]
    return LaidSlide(slide, tissue, spots, centres[kept], radius, shares[kept])


def lattice_points(
    size_px: tuple[int, int], spacing_px: float, lattice: Lattice, *, name: str
) -> tuple[Any, FloatArray]:
    """Rows and columns (n, 2), and centres (n, 2) as (x, y), of a lattice that covers an image of ``size_px`` (y, x)."""
    height, width = size_px
    down = spacing_px * (math.sqrt(3) / 2 if lattice == "hex" else 1.0)
    n_rows, n_columns = max(1, int(height / down)), max(1, int(width / spacing_px))
    if n_rows * n_columns > _MOST_SPOTS:
        msg = f"A lattice of {spacing_px:.3g} px on {name!r} has {n_rows * n_columns:,} spots, more than {_MOST_SPOTS:,}; pass a larger spacing_um=."
        raise ValueError(msg)
    rows, columns = (grid.ravel() for grid in np.mgrid[:n_rows, :n_columns])
    shift = np.where(rows % 2 == 1, 0.25, -0.25) if lattice == "hex" else np.zeros(len(rows))
    left, top = (width - (n_columns - 1) * spacing_px) / 2, (height - (n_rows - 1) * down) / 2
    centres = np.column_stack([left + (columns + shift) * spacing_px, top + rows * down])
    return np.column_stack([rows, columns]), centres


def assemble_slides(laid: Sequence[LaidSlide], patients: Mapping[str, str | None]) -> SpatialData:
    """Put slides with spots into one SpatialData with one table without genes."""
    labels = {mask_key_of(each.slide.name): _labels(each.slide.name, each.tissue) for each in laid if each.tissue}
    return SpatialData(
        images={
            image_key_of(each.slide.name): image_element(
                each.slide.levels[0], name=each.slide.name, coarser=each.slide.levels[1:]
            )
            for each in laid
        },
        labels=labels,
        shapes={each.slide.name: _circles(each) for each in laid},
        tables={TABLE_KEY: _table(laid, patients)},
        attrs=scale_attrs(
            {each.slide.name: each.slide.image_mpp for each in laid},
            {},
            assumed=[name for name, patient in patients.items() if patient is None],
        ),
    )


def _labels(name: str, tissue: Tissue) -> Any:
    down, across = tissue.factor
    return Labels2DModel.parse(
        tissue.labels, dims=("y", "x"), transformations={name: Scale([across, down], axes=("x", "y"))}
    )


def _circles(laid: LaidSlide) -> gpd.GeoDataFrame:
    return spot_circles(laid.centres_px, laid.radius_px, index=laid.spots, name=laid.slide.name)


def _table(laid: Sequence[LaidSlide], patients: Mapping[str, str | None]) -> AnnData:
    regions = [each.slide.name for each in laid]
    sizes = [len(each.spots) for each in laid]
    names = np.repeat(regions, sizes)
    spots = [spot for each in laid for spot in each.spots]
    obs = pd.DataFrame(
        {
            REGION_KEY: pd.Categorical(names, categories=regions),
            INSTANCE_KEY: spots,
            "section": pd.Categorical(names, categories=regions),
            "patient": pd.Categorical(np.repeat([patients[name] or name for name in regions], sizes)),
        },
        index=pd.Index([f"{name}_{spot}" for name, spot in zip(names, spots, strict=True)]),
    )
    if all(each.shares is not None for each in laid):
        shares = np.concatenate([each.shares for each in laid if each.shares is not None])
        obs["tissue_share"], obs["dark_share"] = shares.T
    table = AnnData(obs=obs)
    table.obsm["spatial"] = np.concatenate([each.centres_px for each in laid]).astype(np.float64)
    return TableModel.parse(table, region=regions, region_key=REGION_KEY, instance_key=INSTANCE_KEY)
