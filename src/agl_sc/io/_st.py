"""Reader of legacy Spatial Transcriptomics."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from spatialdata import SpatialData

from agl_sc._sdata.geometry import PITCH_UM, check_mpp
from agl_sc.core.arguments import check_flag, check_names, path_of
from agl_sc.core.arrays import FloatArray
from agl_sc.io._image import open_image, split_name
from agl_sc.io._layout import (
    SectionData,
    assemble,
    by_name,
    check_section_names,
    entries,
    name_after,
    patients_of,
    per_section,
    refuse_duplicates,
)
from agl_sc.io._scale import compare_with_spots
from agl_sc.io._st_files import FRAME_TOLERANCE, SpotCounts, place_on_frame, read_counts, read_positions, shown_place

logger = logging.getLogger(__name__)

Paths = str | Path | Mapping[str, str | Path] | Sequence[str | Path]
Mpp = float | Mapping[str, float] | None

_SPOT_RADIUS_UM = 50.0
_MANY = 0.1
"""Share of dropped spots from which on the log warns."""
_SUFFIXES = {"counts": ".tsv.gz", "image": ".jpg", "spots": "_selection.tsv"}


def read_st(
    counts: Paths,
    image: Paths,
    spots: Paths | None = None,
    *,
    image_mpp: Mpp = None,
    patient: str | Mapping[str, str] | None = None,
    sections: Sequence[str] | None = None,
    sum_duplicate_genes: bool = False,
    mpp: Mpp | Literal["deprecated"] = "deprecated",
) -> SpatialData:
    r"""Read sections of legacy Spatial Transcriptomics (200 um pitch, 100 um spots) into one SpatialData.

    Spots are joined on the array coordinates in their names, whole as in ``"3x25"`` or adjusted as in ``"3.942x25.915"``.
    Those with counts but no position, or the other way round, are dropped and counted in the log. Images are opened lazily:
    only their headers are read here.

    Parameters
    ----------
    counts
        Raw counts with tabs, commas or semicolons between, one row per spot named ``"{x}x{y}"`` (or with another mark between,
        or ``X`` or a section in front), one column per gene, or the other way round; gzip by suffix. One path, a mapping from section to path, or a sequence of paths in the order of ``sections``.
    image
        H&E image (JPEG, PNG or TIFF; 8-bit RGB), given like ``counts``; of a TIFF with several images the largest, or the one
        whose name or number stands behind the path (``"slide.tif#1"``).
    spots
        Positions, separated as counts may be, with columns ``x``, ``y`` (or, by the names of the spots, ``new_x``, ``new_y``), ``pixel_x``,
        ``pixel_y`` (spot centres in pixels of the image) and, optionally, ``selected`` (spots with 0 are left out), given
        like ``counts``. None places the spots by their names on images that are cropped to the frame of the array of
        33 x 35 spots: ``pixel_x = (x - 1) * width / 32`` and ``pixel_y = (y - 1) * height / 34``.
    image_mpp
        Microns per pixel of the images, for all sections or as a mapping from section. None derives it from the
        spot pitch of 200 um.
    patient
        Person or animal the sections are from, for all sections or as a mapping from section. None takes each
        section as its own patient.
    sections
        Names of the sections, in order. None takes the keys of the mappings, or else the names of the count files up
        to their first dot.
    sum_duplicate_genes
        Whether the counts of columns that share a gene's name are summed rather than refused.
    mpp
        Former name of ``image_mpp``; goes in the next version.

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
        position; spots lie far off the grid of the others; ``image_mpp`` contradicts the spot pitch by more than 5 %; an
        image is not 3-channel uint8, or without ``spots`` not cropped to the frame.

    Warns
    -----
    FutureWarning
        ``mpp`` is given.

    Examples
    --------
    >>> import agl_sc
    >>> import numpy as np, pandas as pd
    >>> from PIL import Image
    >>> Image.fromarray(np.full((340, 320, 3), 200, dtype=np.uint8)).save("C5.jpg")  # cropped to the frame of the array
    >>> counts = pd.DataFrame({"FN1": [3, 0, 5], "CD74": [2, 4, 0]}, index=["10x10", "11x10", "10x11"])
    >>> counts.to_csv("C5.tsv.gz", sep="\t")
    >>> sdata = agl_sc.io.read_st("C5.tsv.gz", "C5.jpg", patient="C")
    >>> sdata["table"].obs["section"].tolist()
    ['C5', 'C5', 'C5']
    """
    check_flag("sum_duplicate_genes", sum_duplicate_genes)
    names = _section_names(counts, sections)
    check_section_names(names)
    files = _files(names, counts=counts, image=image, spots=spots)
    stated_mpp = per_section(_renamed(image_mpp, mpp), names, argument="image_mpp")
    patients = patients_of(patient, names)
    read = {name: read_counts(files[name].counts, sum_duplicate_genes=sum_duplicate_genes) for name in names}
    joined = {name: _join(name, files[name], read[name], stated_mpp=stated_mpp[name]) for name in names}
    images = {name: open_image(files[name].image) for name in names}
    for name in names:
        compare_with_spots(files[name].image, joined[name].image_mpp, name=name)
    return assemble(
        [
            SectionData(
                name=name,
                image=images[name],
                counts=joined[name].counts.matrix,
                genes=joined[name].counts.genes,
                spots=joined[name].counts.spots,
                centres_px=joined[name].centres_px,
                radius_px=_SPOT_RADIUS_UM / joined[name].image_mpp,
                patient=patients[name],
                image_mpp=joined[name].image_mpp,
                technology="st",
            )
            for name in names
        ]
    )


def read_st_folder(
    path: str | Path,
    *,
    image_mpp: Mpp = None,
    sections: Sequence[str] | None = None,
    patient: str | Mapping[str, str] | None = None,
    mpp: Mpp | Literal["deprecated"] = "deprecated",
) -> SpatialData:
    """Read a folder of sections named ``{S}.tsv.gz``, ``{S}_selection.tsv`` and ``{S}.jpg``.

    Parameters
    ----------
    path
        The folder.
    image_mpp
        As in :func:`read_st`; None derives it from the spot pitch.
    sections
        Which sections, in order. None reads all that have the three files, sorted by name.
    patient
        As in :func:`read_st`.
    mpp
        Former name of ``image_mpp``; goes in the next version.

    Returns
    -------
    As :func:`read_st`.
    """
    stated_mpp = _renamed(image_mpp, mpp)
    folder = path_of("path", path)
    if not folder.is_dir():
        msg = f"The folder '{folder}' does not exist."
        raise FileNotFoundError(msg)
    names = list(sections) if sections is not None else _complete_sections(folder)
    counts, image, spots = ({name: folder / f"{name}{suffix}" for name in names} for suffix in _SUFFIXES.values())
    return read_st(counts, image, spots, image_mpp=stated_mpp, patient=patient, sections=names)


def _renamed(image_mpp: Mpp, mpp: Mpp | Literal["deprecated"]) -> Mpp:
    """The scale by the present name of its argument or the former one."""
    if isinstance(mpp, str):
        return image_mpp
    if image_mpp is not None:
        msg = f"mpp={mpp!r} is the former name of image_mpp={image_mpp!r}; give image_mpp alone."
        raise ValueError(msg)
    msg = "mpp= is named image_mpp= now, and goes in the next version of agl-sc; write image_mpp=."
    warnings.warn(msg, FutureWarning, stacklevel=3)
    return mpp


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a section."""

    counts: Path
    """Counts, spots in rows."""
    image: Path
    """H&E image."""
    spots: Path | None
    """Positions of the spots; None where their names tell."""


