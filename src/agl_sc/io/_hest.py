"""Reader of HEST-1k files."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import dask.array as da
import h5py  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from anndata.utils import make_index_unique
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse
from spatialdata import SpatialData

from agl_sc._sdata.geometry import PITCH_UM, check_mpp, is_positive_number, spot_pitch_px
from agl_sc._sdata.table import near_matches, section_of
from agl_sc.core.arguments import check_names, path_of
from agl_sc.core.arrays import FloatArray
from agl_sc.io._image import open_levels
from agl_sc.io._layout import (
    ATTRS_KEY,
    TABLE_KEY,
    SectionData,
    assemble,
    check_section_names,
    image_key_of,
    patients_of,
    per_section,
)
from agl_sc.io._patches import DOWNLOAD_AGAIN, Patches, open_patches, slide_of
from agl_sc.io._readable import check_sparse, readable

logger = logging.getLogger(__name__)

ImageKind = Literal["wsi", "patches"]
GeneNames = str | Mapping[str, str] | None

_FILES = {"st": ".h5ad", "metadata": ".json", "patches": ".h5", "wsis": ".tif"}
_TECHNOLOGY = {"Visium": "visium", "Spatial Transcriptomics": "st"}
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?")
_SYMBOL_COLUMNS = ("gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "symbols", "feature_name")
_TOLERANCE = 0.05
"""Of scales that disagree, and of patches that lie beside their spots, in sides of a patch."""


def read_hest(
    path: str | Path,
    ids: str | Sequence[str] | None = None,
    *,
    image: ImageKind | None = None,
    image_mpp: float | Mapping[str, float] | None = None,
    patient: str | Mapping[str, str] | None = None,
    gene_names: GeneNames = None,
) -> SpatialData:
    """Read samples of HEST-1k into one SpatialData.

    With ``image="wsi"`` the image is the whole-slide image, read lazily. With ``image="patches"`` the slide is put together
    again, lazily, from the patches of 112 um around the spots, each where it was on the slide and white where there is none;
    where patches overlap, a pixel comes from the nearest. So the positions are the true ones either way, and maps,
    neighbours and spatial blocks are right. What does not work with patches is a tile, or a ``context``, wider than a patch:
    it would see gaps, and is refused. Only spots with a patch (HEST-1k has none off the tissue) are kept then.

    Parameters
    ----------
    path
        Folder that holds ``st/{id}.h5ad``, ``metadata/{id}.json`` and ``patches/{id}.h5`` or ``wsis/{id}.tif``, as
        :func:`agl_sc.datasets.hest1k` leaves it.
    ids
        Samples to read, such as ``"TENX152"``. None takes all that are in the folder.
    image
        ``"wsi"`` or ``"patches"``. None takes the whole-slide image where there is one.
    image_mpp
        Microns per pixel of the whole-slide image, for all samples or as a mapping from id. None takes
        ``pixel_size_um_estimated`` of the metadata.
    patient
        Person or animal the samples are from, for all or as a mapping from id. None takes ``patient`` of the metadata with
        the study's title, since studies count their patients from 1; samples of a study that names none are taken for one
        patient, as HEST-bench does. The metadata are not always right: see issue 126 of mahmoodlab/HEST.
    gene_names
        Column of ``var`` that holds gene symbols, or a mapping to them, for files that name genes by Ensembl ids;
        ``"index"`` keeps the ids. None refuses such files.

    Returns
    -------
    Per sample ``S`` the multiscale image ``S_image`` and the circles ``S``, in a coordinate system named ``S`` whose unit is
    the pixel of the image; one table ``table`` with raw counts, ``obs["section"]`` (the id), ``obs["patient"]`` and
    ``obsm["spatial"]`` (pixels of the image) annotating all of them; microns per pixel, technology and side of the patches
    in ``attrs["agl_sc"]``.

    Raises
    ------
    FileNotFoundError
        The folder, or a file of a sample, is missing.
    KeyError
        There is no such sample (near matches are suggested), or a file lacks an entry.
    ValueError
        A file is incomplete; genes are named by Ensembl ids; the scale contradicts the spot pitch by more than 5 %, or what
        the image states where the pitch is not known; patches do not lie at their spots; two samples hold the same profiles.

    References
    ----------
    Jaume et al., HEST-1k, NeurIPS 2024, arXiv 2406.16192. The data are under CC BY-NC-SA 4.0.

    Examples
    --------
    A folder as :func:`agl_sc.datasets.hest1k` leaves it, with four spots:

    >>> import agl_sc
    >>> import anndata, json, pathlib, tifffile
    >>> import numpy as np, pandas as pd
    >>> for folder in ("st", "metadata", "wsis"):
    ...     pathlib.Path("hest", folder).mkdir(parents=True)
    >>> centres = np.array([[50.0, 50.0], [150.0, 50.0], [100.0, 137.0], [200.0, 137.0]])
    >>> genes = pd.DataFrame(index=["FN1", "CD74"])
    >>> spots = pd.DataFrame(index=["AAAC-1", "AAAG-1", "AACA-1", "AACC-1"])
    >>> table = anndata.AnnData(np.ones((4, 2), np.float32), obs=spots, var=genes, obsm={"spatial": centres})
    >>> table.write_h5ad("hest/st/MINI1.h5ad")
    >>> said = {"st_technology": "Visium", "pixel_size_um_estimated": 1.0, "patient": "1", "dataset_title": "A study"}
    >>> said |= {"inter_spot_dist": 100.0, "spot_diameter": 55.0}
    >>> _ = pathlib.Path("hest/metadata/MINI1.json").write_text(json.dumps(said))
    >>> tifffile.imwrite("hest/wsis/MINI1.tif", np.full((256, 256, 3), 200, np.uint8), photometric="rgb", tile=(64, 64))

    >>> sdata = agl_sc.io.read_hest("hest", "MINI1")
    >>> sdata["table"].obs["patient"].unique().tolist()
    ['1 of A study']
    """
    if image is not None and image not in get_args(ImageKind):
        msg = f"image={image!r} is not one of 'wsi', 'patches', or None for whichever is there."
        raise ValueError(msg)
    folder = path_of("path", path)
    check_names("ids", ids)
    names = _names(folder, ids)
    stated_mpp = per_section(image_mpp, names, argument="image_mpp")
    patients = patients_of(patient, names)
    sources = [_find(folder, name, image) for name in names]
    samples = [_sample(source, stated_mpp[source.name], gene_names) for source in sources]
    placed = [_section(sample, patient=patients[sample.source.name]) for sample in samples]
    sdata = assemble([section for section, _ in placed])
    _refuse_same_profiles(sdata[TABLE_KEY])
    sides = {image_key_of(section.name): side for section, side in placed if side is not None}
    if sides:
        sdata.attrs[ATTRS_KEY]["patch_px"] = sides
    return sdata


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """Files of a sample."""

    name: str
    """Id."""
    table: Path
    """Counts and positions."""
    metadata: Mapping[str, Any]
    """What the sample's JSON file says."""
    image: Path
    """Whole-slide image or patches."""
    kind: ImageKind
    """Which of them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Counts of a sample and where its spots are on the slide."""

    source: _Source
    """Where it is from."""
    counts: csr_matrix
    """(n_spots, n_genes), raw."""
    genes: list[str]
    """Names."""
    spots: list[str]
    """Barcodes."""
    centres_px: FloatArray
    """(n_spots, 2), x and y in pixels of the whole-slide image."""
    mpp: float
    """Microns per pixel of that image."""


