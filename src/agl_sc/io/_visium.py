"""Reader of Space Ranger folders, over spatialdata-io."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dask.array as da
import h5py  # type: ignore[import-untyped]
import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from spatialdata import SpatialData

from agl_sc._sdata.geometry import check_mpp
from agl_sc.io._image import open_image
from agl_sc.io._layout import TABLE_KEY, SectionData, assemble, check_section_names, per_section, refuse_duplicates

logger = logging.getLogger(__name__)

_SCALEFACTORS = "spatial/scalefactors_json.json"
_POSITIONS = ("spatial/tissue_positions.csv", "spatial/tissue_positions_list.csv")
_IMAGES = {"hires": "spatial/tissue_hires_image.png", "lowres": "spatial/tissue_lowres_image.png"}


def read_visium(
    path: str | Path | Mapping[str, str | Path],
    *,
    name: str | None = None,
    fullres_image: str | Path | Mapping[str, str | Path] | None = None,
    image_mpp: float | Mapping[str, float] | None = None,
    patient: str | Mapping[str, str] | None = None,
    counts_file: str = "filtered_feature_bc_matrix.h5",
) -> SpatialData:
    """Read one or several Space Ranger folders of 10x Visium (100 um pitch, 55 um spots) into one SpatialData.

    One image is kept per section: the full-resolution one where given, else ``tissue_hires_image.png``, else
    ``tissue_lowres_image.png``; the log says which. Only spots in tissue are kept. A gene symbol that several gene
    ids share stays with the first id; the others are named ``"{symbol}_{id}"``.

    Parameters
    ----------
    path
        Folder that holds the counts and ``spatial/``, or a mapping from section name to such a folder.
    name
        Name of the section when ``path`` is one folder. None takes the folder's name.
    fullres_image
        Image that Space Ranger was run on (JPEG, PNG or TIFF; 8-bit RGB), one path or a mapping from section; the
        mapping may leave sections out.
    image_mpp
        Microns per pixel of the image that is kept, for all sections or as a mapping from section. None derives it
        from the spot pitch of 100 um.
    patient
        Person or animal the sections are from, for all sections or as a mapping from section. None takes each
        section as its own patient.
    counts_file
        Name of the HDF5 count file inside the folder.

    Returns
    -------
    Per section ``S`` the multiscale image ``S_image`` and the circles ``S``, in a coordinate system named ``S`` whose
    unit is the pixel of the image kept; one table ``table`` with raw counts, ``obs["section"]``, ``obs["patient"]``,
    ``var["gene_ids"]`` and ``obsm["spatial"]`` (pixels) annotating all of them; microns per pixel and technology in
    ``attrs["agl_sc"]``.

    Raises
    ------
    FileNotFoundError
        A folder or file is missing, or a section has no image at all.
    KeyError
        A section has no entry in a mapping, or a scale factor is missing.
    ValueError
        ``image_mpp`` contradicts the spot pitch by more than 5 %; an image is not 3-channel uint8; names repeat.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.io.read_visium("sample7/outs", fullres_image="sample7.tif")  # doctest: +SKIP
    """
    folders = _folders(path, name)
    names = list(folders)
    stated_mpp = per_section(image_mpp, names, argument="image_mpp")
    patients = per_section(patient, names, argument="patient")
    sources = {name: _find(name, folders[name], fullres_image=fullres_image, counts_file=counts_file) for name in names}
    read = {name: _read_section(sources[name]) for name in names}
    gene_names = _unique_gene_names([section.symbols for section in read.values()])
    sections = [
        _section_data(
            read[name], gene_names=gene_names, image_mpp=stated_mpp[name], patient=patients[name] or name, name=name
        )
        for name in names
    ]
    sdata = assemble(sections)
    id_of = {symbol: gene_id for gene_id, symbol in gene_names.items()}
    sdata[TABLE_KEY].var["gene_ids"] = [id_of[gene] for gene in sdata[TABLE_KEY].var_names]
    return sdata


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """What a section is read from."""

    name: str
    """Section."""
    folder: Path
    """Space Ranger's output."""
    counts_file: str
    """Name of the count file."""
    image: da.Array
    """The image to keep, lazy."""
    scale: float
    """Pixels of that image per full-resolution pixel."""


@dataclass(frozen=True, slots=True, eq=False)
class _Section:
    """Spots in tissue, not yet named across sections."""

    source: _Source
    """Where they are from."""
    counts: csr_matrix
    """(n_spots, n_genes)."""
    symbols: dict[str, str]
    """Gene id to symbol, in the order of the columns."""
    spots: list[str]
    """Barcodes."""
    centres_px: NDArray[np.float64]
    """(n_spots, 2), x and y in pixels of the image kept."""
    radius_px: float
    """In pixels of the image kept."""


def _folders(path: str | Path | Mapping[str, str | Path], name: str | None) -> dict[str, Path]:
    if isinstance(path, Mapping):
        if name is not None:
            msg = f"name={name!r} is for one folder; the keys of path name the sections ({', '.join(path)})."
            raise ValueError(msg)
        folders = {section: Path(folder) for section, folder in path.items()}
    else:
        folder = Path(path).resolve()
        default = folder.parent.name if folder.name == "outs" else folder.name
        folders = {default if name is None else name: folder}
    check_section_names(list(folders))
    return folders


