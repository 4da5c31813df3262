"""Reader of legacy Spatial Transcriptomics."""

import gzip
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from spatialdata import SpatialData

from agl_sc._sdata.geometry import check_mpp
from agl_sc.io._image import open_image
from agl_sc.io._layout import SectionData, assemble, check_section_names, entries, per_section, refuse_duplicates

logger = logging.getLogger(__name__)

Paths = str | Path | Mapping[str, str | Path] | Sequence[str | Path]

_SPOT_RADIUS_UM = 50.0
_POSITION_COLUMNS = ["x", "y", "pixel_x", "pixel_y"]
_SUFFIXES = {"counts": ".tsv.gz", "image": ".jpg", "spots": "_selection.tsv"}


def read_st(
    counts: Paths,
    image: Paths,
    spots: Paths,
    *,
    mpp: float | Mapping[str, float] | None,
    patient: str | Mapping[str, str] | None = None,
    sections: Sequence[str] | None = None,
) -> SpatialData:
    """Read sections of legacy Spatial Transcriptomics (200 um pitch, 100 um spots) into one SpatialData.

    Spots are joined on ``"{x}x{y}"``. Those with counts but no position, or the other way round, are dropped and
    counted in the log. Images are opened lazily: only their headers are read here.

    Parameters
    ----------
    counts
        Tab-separated raw counts, one row per spot named ``"{x}x{y}"``, one column per gene; gzip by suffix.
        One path, a mapping from section to path, or a sequence of paths in the order of ``sections``.
    image
        H&E image (JPEG, PNG or TIFF; 8-bit RGB), given like ``counts``.
    spots
        Tab-separated positions with columns ``x``, ``y``, ``pixel_x``, ``pixel_y`` (spot centres in pixels of the
        image) and, optionally, ``selected`` (spots with 0 are left out), given like ``counts``.
    mpp
        Microns per pixel of the images, for all sections or as a mapping from section. None derives it from the
        spot pitch of 200 um.
    patient
        Person or animal the sections are from, for all sections or as a mapping from section. None takes each
        section as its own patient.
    sections
        Names of the sections, in order. None takes the keys of the mappings, or else the names of the count files up
        to their first dot.

    Returns
    -------
    Per section ``S`` the multiscale image ``S_image`` and the circles ``S``, in a coordinate system named ``S`` whose
    unit is the pixel of the image; one table ``table`` with raw counts, ``obs["section"]``, ``obs["patient"]`` and
    ``obsm["spatial"]`` (pixels) annotating all of them; microns per pixel and technology in ``attrs["agl_sc"]``.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    KeyError
        A section has no entry in a mapping, or a column of the positions is missing.
    ValueError
        A file cannot be read; counts are not raw; spots or genes repeat; no spot of a section has both counts and
        position; ``mpp`` contradicts the spot pitch by more than 5 %; an image is not 3-channel uint8.

    Examples
    --------
    >>> import agl_sc
    >>> files = [{s: f"her2st/{s}{end}" for s in ("C5", "C6")} for end in (".tsv.gz", ".jpg", "_selection.tsv")]
    >>> sdata = agl_sc.io.read_st(*files, mpp=0.69, patient="C")  # doctest: +SKIP
    """
    names = _section_names(counts, sections)
    check_section_names(names)
    files = _files(names, counts=counts, image=image, spots=spots)
    stated_mpp = per_section(mpp, names, argument="mpp")
    patients = per_section(patient, names, argument="patient")
    joined = {name: _join(name, files[name]) for name in names}
    image_mpp = {name: check_mpp(stated_mpp[name], joined[name].centres_px, "st", name=name) for name in names}
    images = {name: open_image(files[name].image) for name in names}
    return assemble(
        [
            SectionData(
                name=name,
                image=images[name],
                counts=joined[name].counts,
                genes=joined[name].genes,
                spots=joined[name].spots,
                centres_px=joined[name].centres_px,
                radius_px=_SPOT_RADIUS_UM / image_mpp[name],
                patient=patients[name] or name,
                image_mpp=image_mpp[name],
                technology="st",
            )
            for name in names
        ]
    )


