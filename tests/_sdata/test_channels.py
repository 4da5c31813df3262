"""Channels by their names: in any order, with an opaque one anywhere, counted, or of stains."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, get_transformation

from agl_sc._sdata.sections import levels_of

PIXELS = np.random.default_rng(0).integers(0, 255, (3, 40, 50), dtype=np.uint8)


def element(pixels: Any, names: Any, **options: Any) -> Any:
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=names, **options)


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("names", [("r", "g", "b"), ("Red", "Green", "Blue")], ids=",".join)
@pytest.mark.parametrize("multiscale", [False, True])
def test_colours_are_found_in_any_order(order: tuple[int, ...], names: tuple[str, ...], *, multiscale: bool) -> None:
    options: dict[str, Any] = {"scale_factors": [2]} if multiscale else {}
    stored = element(PIXELS[list(order)], [names[place] for place in order], **options)
    np.testing.assert_array_equal(levels_of(stored, "he")[0], PIXELS)


@pytest.mark.parametrize("place", range(4))
def test_an_opaque_channel_is_left_out_wherever_it_is(place: int) -> None:
    names = ["r", "g", "b"]
    stored = element(np.insert(PIXELS, place, 255, axis=0), [*names[:place], "a", *names[place:]])
    np.testing.assert_array_equal(levels_of(stored, "he")[0], PIXELS)


@pytest.mark.parametrize(
    "names",
    [[0, 1, 2], [1, 2, 3], [0.0, 1.0, 2.0], ["c0", "c1", "c2"], ["Channel:0:0", "Channel:0:1", "Channel:0:2"]],
    ids=str,
)
def test_channels_that_are_only_counted_are_taken_as_they_are(names: list[Any]) -> None:
    np.testing.assert_array_equal(levels_of(element(PIXELS, names), "he")[0], PIXELS)


@pytest.mark.parametrize(
    "names",
    [
        ["DAPI", "CD45", "PanCK"],
        ["CD3", "CD8", "CD20"],
        ["CD3", "CD4", "CD5"],
        ["Cy3", "Cy4", "Cy5"],
        ["r", "g", "DAPI"],
        ["x1", "y2", "z3"],
    ],
    ids=",".join,
)
def test_stains_are_no_colours_and_the_mend_works(names: list[str]) -> None:
    sdata = SpatialData(images={"he": element(PIXELS, names)})
    said = rf"The channels of image 'he' are named {', '.join(names)}, not red, green and blue as of H&E; .*if they are these: "
    with pytest.raises(ValueError, match=said) as caught:
        levels_of(sdata["he"], "he")
    exec(str(caught.value).split("these: ")[1].rstrip("."), {"sdata": sdata})
    np.testing.assert_array_equal(levels_of(sdata["he"], "he")[0], PIXELS)


@pytest.mark.filterwarnings("ignore:The key `he` already exists:UserWarning")
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("multiscale", [False, True])
def test_the_line_that_makes_bytes_of_an_image_works(dtype: str, *, multiscale: bool) -> None:
    """Where it lies and what its channels are called stay."""
    options: dict[str, Any] = {"scale_factors": [2]} if multiscale else {}
    white = {"float32": 1.0, "uint16": 65535}[dtype]
    pixels = PIXELS.copy()
    pixels[:, 0, 0] = 255
    stored = element(
        (pixels[::-1] / 255 * white).astype(dtype),
        ["b", "g", "r"],
        transformations={"a": Scale([2.0, 2.0], axes=("x", "y"))},
        **options,
    )
    sdata = SpatialData(images={"he": stored})
    with pytest.raises(
        ValueError, match=f"Image 'he' is {dtype}, not uint8; convert it first: image = sdata"
    ) as caught:
        levels_of(sdata["he"], "he")
    line = str(caught.value).split("convert it first: ")[1].rstrip(".")
    exec(line, {"sdata": sdata, "Image2DModel": Image2DModel, "get_transformation": get_transformation})
    np.testing.assert_array_equal(levels_of(sdata["he"], "he")[0], pixels)
    assert get_transformation(sdata["he"], get_all=True) == {"a": Scale([2.0, 2.0], axes=("x", "y"))}
