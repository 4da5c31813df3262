"""What ``uns["spatial"]`` of an AnnData holds per library: images and scale factors under the names that people use."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agl_sc._sdata.geometry import is_positive_number
from agl_sc.core.arguments import label_of
from agl_sc.io._image import Image, open_image, rgb_from_array
from agl_sc.io._layout import refuse_duplicates

logger = logging.getLogger(__name__)

ONLY_LIBRARY = "section"
"""Name of the one section where nothing names it."""
_KINDS = {
    **dict.fromkeys(("fullres", "full", "fullresolution"), "fullres"),
    **dict.fromkeys(("hires", "highres", "highresolution"), "hires"),
    **dict.fromkeys(("lowres", "lowresolution"), "lowres"),
}
"""Images that Space Ranger knows, finest first."""
_AXES = 3
"""Of an image."""
_SAME_SIZE = 1.1
"""Ratio up to which sizes are the same, but for rounding."""
_DARKEST_WHITE = 16
"""Numbers up to this could be shares of 1 that resampling made too large."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Image of a library and what is known of its scale."""

    name: str
    """Library, which names the section."""
    image: Image
    """(c, y, x), uint8."""
    scale: float
    """Pixels of ``image`` per full-resolution pixel."""
    factors: Mapping[str, Any]
    """``uns["spatial"][library]["scalefactors"]``."""

    def number(self, key: str) -> float | None:
        """A scale factor in full-resolution pixels; None where it is missing."""
        return None if self.factors.get(key) is None else positive(self.factors[key], key=key, name=self.name)


