"""Options that say where the data is, and how tiles are cut and encoded: the same words in every command."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from agl_sc._sdata.sections import Scales
    from agl_sc.pp._features.tiles import Mpp

TableKey = Annotated[str | None, typer.Option(help="Table to use; the only one by default.")]
ImageKey = Annotated[list[str] | None, typer.Option(help="Image element to use; repeat for several. All by default.")]
ShapesKey = Annotated[list[str] | None, typer.Option(help="Region to use; repeat for several. All by default.")]
CoordinateSystem = Annotated[
    str | None, typer.Option(help="What joins image and spots; the one they share by default.")
]
ImageMpp = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NUMBER|NAME=NUMBER",
        help="Microns per pixel of the images, where they do not say; NAME is a section, repeat for several.",
    ),
]
Layer = Annotated[str | None, typer.Option(help="Layer with raw counts; X by default.")]
KeyAdded = Annotated[str, typer.Option(help="Prefix of all slots.")]
TilePx = Annotated[
    int | None, typer.Option(help="Side of a tile in pixels; 224 by default, or with --mpp image what covers 112 um.")
]
TileMpp = Annotated[
    str | None, typer.Option(metavar="NUMBER|image", help="Microns per pixel of a tile, or image for the image's own.")
]
Device = Annotated[str | None, typer.Option(help="Where the encoder runs: cpu, cuda or mps; the fastest by default.")]
BatchSize = Annotated[int, typer.Option(help="Tiles per forward pass of the encoder.")]


def elements(
    table_key: str | None,
    image_key: list[str] | None,
    shapes_key: list[str] | None,
    *,
    coordinate_system: str | None,
    image_mpp: list[str] | None,
) -> dict[str, Any]:
    """What every function of the package that looks positions or images up takes."""
    return {
        "table_key": table_key,
        "image_key": image_key or None,
        "shapes_key": shapes_key or None,
        "coordinate_system": coordinate_system,
        "image_mpp": scales(image_mpp),
    }


def scales(values: list[str] | None) -> "Scales":
    """Microns per pixel of all images, or by section.

    Raises
    ------
    ValueError
        A value is neither a number nor ``NAME=NUMBER``, or both kinds are there.
    """
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return _number(values[0], values[0])
    found = {}
    for each in values:
        name, equals, number = each.rpartition("=")
        if not equals or not name:
            msg = f"--image-mpp {each} is not NAME=NUMBER, which several are given as, such as --image-mpp C6=0.69."
            raise ValueError(msg)
        found[name] = _number(number, each)
    return found


def _number(text: str, given: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        msg = f"--image-mpp {given} is neither a number of microns per pixel nor NAME=NUMBER; write such as --image-mpp 0.5."
        raise ValueError(msg) from error


def tile_mpp(value: str) -> "Mpp":
    """Microns per pixel of a tile, or ``"image"``.

    Raises
    ------
    ValueError
        It is neither a number nor ``"image"``.
    """
    if value == "image":
        return "image"
    try:
        return float(value)
    except ValueError as error:
        msg = f"--mpp {value} is neither a number of microns per pixel nor image; 0.5 is usual."
        raise ValueError(msg) from error