@dataclass(frozen=True, slots=True, eq=False)
class _Joined:
    """Spots of a section that have both counts and a position."""

    counts: SpotCounts
    """Counts of these spots."""
    centres_px: FloatArray
    """(n_spots, 2), x and y."""
    image_mpp: float
    """Microns per pixel."""


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
    check_names("sections", sections)
    if isinstance(sections, str):
        return [sections]
    if sections is not None:
        return list(sections)
    if isinstance(counts, Mapping):
        return list(by_name(counts))
    return [name_after(path.name.split(".")[0]) for path in _listed(counts, argument="counts")]


def _files(names: Sequence[str], *, counts: Paths, image: Paths, spots: Paths | None) -> dict[str, _Files]:
    given = {"counts": counts, "image": image} | ({} if spots is None else {"spots": spots})
    paths = {argument: _paths(value, names, argument=argument) for argument, value in given.items()}
    for name in names:
        for argument in paths:
            path = paths[argument][name]
            if not (split_name(path)[0] if argument == "image" else path).is_file():
                msg = f"The {argument} file of section {name!r}, '{path}', does not exist."
                raise FileNotFoundError(msg)
    placed = paths.get("spots", dict.fromkeys(names))
    return {name: _Files(paths["counts"][name], paths["image"][name], placed[name]) for name in names}


