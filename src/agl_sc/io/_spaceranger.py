"""What a folder of Space Ranger holds, and where."""

import contextlib
import glob
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da

from agl_sc._sdata.geometry import is_positive_number
from agl_sc.core.arguments import path_of
from agl_sc.io._image import open_image
from agl_sc.io._readable import readable

logger = logging.getLogger(__name__)

COUNTS_FILE = "filtered_feature_bc_matrix.h5"
_FACTORS = "scalefactors_json.json"
_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
_IMAGES = {"hires": "tissue_hires_image", "lowres": "tissue_lowres_image"}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Of the small images: Space Ranger writes PNG, people convert it."""
_MATRICES = ("matrix.mtx.gz", "matrix.mtx")
_CELLS = "segmented_outputs"
"""Folder of cells that Space Ranger 4 segments in images of Visium HD."""
_FEW = 6
"""Folders that a message lists."""
_COUNTS = re.compile(r"(?:(?:filtered_|raw_)?feature_bc_matrix(?:\.h5)?|matrix\.mtx(?:\.gz)?)$")
"""What the name of counts ends with; a sample's name may stand in front, and then in front of the other files too."""
_SIZE_TOLERANCE = 0.02
_MEND = "give the folder that Space Ranger wrote (its 'outs')"


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What a section is read from."""

    name: str
    """Section."""
    counts: Path
    """Count file, or folder with the counts in Matrix Market format."""
    positions: Path
    """Positions of all spots of the array."""
    image_file: Path
    """The image to keep."""
    image: da.Array
    """Its pixels, lazy."""
    scale: float
    """Pixels of that image per full-resolution pixel."""
    diameter_px: float | None
    """Diameter of a spot in pixels of that image; None where no file says."""


def find(name: str, folder: Path, *, fullres: str | Path | None, counts_file: str) -> Source:
    """Make sure that everything is there, and choose the image.

    Parameters
    ----------
    name
        Section.
    folder
        Space Ranger's ``outs``, or the folder that holds it. Files may bear the name of a sample in front.
    fullres
        Image that Space Ranger was run on.
    counts_file
        Name of the count file, or of a folder with the counts.

    Raises
    ------
    FileNotFoundError
        Something is missing.
    KeyError
        A scale factor is missing.
    ValueError
        The folder is one of Visium HD; a name fits several files; a file is damaged; the full-resolution image has another
        size than the one that Space Ranger was run on.
    """
    if not folder.is_dir():
        msg = f"The folder '{folder}' {'is a file; ' + _MEND if folder.exists() else 'does not exist'}."
        raise FileNotFoundError(msg)
    if not (folder / "spatial").is_dir() and (folder / "outs").is_dir():
        folder = folder / "outs"
    refuse_hd(folder)
    counts = _counts(folder, counts_file)
    prefix = _COUNTS.sub("", counts.name) if _COUNTS.search(counts.name) else ""
    factors_file = _locate(folder, _FACTORS, prefix=prefix)
    if factors_file is None:
        msg = f"'{folder / 'spatial' / _FACTORS}' does not exist; {_mend(folder, 'spatial')}."
        raise FileNotFoundError(msg)
    positions = _locate(folder, *_POSITIONS, prefix=prefix)
    if positions is None:
        listed = " nor ".join(f"spatial/{file}" for file in _POSITIONS)
        msg = f"'{folder}' has neither {listed}; {_mend(folder, 'spatial')}."
        raise FileNotFoundError(msg)
    factors = _read_factors(factors_file)
    kind, image_file = _choose_image(folder, fullres, prefix=prefix, factors=factors)
    scale = 1.0 if kind == "full-resolution" else _factor(factors, f"tissue_{kind}_scalef", factors_file)
    image = open_image(image_file)
    if kind == "full-resolution":
        _check_size(_small_images(folder, prefix), image_file, image, factors=factors)
    logger.info("%s: keeping the %s image '%s', %d x %d px", name, kind, image_file, image.shape[2], image.shape[1])
    has_diameter = "spot_diameter_fullres" in factors
    diameter_px = _factor(factors, "spot_diameter_fullres", factors_file) * scale if has_diameter else None
    return Source(name, counts, positions, image_file, image, scale, diameter_px)


def refuse_hd(folder: Path, barcode: str = "") -> None:
    """Say where to go with a folder of Visium HD, known by its names or by the barcodes of its bins or segmented cells."""
    is_bin = re.fullmatch(r"square_\d{3}um", folder.name) or re.match(r"s_\d{3}um_", barcode)
    is_cell = folder.name == _CELLS or barcode.startswith("cellid_")
    has_bins = (folder / "binned_outputs").is_dir() or any(folder.glob("square_*um"))
    has_cells = (folder / _CELLS).is_dir()
    if not (is_bin or is_cell or has_bins or has_cells):
        return
    inner = {"binned_outputs": folder.parent.parent, _CELLS: folder.parent}
    outs = inner.get(folder.parent.name if is_bin else folder.name, folder)
    cells = is_cell or (has_cells and not has_bins)
    what = "load_segmentations_only=True" if cells else "bin_size=8"
    arguments = "image_key='sample_full_image', image_mpp=..." if cells else "table_key='square_008um'"
    msg = (
        f"'{folder}' is of Visium HD; read it with spatialdata_io.visium_hd('{outs}', dataset_id='sample', {what}, "
        f"fullres_image_file=...), and go on with agl_sc.pp.embed(sdata, {arguments})."
    )
    raise ValueError(msg)


def _counts(folder: Path, counts_file: str) -> Path:
    """The count file, by its name, by its name after that of a sample, or else the same counts in Matrix Market format."""
    unpacked = folder / counts_file.removesuffix(".h5")
    if unpacked.is_dir() and not (folder / counts_file).is_file():
        return unpacked
    found = _locate(folder, counts_file)
    if found is None and counts_file == COUNTS_FILE:
        found = _locate(folder, *_MATRICES)
    if found is None:
        others = [file.name for file in sorted(folder.glob("*.h5"))]
        others += sorted(
            {
                str(file.parent.relative_to(folder))
                for name in _MATRICES
                for deep in ("*", "*/*")
                for file in folder.glob(f"{deep}/{name}")
            }
        )
        mend = f", or name one of its counts with counts_file= ({', '.join(others[:_FEW])})" if others else ""
        msg = f"'{folder / counts_file}' does not exist; {_mend(folder, counts_file.removesuffix('.h5'))}{mend}."
        raise FileNotFoundError(msg)
    return found


def _mend(folder: Path, part: str) -> str:
    """What to do about something that is missing: unpack the archive that holds it, or say which folder is meant."""
    for archive in sorted(folder.glob(f"*{glob.escape(part)}.tar*")):
        return f"unpack it: tar -xf '{archive}' -C '{folder}'"
    inner = [
        outs for outs in sorted(folder.glob("*/")) if (outs / "spatial").is_dir() or (outs / "outs/spatial").is_dir()
    ]
    if not inner:
        return _MEND
    listed = ", ".join(f"{outs.name!r}: '{outs}'" for outs in inner[:_FEW]) + (", ..." if len(inner) > _FEW else "")
    return f"{_MEND}, or several such folders by name, path={{{listed}}}"


def _locate(folder: Path, *names: str, prefix: str = "") -> Path | None:
    """The file of one of these names in ``spatial`` or beside it, either with the sample's name or without; else the only one with another."""
    places = [folder / place for place in dict.fromkeys(("spatial", f"{prefix}spatial", ""))]
    for file in (
        place / f"{before}{name}" for before in dict.fromkeys((prefix, "")) for place in places for name in names
    ):
        if file.is_file():
            return file
    fitting = sorted({file for place in places for name in names for file in place.glob(f"*[_.-]{name}")})
    if len(fitting) > 1:
        msg = (
            f"'{folder}' holds {len(fitting)} files that may be {names[0]} ({', '.join(file.name for file in fitting)}); "
            "name the counts of one sample with counts_file=, or keep one of them."
        )
        raise ValueError(msg)
    if not fitting:
        _refuse_packed(places, names)
    return fitting[0] if fitting else None


