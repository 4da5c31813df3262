"""Where the spots of an AnnData lie, by the names of columns."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from tests.io.test_anndata import make

from agl_sc.io import from_anndata
from agl_sc.io._anndata_positions import array_of, centres_of

XY = np.column_stack([np.arange(12.0), np.arange(12.0)[::-1] * 10 + 3])


def placed(positions: Any) -> AnnData:
    adata = AnnData(csr_matrix((len(XY), 2)))
    adata.obs_names = [f"spot{i}" for i in range(len(XY))]
    if isinstance(positions, pd.DataFrame):
        positions = positions.set_axis(adata.obs_names, axis=0)
    adata.obsm["spatial"] = positions
    return adata


def frame(*columns: Any, values: NDArray[np.float64] = XY) -> pd.DataFrame:
    return pd.DataFrame(values, columns=list(columns))


X_FIRST = [
    ("x", "y"), ("X", "Y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("imagecol", "imagerow"), ("image_col", "image_row"),
    ("pixel_x", "pixel_y"), ("col", "row"), ("column", "row"), ("x_centroid", "y_centroid"), ("CenterX_global_px", "CenterY_global_px"),
    ("spatial_x", "spatial_y"), ("xcoord", "ycoord"), ("x_pos", "y_pos"), ("px_x", "px_y"),
]  # fmt: skip


@pytest.mark.parametrize("names", X_FIRST, ids=",".join)
def test_columns_are_read_by_their_names_in_either_order(names: tuple[str, str]) -> None:
    np.testing.assert_array_equal(centres_of(placed(frame(*names))), XY)
    np.testing.assert_array_equal(centres_of(placed(frame(*names[::-1], values=XY[:, ::-1]))), XY)


@pytest.mark.parametrize("names", X_FIRST, ids=",".join)
def test_other_columns_beside_them_do_not_matter(names: tuple[str, str]) -> None:
    whole = frame(*names).assign(in_tissue=1, array_row=np.arange(12), array_col=7)
    np.testing.assert_array_equal(centres_of(placed(whole[["array_row", *names[::-1], "in_tissue", "array_col"]])), XY)


@pytest.mark.parametrize(
    "names", [(0, 1), ("0", "1"), ("spatial_1", "spatial_2"), ("spatial0", "spatial1"), ("dim_1", "dim_2")], ids=str
)
def test_columns_that_are_only_counted_are_an_array(names: tuple[Any, Any]) -> None:
    np.testing.assert_array_equal(centres_of(placed(frame(*names))), XY)


@pytest.mark.parametrize("flat", [0.0, 7.5, np.nan])
def test_a_third_dimension_that_says_nothing(flat: float) -> None:
    thick = np.column_stack([XY, np.full(len(XY), flat)])
    np.testing.assert_array_equal(centres_of(placed(thick)), XY)
    np.testing.assert_array_equal(centres_of(placed(frame("z", "y", "x", values=thick[:, ::-1]))), XY)
    np.testing.assert_array_equal(centres_of(placed(frame(0, 1, 2, values=thick))), XY)


@pytest.mark.parametrize(
    "stored", [XY.astype(int), XY.astype(np.float32), csr_matrix(XY), XY.astype(object), XY.astype(str)]
)
def test_numbers_however_they_are_stored(stored: Any) -> None:
    np.testing.assert_array_equal(centres_of(placed(stored)), XY)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        pytest.param(frame("a", "b"), "columns a, b, which do not say which one is x and which one y; name the pixels", id="names"),
        pytest.param(frame("x", "b"), "columns x, b, which do not say", id="half"),
        pytest.param(frame("x_1", "x_2"), "columns x_1, x_2, which do not say", id="two of x"),
        pytest.param(frame("array_row", "array_col"), "array_row, array_col, which are places on the array", id="array"),
        pytest.param(frame("lat", "lon"), "columns lat, lon, which do not say", id="other names"),
        pytest.param(np.column_stack([XY, XY[:, 0]]), r"shape \(12, 3\); it must be \(n_spots, 2\)", id="thick"),
        pytest.param(XY[:, :1], r"shape \(12, 1\); it must be", id="one column"),
        pytest.param(np.full((12, 2), "a"), "holds entries that are no numbers", id="text"),
    ],
)  # fmt: skip
def test_positions_that_are_refused(positions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        centres_of(placed(positions))


NAMED: list[Any] = [
    *(pytest.param({"obsm": name}, id=name) for name in ("X_spatial", "spatialCoords", "SPATIAL", "spatial_fullres")),
    *(pytest.param({"obs": names}, id=",".join(names)) for names in X_FIRST),
]


@pytest.mark.parametrize("where", NAMED)
def test_the_mend_for_coordinates_elsewhere_works(where: dict[str, Any]) -> None:
    adata = placed(XY)
    del adata.obsm["spatial"]
    if "obsm" in where:
        adata.obsm["X_pca"], adata.obsm[where["obsm"]] = XY[:, ::-1], XY
    else:
        noise = {"x": 7.0, "array_row": 1, "array_col": 2} if where["obs"][0].startswith("pxl") else {}
        adata.obs = adata.obs.assign(**noise | dict(zip(where["obs"], XY.T, strict=True)))
    with pytest.raises(KeyError, match=r"adata has no obsm\['spatial'\]") as caught:
        from_anndata(adata, np.zeros((200, 200, 3), np.uint8))
    exec(caught.value.args[0].rstrip(".").split(": ")[1], {"adata": adata})
    np.testing.assert_array_equal(centres_of(adata), XY)


def test_coordinates_in_uns_alone() -> None:
    adata = placed(XY)
    adata.uns["spatial"] = adata.obsm.pop("spatial")
    with pytest.raises(
        KeyError, match=r"uns\['spatial'\] holds coordinates: adata\.obsm\['spatial'\] = adata\.uns\['spatial'\]"
    ):
        centres_of(adata)


def test_row_first_gives_the_same_circles() -> None:
    plain, named = make(["s1"]), make(["s1"])
    columns = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
    named.obsm["spatial"] = pd.DataFrame(plain.obsm["spatial"][:, ::-1], index=named.obs_names, columns=columns)
    expected, found = from_anndata(plain)["s1"], from_anndata(named)["s1"]
    np.testing.assert_array_equal(found.get_coordinates(), expected.get_coordinates())


@pytest.mark.parametrize(
    ("names", "is_array", "is_found"),
    [
        (("array_row", "array_col"), False, True),
        (("arrayRow", "arrayCol"), False, True),
        (("array row", "array column"), False, True),
        (("row", "col"), True, True),
        (("row", "col"), False, False),
        (("x", "y"), True, False),
    ],
)
@pytest.mark.parametrize("kind", ["int", "float", "str", "category"])
def test_places_on_the_array(names: tuple[str, str], *, is_array: bool, is_found: bool, kind: Any) -> None:
    places = np.array([[0, 4], [7, 1], [3, 3]])
    columns = pd.DataFrame(places, columns=list(names))
    found = array_of(columns.astype(kind), is_array=is_array)
    assert (found is not None) == is_found
    if found is not None:
        np.testing.assert_array_equal(found, places)


def test_unknown_places_on_the_array_are_not_zero() -> None:
    found = array_of(pd.DataFrame({"array_row": [1, None, 3], "array_col": ["2", "", "x"]}), is_array=True)
    np.testing.assert_array_equal(found, [[1, 2], [np.nan, np.nan], [3, np.nan]])
