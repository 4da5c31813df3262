"""Slides of scanners' own formats, byte by byte as their makers lay them out, small.

Each takes ``pixels`` (y, x, 3) uint8 of ``mpp`` microns and writes a pyramid of :data:`STEPS`.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
STEPS = (1, 2, 4)


def jpeg_of(pixels: Pixels, **options: Any) -> bytes:
    """As good as JPEG gets, without subsampled colours."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=98, subsampling=0, **options)
    return buffer.getvalue()


# Hamamatsu: a TIFF whose directories are linked by 8 bytes, of one JPEG per level, its tiles told by restart markers.


def write_ndpi(path: Path, pixels: Pixels, *, mpp: float = 0.5) -> Path:
    """Sides are multiples of 256 px across and 32 px down."""
    out = bytearray(b"II*\x00" + struct.pack("<Q", 0))
    link = 4
    for step in STEPS:
        level = pixels[::step, ::step]
        height, width = level.shape[:2]
        strip = len(out)
        out += jpeg_of(level, restart_marker_blocks=8)  # tiles of 64 x 8 px
        n_bytes = len(out) - strip
        out += b"\x00" * (n_bytes % 2)
        ratio = len(out)
        out += struct.pack("<II", round(1e4 / (mpp * step)), 1)
        make = len(out)
        out += b"Hamamatsu\x00"
        entries = [
            (256, 4, 1, struct.pack("<I", width)),
            (257, 4, 1, struct.pack("<I", height)),
            (259, 3, 1, struct.pack("<HH", 7, 0)),
            (262, 3, 1, struct.pack("<HH", 6, 0)),
            (271, 2, 10, struct.pack("<I", make)),
            (273, 4, 1, struct.pack("<I", strip)),
            (277, 3, 1, struct.pack("<HH", 3, 0)),
            (278, 4, 1, struct.pack("<I", height)),
            (279, 4, 1, struct.pack("<I", n_bytes)),
            (282, 5, 1, struct.pack("<I", ratio)),
            (283, 5, 1, struct.pack("<I", ratio)),
            (296, 3, 1, struct.pack("<HH", 3, 0)),
            (65420, 4, 1, struct.pack("<I", 1)),
            (65421, 11, 1, struct.pack("<f", 10 / (mpp * step))),
            (65422, 9, 1, struct.pack("<i", 0)),
            (65423, 9, 1, struct.pack("<i", 0)),
            (65424, 9, 1, struct.pack("<i", 0)),
        ]
        struct.pack_into("<Q", out, link, len(out))
        out += struct.pack("<H", len(entries))
        out += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
        link = len(out)
        out += struct.pack("<Q", 0) + b"\x00" * 4 * len(entries)  # and the upper halves of the values
    path.write_bytes(out)
    return path


# Leica: a BigTIFF of images that lie on a glass whose size is told in nanometres.


def write_scn(
    path: Path, pixels: Pixels, *, glass_px: tuple[int, int], at_px: tuple[int, int], mpp: float = 0.5
) -> Path:
    """``pixels`` at (x, y) ``at_px`` of a glass of (width, height) ``glass_px``, and a macro image of it."""
    height, width = pixels.shape[:2]
    nm = round(1e3 * mpp)

    def image(view: Sequence[int], dimensions: Sequence[tuple[int, int, int]], objective: float) -> str:
        places = dict(zip(("sizeX", "sizeY", "offsetX", "offsetY"), (nm * side for side in view), strict=True))
        told = " ".join(f'{name}="{value}"' for name, value in places.items())
        listed = "".join(
            f'<dimension sizeX="{w}" sizeY="{h}" r="{index}" ifd="{directory}"/>'
            for index, (w, h, directory) in enumerate(dimensions)
        )
        return (
            f'<image><device model="Leica SCN400" version="1"/><view {told}/><scanSettings><objectiveSettings>'
            f"<objective>{objective:g}</objective></objectiveSettings><illuminationSettings><illuminationSource>brightfield"
            f"</illuminationSource></illuminationSettings></scanSettings><pixels>{listed}</pixels></image>"
        )

    macro = np.full((64, 32, 3), 200, np.uint8)
    levels = [pixels[::step, ::step] for step in STEPS]
    main = [(level.shape[1], level.shape[0], 1 + index) for index, level in enumerate(levels)]
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection '
        f'sizeX="{nm * glass_px[0]}" sizeY="{nm * glass_px[1]}"><barcode>none</barcode>'
        f"{image((*glass_px, 0, 0), [(32, 64, 0)], 0.6)}{image((width, height, *at_px), main, 10 / mpp)}</collection></scn>"
    )
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": "jpeg", "tile": (64, 64)}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(macro, description=xml, **options)
        for step, level in zip(STEPS, levels, strict=True):
            per_cm = 1e4 / (mpp * step)
            file.write(level, resolution=(per_cm, per_cm), resolutionunit=3, compressionargs={"level": 98}, **options)
    return path


