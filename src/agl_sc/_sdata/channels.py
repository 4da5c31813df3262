"""Which channels of an image are red, green and blue, by their names."""

import re
from collections.abc import Sequence
from typing import Any

_COLOURS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}


def rgb_places(image: Any, key: str) -> list[int]:
    """Places of red, green and blue among the channels of an image.

    Parameters
    ----------
    image
        With a dimension ``c`` of three channels or more.
    key
        What the message calls it.

    Returns
    -------
    Three places, by the names of the channels where these are colours; the first three where they are only counted.

    Raises
    ------
    ValueError
        The names are others, such as those of stains.
    """
    names = [str(name) for name in image.coords["c"].to_numpy().tolist()] if "c" in image.coords else []
    colours = [_COLOURS.get(name.strip().lower()) for name in names]
    if {0, 1, 2} <= set(colours):
        return [colours.index(colour) for colour in range(3)]
    if not names or _are_counted(names):
        return [0, 1, 2]
    rgb = ["r", "g", "b", *("a" for _ in names[3:])]
    msg = (
        f"The channels of image {key!r} are named {', '.join(names)}, not red, green and blue as of H&E; name the H&E with image_key=, "
        f"or if they are these: sdata.set_channel_names({key!r}, {rgb})."
    )
    raise ValueError(msg)


def to_bytes(finest: Any, key: str, *, is_tree: bool) -> str:
    """Code that puts an image of numbers from 0 to 1, as scanpy reads them, or of 16 bits into place as one of uint8."""
    image = f"sdata[{key!r}]" + ("['scale0']['image']" if is_tree else "")
    scaled = "image.data * 255" if finest.dtype.kind == "f" else "image.data / image.data.max() * 255"
    return (
        f"image = {image}; sdata[{key!r}] = Image2DModel.parse(({scaled}).round().astype('uint8'), dims=('c', 'y', 'x'), c_coords=image.c.values.tolist(), "
        f"transformations=get_transformation(sdata[{key!r}], get_all=True))"
    )


def _are_counted(names: Sequence[str]) -> bool:
    """Whether names only count channels from 0 or 1, as 0, 1, 2 and Channel:0:0, Channel:0:1 do; CD3, CD4, CD5 name stains."""
    found = [
        re.fullmatch(r"((?:c|ch|chan|channel)?[ :_-]?(?:\d+:)?)(\d+)(?:\.0)?", name.strip().lower()) for name in names
    ]
    prefixes, numbers = {match[1] for match in found if match}, [int(match[2]) for match in found if match]
    return len(prefixes) == 1 and numbers in (list(range(len(names))), list(range(1, len(names) + 1)))
