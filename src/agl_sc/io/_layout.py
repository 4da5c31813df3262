"""From plain records, one per section, to the SpatialData that the rest of the package reads."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any, TypeVar

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity

from agl_sc._sdata.geometry import lie_near_origin
from agl_sc.core.arguments import is_number, label_of
from agl_sc.io._image import Image, check_image, image_element

T = TypeVar("T")

logger = logging.getLogger(__name__)

ATTRS_KEY = "agl_sc"
TABLE_KEY = "table"
REGION_KEY = "region"
INSTANCE_KEY = "spot_id"
ASSUMED_KEY = "patients_assumed"
"""Entry of ``attrs["agl_sc"]``, True where nobody named patients and each section was taken for its own."""
SPOT_UM = {"st": 100.0, "visium": 55.0}
"""Diameter of a spot, where no file says how many pixels that is."""
_CORNER = 0.2
"""Share of either side of the image: spots that all lie this near its origin are in pixels of a smaller image."""


@dataclass(frozen=True, slots=True, eq=False)
class SectionData:
    """One tissue section: image, spots and raw counts."""

    name: str
    """Names the coordinate system, the shapes and, with ``_image`` appended, the image."""
    image: Image
    """(c, y, x), uint8, 3 channels; level 0 of the image element."""
    counts: csr_matrix
    """(n_spots, n_genes), raw."""
    genes: Sequence[str]
    """Gene names, unique within the section."""
    spots: Sequence[str]
    """Spot names, unique within the section."""
    centres_px: NDArray[np.float64]
    """(n_spots, 2), x and y in level-0 pixels; the centre of the first pixel is at (0.5, 0.5)."""
    radius_px: float
    """Spot radius in level-0 pixels."""
    patient: str | None
    """Person or animal the section is from; None if nobody says: the section then counts as its own."""
    image_mpp: float | None = None
    """Microns per level-0 pixel; None if unknown."""
    technology: str | None = None
    """``"st"``, ``"visium"`` or None."""
    coarser: Sequence[da.Array] = ()
    """Coarser levels of the image that its file holds, finest first."""

    def __post_init__(self) -> None:
        expected = (len(self.spots), len(self.genes))
        if self.counts.shape != expected or self.centres_px.shape != (len(self.spots), 2) or 0 in expected:
            msg = (
                f"Section {self.name!r} has {expected[0]} spots and {expected[1]} genes, but counts of shape "
                f"{self.counts.shape} and centres of shape {self.centres_px.shape}; they must agree and not be empty."
            )
            raise ValueError(msg)
        check_image(self.image, name=self.name)
        refuse_duplicates(self.genes, f"gene names of section {self.name!r}")
        refuse_duplicates(self.spots, f"spot names of section {self.name!r}")
        self._check_raw_counts()
        check_centres(self.centres_px, self.image.shape[1:], name=self.name)

    def _check_raw_counts(self) -> None:
        data = self.counts.data
        wrong = np.flatnonzero(~np.isfinite(data) | (data < 0) | (data != np.floor(data)))
        if not wrong.size:
            return
        spot = self.spots[int(np.searchsorted(self.counts.indptr, wrong[0], side="right")) - 1]
        gene = self.genes[int(self.counts.indices[wrong[0]])]
        msg = (
            f"Section {self.name!r} has {wrong.size} values that are not raw counts, e.g. {data[wrong[0]]:g} for gene "
            f"{gene!r} in spot {spot!r}; give whole, non-negative numbers, before any normalisation."
        )
        raise ValueError(msg)


def assemble(sections: Sequence[SectionData]) -> SpatialData:
    """Put sections into one SpatialData with one table annotating all of them.

    Parameters
    ----------
    sections
        At least one; names must differ. Genes are the union in order of first appearance; a gene that a section
        does not have is 0 there.

    Returns
    -------
    Per section ``S`` the image ``S_image`` and the circles ``S`` in the coordinate system ``S`` (unit: level-0
    pixels); the table ``table`` with ``obs["region"]``, ``obs["spot_id"]``, ``obs["section"]``, ``obs["patient"]``
    and ``obsm["spatial"]``; what is known of scale and technology in ``attrs["agl_sc"]``, and there too
    ``patients_assumed`` if the patient of a section is not known.
    """
    check_section_names([section.name for section in sections])
    assumed = [section.name for section in sections if section.patient is None]
    return SpatialData(
        images={
            image_key_of(section.name): image_element(section.image, name=section.name, coarser=section.coarser)
            for section in sections
        },
        shapes={section.name: _circles(section) for section in sections},
        tables={TABLE_KEY: _table(sections)},
        attrs=scale_attrs(
            {section.name: section.image_mpp for section in sections},
            {section.name: section.technology for section in sections},
            assumed=assumed,
        ),
    )


def image_key_of(section: str) -> str:
    """Name of the image element of a section."""
    return f"{section}_image"


def scale_attrs(
    image_mpp: dict[str, float | None],
    technology: dict[str, str | None],
    bin_um: dict[str, float | None] | None = None,
    *,
    assumed: Sequence[str] = (),
) -> dict[str, Any]:
    """What is known of physical scale, as plain JSON-able dicts keyed by section; and whether patients were ``assumed``."""
    known_mpp = {image_key_of(name): float(mpp) for name, mpp in image_mpp.items() if mpp is not None}
    known_technology = {name: value for name, value in technology.items() if value is not None}
    known_bins = {name: side for name, side in (bin_um or {}).items() if side is not None}
    bins = {"bin_um": known_bins} if known_bins else {}
    patients = {ASSUMED_KEY: True} if assumed else {}
    if assumed:
        logger.info("no patient was named, so each section counts as its own: %s", ", ".join(assumed))
    return {ATTRS_KEY: {"image_mpp": known_mpp, "technology": known_technology, **bins, **patients}}


def _circles(section: SectionData) -> gpd.GeoDataFrame:
    return spot_circles(section.centres_px, section.radius_px, index=section.spots, name=section.name)


def spot_circles(
    centres_px: NDArray[np.float64], radius_px: float, *, index: Iterable[str], name: str
) -> gpd.GeoDataFrame:
    """Circles element in the coordinate system ``name``, with the instance ids as index."""
    frame = gpd.GeoDataFrame(
        {"geometry": shapely.points(centres_px), "radius": float(radius_px)},
        index=pd.Index(list(index), name=INSTANCE_KEY),
    )
    return ShapesModel.parse(frame, transformations={name: Identity()})


def check_section_names(names: Sequence[str]) -> None:
    """Refuse names that repeat, that spatialdata cannot store, or that clash with an image's name."""
    if not names:
        msg = "No section was given; pass at least one."
        raise ValueError(msg)
    for name in names:
        if not isinstance(name, str) or not _is_storable(name):
            msg = f"Section name {name!r} cannot be stored; use letters, digits, underscores, dots and hyphens, such as {_storable(str(name))!r}."
            raise ValueError(msg)
    # spatialdata stores elements as folders, which some file systems compare without regard to case
    elements = [element.lower() for name in names for element in (name, image_key_of(name))]
    refuse_duplicates(elements, "element names of the sections")


