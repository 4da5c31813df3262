"""Microns per pixel as an image file states them, and whether they can be true."""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tifffile

from agl_sc._sdata.geometry import is_positive_number
from agl_sc.io._image import is_tiff, split_name
from agl_sc.io._tiff import series_of

logger = logging.getLogger(__name__)

PLAUSIBLE = (0.1, 20.0)
"""Microns per pixel of a scanned slide and its levels."""
_TOLERANCE = 0.05
_TOLD = 0.1
"""Relative difference between a file and the spots on it from which on it is told."""
_MAGNIFIED_UM = 10.0
"""Microns per pixel times magnification: .25 at 40x, .5 at 20x."""
_MOST_OFF = 3.0
"""Ratio to what the magnification tells from which on one of the two is wrong; scanners stay within 1.5."""
_UNITS_UM = {
    **dict.fromkeys(("", "um", "µm", "μm", "micron", "microns", "micrometer", "micrometre", "\\u00b5m"), 1.0),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("inch", "in"), 25400.0),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("pm", "picometer"), 1e-6),
    **dict.fromkeys(("m", "meter"), 1e6),
}
_TIFF_UNITS_UM = {2: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}
"""Length of the units that ResolutionUnit numbers."""


@dataclass(frozen=True, slots=True)
class FileScale:
    """What an image file says of the side of its pixels."""

    x: float
    """Width of a pixel in microns."""
    y: float
    """Height of a pixel in microns."""
    source: str
    """Where in the file that is."""
    magnification: float | None = None
    """Of the lens; None where the file does not say."""

    @property
    def mpp(self) -> float:
        """Microns per pixel; the geometric mean of both axes."""
        return math.sqrt(self.x * self.y)

    def fault(self) -> str | None:
        """What is wrong with it, if anything, as the end of a sentence."""
        low, high = PLAUSIBLE
        told = f"says {self._shown()} um per pixel ({self.source})"
        if not low <= self.mpp <= high:
            return f"{told}, outside {low:g} to {high:g}, where slides lie, as files that are ten times off do"
        if abs(self.x / self.y - 1) > _TOLERANCE:
            return f"{told}, pixels that are not square"
        if self.magnification:
            expected = _MAGNIFIED_UM / self.magnification
            if not 1 / _MOST_OFF <= self.mpp / expected <= _MOST_OFF:
                return f"{told} and a magnification of {self.magnification:g}x, which has about {expected:.3g}"
        return None

    def _shown(self) -> str:
        return f"{self.x:.4g}" if abs(self.x / self.y - 1) < 1e-3 else f"{self.x:.4g} x {self.y:.4g}"


def scale_of_tiff(path: Path, name: str = "") -> FileScale | None:
    """Microns per pixel of an image of a TIFF file, chosen as :func:`open_tiff` does; None where it says nothing of them.

    Read are, in this order, OME-XML (``PhysicalSizeX``), Aperio's description (``MPP``, ``AppMag``), ImageJ's unit, and the
    resolution tags, unless they tell the resolution of a print (more than 20 um per pixel, that is below 1,270 dpi).
    """
    number = series_of(path, name)
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[number]
        page, sizes = series.keyframe, dict(zip(series.axes, series.shape, strict=True))
        description = str(page.description or "")
        if tiff.is_ome and tiff.ome_metadata:
            found = _of_ome(tiff.ome_metadata, (sizes.get("X", 0), sizes.get("Y", 0)))
            if found is not None:
                return found
        if tiff.is_svs or description.startswith("Aperio"):
            found = _of_aperio(description)
            if found is not None:
                return found
        return _of_tags(tiff, page)


def _of_ome(xml: str, size: tuple[int, int]) -> FileScale | None:
    """Of the image of that size (x, y), or else of the one with the most pixels; None where images of the size differ."""
    pixels = [
        dict(re.findall(r"""(\w+)\s*=\s*["']([^"']*)["']""", tag))
        for tag in re.findall(r"<(?:\w+:)?Pixels\b([^>]*)>", xml)
    ]
    if not pixels:
        return None
    sizes = [(_number(entry.get("SizeX"), 0), _number(entry.get("SizeY"), 0)) for entry in pixels]
    taken = size if size in sizes else max(sizes, key=math.prod)
    found = {_ome_scale(entry) for entry, own in zip(pixels, sizes, strict=True) if own == taken}
    return found.pop() if len(found) == 1 else None


def _ome_scale(pixels: Mapping[str, str]) -> FileScale | None:
    sides = []
    for axis in "XY":
        side = _number(pixels.get(f"PhysicalSize{axis}"), math.nan)
        unit = _UNITS_UM.get(str(pixels.get(f"PhysicalSize{axis}Unit", "")).strip().lower(), math.nan)
        sides.append(side * unit)
    return _scale(*sides, source="OME PhysicalSizeX and PhysicalSizeY")


def _of_aperio(description: str) -> FileScale | None:
    entries = dict(re.findall(r"\|\s*([\w ]+?)\s*=\s*([^|]*)", description))
    mpp = _number(entries.get("MPP"), math.nan)
    return _scale(mpp, mpp, source="Aperio's MPP", magnification=_number(entries.get("AppMag"), math.nan))