def read_st_folder(
    path: str | Path,
    *,
    mpp: float | Mapping[str, float] | None = None,
    sections: Sequence[str] | None = None,
    patient: str | Mapping[str, str] | None = None,
) -> SpatialData:
    """Read a folder of sections named ``{S}.tsv.gz``, ``{S}_selection.tsv`` and ``{S}.jpg``.

    Parameters
    ----------
    path
        The folder.
    mpp
        As in :func:`read_st`; None derives it from the spot pitch.
    sections
        Which sections, in order. None reads all that have the three files, sorted by name.
    patient
        As in :func:`read_st`.

    Returns
    -------
    As :func:`read_st`.
    """
    folder = Path(path)
    if not folder.is_dir():
        msg = f"The folder '{folder}' does not exist."
        raise FileNotFoundError(msg)
    names = list(sections) if sections is not None else _complete_sections(folder)
    counts, image, spots = ({name: folder / f"{name}{suffix}" for name in names} for suffix in _SUFFIXES.values())
    return read_st(counts, image, spots, mpp=mpp, patient=patient, sections=names)


@dataclass(frozen=True, slots=True)
class _Files:
    """The three files of a section."""

    counts: Path
    """Counts, spots in rows."""
    image: Path
    """H&E image."""
    spots: Path
    """Positions of the spots."""


@dataclass(frozen=True, slots=True, eq=False)
class _Joined:
    """Spots of a section that have both counts and a position."""

    counts: csr_matrix
    """(n_spots, n_genes)."""
    genes: list[str]
    """Column names."""
    spots: list[str]
    """Row names, ``"{x}x{y}"``, in the order of the counts."""
    centres_px: NDArray[np.float64]
    """(n_spots, 2), x and y."""


def _complete_sections(folder: Path) -> list[str]:
    ends = list(_SUFFIXES.values())
    candidates = sorted(file.name.removesuffix(ends[0]) for file in folder.glob(f"*{ends[0]}"))
    complete = [name for name in candidates if all((folder / f"{name}{end}").is_file() for end in ends)]
    if not complete:
        msg = (
            f"'{folder}' holds no section: for a section S the files {', '.join(f'S{end}' for end in ends)} are needed."
        )
        raise FileNotFoundError(msg)
    for name in sorted(set(candidates) - set(complete)):
        logger.warning("%s: left out, %s has no image or no positions for it", name, folder)
    return complete


def _section_names(counts: Paths, sections: Sequence[str] | None) -> list[str]:
    if isinstance(sections, str):
        return [sections]
    if sections is not None:
        return list(sections)
    if isinstance(counts, Mapping):
        return list(counts)
    paths = [counts] if isinstance(counts, str | Path) else counts
    return [Path(path).name.split(".")[0] for path in paths]


def _files(names: Sequence[str], **arguments: Paths) -> dict[str, _Files]:
    paths = {argument: _paths(value, names, argument=argument) for argument, value in arguments.items()}
    files = {name: _Files(**{argument: paths[argument][name] for argument in paths}) for name in names}
    for name in names:
        for argument, path in ((argument, paths[argument][name]) for argument in paths):
            if not path.is_file():
                msg = f"The {argument} file of section {name!r}, '{path}', does not exist."
                raise FileNotFoundError(msg)
    return files


def _paths(value: Paths, names: Sequence[str], *, argument: str) -> dict[str, Path]:
    if isinstance(value, Mapping):
        return {name: Path(path) for name, path in entries(value, names, argument=argument).items()}
    paths = [value] if isinstance(value, str | Path) else list(value)
    if len(paths) != len(names):
        msg = f"{argument} has {len(paths)} paths for {len(names)} sections ({', '.join(names)}); give one for each."
        raise ValueError(msg)
    return {name: Path(path) for name, path in zip(names, paths, strict=True)}


