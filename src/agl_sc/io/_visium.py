"""Reader of Space Ranger folders."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy.sparse import csr_matrix
from spatialdata import SpatialData

from agl_sc._sdata.geometry import check_mpp
from agl_sc.core.arguments import check_name, label_of, path_of
from agl_sc.core.arrays import FloatArray
from agl_sc.io._layout import (
    SPOT_UM,
    TABLE_KEY,
    SectionData,
    assemble,
    by_name,
    check_section_names,
    name_after,
    patients_of,
    per_section,
    refuse_duplicates,
)
from agl_sc.io._positions import read_positions
from agl_sc.io._scale import compare_with_spots
from agl_sc.io._spaceranger import COUNTS_FILE, Source, find, refuse_hd
from agl_sc.io._tenx import Counts, read_counts

logger = logging.getLogger(__name__)

_OUTSIDE = 0.05
"""Share of the spots in tissue that may lie outside the image, which is cropped then."""


def read_visium(
    path: str | Path | Mapping[str, str | Path],
    *,
    name: str | None = None,
    fullres_image: str | Path | Mapping[str, str | Path] | None = None,
    image_mpp: float | Mapping[str, float] | None = None,
    patient: str | Mapping[str, str] | None = None,
    counts_file: str = COUNTS_FILE,
) -> SpatialData:
    r"""Read one or several Space Ranger folders of 10x Visium (100 um pitch, 55 um spots) into one SpatialData.

    One image is kept per section: the full-resolution one where given, else ``tissue_hires_image.png``, else
    ``tissue_lowres_image.png`` (or either as JPEG or TIFF); the log says which. Only spots in tissue are kept, and of the features only genes:
    antibodies are left out. A gene symbol that several gene ids share stays with the first id; the others are named
    ``"{symbol}_{id}"``. The folders of Space Ranger 1 to 4 are read, with positions in any of their forms.

    Parameters
    ----------
    path
        Folder that holds the counts and ``spatial/`` (Space Ranger's ``outs``, or the folder around it), or a mapping from
        section name to such a folder. Names of files may begin with that of a sample, as in downloads.
    name
        Name of the section when ``path`` is one folder. None takes the folder's name.
    fullres_image
        Image that Space Ranger was run on (JPEG, PNG or TIFF; 8-bit RGB), one path or a mapping from section; the
        mapping may leave sections out. Of a TIFF with several images the largest is taken, or the one whose name or number
        stands behind the path (``"slide.tif#1"``).
    image_mpp
        Microns per pixel of the image that is kept, for all sections or as a mapping from section. None derives it
        from the pitch of 100 um of all spots of the array, in tissue or not.
    patient
        Person or animal the sections are from, for all sections or as a mapping from section. None takes each
        section as its own patient.
    counts_file
        Name of the HDF5 count file inside the folder, or of a folder with counts in Matrix Market format, which is also
        read where the file is missing.

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
        A section has no entry in a mapping, or a scale factor or a column is missing.
    ValueError
        ``fullres_image`` names a section that there is not, and leaves out one that there is; a path is an address on the web.
        A file is damaged, or does not belong to the others: barcodes without a position, spots outside the image, a
        full-resolution image of another size; ``image_mpp`` contradicts the spot pitch by more than 5 %; an image is not
        3-channel uint8; names repeat; the folder is of Visium HD.

    Examples
    --------
    A folder as Space Ranger writes it, with four spots and two genes:

    >>> import agl_sc
    >>> import json, pathlib
    >>> import numpy as np, pandas as pd, scipy.io, scipy.sparse
    >>> from PIL import Image
    >>> spots = ["AAAC-1", "AAAG-1", "AACA-1", "AACC-1"]
    >>> outs = pathlib.Path("outs")
    >>> for folder in ("spatial", "filtered_feature_bc_matrix"):
    ...     (outs / folder).mkdir(parents=True)
    >>> positions = {"barcode": spots, "in_tissue": 1, "array_row": [0, 0, 1, 1], "array_col": [0, 2, 1, 3]}
    >>> positions |= {"pxl_row_in_fullres": [50, 50, 136.6, 136.6], "pxl_col_in_fullres": [50, 150, 100, 200]}
    >>> pd.DataFrame(positions).to_csv(outs / "spatial/tissue_positions.csv", index=False)
    >>> factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 55.0}
    >>> _ = (outs / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    >>> Image.fromarray(np.full((200, 250, 3), 200, dtype=np.uint8)).save(outs / "spatial/tissue_hires_image.png")
    >>> counts = outs / "filtered_feature_bc_matrix"
    >>> scipy.io.mmwrite(counts / "matrix.mtx", scipy.sparse.csr_matrix([[3, 0, 5, 1], [2, 4, 0, 7]]))
    >>> _ = (counts / "barcodes.tsv").write_text("\n".join(spots))
    >>> _ = (counts / "features.tsv").write_text("ENSG1\tFN1\tGene Expression\nENSG2\tCD74\tGene Expression")

    >>> sdata = agl_sc.io.read_visium("outs", name="A1")
    >>> round(sdata.attrs["agl_sc"]["image_mpp"]["A1_image"], 2)
    1.0
    """
    check_name("counts_file", counts_file)
    folders = _folders(path, name)
    names = list(folders)
    stated_mpp = per_section(image_mpp, names, argument="image_mpp")
    patients = patients_of(patient, names)
    fullres = _fullres(fullres_image, names)
    sources = {name: find(name, folders[name], fullres=fullres.get(name), counts_file=counts_file) for name in names}
    read = {name: _read_section(sources[name]) for name in names}
    gene_names = _unique_gene_names([section.symbols for section in read.values()])
    sections = [
        _section_data(read[name], gene_names=gene_names, image_mpp=stated_mpp[name], patient=patients[name], name=name)
        for name in names
    ]
    for section in sections:
        compare_with_spots(sources[section.name].image_file, section.image_mpp, name=section.name)
    sdata = assemble(sections)
    id_of = {symbol: gene_id for gene_id, symbol in gene_names.items()}
    sdata[TABLE_KEY].var["gene_ids"] = [id_of[gene] for gene in sdata[TABLE_KEY].var_names]
    return sdata


@dataclass(frozen=True, slots=True, eq=False)
class _Section:
    """Spots in tissue, not yet named across sections."""

    source: Source
    """Where they are from."""
    counts: csr_matrix
    """(n_spots, n_genes)."""
    symbols: dict[str, str]
    """Gene id to symbol, in the order of the columns."""
    spots: list[str]
    """Barcodes."""
    centres_px: FloatArray
    """(n_spots, 2), x and y in pixels of the image kept."""
    array_px: FloatArray
    """The same for all spots of the array that the positions file names, whose pitch tells the scale."""
    array: FloatArray
    """Their rows and columns."""


def _folders(path: str | Path | Mapping[str, str | Path], name: str | None) -> dict[str, Path]:
    if isinstance(path, Mapping):
        if name is not None:
            msg = f"name={name!r} is for one folder; the keys of path name the sections ({', '.join(path)})."
            raise ValueError(msg)
        folders = {section: path_of("path", folder) for section, folder in by_name(path).items()}
    else:
        check_name("name", name)
        folder = path_of("path", path).resolve()
        default = folder.parent.name if folder.name == "outs" else folder.name
        folders = {name_after(default) if name is None else name: folder}
    check_section_names(list(folders))
    return folders


def _fullres(
    fullres_image: str | Path | Mapping[str, str | Path] | None, names: list[str]
) -> Mapping[str, str | Path | None]:
    """Full-resolution image of the sections that have one; a mapping may leave out some, but not miss one by its name."""
    if not isinstance(fullres_image, Mapping):
        return dict.fromkeys(names, fullres_image)
    given = {label_of(name): file for name, file in fullres_image.items()}
    unknown, bare = [name for name in given if name not in names], [name for name in names if name not in given]
    if unknown and bare:
        msg = f"fullres_image has an entry for {unknown[0]!r} and none for {bare[0]!r}; the sections are {', '.join(names)}: name them so, or leave the entry out."
        raise ValueError(msg)
    return given


def _read_section(source: Source) -> _Section:
    counts, positions = read_counts(source.counts), read_positions(source.positions)
    refuse_hd(source.counts.parent, counts.barcodes[0] if counts.barcodes else "")
    _refuse_unplaced(source, counts, positions)
    refuse_duplicates(counts.gene_ids, f"gene ids of section {source.name!r}")
    is_inside = (positions["in_tissue"].loc[counts.barcodes] == 1).to_numpy()
    if not is_inside.any():
        msg = f"No spot of section {source.name!r} is in tissue according to its positions file, '{source.positions}'."
        raise ValueError(msg)
    if not is_inside.all():
        logger.info("%s: dropped %d spots outside the tissue", source.name, (~is_inside).sum())
    n_uncounted = int((positions["in_tissue"] == 1).sum() - is_inside.sum())
    if n_uncounted:
        logger.info("%s: left out %d spots in tissue that '%s' does not have", source.name, n_uncounted, source.counts)
    spots = [barcode for barcode, inside in zip(counts.barcodes, is_inside, strict=True) if inside]
    array_px = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]] * source.scale
    centres_px = array_px.loc[spots].to_numpy()
    _refuse_outside(source, centres_px)
    symbols = dict(zip(counts.gene_ids, counts.symbols, strict=True))
    return _Section(
        source=source,
        counts=counts.matrix[is_inside],
        symbols=symbols,
        spots=spots,
        centres_px=centres_px,
        array_px=array_px.to_numpy(),
        array=positions[["array_row", "array_col"]].to_numpy(),
    )


def _refuse_unplaced(source: Source, counts: Counts, positions: pd.DataFrame) -> None:
    """A barcode that the positions do not name is not outside the tissue: nobody knows where it is."""
    unplaced = [barcode for barcode in counts.barcodes if barcode not in positions.index]
    if unplaced:
        msg = (
            f"{len(unplaced)} of {len(counts.barcodes)} barcodes of '{source.counts}' (the first is {unplaced[0]!r}) have no row in "
            f"'{source.positions}', which has {len(positions)} (the first is {positions.index[0]!r}); is the file complete, and of the same sample?"
        )
        raise ValueError(msg)


def _refuse_outside(source: Source, centres_px: FloatArray) -> None:
    height, width = source.image.shape[1:]
    n_outside = int((~((centres_px >= 0) & (centres_px <= (width, height))).all(axis=1)).sum())
    if n_outside > _OUTSIDE * len(centres_px):
        msg = (
            f"{n_outside} of {len(centres_px)} spots in tissue of section {source.name!r} lie outside '{source.image_file}' of {width} x {height} px; "
            "the image, its scale factor or the positions belong to something else."
        )
        raise ValueError(msg)


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
    section: _Section, *, gene_names: Mapping[str, str], image_mpp: float | None, patient: str | None, name: str
) -> SectionData:
    diameter_px = section.source.diameter_px
    mpp = check_mpp(image_mpp, section.array_px, "visium", name=name, array=section.array, diameter_px=diameter_px)
    return SectionData(
        name=name,
        image=section.source.image,
        counts=section.counts,
        genes=[gene_names[gene_id] for gene_id in section.symbols],
        spots=section.spots,
        centres_px=section.centres_px,
        radius_px=(SPOT_UM["visium"] / mpp if diameter_px is None else diameter_px) / 2,
        patient=patient,
        image_mpp=mpp,
        technology="visium",
    )