def _of_tags(tiff: tifffile.TiffFile, page: Any) -> FileScale | None:
    tags = page.tags
    if "XResolution" not in tags or "YResolution" not in tags:
        return None
    per_unit = [_ratio(tags[name].value) for name in ("XResolution", "YResolution")]
    unit = str((tiff.imagej_metadata or {}).get("unit", "")).strip().lower() if tiff.is_imagej else ""
    length = _UNITS_UM.get(unit) if unit else _TIFF_UNITS_UM.get(int(tags.get("ResolutionUnit", _Inch()).value))
    if length is None or not all(value > 0 for value in per_unit):
        return None
    found = _scale(*(length / value for value in per_unit), source="ImageJ's unit" if unit else "TIFF resolution tags")
    if found is not None and not unit and max(found.x, found.y) > PLAUSIBLE[1]:
        logger.info(
            "'%s' has the resolution of a print (%.4g um per pixel), which tells nothing", tiff.filename, found.x
        )
        return None
    return found


@dataclass(frozen=True, slots=True)
class _Inch:
    """What TIFF takes for a ResolutionUnit that is missing."""

    value: int = 2


def scale_of_properties(properties: Mapping[str, str]) -> FileScale | None:
    """Microns per pixel as OpenSlide states them; None where it does not."""
    sides = [_number(properties.get(f"openslide.mpp-{axis}"), math.nan) for axis in "xy"]
    magnification = _number(properties.get("openslide.objective-power"), math.nan)
    return _scale(*sides, source="openslide.mpp-x and openslide.mpp-y", magnification=magnification)


def scale_of_units(x: tuple[float, Any], y: tuple[float, Any], *, source: str) -> FileScale | None:
    """Microns per pixel of sides with their units of length; None where a unit is missing or none of length."""
    sides = [side * _UNITS_UM.get(str(unit or "none").strip().lower(), math.nan) for side, unit in (x, y)]
    return _scale(*sides, source=source)


def _scale(x: float, y: float, *, source: str, magnification: float = math.nan) -> FileScale | None:
    if not is_positive_number(x) or not is_positive_number(y):
        return None
    return FileScale(float(x), float(y), source, magnification if is_positive_number(magnification) else None)


def _number(text: Any, default: float) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return default


def _ratio(value: Any) -> float:
    """A rational of TIFF."""
    numerator, denominator = value if isinstance(value, tuple) else (value, 1)
    return numerator / denominator if denominator else math.nan


def agreed_mpp(
    stated: float | None, found: FileScale | None, path: Path, *, name: str, on_conflict: Literal["refuse", "stated"]
) -> float:
    """Microns per pixel of a slide, of what its file says and what the user does.

    Parameters
    ----------
    stated
        By the user; None if nothing.
    found
        By the file; None if nothing.
    path
        The file.
    name
        Section, as messages call it.
    on_conflict
        Whether a contradiction is refused, or what is stated goes before.

    Raises
    ------
    ValueError
        Nothing is known, what is known cannot be true, or both contradict each other.
    """
    low, high = PLAUSIBLE
    if stated is not None and not (is_positive_number(stated) and low <= stated <= high):
        msg = f"image_mpp={stated!r} of {name!r} is no number of microns per pixel from {low:g} to {high:g}, where slides lie; give the side of a pixel."
        raise ValueError(msg)
    if found is None:
        if stated is None:
            msg = f"'{path}' does not say how many microns a pixel has; pass image_mpp=, such as 0.5 of a scan at 20x or 0.25 at 40x."
            raise ValueError(msg)
        return float(stated)
    fault = found.fault()
    if stated is None:
        if fault is not None:
            msg = f"'{path}' {fault}; pass image_mpp=, the side of a pixel in microns, to go before it."
            raise ValueError(msg)
        return found.mpp
    if fault is not None or on_conflict == "stated":
        return float(stated)
    if abs(found.mpp / stated - 1) > _TOLERANCE:
        msg = (
            f"image_mpp={stated:.4g} of {name!r} contradicts '{path}', which says {found.mpp:.4g} um per pixel ({found.source}); leave "
            "image_mpp= out where the file is right, or pass trust_file=False (--distrust-file) where it is wrong."
        )
        raise ValueError(msg)
    return float(stated)


def compare_with_spots(file: object, image_mpp: float | None, *, name: str) -> None:
    """Tell of an image whose file, a TIFF, says another scale than the spots on it; nothing of an image that is none in a file."""
    if not isinstance(file, str | Path) or image_mpp is None:
        return
    path, image = split_name(file)
    found = scale_of_tiff(path, image) if is_tiff(path) else None
    if found is not None and abs(found.mpp / image_mpp - 1) > _TOLD:
        logger.warning(
            "%s: '%s' says %.4g um per pixel (%s), its spots %.4g, which is taken; is it the image of these spots, at its own size?",
            *(name, path, found.mpp, found.source, image_mpp),
        )