def _join(section: str, files: _Files) -> _Joined:
    centres = _read_positions(files.spots)
    names, genes, values = _read_counts(files.counts)
    positions = pd.Index(centres.index)
    rows = np.flatnonzero(pd.Index(names).isin(positions))
    if not rows.size:
        msg = (
            f"No spot of section {section!r} has both counts (spots {', '.join(names[:3])}, ...) and a position "
            f"(spots {', '.join(positions[:3])}, ...); both must be named '{{x}}x{{y}}'."
        )
        raise ValueError(msg)
    kept = [names[row] for row in rows]
    logger.info(
        "%s: %d spots; dropped %d without position and %d without counts",
        *(section, len(kept), len(names) - len(kept), len(positions) - len(kept)),
    )
    return _Joined(values[rows], genes, kept, centres.loc[kept].to_numpy(dtype=np.float64))


def _read_positions(path: Path) -> pd.DataFrame:
    """Centres ``pixel_x, pixel_y`` of the selected spots, indexed by ``"{x}x{y}"``."""
    table = _read_positions_table(path)
    missing = [column for column in _POSITION_COLUMNS if column not in table]
    if missing:
        msg = f"'{path}' has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}."
        raise KeyError(msg)
    if "selected" in table:
        table = table[table["selected"] != 0]
    for column in _POSITION_COLUMNS:
        if not pd.api.types.is_numeric_dtype(table[column]) or table[column].isna().any():
            msg = f"Column {column} of '{path}' has entries that are not numbers; correct or remove these spots."
            raise ValueError(msg)
    if (table[["x", "y"]] % 1 != 0).any(axis=None):
        msg = f"Columns x, y of '{path}' are not whole numbers; use the array coordinates that name the spots."
        raise ValueError(msg)
    names = [f"{x}x{y}" for x, y in table[["x", "y"]].astype(np.int64).itertuples(index=False)]
    refuse_duplicates(names, f"spots of '{path}'")
    return table[["pixel_x", "pixel_y"]].set_axis(names, axis=0)


def _read_counts(path: Path) -> tuple[list[str], list[str], csr_matrix]:
    """Spot names, gene names and counts (n_spots, n_genes).

    Row by row rather than through pandas, which spends seconds on 15,000 columns and renames those that repeat.
    """
    rows = _rows(path)
    header = next(rows, [])
    spots, columns, data = [], [], []
    n_cells = 0
    for cells in rows:
        n_cells = n_cells or len(cells)
        if len(cells) != n_cells:
            msg = f"Row {cells[0]!r} of '{path}' has {len(cells)} cells, the first has {n_cells}; is the file complete?"
            raise ValueError(msg)
        values = _numbers(cells, path)
        spots.append(cells[0])
        columns.append(np.flatnonzero(values))
        data.append(values[columns[-1]])
    # R's write.table leaves out the empty cell above the row names.
    genes = header if len(header) == n_cells - 1 else header[1:]
    if n_cells < 2 or len(genes) != n_cells - 1:
        msg = f"'{path}' has {len(header)} cells of gene names above rows of {n_cells} cells; is it tab-separated?"
        raise ValueError(msg)
    refuse_duplicates(genes, f"gene names of '{path}'")
    refuse_duplicates(spots, f"spots of '{path}'")
    starts = np.cumsum([0, *(len(row) for row in columns)])
    counts = csr_matrix((np.concatenate(data), np.concatenate(columns), starts), shape=(len(spots), len(genes)))
    return spots, genes, counts


def _rows(path: Path) -> Iterator[list[str]]:
    """Cells of every line that is not empty, without quotes around them."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield line.rstrip("\n").replace('"', "").split("\t")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        msg = f"'{path}' cannot be read as a tab-separated table ({error}); is the file complete?"
        raise ValueError(msg) from error


def _numbers(cells: list[str], path: Path) -> NDArray[np.float32]:
    try:
        return np.array(cells[1:], dtype=np.float32)
    except ValueError as error:
        msg = f"Spot {cells[0]!r} of '{path}' has an entry that is not a number ({error}); give raw counts."
        raise ValueError(msg) from error


def _read_positions_table(path: Path) -> pd.DataFrame:
    try:
        table: pd.DataFrame = pd.read_csv(path, sep="\t")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, OSError, EOFError) as error:
        msg = f"'{path}' cannot be read as a tab-separated table ({str(error).strip()}); is the file complete?"
        raise ValueError(msg) from error
    return table