def _refuse_packed(places: Sequence[Path], names: Sequence[str]) -> None:
    """Say how to unpack what is there as GEO has it, every file compressed by itself."""
    packed = [file for place in places for name in names for file in sorted(place.glob(f"*{name}.gz"))]
    if packed:
        msg = f"'{packed[0]}' is compressed; unpack it first, with all beside it: gunzip '{packed[0].parent}'/*.gz."
        raise ValueError(msg)


def _small_images(folder: Path, prefix: str) -> dict[str, Path | None]:
    """By kind, PNG before what it was converted to."""
    found: dict[str, Path | None] = {}
    for kind, name in _IMAGES.items():
        files = (_locate(folder, f"{name}{suffix}", prefix=prefix) for suffix in _SUFFIXES)
        found[kind] = next(filter(None, files), None)
    return found


def _choose_image(
    folder: Path, fullres: str | Path | None, *, prefix: str, factors: Mapping[str, Any]
) -> tuple[str, Path]:
    """The finest image with a scale factor, or else the finest."""
    if fullres is not None:
        return "full-resolution", path_of("fullres_image", fullres)
    there = [(kind, file) for kind, file in _small_images(folder, prefix).items() if file is not None]
    scaled = [(kind, file) for kind, file in there if f"tissue_{kind}_scalef" in factors]
    if there:
        return (scaled or there)[0]
    named = " nor ".join(f"spatial/{name}{_SUFFIXES[0]}" for name in _IMAGES.values())
    msg = f"'{folder}' has neither {named} (nor either as JPEG or TIFF); pass fullres_image=."
    raise FileNotFoundError(msg)