def _names(folder: Path, ids: str | Sequence[str] | None) -> list[str]:
    if not (folder / "st").is_dir():
        msg = f"'{folder}' has no folder 'st'; give the one that holds st/, metadata/ and patches/ or wsis/, as agl_sc.datasets.hest1k leaves it."
        raise FileNotFoundError(msg)
    known = sorted(file.stem for file in (folder / "st").glob("*.h5ad"))
    names = known if ids is None else [ids] if isinstance(ids, str) else list(ids)
    unknown = [name for name in names if name not in known]
    if unknown:
        there = f"{', '.join(known[:5])}{', ...' if len(known) > 5 else ''}" if known else "none"
        msg = (
            f"{', '.join(unknown[:3])} {'is' if len(unknown) == 1 else 'are'} not in '{folder / 'st'}', which holds {there}"
            f"{near_matches(unknown, known)}; download with `agl-sc hest download {unknown[0]}`."
        )
        raise KeyError(msg)
    check_section_names(names)
    return names


def _find(folder: Path, name: str, image: ImageKind | None) -> _Source:
    """Make sure that everything is there, and choose the image."""
    files = {kind: folder / kind / f"{name}{suffix}" for kind, suffix in _FILES.items()}
    wanted: list[tuple[ImageKind, Path]] = [("wsi", files["wsis"]), ("patches", files["patches"])]
    there = [(kind, file) for kind, file in wanted if image in (None, kind) and file.is_file()]
    missing = [files["metadata"]] if not files["metadata"].is_file() else []
    missing += [] if there else [file for kind, file in wanted if image in (None, kind)]
    if missing:
        listed = " and no ".join(f"'{file}'" for file in missing)
        msg = f"{name} has no {listed}; download with `agl-sc hest download {name}`."
        raise FileNotFoundError(msg)
    with readable(files["metadata"], mend=DOWNLOAD_AGAIN):
        metadata = json.loads(files["metadata"].read_text(encoding="utf-8"))
    if not isinstance(metadata, dict):
        msg = f"'{files['metadata']}' holds a {type(metadata).__name__}, not what is known of a sample by name; {DOWNLOAD_AGAIN}"
        raise ValueError(msg)
    kind, file = there[0]
    logger.info("%s: the image is '%s'", name, file)
    return _Source(name, files["st"], metadata, file, kind)