def libraries_of(uns: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Libraries of ``uns["spatial"]`` by name; flags such as ``is_single`` and coordinates kept there are none."""
    spatial = uns.get("spatial")
    if not isinstance(spatial, Mapping):
        return {}
    if isinstance(spatial.get("images"), Mapping) and not {"images", "scalefactors"} & set(spatial["images"]):
        return {ONLY_LIBRARY: spatial}  # without the level of libraries
    entries = {key: entry for key, entry in spatial.items() if isinstance(entry, Mapping)}
    described = [key for key, entry in entries.items() if {"images", "scalefactors"} & set(entry)]
    # spatialdata-io leaves metadata alone beside the libraries that it makes of images
    keys = described or list(entries)
    names = [label_of(key) for key in keys]
    refuse_duplicates(names, "libraries of uns['spatial']")
    return {name: spatial[key] for name, key in zip(names, keys, strict=True)}


def source_in_uns(libraries: Mapping[str, Mapping[str, Any]], name: str, image_key: str | None) -> Source:
    """Image of a library with its scale.

    Parameters
    ----------
    libraries
        As :func:`libraries_of` gives them.
    name
        Library to take.
    image_key
        Image to take. None takes the finest of those that Space Ranger knows, or else the only one there is.

    Raises
    ------
    KeyError
        There is no such library or image, or its scale is not known.
    """
    if name not in libraries:
        kept = (
            ""
            if libraries
            else ", or keep them when putting sections together: anndata.concat(..., uns_merge='unique')"
        )
        msg = f"uns['spatial'] has no library {name!r} (it has {', '.join(libraries) or 'none'}); pass image={kept}."
        raise KeyError(msg)
    images, factors = _part(libraries[name], "images"), _part(libraries[name], "scalefactors")
    key = _image_key(images, factors, image_key)
    if key is None:
        wanted = "hires or lowres" if image_key is None else image_key
        there = [str(image) for image, pixels in images.items() if pixels is not None]
        which = ("name one of them with image_key=, or " if there else "") + _pass_image(libraries[name])
        msg = f"Library {name!r} has no image {wanted}; it has {', '.join(there) or 'none'}; {which}."
        raise KeyError(msg)
    factor = _factor_key(factors, key)
    if factor is None and kind_of(key) != "fullres":
        msg = (
            f"The scalefactors of library {name!r} lack 'tissue_{kind_of(key)}_scalef'; they are {', '.join(map(str, factors)) or 'none'}; put it into "
            f"uns['spatial'][{name!r}]['scalefactors'] (pixels of this image per pixel that obsm['spatial'] counts), or {_pass_image(libraries[name])}."
        )
        raise KeyError(msg)
    logger.info("%s: taking the %s image of uns['spatial']", name, key)
    _check_factors(images, factors, name=name)
    scale = 1.0 if factor is None else positive(factors[factor], key=factor, name=name)
    return Source(name, opened(images[key], name), scale, factors)


def _check_factors(
    images: Mapping[str, Any], factors: Mapping[str, Any], *, name: str, given: Image | None = None
) -> None:
    """Refuse scale factors by which the images of a library, and the full one that is ``given``, are of several sizes at full resolution."""
    widths: dict[str, float] = {} if given is None else {"image=": max(given.shape)}
    for key, pixels in images.items():
        factor = _factor_key(factors, key)
        if factor is not None and np.ndim(pixels) == _AXES:
            widths[key] = max(np.shape(pixels)) / positive(factors[factor], key=factor, name=name)
    if len(widths) > 1 and max(widths.values()) > _SAME_SIZE * min(widths.values()):
        listed = ", ".join(f"{key} of {width:.0f} px" for key, width in widths.items())
        msg = (
            f"By their scale factors the images of library {name!r} are of several sizes at full resolution ({listed}); pass the image whose pixels "
            f"obsm['spatial'] counts, correct the factors in uns['spatial'][{name!r}]['scalefactors'], or take the wrong image out of uns['spatial'][{name!r}]['images']."
        )
        raise ValueError(msg)


def _pass_image(library: Mapping[str, Any]) -> str:
    """The mend that always works, with the full-resolution image where Space Ranger's metadata name it."""
    path = _part(library, "metadata").get("source_image_path")
    if not isinstance(path, str):
        return "pass image=, the one whose pixels obsm['spatial'] counts"
    return f"pass image=, the one whose pixels obsm['spatial'] counts (its metadata say {path!r})"


def source_given(libraries: Mapping[str, Mapping[str, Any]], name: str, image: Any) -> Source:
    """Full-resolution image that was passed, with what ``uns["spatial"]`` says of the library, if anything."""
    library, pixels = libraries.get(name, {}), opened(image, name)
    factors = _part(library, "scalefactors")
    _check_factors(_part(library, "images"), factors, name=name, given=pixels)
    return Source(name, pixels, 1.0, factors)


def kind_of(key: str) -> str:
    """Name of an image or of its scale factor without what libraries put around it: ``"tissue_hires_image"`` is ``"hires"``."""
    bare = re.sub(r"^(?:(?:tissue|image|img)_)+|(?:_(?:image|img|scalef))+$", "", str(key))
    return _KINDS.get(re.sub(r"[^a-z]", "", bare.lower()), bare)


def positive(value: Any, *, key: str, name: str) -> float:
    """A scale factor as a number above zero, however it was stored."""
    number = np.asarray(value).item() if np.size(value) == 1 and not isinstance(value, str) else value
    if not is_positive_number(number):
        msg = f"{key}={value!r} of library {name!r} is not a positive number; correct it in uns['spatial'][{name!r}]['scalefactors']."
        raise ValueError(msg)
    return float(number)


def opened(image: Any, name: str) -> Image:
    """Image (c, y, x) uint8 from a path, or an array of bytes, of floats up to 1 or of whole bytes in another type."""
    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, np.ndarray) and image.dtype != np.uint8 and image.dtype.kind in "iuf" and image.size:
        lowest, highest = image.min(), image.max()
        if lowest >= 0 and _DARKEST_WHITE <= highest <= 255:
            image = np.rint(image).astype(np.uint8)
    return rgb_from_array(image, name=name)


def _part(library: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = library.get(key)
    return part if isinstance(part, Mapping) else {}


def _image_key(images: Mapping[str, Any], factors: Mapping[str, Any], wanted: str | None) -> str | None:
    """Key of the image to take; None where there is none, or several of which no one is the finest."""
    there = [key for key in images if images[key] is not None]
    if wanted is not None:
        same = [key for key in there if key == wanted] or [key for key in there if kind_of(key) == kind_of(wanted)]
        return same[0] if same else None
    for kind in dict.fromkeys(_KINDS.values()):
        known = sorted((key for key in there if kind_of(key) == kind), key=lambda key: key != kind)
        if known:
            return known[0]
    scaled = [key for key in there if _factor_key(factors, key) is not None]
    return scaled[0] if len(scaled) == 1 else None


def _factor_key(factors: Mapping[str, Any], key: str) -> str | None:
    """Scale factor that belongs to an image."""
    named = [f"tissue_{key}_scalef", f"tissue_{kind_of(key)}_scalef", key, kind_of(key)]
    same = [factor for factor in factors if kind_of(factor) == kind_of(key)]
    return next((factor for factor in (*named, *same) if factor in factors), None)