def _find(
    name: str, folder: Path, *, fullres_image: str | Path | Mapping[str, str | Path] | None, counts_file: str
) -> _Source:
    """Make sure that everything is there, and choose the image."""
    _require(folder, folder / counts_file, folder / _SCALEFACTORS)
    if not any((folder / positions).is_file() for positions in _POSITIONS):
        msg = f"'{folder}' has neither {' nor '.join(_POSITIONS)}; give the folder that Space Ranger wrote."
        raise FileNotFoundError(msg)
    fullres = fullres_image.get(name) if isinstance(fullres_image, Mapping) else fullres_image
    present = {kind: folder / file for kind, file in _IMAGES.items() if (folder / file).is_file()}
    if fullres is not None:
        kind, file = "full-resolution", Path(fullres)
    elif present:
        kind, file = next(iter(present.items()))
    else:
        msg = f"'{folder}' has neither {' nor '.join(_IMAGES.values())}; pass fullres_image=."
        raise FileNotFoundError(msg)
    scale = 1.0 if fullres is not None else _scale_factor(folder, f"tissue_{kind}_scalef")
    image = open_image(file)
    logger.info("%s: keeping the %s image '%s', %d x %d px", name, kind, file, image.shape[2], image.shape[1])
    return _Source(name, folder, counts_file, image, scale)


def _require(folder: Path, *files: Path) -> None:
    if not folder.is_dir():
        msg = f"The folder '{folder}' does not exist."
        raise FileNotFoundError(msg)
    for file in files:
        if not file.is_file():
            msg = f"'{file}' does not exist; give the folder that Space Ranger wrote (its 'outs')."
            raise FileNotFoundError(msg)


def _scale_factor(folder: Path, key: str) -> float:
    factors = json.loads((folder / _SCALEFACTORS).read_text(encoding="utf-8"))
    if key not in factors:
        msg = f"'{folder / _SCALEFACTORS}' has no {key!r}; it has {', '.join(map(repr, factors))}."
        raise KeyError(msg)
    return float(factors[key])


def _read_section(source: _Source) -> _Section:
    table = _spots_with_spatialdata_io(source)
    is_inside = (table.obs["in_tissue"] == 1).to_numpy()
    if not is_inside.any():
        msg = f"No spot of section {source.name!r} is in tissue according to its positions file."
        raise ValueError(msg)
    if not is_inside.all():
        logger.info("%s: dropped %d spots outside the tissue", source.name, (~is_inside).sum())
    kept = table[is_inside]
    gene_ids = kept.var["gene_ids"].astype(str).tolist()
    refuse_duplicates(gene_ids, f"gene ids of section {source.name!r}")
    symbol_of = _symbols(source.folder / source.counts_file)
    return _Section(
        source=source,
        counts=csr_matrix(kept.X),
        symbols={gene_id: symbol_of[gene_id] for gene_id in gene_ids},
        spots=kept.obs_names.tolist(),
        centres_px=np.asarray(kept.obsm["spatial"], dtype=np.float64) * source.scale,
        radius_px=_scale_factor(source.folder, "spot_diameter_fullres") / 2 * source.scale,
    )


def _spots_with_spatialdata_io(source: _Source) -> AnnData:
    """Counts, ``obs["in_tissue"]`` and full-resolution centres of all spots in the count file."""
    from spatialdata_io import visium  # with scanpy behind it, 4 s

    for key in ("tissue_hires_scalef", "tissue_lowres_scalef"):  # spatialdata-io wants both, whatever the images
        _scale_factor(source.folder, key)
    with warnings.catch_warnings():
        # Repeated symbols are dealt with below, by gene id; the region column is replaced.
        warnings.filterwarnings("ignore", message="Variable names are not unique", category=UserWarning)
        warnings.filterwarnings("ignore", message="Converting `region_key", category=UserWarning)
        sdata = visium(source.folder, dataset_id=source.name, counts_file=source.counts_file)
    return sdata[TABLE_KEY]


def _symbols(counts_file: Path) -> dict[str, str]:
    """Gene id to symbol as in the file; spatialdata-io has already put suffixes on repeated symbols."""
    with h5py.File(counts_file) as file:
        features = file["matrix/features"]
        return dict(zip(features["id"].asstr()[:], features["name"].asstr()[:], strict=True))


def _unique_gene_names(symbols: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Gene id to a name that is unique over all sections and the same in each."""
    symbol_of: dict[str, str] = {}
    for section in symbols:
        symbol_of = {**symbol_of, **section, **symbol_of}  # in order of appearance, with the first symbol of an id
    taken: set[str] = set()
    names: dict[str, str] = {}
    for gene_id, symbol in symbol_of.items():
        names[gene_id] = f"{symbol}_{gene_id}" if symbol in taken else symbol
        taken.add(names[gene_id])
    n_renamed = sum(names[gene_id] != symbol for gene_id, symbol in symbol_of.items())
    if n_renamed:
        logger.info("%d genes share their symbol with an earlier gene and were named symbol_id", n_renamed)
    return names


def _section_data(
    section: _Section, *, gene_names: Mapping[str, str], image_mpp: float | None, patient: str, name: str
) -> SectionData:
    return SectionData(
        name=name,
        image=section.source.image,
        counts=section.counts,
        genes=[gene_names[gene_id] for gene_id in section.symbols],
        spots=section.spots,
        centres_px=section.centres_px,
        radius_px=section.radius_px,
        patient=patient,
        image_mpp=check_mpp(image_mpp, section.centres_px, "visium", name=name),
        technology="visium",
    )
