"""SpatialData in as arrays: which image, which pixels, and nothing changed on the way."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import shapely
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, BaseTransformation, Identity, Scale, Sequence, Translation

from agl_sc._sdata.sections import Section, levels_of, sections

FloatArray = NDArray[np.float64]
Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
Transformations = dict[str, BaseTransformation]
AXES = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
PIXELS = np.array([[10.5, 20.5], [30.0, 20.0], [50.25, 8.0], [12.0, 40.0], [71.0, 55.5]])
"""Where the spots lie in the image, as (x, y)."""


def image(
    systems: Transformations | None = None, *, channels: int = 3, dtype: str = "uint8", multiscale: bool = False
) -> Any:
    pixels = np.random.default_rng(0).integers(0, 255, (channels, 60, 80)).astype(dtype)
    options: dict[str, Any] = {"scale_factors": [2, 2]} if multiscale else {}
    return Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        transformations=systems or {"world": Identity()},
        c_coords=range(channels),
        **options,
    )


def circles(points: FloatArray = PIXELS, systems: Transformations | None = None, radius: float = 3.0) -> Any:
    frame = gpd.GeoDataFrame(
        {"geometry": shapely.points(points), "radius": radius}, index=[f"s{i}" for i in range(len(points))]
    )
    return ShapesModel.parse(frame, transformations=systems or {"world": Identity()})


def table(n_spots: int = len(PIXELS), region: str = "spots") -> AnnData:
    counts = scipy.sparse.csr_matrix(np.arange(n_spots * 3, dtype=np.float32).reshape(n_spots, 3))
    obs = pd.DataFrame({"region": pd.Categorical([region] * n_spots), "spot_id": [f"s{i}" for i in range(n_spots)]})
    adata = AnnData(
        counts, obs=obs.set_index("spot_id", drop=False).rename_axis(None), var=pd.DataFrame(index=["A", "B", "C"])
    )
    return TableModel.parse(adata, region=region, region_key="region", instance_key="spot_id")


def build(picture: Any = None, spots: Any = None, **images: Any) -> SpatialData:
    return SpatialData(
        images={"picture": image() if picture is None else picture, **images},
        shapes={"spots": circles() if spots is None else spots},
        tables={"table": table()},
    )


def only(sdata: SpatialData, **options: Any) -> Section:
    (found,) = sections(sdata, sdata["table"], **options)
    return found


def quarter_turn_and_flip(xy: FloatArray) -> FloatArray:
    return np.column_stack([0.5 * xy[:, 1] + 7, 0.5 * xy[:, 0] - 3])


TURN = Affine(np.array([[0, 0.5, 7], [0.5, 0, -3], [0, 0, 1]]), **AXES)
WORLDS = [
    pytest.param(Identity(), lambda xy: xy, 1.0, id="identity"),
    pytest.param(Scale([0.5, 0.5], axes=("x", "y")), lambda xy: xy / 2, 0.5, id="scale"),
    pytest.param(TURN, quarter_turn_and_flip, 0.5, id="affine with rotation and flip"),
    pytest.param(
        Sequence([Translation([4, -9], axes=("x", "y")), Scale([3, 3], axes=("x", "y")), TURN]),
        lambda xy: quarter_turn_and_flip((xy + np.array([4, -9])) * 3),
        1.5,
        id="sequence",
    ),
]


@pytest.mark.parametrize("multiscale", [False, True], ids=["single-scale", "multiscale"])
@pytest.mark.parametrize(("transformation", "to_world", "scale"), WORLDS)
def test_centres_are_found_back_through_the_image_transformation(
    *,
    transformation: BaseTransformation,
    to_world: Callable[[FloatArray], FloatArray],
    scale: float,
    multiscale: bool,
    unchanged: Unchanged,
) -> None:
    sdata = build(image({"world": transformation}, multiscale=multiscale), circles(to_world(PIXELS), radius=3 * scale))
    with unchanged(sdata):
        section = only(sdata)
    np.testing.assert_allclose(section.centres, PIXELS)
    assert section.radius == pytest.approx(3)
    assert [level.shape for level in section.levels] == [(3, 60, 80), (3, 30, 40), (3, 15, 20)][
        : 3 if multiscale else 1
    ]


@pytest.mark.parametrize(("transformation", "to_world", "scale"), WORLDS)
def test_centres_are_found_through_the_transformation_of_the_shapes(
    *,
    transformation: BaseTransformation,
    to_world: Callable[[FloatArray], FloatArray],
    scale: float,
    unchanged: Unchanged,
) -> None:
    """Spots of a frame of their own, the image's pixels being the world."""
    sdata = build(spots=circles(PIXELS - 20, {"world": transformation}))
    with unchanged(sdata):
        section = only(sdata)
    np.testing.assert_allclose(section.centres, to_world(PIXELS - 20))
    assert section.radius == pytest.approx(3 * scale)


