"""Tile geometry: one specification, integer boxes per spot on the right pyramid level."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np

from agl_sc._sdata.sections import Section
from agl_sc.core.arrays import BoolArray, UInt8Array
from agl_sc.core.tiles.chunks import Chunks
from agl_sc.core.tiles.reader import Boxes
from agl_sc.pp._features.glass import glass_of

Mpp = float | Literal["image"]
TILE_PX, TILE_UM = 224, 112.0
"""Side of a usual tile."""
_SMALLEST_PX = 8
_MAX_UPSAMPLING = 2.0
_SLACK = 1.01
_OVERVIEW_BYTES = 64 * 2**20
_MOST_OVERVIEWS = 1024
_MOST_GLASS_PX = 2**21


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """What the coarsest level of an image tells."""

    background: UInt8Array
    """Colour of the background, (3,)."""
    digest: str
    """SHA-256 of its pixels; of some of its chunks where it is large."""
    glass: BoolArray | None
    """Which pixels have that colour, (y, x); None where the background is no glass, or the level is large."""


_overviews: dict[str, Overview] = {}


@dataclass(frozen=True, slots=True)
class TileSpec:
    """Size and scale of every tile."""

    tile_px: int = TILE_PX
    """Side of a tile in pixels, as the encoder sees it."""
    mpp: Mpp = 0.5
    """Microns per pixel of a tile, or ``"image"`` for the image's own, whatever it is."""

    @classmethod
    def of(cls, tile_px: int | None, mpp: Mpp, scales: Callable[[], Sequence[float]]) -> "TileSpec":
        """As asked for; where nobody says how many pixels, as many as the usual 112 um take at these microns per pixel."""
        if tile_px is not None or mpp != "image":
            return cls(TILE_PX if tile_px is None else tile_px, mpp)
        found = scales()
        return cls(max(_SMALLEST_PX, round(TILE_UM * len(found) / sum(found))), mpp)

    def __post_init__(self) -> None:
        if not isinstance(self.tile_px, Integral) or self.tile_px < _SMALLEST_PX:
            msg = f"tile_px={self.tile_px!r} is not a whole number of at least 8 pixels; 224 is usual."
            raise ValueError(msg)
        if not isinstance(self.mpp, str | Real) or (
            self.mpp != "image" and (isinstance(self.mpp, str) or not self.mpp > 0)
        ):
            msg = f"mpp={self.mpp!r} is neither a positive number of microns per pixel nor 'image'; 0.5 is usual."
            raise ValueError(msg)


def boxes_of(section: Section, spec: TileSpec, image_mpp: float, *, may_exceed: bool = False) -> Boxes:
    """Boxes of a section's tiles on the coarsest pyramid level that is at least as fine as the tile.

    Parameters
    ----------
    section
        Spots and image; spots with a NaN centre must have been taken out.
    spec
        Size and scale of the tiles.
    image_mpp
        Microns per pixel of the finest level.
    may_exceed
        Whether tiles may be larger than the image, as a wide field of view around spots may.

    Raises
    ------
    ValueError
        The image is so coarse that tiles would be up-sampled by more than 2x, or smaller than a tile both ways, or made of
        patches that are smaller than a tile.
    OSError
        A chunk of the coarsest level cannot be decoded.
    """
    mpp = image_mpp if spec.mpp == "image" else float(spec.mpp)
    if image_mpp / mpp > _MAX_UPSAMPLING * _SLACK:
        msg = (
            f"A tile at mpp={mpp:g} needs {image_mpp / mpp:.1f}x up-sampling of {section.image_key!r}, whose own resolution is "
            f"{image_mpp:.3g} um/px ({spec.tile_px * mpp:.0f} um are only {spec.tile_px * mpp / image_mpp:.0f} px there); "
            "read a finer image, or ask for mpp='image' of agl_sc.pp.embed."
        )
        raise ValueError(msg)
    finest = np.array(section.levels[0].shape[1:])
    scales = [finest / level.shape[1:] for level in section.levels]  # (y, x): odd sizes are rounded, each on its own
    index = max(i for i, scale in enumerate(scales) if i == 0 or image_mpp * scale.min() <= mpp * _SLACK)
    level, scale = section.levels[index], scales[index]
    side = max(1, round(spec.tile_px * mpp / (image_mpp * float(np.sqrt(scale.prod())))))
    if side > max(level.shape[1:]) and not may_exceed:
        msg = (
            f"A tile of {spec.tile_px} px at mpp={mpp:g} is {side} x {side} px of {_name(section, index)}, which has only "
            f"{level.shape[2]} x {level.shape[1]} px; use a smaller tile_px, or check image_mpp={image_mpp:g}."
        )
        raise ValueError(msg)
    corners = section.centres[:, ::-1] / scale - side / 2
    _check_patch(section, side_um=spec.tile_px * mpp, image_mpp=image_mpp)
    seen = overview(section)
    return Boxes(
        image=level,
        origins=np.round(corners).astype(np.int64),
        side=side,
        mpp=mpp,
        background=seen.background,
        overview_digest=seen.digest,
        name=_name(section, index),
    )


def _check_patch(section: Section, *, side_um: float, image_mpp: float) -> None:
    """Refuse a field of view that sees between the patches of an image."""
    if section.patch_px is not None and side_um > section.patch_px * image_mpp * _SLACK:
        msg = (
            f"A field of view of {side_um:.0f} um is wider than the patches of {section.patch_px * image_mpp:.0f} um that "
            f"{section.image_key!r} is made of; narrow it with context=() of agl_sc.pp.embed, or with a smaller tile_px= of agl_sc.pp.embed, or read the whole-slide image."
        )
        raise ValueError(msg)


def _name(section: Section, level: int) -> str:
    return f"image {section.image_key!r} (level {level})"


def overview(section: Section) -> Overview:
    """What the coarsest level of a section's image tells.

    Computed once for a lazy array: its name stands for its content.
    """
    name = section.levels[-1].name
    if name not in _overviews:
        while len(_overviews) >= _MOST_OVERVIEWS:
            del _overviews[next(iter(_overviews))]
        _overviews[name] = _overview(section)
    return _overviews[name]


def _overview(section: Section) -> Overview:
    level = section.levels[-1]
    chunks = Chunks(level, _name(section, len(section.levels) - 1))
    grid = list(np.ndindex(chunks.n_bytes.shape))
    if level.nbytes <= _OVERVIEW_BYTES:
        pixels = np.empty(level.shape, dtype=np.uint8)
        for chunk, decoded in zip(grid, chunks.decode(grid), strict=True):
            top, left = chunks.corner(chunk)
            pixels[:, top : top + decoded.shape[1], left : left + decoded.shape[2]] = decoded
    else:
        n_chunks = max(1, _OVERVIEW_BYTES // int(chunks.n_bytes.max()))
        some = [grid[i] for i in np.linspace(0, len(grid) - 1, n_chunks + 2, dtype=int)[1:-1]]
        pixels = np.concatenate([decoded.reshape(3, 1, -1) for decoded in chunks.decode(some)], axis=2)
    background = np.percentile(pixels, 95, axis=(1, 2)).astype(np.uint8)
    is_small = pixels.shape == level.shape and pixels[0].size <= _MOST_GLASS_PX
    glass = glass_of(pixels, background) if is_small else None
    return Overview(background, hashlib.sha256(pixels.tobytes()).hexdigest(), glass)
