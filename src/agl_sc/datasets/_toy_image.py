"""Procedural H&E: smooth tissue fields in, a stained section and its spots out (numpy and scipy only).

Everything is drawn as amounts of haematoxylin, eosin and haemoglobin per pixel, at 1 um per pixel, and turned into colour by
the Beer-Lambert law. Masks that need no fine detail are computed at half resolution.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from agl_sc.core.arrays import Float32Array, FloatArray

IMAGE_MPP = 1.0
PITCH_PX = 100.0
SPOT_RADIUS_PX = 27.5
VISIBLE_FIELDS = ("epithelium", "lymphocytes", "collagen", "adipose", "haemorrhage")
"""Tissue fields that the drawing shows, in the order of the columns of :attr:`ToySection.fields`."""
FIELD_SCALE_PX = 110.0
"""Scale on which the tissue changes."""

_HALF = 2
_BLOCK = 1024
_MARGIN_PX = 70.0
_STAINS = np.array([[0.60, 0.74, 0.33], [0.10, 0.86, 0.44], [0.07, 0.84, 0.66]], dtype=np.float32)
"""Optical density in red, green and blue of one unit of haematoxylin, eosin and haemoglobin."""
_GLASS = np.array([245.0, 242.0, 246.0], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class ToySection:
    """One drawn section."""

    image: NDArray[np.uint8]
    """H&E, (3, side, side), 1 um per pixel."""
    centres: FloatArray
    """Spot centres x, y in pixels, (n_spots, 2); the centre of pixel (0, 0) is at (0.5, 0.5)."""
    fields: FloatArray
    """Visible tissue fields at the spots, (n_spots, 5): mean 0, variance 1, uncorrelated over the spots."""
    invisible: FloatArray
    """A field of the same law that leaves no trace in the image, (n_spots,)."""


@dataclass(frozen=True, slots=True)
class _Tissue:
    """Maps at half resolution, each (side / 2, side / 2)."""

    inside: Float32Array
    """1 in the tissue, 0 on the glass."""
    fields: dict[str, Float32Array]
    """Visible fields."""
    nests: Float32Array
    """1 in epithelium."""
    holes: Float32Array
    """1 where the glass shows through: lumina, fat, torn stroma."""
    fat: Float32Array
    """1 in fat tissue, its membranes included."""
    fibres: Float32Array
    """Fibrous texture, about standard normal."""
    blood: Float32Array
    """1 in pools of red cells."""
    direction: Float32Array
    """Angle of the fibres, radians."""


def draw_section(
    rng: np.random.Generator, n_spots_per_side: int, *, stain_offset: float = 0.0, field_px: float = FIELD_SCALE_PX
) -> ToySection:
    """Draw one section.

    Parameters
    ----------
    rng
        Source of all randomness.
    n_spots_per_side
        Columns of the hexagonal grid across the image; the tissue covers about three quarters of the grid.
    stain_offset
        Log factor on haematoxylin; eosin gets the opposite.
    field_px
        Scale on which the tissue changes, in pixels.

    Returns
    -------
    Image, spots and the fields at the spots.
    """
    side = int(np.ceil(((n_spots_per_side - 0.5) * PITCH_PX + 2 * _MARGIN_PX) / 16)) * 16
    level = _outline(rng, side)
    centres = _hexagonal_grid(n_spots_per_side, side)
    centres = centres[_at(level, centres) > 0.0]
    maps, values = _fields(rng, side, centres, field_px=field_px)
    tissue = _tissue(rng, level, dict(zip(VISIBLE_FIELDS, maps, strict=True)))
    image = _render(rng, tissue, stain_offset)
    return ToySection(image, centres, values[:, :-1], values[:, -1])


# --- fields ----------------------------------------------------------------------------------------------------------


def _resize(array: Float32Array, size: int) -> Float32Array:
    image = Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.float32)


def _noise(rng: np.random.Generator, size: int, scale: float) -> Float32Array:
    """Smooth standard normal noise, (size, size); `scale` is the sd of the smoothing kernel in pixels of the result."""
    step = max(scale / 2.0, 1.0)
    n = int(np.ceil(size / step)) + 1
    coarse = gaussian_filter(rng.standard_normal((n, n), dtype=np.float32), scale / step, mode="wrap")
    coarse /= coarse.std()
    return _resize(coarse, size) if step > 1.0 else coarse[:size, :size]


def _grain(rng: np.random.Generator, size: int, scale: float) -> Float32Array:
    """Fine noise like :func:`_noise`, (size, size), repeating every 512 pixels: too fine for an eye to notice, and cheap."""
    patch = gaussian_filter(rng.standard_normal((512, 512), dtype=np.float32), scale, mode="wrap")
    repeats = -(-size // 512)
    return np.tile(patch / patch.std(), (repeats, repeats))[:size, :size]


def _at(half: Float32Array, points: FloatArray) -> Float32Array:
    """Values of a half-resolution map at x, y in full-resolution pixels."""
    columns, rows = np.clip(points.T // _HALF, 0, half.shape[0] - 1).astype(np.intp)
    return np.asarray(half[rows, columns])


def _sigmoid(x: NDArray[Any]) -> Float32Array:
    return np.asarray(1 / (1 + np.exp(np.clip(-x, -30, 30))), dtype=np.float32)


def _outline(rng: np.random.Generator, side: int) -> Float32Array:
    """Height above the tissue's edge, (side / 2, side / 2): positive inside; 1 in the middle."""
    size = side // _HALF
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    shift_x, shift_y = (0.08 * _noise(rng, size, size / 6) for _ in range(2))
    x, y = x + shift_x - shift_x.mean(), y + shift_y - shift_y.mean()
    radius = (np.abs(x) ** 2.4 + np.abs(y) ** 2.4) ** np.float32(1 / 2.4)
    rough = 0.012 * _noise(rng, size, 9.0) + 0.004 * _noise(rng, size, 2.5)
    edge = np.abs(np.linspace(-1, 1, size, dtype=np.float32))
    frame = 1.0 - _MARGIN_PX / side - np.maximum(edge, edge[:, None])
    return np.asarray(np.minimum(0.95 - radius, frame) + rough, dtype=np.float32)