def test_a_section_says_what_it_is() -> None:
    sdata = build()
    sdata.attrs["agl_sc"] = {"image_mpp": {"picture": 0.7}, "technology": {"spots": "st"}}
    section = only(sdata)
    assert (section.name, section.image_key, section.image_mpp, section.technology) == ("spots", "picture", 0.7, "st")
    np.testing.assert_array_equal(section.rows, np.arange(5))
    np.testing.assert_array_equal(section.levels[0].compute(), sdata["picture"].to_numpy())


def test_polygons_have_the_radius_of_a_circle_of_their_area() -> None:
    squares = [shapely.box(x - 4, y - 4, x + 4, y + 4) for x, y in PIXELS]
    frame = gpd.GeoDataFrame({"geometry": squares}, index=[f"s{i}" for i in range(5)])
    section = only(build(spots=ShapesModel.parse(frame, transformations={"world": Identity()})))
    np.testing.assert_allclose(section.centres, PIXELS)
    assert section.radius == pytest.approx(np.sqrt(64 / np.pi))


def test_rows_follow_the_table_not_the_shapes() -> None:
    sdata = build()
    order = [3, 0, 4, 1]
    sdata.tables["table"] = sdata["table"][order].copy()
    np.testing.assert_allclose(only(sdata).centres, PIXELS[order])


def test_every_region_gets_its_own_rows_and_image() -> None:
    other = circles(PIXELS[:2] + 1, {"other": Identity()})
    both = table(7)
    both.obs["region"] = pd.Categorical(np.array(["spots", "more"])[[0, 0, 1, 0, 0, 1, 0]])
    both.obs["spot_id"] = ["s0", "s1", "s0", "s2", "s3", "s1", "s4"]
    del both.uns["spatialdata_attrs"]
    sdata = SpatialData(
        images={"picture": image(), "second": image({"other": Identity()})},
        shapes={"spots": circles(), "more": other},
        tables={"table": TableModel.parse(both, region=["spots", "more"], region_key="region", instance_key="spot_id")},
    )
    more, spots = sections(sdata, sdata["table"])
    assert (more.name, more.image_key, more.rows.tolist()) == ("more", "second", [2, 5])
    assert (spots.name, spots.image_key, spots.rows.tolist()) == ("spots", "picture", [0, 1, 3, 4, 6])
    np.testing.assert_allclose(more.centres, PIXELS[:2] + 1)
    np.testing.assert_allclose(spots.centres, PIXELS)
    assert [s.name for s in sections(sdata, sdata["table"], shapes_key="more")] == ["more"]


def test_a_named_image_is_taken_of_two() -> None:
    sdata = build(second=image({"world": Scale([2, 2], axes=("x", "y"))}))
    np.testing.assert_allclose(only(sdata, image_key="second").centres, PIXELS / 2)
    np.testing.assert_allclose(only(sdata, image_key="picture").centres, PIXELS)


def test_systems_that_agree_are_fine() -> None:
    half: Transformations = {"world": Identity(), "half": Scale([0.5, 0.5], axes=("x", "y"))}
    np.testing.assert_allclose(only(build(image(half), circles(systems=half))).centres, PIXELS)


def test_a_named_system_is_taken_of_two_that_disagree() -> None:
    moved: Transformations = {"world": Identity(), "moved": Translation([5, 0], axes=("x", "y"))}
    sdata = build(image(moved), circles(systems={"world": Identity(), "moved": Identity()}))
    np.testing.assert_allclose(only(sdata, coordinate_system="world").centres, PIXELS)
    np.testing.assert_allclose(only(sdata, coordinate_system="moved").centres, PIXELS - [5, 0])