def _sample(source: _Source, stated_mpp: float | None, gene_names: GeneNames) -> _Sample:
    path = source.table
    with readable(path, mend=DOWNLOAD_AGAIN), h5py.File(path) as file:
        missing = [key for key in ("X", "obs", "var", "obsm/spatial") if key not in file]
        there = ", ".join(map(repr, file)) or "nothing"
    if missing:
        msg = f"'{path}' has no {missing[0]!r}; it has {there}, so it is no table of HEST-1k."
        raise KeyError(msg)
    with readable(path, mend=DOWNLOAD_AGAIN), h5py.File(path) as file:
        stored = read_elem(file["X"])
        if issparse(stored):
            check_sparse(stored)
        counts = csr_matrix(stored, dtype=np.float32)
        obs, var = read_elem(file["obs"]), read_elem(file["var"])
        centres_px = np.asarray(read_elem(file["obsm/spatial"]), dtype=float)[:, :2]
    if counts.shape != (len(obs), len(var)) or centres_px.shape != (len(obs), 2):
        msg = f"'{path}' has counts of shape {counts.shape} and {len(centres_px)} positions for {len(obs)} spots and {len(var)} genes; {DOWNLOAD_AGAIN}"
        raise ValueError(msg)
    return _Sample(
        source=source,
        counts=counts,
        genes=_genes(var, source, gene_names),
        spots=obs.index.astype(str).tolist(),
        centres_px=centres_px,
        mpp=_slide_mpp(source, stated_mpp, centres_px),
    )


def _genes(var: pd.DataFrame, source: _Source, gene_names: GeneNames) -> list[str]:
    """Gene names; those that repeat get a suffix, as anndata does."""
    names = var.index.astype(str)
    n_ensembl = sum(bool(_ENSEMBL.fullmatch(name)) for name in names)
    if isinstance(gene_names, Mapping):
        names = pd.Index([gene_names.get(name, name) for name in names])
    elif gene_names is not None and gene_names != "index":
        if gene_names not in var:
            msg = f"gene_names={gene_names!r} is not a column of var of {source.name}, which has {', '.join(map(str, var)) or 'none'}."
            raise KeyError(msg)
        symbols = var[gene_names].astype(object)
        names = pd.Index(symbols.where(symbols.notna() & (symbols != ""), names.to_series(index=var.index)).astype(str))
    elif gene_names is None and n_ensembl > len(names) / 2:
        columns = [name for name in _SYMBOL_COLUMNS if name in var]
        mend = (
            f"gene_names={columns[0]!r} takes the symbols of that column"
            if columns
            else "gene_names={'ENSG...': 'symbol', ...} names them"
        )
        example = next(name for name in names if _ENSEMBL.fullmatch(name))
        msg = f"{source.name} names its genes by Ensembl ids ({example}), which other samples do not: {mend}, gene_names='index' keeps the ids."
        raise ValueError(msg)
    if not names.is_unique:
        logger.info("%s: %d gene names repeat and got a suffix", source.name, names.duplicated().sum())
    unique: list[str] = make_index_unique(names).tolist() if not names.is_unique else names.tolist()
    return unique


def _slide_mpp(source: _Source, stated: float | None, centres_px: FloatArray) -> float:
    """Microns per pixel of the whole-slide image, by argument or metadata, checked against pitch and image header."""
    estimated, embedded = (_number(source.metadata, f"pixel_size_um_{which}") for which in ("estimated", "embedded"))
    technology = _technology(source)
    mpp = check_mpp(estimated if stated is None else stated, centres_px, technology, name=source.name)
    if stated is None and estimated and embedded and abs(embedded / estimated - 1) > _TOLERANCE:
        if technology is None:
            msg = (
                f"The metadata of {source.name} state {estimated:.4g} um per pixel as estimated and {embedded:.4g} as embedded in "
                f"the image, and no spot pitch tells which is right; pass image_mpp={estimated:.4g}, by which HEST-1k cut the patches."
            )
            raise ValueError(msg)
        logger.info("%s: %.4g um per pixel by the spots, not %.4g as its image states", source.name, mpp, embedded)
    return mpp