def _paths(value: Paths, names: Sequence[str], *, argument: str) -> dict[str, Path]:
    if isinstance(value, Mapping):
        return {name: path_of(argument, path) for name, path in entries(value, names, argument=argument).items()}
    paths = _listed(value, argument=argument)
    if len(paths) != len(names):
        msg = f"{argument} has {len(paths)} paths for {len(names)} sections ({', '.join(names)}); give one for each."
        raise ValueError(msg)
    return dict(zip(names, paths, strict=True))


def _listed(value: str | Path | Sequence[str | Path], *, argument: str) -> list[Path]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return [path_of(argument, value)]
    return [path_of(argument, path) for path in value]


def _join(section: str, files: _Files, counts: SpotCounts, *, stated_mpp: float | None) -> _Joined:
    if files.spots is None:
        return _joined_by_frame(section, files, counts, stated_mpp=stated_mpp)
    centres = read_positions(files.spots, counts.spots)
    places = counts.places()
    rows = [row for row, place in enumerate(places) if place in centres]
    if not rows:
        msg = (
            f"No spot of section {section!r} has both counts (spots {', '.join(counts.spots[:3])}, ...) and a position "
            f"(spots {', '.join(map(shown_place, list(centres)[:3]))}, ...); give the positions the array coordinates that name "
            "the spots in the columns x and y, or new_x and new_y."
        )
        raise ValueError(msg)
    kept = SpotCounts(counts.path, [counts.spots[row] for row in rows], counts.genes, counts.matrix[rows])
    placed = [place for place in kept.places() if place]
    refuse_duplicates(list(map(shown_place, placed)), f"places of the spots of '{counts.path}'")
    dropped = len(places) - len(rows), len(centres) - len(rows)
    level = logging.WARNING if max(dropped) > _MANY * len(rows) else logging.INFO
    logger.log(level, "%s: %d spots; dropped %d without position and %d without counts", section, len(rows), *dropped)
    centres_px = np.array([centres[place] for place in placed], dtype=np.float64)
    image_mpp = check_mpp(stated_mpp, centres_px, "st", name=section, array=np.array(placed, dtype=np.float64))
    return _Joined(kept, centres_px, image_mpp)


def _joined_by_frame(section: str, files: _Files, counts: SpotCounts, *, stated_mpp: float | None) -> _Joined:
    """All spots, placed by their names on an image that is cropped to the array."""
    size_px = open_image(files.image).shape[:0:-1]
    centres_px, pitch_px = place_on_frame(counts, size_px, files.image)
    from_frame = PITCH_UM["st"] / float(pitch_px.mean())
    image_mpp = check_mpp(from_frame if stated_mpp is None else stated_mpp, centres_px, None, name=section)
    if abs(from_frame / image_mpp - 1) > FRAME_TOLERANCE:
        msg = (
            f"image_mpp={image_mpp:.4g} of {section!r} contradicts its image, '{files.image}': cropped to the frame of the array it has "
            f"{from_frame:.4g} um per pixel; correct image_mpp, or give spots=, the positions in an image cropped otherwise."
        )
        raise ValueError(msg)
    logger.info("%s: %d spots placed by their names on the frame of the array", section, len(counts.spots))
    return _Joined(counts, centres_px, image_mpp)