def _hexagonal_grid(n_columns: int, side: int) -> FloatArray:
    height = PITCH_PX * np.sqrt(3) / 2
    n_rows = int((side - 2 * _MARGIN_PX) // height) + 1
    rows, columns = np.mgrid[:n_rows, :n_columns]
    x = (columns + 0.5 * (rows % 2)) * PITCH_PX
    grid = np.column_stack([x.ravel(), (rows * height).ravel()])
    return np.asarray(grid - grid.mean(axis=0) + side / 2)


def _fields(
    rng: np.random.Generator, side: int, centres: FloatArray, *, field_px: float
) -> tuple[list[Float32Array], FloatArray]:
    """Draw the fields and decorrelate them over the spots.

    Returns
    -------
    Maps of the visible fields at half resolution, and the values of all fields (the invisible one last) at the spots.
    """
    size = side // _HALF
    raw = [_noise(rng, size, field_px / _HALF) for _ in range(len(VISIBLE_FIELDS) + 1)]
    at_spots = np.column_stack([_at(field, centres) for field in raw]).astype(np.float64)
    mean = at_spots.mean(axis=0)
    _, r = np.linalg.qr(at_spots - mean)
    mixing = np.linalg.inv(r * np.sign(np.diag(r))[:, None]) * np.sqrt(len(centres))
    values = (at_spots - mean) @ mixing
    maps = [
        sum(np.float32(w) * (field - np.float32(m)) for w, field, m in zip(column, raw, mean, strict=True))
        for column in mixing.T[:-1]
    ]
    return [np.asarray(m, dtype=np.float32) for m in maps], values


# --- tissue ----------------------------------------------------------------------------------------------------------


def _tissue(rng: np.random.Generator, level: Float32Array, fields: dict[str, Float32Array]) -> _Tissue:
    size = level.shape[0]
    inside = _sigmoid(level * size / 3)
    texture = 0.75 * _noise(rng, size, 11.0) + 0.35 * _noise(rng, size, 4.5)
    nests = _sigmoid(9.0 * (1.1 * fields["epithelium"] + texture - 0.55))
    fat, bubbles = _fat(rng, fields["adipose"])
    nests = nests * (1 - fat)
    direction = _fibre_direction(rng, gaussian_filter(nests + fat, 9.0))
    fibres = _line_integral(rng, direction)
    loose = -0.5 * fields["collagen"] + 0.8 * _noise(rng, size, 7.0) - 0.8 * fibres - 2.1
    clefts = _sigmoid(8.0 * loose) * (1 - nests) * (1 - fat)
    lumina = _sigmoid(7.0 * (_noise(rng, size, 6.0) - 1.75)) * _sigmoid(8.0 * (nests - 0.7))
    holes = np.maximum.reduce([clefts, lumina, bubbles])
    blood = _sigmoid(6.0 * (0.9 * fields["haemorrhage"] + 0.8 * _noise(rng, size, 8.0) - 1.7))
    blood *= (1 - nests) * (1 - 0.95 * fat)
    return _Tissue(inside, fields, nests, holes, fat, fibres, blood, direction)


def _fat(rng: np.random.Generator, adipose: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Fat tissue and, in it, the empty insides of its cells: a Voronoi diagram with thin walls."""
    size = adipose.shape[0]
    fat = _sigmoid(8.0 * (adipose + 0.5 * _noise(rng, size, 14.0) - 1.25))
    seeds = _jittered_grid(rng, size, 24.0, jitter=0.42)
    rows, columns = np.nonzero(fat > 0.02)
    bubbles = np.zeros_like(fat)
    if len(rows):
        nearest, _ = cKDTree(seeds).query(np.column_stack([columns, rows]), k=2)
        wall = 1.6 + 0.7 * _noise(rng, size, 10.0)[rows, columns]
        bubbles[rows, columns] = _sigmoid(2.2 * ((nearest[:, 1] - nearest[:, 0]).astype(np.float32) - wall))
    return fat, bubbles * fat


def _fibre_direction(rng: np.random.Generator, obstacles: Float32Array) -> Float32Array:
    """Angle of the level lines of a smooth stream function, so that fibres run around nests and fat."""
    size = obstacles.shape[0]
    stream = 120.0 * _noise(rng, size, 150.0) + 5.0 * _noise(rng, size, 22.0) + 22.0 * obstacles
    turn = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    stream += 0.9 * (np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y)
    along_y, along_x = np.gradient(stream)
    return np.asarray(np.arctan2(along_x, -along_y), dtype=np.float32)


def _line_integral(rng: np.random.Generator, direction: Float32Array, n_steps: int = 7) -> Float32Array:
    """White noise averaged along the direction field (line integral convolution), standardised."""
    size = direction.shape[0]
    noise = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), 0.8)
    dx, dy = np.cos(direction), np.sin(direction)
    total = noise.copy()
    for sign in (1.8, -1.8):
        y, x = np.mgrid[:size, :size].astype(np.float32)
        for _ in range(n_steps):
            rows, columns = _nearest(y, size), _nearest(x, size)
            y += sign * dy[rows, columns]
            x += sign * dx[rows, columns]
            total += noise[_nearest(y, size), _nearest(x, size)]
    total = gaussian_filter(total, 0.5)
    return np.asarray((total - total.mean()) / total.std(), dtype=np.float32)


def _nearest(coordinate: Float32Array, size: int) -> NDArray[np.int32]:
    return np.asarray(np.clip(coordinate + 0.5, 0, size - 1), dtype=np.int32)


# --- colour ----------------------------------------------------------------------------------------------------------


def _render(rng: np.random.Generator, tissue: _Tissue, stain_offset: float) -> NDArray[np.uint8]:
    haematoxylin, eosin = _ground(rng, tissue)
    nuclei = _nuclei(rng, tissue)
    haemoglobin = _red_cells(rng, tissue)
    side = len(nuclei)
    grain = _grain(rng, side, 1.0)
    haematoxylin = np.maximum(haematoxylin * (1 + 0.12 * grain), nuclei * (1 + 0.16 * grain))
    eosin *= (1 - 0.6 * np.minimum(nuclei, 1)) * (1 + 0.10 * _grain(rng, side, 1.6))
    amounts = (haematoxylin * np.exp(stain_offset), eosin * np.exp(-stain_offset), haemoglobin)
    amounts = tuple(gaussian_filter(np.asarray(a, dtype=np.float32), 0.7, truncate=2.5) for a in amounts)
    speckle = 1.8 * _grain(rng, side, 0.4)
    image = np.empty((3, side, side), dtype=np.uint8)
    for channel in range(3):
        density = sum(a * stain[channel] for a, stain in zip(amounts, _STAINS, strict=True))
        value = _GLASS[channel] * np.exp(-density) + speckle
        image[channel] = np.clip(np.rint(value), 0, 255)
    return image


def _ground(rng: np.random.Generator, tissue: _Tissue) -> tuple[Float32Array, Float32Array]:
    """Haematoxylin and eosin of everything but nuclei, at full resolution."""
    size = len(tissue.inside)
    collagen = _sigmoid(1.5 * tissue.fields["collagen"])
    bundles = _noise(rng, size, 12.0)
    stroma = 0.16 + 0.44 * collagen + (0.05 + 0.07 * collagen) * tissue.fibres + 0.04 * bundles
    nests = 0.24 + 0.16 * collagen + 0.03 * bundles
    eosin = stroma + (nests - stroma) * tissue.nests
    eosin += (0.26 - eosin) * tissue.fat
    lymph = _sigmoid(2.5 * (tissue.fields["lymphocytes"] - 0.7)) * (1 - tissue.nests)
    haematoxylin = 0.045 + 0.02 * tissue.fibres * (1 - tissue.nests) + 0.19 * tissue.nests + 0.08 * lymph
    haematoxylin *= 1 - 0.8 * tissue.fat
    solid = tissue.inside * (1 - tissue.holes)
    side = size * _HALF
    return tuple(_resize(np.maximum(a * solid, 0.0).astype(np.float32), side) for a in (haematoxylin, eosin))  # type: ignore[return-value]


def _jittered_grid(rng: np.random.Generator, size: int, pitch: float, *, jitter: float = 0.3) -> FloatArray:
    """Hexagonal grid of x, y over a square, each point moved by normal noise of `jitter` pitches."""
    rows, columns = np.mgrid[: int(size / (0.866 * pitch)) + 1, : int(size / pitch) + 1]
    points = np.stack([(columns + 0.5 * (rows % 2)) * pitch, rows * 0.866 * pitch], axis=-1).reshape(-1, 2)
    return np.asarray(points + jitter * pitch * rng.standard_normal(points.shape))


def _scatter(rng: np.random.Generator, chance: Float32Array, pitch: float, *, jitter: float) -> FloatArray:
    """Points of a jittered grid, each kept with the probability that the half-resolution map gives."""
    points = _jittered_grid(rng, _HALF * len(chance), pitch, jitter=jitter)
    return points[rng.random(len(points)) < _at(chance, points)]


def _nuclei(rng: np.random.Generator, tissue: _Tissue) -> Float32Array:
    """Haematoxylin of the nuclei, at full resolution."""
    solid = tissue.inside * (1 - tissue.holes)
    stroma = solid * (1 - tissue.nests) * (1 - 0.85 * tissue.blood)
    canvas = np.zeros((_HALF * len(solid),) * 2, dtype=np.float32)
    immune = _sigmoid(2.6 * (tissue.fields["lymphocytes"] - 0.9))

    points = _scatter(rng, solid**4 * _sigmoid(12 * (tissue.nests - 0.55)) * 0.95, 11.0, jitter=0.2)
    grade = _at(tissue.fields["epithelium"], points).clip(-0.5, 2.5)
    size = rng.normal(4.0 + 0.6 * grade, 0.7).clip(3.0, 7.0)
    angle = rng.uniform(0, np.pi, len(points))
    _stamp(rng, canvas, points, size * rng.uniform(1.0, 1.3, len(points)), size, angle, 1.25, hollow=0.42)

    collagen = _sigmoid(1.2 * tissue.fields["collagen"])
    points = _scatter(rng, stroma**3 * (0.42 - 0.25 * collagen), 13.0, jitter=0.35)
    angle = _at(tissue.direction, points) + rng.normal(0, 0.2, len(points))
    size = rng.normal(1.7, 0.35, len(points)).clip(1.1, 2.8)
    _stamp(rng, canvas, points, size * rng.uniform(2.2, 4.2, len(points)), size, angle, 1.0, hollow=0.1)

    points = _scatter(rng, (stroma + 0.3 * solid * tissue.nests) * immune * (1 - 0.7 * tissue.fat), 7.6, jitter=0.24)
    size = rng.normal(3.0, 0.3, len(points)).clip(2.2, 4.0)
    _stamp(rng, canvas, points, size * 1.08, size, rng.uniform(0, np.pi, len(points)), 1.6, hollow=0.05)
    return canvas


def _red_cells(rng: np.random.Generator, tissue: _Tissue) -> Float32Array:
    """Haemoglobin, at full resolution: pools of red cells between the fibres."""
    canvas = np.zeros((_HALF * len(tissue.inside),) * 2, dtype=np.float32)
    points = _scatter(rng, tissue.inside * tissue.blood, 6.2, jitter=0.22)
    size = rng.normal(3.1, 0.25, len(points)).clip(2.4, 3.8)
    _stamp(rng, canvas, points, size * 1.1, size, rng.uniform(0, np.pi, len(points)), 0.75, hollow=0.25)
    return canvas


def _stamp(  # noqa: PLR0917
    rng: np.random.Generator,
    canvas: Float32Array,
    points: FloatArray,
    long: FloatArray,
    short: FloatArray,
    angle: FloatArray | Float32Array,
    strength: float,
    *,
    hollow: float,
) -> None:
    """Draw irregular ellipses onto the canvas, the stronger one winning where two overlap.

    `long` and `short` are half axes in pixels; the middle is lighter than the rim by the share `hollow`.
    """
    reach = int(np.ceil(long.max(initial=1.0))) + 2
    depth = strength * rng.normal(1.0, 0.15, len(points)).clip(0.6, 1.5)
    bumps = 0.045 * rng.standard_normal((len(points), 2))
    shapes = np.column_stack([points, long, short, np.cos(angle), np.sin(angle), depth, bumps]).astype(np.float32)
    within = ((points > reach + 1) & (points < len(canvas) - reach - 2)).all(axis=1)
    shapes = shapes[within]
    for start in range(0, len(shapes), _BLOCK):
        _stamp_block(canvas, shapes[start : start + _BLOCK], reach=reach, hollow=hollow)


def _stamp_block(canvas: Float32Array, shapes: Float32Array, *, reach: int, hollow: float) -> None:
    """Draw ellipses; columns of `shapes`: x, y, half axes, cosine and sine of the angle, depth, two lobes of the rim."""
    x, y, long, short, cosine, sine, depth, bump_p, bump_q = shapes.T[:, :, None, None]
    offset = np.arange(-reach, reach + 1)
    columns = np.floor(x).astype(np.int32) + offset[None, None, :]
    rows = np.floor(y).astype(np.int32) + offset[None, :, None]
    dx, dy = columns[:, :1] + np.float32(0.5) - x, rows + np.float32(0.5) - y
    p, q = (dx * cosine + dy * sine) / long, (dy * cosine - dx * sine) / short
    squared = p * p + q * q
    lobes = bump_p * p * (squared - 4 * q * q) + bump_q * q * (4 * p * p - squared)
    radius = np.sqrt(squared) * (1 + lobes / (0.5 + 0.5 * squared * squared))
    cover = np.clip((1 - radius) * short / 1.2 + 0.5, 0, 1)
    value = cover * depth * (1 - hollow * np.clip(1 - squared, 0, 1))
    index = rows * len(canvas) + columns
    inked = cover > 0
    np.maximum.at(canvas.reshape(-1), index[inked], value[inked])