def _check_size(
    small_images: Mapping[str, Path | None], file: Path, image: da.Array, *, factors: Mapping[str, Any]
) -> None:
    """Refuse a full-resolution image whose size is not that of the small image divided by its scale factor."""
    for kind, small in small_images.items():
        factor = factors.get(f"tissue_{kind}_scalef", 0)
        if small is None or not is_positive_number(factor):
            continue
        with contextlib.suppress(ValueError):  # a small image that is not needed may be anything
            expected = [n / float(factor) for n in open_image(small).shape[1:]]
            off = [abs(n / whole - 1) for n, whole in zip(image.shape[1:], expected, strict=True)]
            if min(off) <= _SIZE_TOLERANCE:
                return
            break
    else:
        return
    msg = (
        f"fullres_image='{file}' has {image.shape[2]} x {image.shape[1]} px, but Space Ranger was run on an image of about "
        f"{expected[1]:.0f} x {expected[0]:.0f} px; give that one, or none."
    )
    raise ValueError(msg)


def _read_factors(path: Path) -> dict[str, Any]:
    with readable(path, kind=" as scale factors"):
        factors = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(factors, dict):
        msg = f"'{path}' holds a {type(factors).__name__}, not scale factors by name; give the file that Space Ranger wrote."
        raise ValueError(msg)
    return factors


def _factor(factors: Mapping[str, Any], key: str, path: Path) -> float:
    if key not in factors:
        msg = f"'{path}' has no {key!r}; it has {', '.join(map(repr, factors)) or 'nothing'}; give the file that Space Ranger wrote, or pass fullres_image=."
        raise KeyError(msg)
    value = factors[key]
    if not is_positive_number(value):
        msg = f"{key} of '{path}' is {value!r}, not a positive number; give the file that Space Ranger wrote."
        raise ValueError(msg)
    return float(value)