def name_after(file: str) -> str:
    """Name of a section that nobody named, after its file or folder; said where it had to be changed to be stored."""
    name = file if _is_storable(file) else _storable(file)
    if name != file:
        logger.warning("the section of '%s' is called %r, a name that can be stored", file, name)
    return name


def _is_storable(name: str) -> bool:
    return bool(re.fullmatch(r"(?!__)[\w.-]+", name)) and name not in {".", ".."}


def _storable(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_.") or "A1"


def check_centres(centres_px: NDArray[np.float64], size_px: Sequence[int], *, name: str) -> None:
    """Refuse centres that are not numbers, or that belong to an image other than the one of ``size_px`` (y, x)."""
    if not len(centres_px):
        msg = f"{name!r} has no spots; give at least one."
        raise ValueError(msg)
    n_unknown = int((~np.isfinite(centres_px).all(axis=1)).sum())
    if n_unknown:
        msg = f"{n_unknown} of {len(centres_px)} spots of {name!r} have no finite centre; drop them before reading."
        raise ValueError(msg)
    width, height = size_px[1], size_px[0]
    is_inside = ((centres_px >= 0) & (centres_px <= (width, height))).all(axis=1)
    x, y = centres_px[np.argmin(is_inside)]
    if not is_inside.any():
        fault = (
            f"No spot of {name!r} lies inside its image of {width} x {height} px (the first is at x={x:.0f}, y={y:.0f})"
        )
    elif is_inside.mean() < 0.5:
        n_outside = int((~is_inside).sum())
        fault = (
            f"{n_outside} of {len(centres_px)} spots of {name!r} lie outside its image of {width} x {height} px (e.g. at "
            f"x={x:.0f}, y={y:.0f}; drop them if the image is a crop)"
        )
    elif lie_near_origin(centres_px, (width, height), _CORNER):
        fault = (
            f"All {len(centres_px)} spots of {name!r} lie in one corner of its image of {width} x {height} px, up to "
            f"x={centres_px[:, 0].max():.0f}, y={centres_px[:, 1].max():.0f} (crop the image if they do)"
        )
    else:
        return
    msg = f"{fault}; the image, or the scale of the positions, belongs to something else."
    raise ValueError(msg)


def per_section(value: T | Mapping[str, T], sections: Sequence[str], *, argument: str) -> dict[str, T]:
    """Spread an argument given once, or per section as a mapping, over the sections."""
    if isinstance(value, Mapping):
        return entries(value, sections, argument=argument)
    return dict.fromkeys(sections, value)


def patients_of(patient: object, sections: Sequence[str]) -> dict[str, str | None]:
    """Patient of every section, None where nobody says; refused where it is no name."""
    named: dict[str, Any] = per_section(patient, sections, argument="patient")
    for section, name in named.items():
        if name is not None and (isinstance(name, bool) or not isinstance(name, str | Real)):
            msg = f"patient={name!r} of {section!r} is a {type(name).__name__}, not a name; pass one, or a mapping from section to names."
            raise TypeError(msg)
    return {section: None if name is None else label_of(name) for section, name in named.items()}


def entries(value: Mapping[str, T], sections: Sequence[str], *, argument: str) -> dict[str, T]:
    """Entries of a mapping for the sections, whose keys may be numbers, refusing one that lacks some."""
    named = {label_of(key): entry for key, entry in value.items()}
    missing = [name for name in sections if name not in named]
    if missing:
        msg = f"{argument} has no entry for {', '.join(missing)}; it has {', '.join(named) or 'none'}."
        raise KeyError(msg)
    return {name: named[name] for name in sections}


def by_name(value: Mapping[Any, T]) -> dict[Any, T]:
    """A mapping from sections, numbers among them as text."""
    return {label_of(key) if is_number(key) else key: entry for key, entry in value.items()}


def refuse_duplicates(names: Sequence[str], what: str, *, mend: str = "rename or merge them") -> None:
    """Raise ValueError naming the first few entries that appear more than once."""
    index = pd.Index(names)
    if index.is_unique:
        return
    repeated = index[index.duplicated()].unique()
    shown = ", ".join(map(str, repeated[:5])) + (", ..." if len(repeated) > 5 else "")
    msg = f"The {what} must be unique, but {len(repeated)} appear more than once: {shown}; {mend}."
    raise ValueError(msg)


def _table(sections: Sequence[SectionData]) -> AnnData:
    genes = list(dict.fromkeys(chain.from_iterable(section.genes for section in sections)))
    sizes = [len(section.spots) for section in sections]
    names = np.repeat([section.name for section in sections], sizes)
    spots = list(chain.from_iterable(section.spots for section in sections))
    obs = pd.DataFrame(
        {
            REGION_KEY: pd.Categorical(names, categories=[section.name for section in sections]),
            INSTANCE_KEY: spots,
            "section": pd.Categorical(names, categories=[section.name for section in sections]),
            "patient": pd.Categorical(np.repeat([section.patient or section.name for section in sections], sizes)),
        },
        index=pd.Index([f"{name}_{spot}" for name, spot in zip(names, spots, strict=True)]),
    )
    column_of = {gene: column for column, gene in enumerate(genes)}
    counts = vstack([_spread(section, column_of) for section in sections], format="csr")
    table = AnnData(X=counts, obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
    table.obsm["spatial"] = np.concatenate([section.centres_px for section in sections]).astype(np.float64)
    regions = [section.name for section in sections]
    return TableModel.parse(table, region=regions, region_key=REGION_KEY, instance_key=INSTANCE_KEY)


def _spread(section: SectionData, column_of: dict[str, int]) -> csr_matrix:
    """Counts of a section over the genes of all sections."""
    counts = section.counts
    columns = np.fromiter((column_of[gene] for gene in section.genes), dtype=np.int64, count=len(section.genes))
    parts = (counts.data.astype(np.float32), columns[counts.indices], counts.indptr)
    spread = csr_matrix(parts, shape=(counts.shape[0], len(column_of)))
    spread.sort_indices()
    return spread