# 3DHISTECH: a text file, an index and a file of JPEGs, one per photo of the camera, which overlap; glass has no photos.


def write_mrxs(
    path: Path, pixels: Pixels, *, mpp: float = 0.5, side: int = 64, overlap: int = 4, skipped: Any = ()
) -> Path:
    """Photos of ``side`` px; those at (row, column) in ``skipped`` were never taken. ``pixels`` are cut to whole photos."""
    slide = "0123456789abcdef0123456789abcdef"
    advance = side - overlap
    down, across = (1 << ((length - overlap) // advance).bit_length() - 1 for length in pixels.shape[:2])
    places = [(row, column) for row in range(down) for column in range(across)]
    photos = {
        (row, column): pixels[row * advance : row * advance + side, column * advance : column * advance + side]
        for row, column in places
    }
    data, pages = bytearray(b"MIRAX"), []
    for step in STEPS:
        page = []
        for row, column in places:
            group = [(row + i, column + j) for i in range(step) for j in range(step)]
            if row % step or column % step or all(place in skipped for place in group):
                continue
            tiles = [np.zeros((side, side, 3), np.uint8) if p in skipped else photos[p] for p in group]
            rows = [np.hstack(tiles[i * step : (i + 1) * step]) for i in range(step)]
            image = jpeg_of(np.vstack(rows)[::step, ::step])
            page.append((row * across + column, len(data), len(image), 0))
            data += image
        pages.append(page)
    positions = b"".join(struct.pack("<bii", 1, column * advance, row * advance) for row, column in places)
    record = (len(data), len(positions), 0)
    data += positions
    folder = path.with_suffix("")
    folder.mkdir()
    path.write_bytes(jpeg_of(pixels[::8, ::8]))
    (folder / "Data0000.dat").write_bytes(data)
    (folder / "Index.dat").write_bytes(_mrxs_index(slide, pages, record))
    (folder / "Slidedat.ini").write_text(_mrxs_ini(slide, (across, down), side=side, overlap=overlap, mpp=mpp))
    return path


def _mrxs_index(slide: str, pages: Sequence[Any], record: tuple[int, int, int]) -> bytes:
    out = bytearray(b"01.02" + slide.encode() + b"\x00" * 8)
    root = len(out) - 8

    def append(*values: int) -> int:
        place = len(out)
        out.extend(struct.pack(f"<{len(values)}i", *values))
        return place

    starts = []
    for page in pages:
        first = append(len(page), 0, *(value for entry in page for value in entry))
        starts.append(append(0, first))
    only = append(1, 0, 0, 0, *record)
    struct.pack_into("<ii", out, root, append(*starts), append(append(0, only)))
    return bytes(out)


def _mrxs_ini(slide: str, count: tuple[int, int], *, side: int, overlap: int, mpp: float) -> str:
    sections: dict[str, dict[str, Any]] = {
        "GENERAL": {
            "SLIDE_VERSION": "01.02",
            "SLIDE_ID": slide,
            "IMAGENUMBER_X": count[0],
            "IMAGENUMBER_Y": count[1],
            "OBJECTIVE_MAGNIFICATION": round(10 / mpp),
            "CameraImageDivisionsPerSide": 1,
        },
        "HIERARCHICAL": {
            "HIER_COUNT": 1,
            "NONHIER_COUNT": 1,
            "INDEXFILE": "Index.dat",
            "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": len(STEPS),
            **{f"HIER_0_VAL_{level}_SECTION": f"LAYER_0_LEVEL_{level}_SECTION" for level in range(len(STEPS))},
            "NONHIER_0_NAME": "VIMSLIDE_POSITION_BUFFER",
            "NONHIER_0_COUNT": 1,
            "NONHIER_0_VAL_0": "default",
            "NONHIER_0_VAL_0_SECTION": "NONHIERLAYER_0_LEVEL_0_SECTION",
        },
        "NONHIERLAYER_0_LEVEL_0_SECTION": {"VIMSLIDE_POSITION_DATA_FORMAT_VERSION": 257},
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
    }
    for level, step in enumerate(STEPS):
        sections[f"LAYER_0_LEVEL_{level}_SECTION"] = {
            "OVERLAP_X": overlap / step,
            "OVERLAP_Y": overlap / step,
            "MICROMETER_PER_PIXEL_X": mpp * step,
            "MICROMETER_PER_PIXEL_Y": mpp * step,
            "IMAGE_FORMAT": "JPEG",
            "IMAGE_FILL_COLOR_BGR": 0xFFFFFF,
            "DIGITIZER_WIDTH": side,
            "DIGITIZER_HEIGHT": side,
            "IMAGE_CONCAT_FACTOR": int(level > 0),
        }
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for name, entries in sections.items()
    )


# DICOM: a file per level, of frames.


def write_dicom(
    folder: Path, pixels: Pixels, *, mpp: float = 0.5, side: int = 64, series: int = 1, skipped: Any = ()
) -> Path:
    """Frames of ``side`` px, but for those of the finest level at (row, column) in ``skipped``; the finest file comes back."""
    folder.mkdir(exist_ok=True)
    for number, step in enumerate(STEPS):
        level = pixels[::step, ::step]
        left_out = skipped if step == 1 else ()
        blob = _dicom(
            level, mpp=mpp * step, is_finest=step == 1, side=side, series=series, number=number, skipped=left_out
        )
        (folder / f"{series}_{number}.dcm").write_bytes(blob)
    return folder / f"{series}_0.dcm"


def _element(group: int, number: int, *content: Any) -> bytes:
    """In explicit little-endian form; the content is its kind and value."""
    kind, value = content
    if isinstance(value, str):
        data = value.encode() + (b"\x00" if kind == "UI" else b" ") * (len(value) % 2)
    elif isinstance(value, int):
        data = struct.pack({"US": "<H", "UL": "<I", "SL": "<i"}[kind], value)
    else:
        data = bytes(value)
    length = struct.pack("<HI", 0, len(data)) if kind in ("OB", "SQ") else struct.pack("<H", len(data))
    return struct.pack("<HH", group, number) + str(kind).encode() + length + data


def _items(*items: bytes) -> bytes:
    return b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)