def _number(metadata: Mapping[str, Any], key: str) -> float | None:
    """Positive number of the metadata; None where it is missing or NaN."""
    value: Any = metadata.get(key)
    return float(value) if is_positive_number(value) else None


def _technology(source: _Source) -> str | None:
    """Technology whose spot pitch is known and which the sample's metadata do not contradict."""
    technology = _TECHNOLOGY.get(str(source.metadata.get("st_technology")))
    pitch_um = _number(source.metadata, "inter_spot_dist")
    if technology is None or (pitch_um is not None and pitch_um != PITCH_UM[technology]):
        return None
    return technology


def _refuse_same_profiles(table: AnnData) -> None:
    """HEST-1k holds some samples twice (TENX128 is TENX155), which leaks between folds."""
    from agl_sc.pp._splits.duplicates import same_profiles  # with torch behind it

    for one, other, share in same_profiles(table.X, section_of(table).to_numpy(dtype=str)):
        msg = f"{one} and {other} hold the same profiles ({share:.0%} of the spots of one), so one tells what the other is tested on; leave one out of ids."
        raise ValueError(msg)


def _section(sample: _Sample, *, patient: str | None) -> tuple[SectionData, int | None]:
    """The sample as a section, and the side of the patches that its image is made of."""
    levels, rows, centres_px, mpp, side_px = _image(sample)
    technology = _technology(sample.source)
    diameter_um = _number(sample.source.metadata, "spot_diameter") if technology else None
    radius_px = diameter_um / 2 / mpp if diameter_um else spot_pitch_px(centres_px, "st") / 2
    section = SectionData(
        name=sample.source.name,
        image=levels[0],
        coarser=levels[1:],
        counts=sample.counts[rows],
        genes=sample.genes,
        spots=[sample.spots[row] for row in rows],
        centres_px=centres_px,
        radius_px=radius_px,
        patient=patient or _patient(sample.source),
        image_mpp=mpp,
        technology=technology,
    )
    return section, side_px


def _patient(source: _Source) -> str:
    """Patient within the study; ``"?"`` where it is not named."""
    patient, study = (source.metadata.get(key) for key in ("patient", "dataset_title"))
    named = str(patient) if isinstance(patient, str | int) and patient != "" else "?"
    return f"{named} of {study}" if isinstance(study, str) and study else f"{named} of {source.name}"


def _image(sample: _Sample) -> tuple[list[da.Array], NDArray[np.int64], FloatArray, float, int | None]:
    """Levels of the image, rows of the spots that are on it, their centres in its pixels, its scale, and the side of its patches."""
    if sample.source.kind == "wsi":
        return open_levels(sample.source.image), np.arange(len(sample.spots)), sample.centres_px, sample.mpp, None
    name, patches = sample.source.name, open_patches(sample.source.image)
    row_of = {spot: row for row, spot in enumerate(sample.spots)}
    known = np.array([barcode in row_of for barcode in patches.barcodes], dtype=bool)
    if not known.any():
        msg = f"No patch of '{patches.path}' belongs to a spot of '{sample.source.table}' (the first is {patches.barcodes[:1]}); download both again."
        raise ValueError(msg)
    taken = np.flatnonzero(known)
    rows = np.array([row_of[patches.barcodes[patch]] for patch in taken])
    if not known.all():
        logger.warning("%s: dropped %d patches that belong to no spot", name, (~known).sum())
    if len(rows) < len(sample.spots):
        logger.info(
            "%s: dropped %d of %d spots without a patch", name, len(sample.spots) - len(rows), len(sample.spots)
        )
    order = np.argsort(rows)
    taken, rows = taken[order], rows[order]
    _check_places(name, patches, taken, centres_px=sample.centres_px[rows])
    mpp = patches.mpp(sample.mpp)
    image, centres_px = slide_of(patches, taken, sample.centres_px[rows] * (sample.mpp / mpp))
    return [image], rows, centres_px, mpp, patches.side_px


def _check_places(name: str, patches: Patches, taken: NDArray[np.int64], *, centres_px: FloatArray) -> None:
    """Refuse patches that do not lie around their spots."""
    if patches.corners is None or patches.slide_side_px is None:
        return
    off = np.abs(patches.corners[taken] + patches.slide_side_px / 2 - centres_px).max(axis=1)
    if not np.median(off) <= _TOLERANCE * patches.slide_side_px:
        msg = (
            f"The patches of {name} lie {np.median(off):.0f} px beside its spots, so '{patches.path}' and its table are of "
            "different releases; download both again."
        )
        raise ValueError(msg)