def no_image() -> SpatialData:
    return SpatialData(shapes={"spots": circles()}, tables={"table": table()})


def with_table(**changes: Any) -> SpatialData:
    sdata = build()
    for slot, value in changes.items():
        setattr(sdata["table"], slot, value)
    return sdata


def disagreeing() -> SpatialData:
    moved: Transformations = {"world": Identity(), "moved": Translation([5, 0], axes=("x", "y"))}
    return build(image(moved), circles(systems={"world": Identity(), "moved": Identity()}))


def not_a_shape() -> SpatialData:
    with pytest.warns(UserWarning, match="which is not present in the SpatialData object"):
        return SpatialData(images={"picture": image()}, tables={"table": table()})


def without_last_shape() -> SpatialData:
    return build(spots=circles(PIXELS[:-1]))


def repeated_shape() -> SpatialData:
    spots = circles()
    spots.index = ["s0", "s1", "s2", "s3", "s3"]
    sdata = build(spots=spots)
    sdata["table"].obs["spot_id"] = ["s0", "s1", "s2", "s3", "s3"]
    return sdata


IN_SPACE = {"input_axes": ("x", "y", "z"), "output_axes": ("x", "y", "z")}
FLAT = Affine(np.array([[1, 2, 0], [2, 4, 0], [0, 0, 1]]), **AXES)
TILTED = Affine(np.array([[1, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), **IN_SPACE)
RISING = Affine(
    np.array([[1, 0, 0], [0, 1, 0], [0.5, 0, 0], [0, 0, 1]]), input_axes=("x", "y"), output_axes=("x", "y", "z")
)
UNKNOWN = Affine(np.array([[1, 0, np.nan], [0, 1, 0], [0, 0, 1]]), **AXES)


def test_a_scale_along_z_does_not_matter() -> None:
    sdata = build(spots=circles(PIXELS / 2, {"world": Scale([2, 2, 7], axes=("x", "y", "z"))}))
    np.testing.assert_allclose(only(sdata).centres, PIXELS)


def test_a_system_that_is_not_asked_for_may_be_anything() -> None:
    sdata = build(image({"world": Identity(), "odd": FLAT}), circles(systems={"world": Identity(), "odd": Identity()}))
    np.testing.assert_allclose(only(sdata, coordinate_system="world").centres, PIXELS)


BAD_ELEMENTS = [
    pytest.param(
        lambda: build(image({"world": FLAT})),
        {},
        ValueError,
        r"transformation of 'picture' to 'world' is singular \(\[\[1.0, 2.0, 0.0\], .*set another with .*set_transformation",
        id="singular image",
    ),
    pytest.param(
        lambda: build(spots=circles(systems={"world": FLAT})),
        {},
        ValueError,
        "transformation of 'spots' to 'world' is singular",
        id="singular shapes",
    ),
    *(
        pytest.param(
            lambda transformation=transformation: build(spots=circles(systems={"world": transformation})),
            {},
            ValueError,
            f"transformation of 'spots' to 'world' {fault}",
            id=fault,
        )
        for transformation, fault in (
            (TILTED, "mixes z with x and y"),
            (RISING, "mixes z with x and y"),
            (UNKNOWN, "has entries that are not finite"),
        )
    ),
    pytest.param(no_image, {}, KeyError, "sdata has no image, and features come from one", id="no image"),
    pytest.param(
        lambda: build(second=image()),
        {},
        ValueError,
        r"several images \(picture, second\); name one with image_key=",
        id="two images",
    ),
    pytest.param(
        build,
        {"image_key": "pictures"},
        KeyError,
        "image_key='pictures' is not among .* did you mean picture",
        id="image unknown",
    ),
    pytest.param(
        build,
        {"shapes_key": ["spots", "x"]},
        KeyError,
        "shapes_key='x' is not among the regions of the table: spots",
        id="shapes unknown",
    ),
    pytest.param(
        disagreeing,
        {},
        ValueError,
        r"disagree \(world, moved\); name one with coordinate_system=",
        id="two systems disagree",
    ),
    pytest.param(
        lambda: build(image({"elsewhere": Identity()})),
        {},
        ValueError,
        "No image shares a coordinate system with 'spots', whose systems are world",
        id="no common system",
    ),
    pytest.param(
        build,
        {"coordinate_system": "mars"},
        ValueError,
        "coordinate system named 'mars' with 'spots'",
        id="system unknown",
    ),
    pytest.param(
        not_a_shape,
        {},
        KeyError,
        "Region 'spots' of the table is none of the shapes, points and labels .none.; name those that are there with shapes_key=",
        id="region without shapes",
    ),
    pytest.param(
        without_last_shape,
        {},
        ValueError,
        r"1 spots of the table have no shape in 'spots' \(e.g. 's4', where shapes are named 's0', 's1'\)",
        id="instance without shape",
    ),
    pytest.param(repeated_shape, {}, ValueError, r"several shapes of one name \(e.g. 's3'\)", id="shape twice"),
    pytest.param(
        lambda: build(image(dtype="uint16")), {}, ValueError, "'picture' is uint16, not uint8; convert it", id="uint16"
    ),
    pytest.param(lambda: build(image(dtype="float32")), {}, ValueError, "'picture' is float32, not uint8", id="float"),
    pytest.param(
        lambda: build(image(channels=4)),
        {},
        ValueError,
        "has 4 channels .*, one of which is not a colour and not opaque .*image_key=",
        id="4 channels",
    ),
    pytest.param(
        lambda: build(image(channels=1, multiscale=True)), {}, ValueError, "{'c': 1, .*not 3 channels", id="grey"
    ),
    pytest.param(
        lambda: build(image(channels=5, dtype="uint16")),
        {},
        ValueError,
        r"'picture' has dimensions {'c': 5, .*}, not 3 channels \(c, y, x\) as H&E has; name the H&E with image_key=",
        id="fluorescence",
    ),
    pytest.param(
        lambda: with_table(uns={}), {}, ValueError, "The table annotates no shapes .* set it with", id="no annotation"
    ),
]


@pytest.mark.parametrize("multiscale", [False, True])
@pytest.mark.parametrize("names", [None, ["r", "g", "b", "a"]])
def test_an_opaque_fourth_channel_is_left_out(names: list[str] | None, *, multiscale: bool) -> None:
    """As xenium_aligned_image of spatialdata-io gives it."""
    rgb = np.random.default_rng(0).integers(0, 255, (3, 60, 80), dtype=np.uint8)
    options: dict[str, Any] = {"scale_factors": [2, 2]} if multiscale else {}
    rgba = np.concatenate([rgb, np.full((1, 60, 80), 255, np.uint8)])
    element = Image2DModel.parse(rgba, dims=("c", "y", "x"), c_coords=names or range(4), **options)
    levels = levels_of(element, "he")
    assert [level.shape for level in levels] == (
        [(3, 60, 80), (3, 30, 40), (3, 15, 20)] if multiscale else [(3, 60, 80)]
    )
    np.testing.assert_array_equal(levels[0], rgb)


@pytest.mark.parametrize(("make", "options", "error", "match"), BAD_ELEMENTS)
def test_elements_that_do_not_fit_are_refused(
    *,
    make: Callable[[], SpatialData],
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    unchanged: Unchanged,
) -> None:
    sdata = make()
    with pytest.raises(error, match=match), unchanged(sdata):
        sections(sdata, sdata["table"], **options)


def test_a_region_without_image_comes_without_levels_where_none_is_needed() -> None:
    matrix = [[2.0, 0.0, 5.0], [0.0, 2.0, 7.0], [0.0, 0.0, 1.0]]
    spots = circles(systems={"elsewhere": Affine(matrix, **AXES)})
    sdata = build(spots=spots)
    with pytest.raises(ValueError, match="No image shares a coordinate system with 'spots'"):
        only(sdata)
    found = only(sdata, need_image=False)
    assert (found.image_key, found.levels, found.image_mpp) == ("", (), None)
    np.testing.assert_allclose(found.centres, 2 * PIXELS + [5, 7])
    assert found.radius == pytest.approx(6.0)
    del sdata.images["picture"]
    np.testing.assert_allclose(only(sdata, need_image=False).centres, found.centres)
    with pytest.raises(KeyError, match="image_key='picture' is not among the images of sdata"):
        only(sdata, need_image=False, image_key="picture")