def _dicom(level: Pixels, *, mpp: float, is_finest: bool, side: int, series: int, number: int, skipped: Any) -> bytes:
    height, width = level.shape[:2]
    whole = np.full((-(-height // side) * side, -(-width // side) * side, 3), 255, np.uint8)
    whole[:height, :width] = level
    grid = [(row, column) for row in range(whole.shape[0] // side) for column in range(whole.shape[1] // side)]
    kept = [place for place in grid if place not in skipped]
    frames = [jpeg_of(whole[r * side : (r + 1) * side, c * side : (c + 1) * side], keep_rgb=True) for r, c in kept]
    kind, own, syntax = "1.2.840.10008.5.1.4.1.1.77.1.6", f"1.2.3.{series}.{number}", "1.2.840.10008.1.2.4.50"
    meta = _element(2, 1, "OB", b"\x00\x01") + _element(2, 2, "UI", kind) + _element(2, 3, "UI", own)
    meta += _element(2, 0x10, "UI", syntax) + _element(2, 0x12, "UI", "1.2.3")
    magnification, spacing = f"{10 / mpp:g}", f"{mpp / 1e3:g}\\{mpp / 1e3:g}"
    places = [
        _element(0x48, 0x21A, "SQ", _items(_element(0x48, 0x21E, "SL", c * side + 1) + _element(0x48, 0x21F, "SL", r * side + 1)))
        for r, c in kept
    ]  # fmt: skip
    elements = [
        (0x08, 0x08, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE" if is_finest else "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED"),
        (0x08, 0x16, "UI", kind),
        (0x08, 0x18, "UI", own),
        (0x08, 0x60, "CS", "SM"),
        (0x20, 0x0D, "UI", "1.2.3"),
        (0x20, 0x0E, "UI", f"1.2.3.{series}"),
        (0x20, 0x9311, "CS", "TILED_SPARSE" if skipped else "TILED_FULL"),
        (0x28, 0x02, "US", 3),
        (0x28, 0x04, "CS", "RGB"),
        (0x28, 0x06, "US", 0),
        (0x28, 0x08, "IS", str(len(frames))),
        (0x28, 0x10, "US", side),
        (0x28, 0x11, "US", side),
        (0x28, 0x100, "US", 8),
        (0x28, 0x101, "US", 8),
        (0x28, 0x102, "US", 7),
        (0x28, 0x103, "US", 0),
        (0x48, 0x06, "UL", width),
        (0x48, 0x07, "UL", height),
        (0x48, 0x105, "SQ", _items(_element(0x48, 0x112, "DS", magnification))),
        (0x48, 0x303, "UL", 1),
        (0x5200, 0x9229, "SQ", _items(_element(0x28, 0x9110, "SQ", _items(_element(0x28, 0x30, "DS", spacing))))),
        *([(0x5200, 0x9230, "SQ", _items(*places))] if skipped else []),
    ]
    padded = [b"", *(frame + b"\x00" * (len(frame) % 2) for frame in frames)]  # after an empty table of offsets
    image = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + _items(*padded)
    length = struct.pack("<I", len(meta))
    head = b"\x00" * 128 + b"DICM" + struct.pack("<HH2sH", 2, 0, b"UL", 4) + length + meta
    return head + b"".join(_element(*each) for each in elements) + image + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


# Zeiss: segments of a mosaic, which may begin anywhere.


@dataclass(frozen=True, slots=True)
class _Block:
    left: int
    top: int
    step: int
    pixels: Pixels

    def entry(self, position: int, mosaic: int) -> bytes:
        height, width = self.pixels.shape[:2]
        sides = [("X", self.left, width * self.step, width), ("Y", self.top, height * self.step, height)]
        sides += [("C", 0, 1, 1), ("S", 0, 1, 1)] + ([("M", mosaic, 1, 1)] if self.step == 1 else [])
        head = struct.pack("<2siqiib5si", b"DV", 3, position, 0, 0, int(self.step > 1), b"", len(sides))
        return head + b"".join(struct.pack("<4siifi", n.encode(), at, of, 0.0, kept) for n, at, of, kept in sides)


def write_czi(
    path: Path, pixels: Pixels, *, mpp: float = 0.5, side: int = 128, at_px: tuple[int, int] = (-1000, 70)
) -> Path:
    """Sides are multiples of ``side``."""
    left, top = at_px
    height, width = pixels.shape[:2]
    blocks = [
        _Block(left + x, top + y, step, pixels[y : y + side * step : step, x : x + side * step : step])
        for step in STEPS
        for y in range(0, height, side * step)
        for x in range(0, width, side * step)
    ]
    out = bytearray(b"\x00" * 544)
    listed = bytearray()
    for mosaic, block in enumerate(blocks):
        entry, data = block.entry(len(out), mosaic), np.ascontiguousarray(block.pixels[..., ::-1]).tobytes()
        listed += entry
        out += _segment("ZISRAWSUBBLOCK", (struct.pack("<iiq", 0, 0, len(data)) + entry).ljust(256, b"\x00") + data)
    directory = len(out)
    out += _segment("ZISRAWDIRECTORY", struct.pack("<i", len(blocks)).ljust(128, b"\x00") + bytes(listed))
    scales = "".join(f'<Distance Id="{axis}"><Value>{mpp * 1e-6:g}</Value></Distance>' for axis in "XY")
    xml = (
        f"<ImageDocument><Metadata><Information><Image><SizeX>{width}</SizeX><SizeY>{height}</SizeY><SizeS>1</SizeS>"
        '<ObjectiveSettings><ObjectiveRef Id="Objective:1"/></ObjectiveSettings></Image><Instrument><Objectives>'
        f'<Objective Id="Objective:1"><NominalMagnification>{10 / mpp:g}</NominalMagnification></Objective></Objectives>'
        f"</Instrument></Information><Scaling><Items>{scales}</Items></Scaling></Metadata></ImageDocument>"
    ).encode()
    metadata = len(out)
    out += _segment("ZISRAWMETADATA", struct.pack("<ii", len(xml), 0).ljust(256, b"\x00") + xml)
    attachments = len(out)
    out += _segment("ZISRAWATTDIR", b"\x00" * 256)
    own = zlib.crc32(xml).to_bytes(16, "little")
    head = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, own, own, 0, directory, metadata, 0, attachments)
    out[:544] = _segment("ZISRAWFILE", head.ljust(512, b"\x00"))
    path.write_bytes(out)
    return path


def _segment(name: str, content: bytes) -> bytes:
    return struct.pack("<16sqq", name.encode(), len(content), len(content)) + content
