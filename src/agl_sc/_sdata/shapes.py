"""Shapes, points and labels elements that the spots of a table lie on."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from agl_sc._sdata.geometry import spot_pitch_px
from agl_sc.core.arrays import FloatArray, IntArray

if TYPE_CHECKING:
    import geopandas as gpd
    from spatialdata import SpatialData


def element_of(sdata: "SpatialData", name: str) -> Any:
    """Shapes or points of a region, or the labels of a segmentation."""
    for elements in (sdata.shapes, sdata.points, sdata.labels):
        if name in elements:
            return elements[name]
    there = sorted({*sdata.shapes, *sdata.points, *sdata.labels})
    msg = (
        f"Region {name!r} of the table is none of the shapes, points and labels ({', '.join(there) or 'none'}); name those that are there with "
        "shapes_key=, or keep their rows alone: sdata.tables[name] = table[table.obs[region_key].isin([...])].copy()."
    )
    raise KeyError(msg)


def shapes_of(element: Any) -> Any:
    """Shapes or points as they are; of labels, circles of the same area around the centre of every object."""
    return element if hasattr(element, "columns") else _circles(element)


def find_instances(names: "pd.Index[Any]", instances: "pd.Series[Any]") -> IntArray:
    """Number of every instance among the unique names of an element, -1 where it is none; numbers that became text on one side are found."""
    found: IntArray = names.get_indexer(pd.Index(instances)).astype(np.int64)
    texts = names.astype(str)
    if len(found) and (found < 0).all() and texts.is_unique:
        found = texts.get_indexer(pd.Index(instances.astype(str))).astype(np.int64)
    return found


def _circles(labels: Any) -> "gpd.GeoDataFrame":
    """Of the objects of a segmentation, chunk by chunk, in its own pixels; indexed by their numbers."""
    import geopandas as gpd
    import shapely
    from xarray import DataTree

    finest: Any = next(iter(dict(labels).values())) if isinstance(labels, DataTree) else labels
    array: Any = (next(iter(finest.values())) if isinstance(labels, DataTree) else finest).data
    sums: pd.DataFrame | None = None
    for rows, columns in _chunks(array.chunks):
        numbers = np.asarray(array[rows, columns])
        y, x = np.nonzero(numbers)
        pixels = {"n": 1.0, "x": x + columns.start + 0.5, "y": y + rows.start + 0.5}
        found = pd.DataFrame(pixels, index=numbers[y, x]).groupby(level=0).sum()
        sums = found if sums is None else sums.add(found, fill_value=0.0)
    whole = pd.DataFrame(columns=["n", "x", "y"], dtype=float) if sums is None else sums
    centres = shapely.points(whole["x"] / whole["n"], whole["y"] / whole["n"])
    return gpd.GeoDataFrame({"geometry": centres, "radius": np.sqrt(whole["n"] / np.pi)}, index=whole.index)


def _chunks(sizes: tuple[tuple[int, ...], ...]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every chunk of an array of two dimensions."""
    edges = [np.concatenate([[0], np.cumsum(along)]).tolist() for along in sizes]
    for rows in pairwise(edges[0]):
        for columns in pairwise(edges[1]):
            yield slice(*rows), slice(*columns)


def all_points(element: Any) -> tuple["pd.Index[Any]", FloatArray]:
    """Names and centres (n, 2) of everything in an element, whether the table has a row of it or not; NaN without any."""
    shapes = shapes_of(element)
    if not hasattr(shapes, "geometry"):  # a points element, lazy
        shapes = shapes[["x", "y"]].compute()
        return shapes.index, shapes.to_numpy(dtype=float)
    centroids = shapes.geometry.centroid
    return shapes.index, np.column_stack([centroids.x, centroids.y]).astype(float)


def points_of(shapes: Any, instances: "pd.Series[Any]", name: str) -> tuple[FloatArray, float, float | None]:
    """Centres (n_spots, 2), median radius, and median side of the square each one would be; None of points."""
    is_mask = not hasattr(shapes, "columns")
    shapes = shapes_of(shapes)
    if not hasattr(shapes, "geometry"):  # a points element, lazy
        shapes = shapes[["x", "y"]].compute()
    if not shapes.index.is_unique:
        msg = f"Shapes {name!r} hold several shapes of one name (e.g. {shapes.index[shapes.index.duplicated()][0]!r}); make their index unique."
        raise ValueError(msg)
    found = find_instances(shapes.index, instances)
    missing = found < 0
    if missing.any():
        msg = (
            f"{int(missing.sum())} spots of the table have no shape in {name!r} (e.g. {instances[missing].tolist()[0]!r}, where shapes are named "
            f"{', '.join(map(repr, shapes.index[:2].tolist()))}); drop them from the table, or fix its instance_key."
        )
        raise ValueError(msg)
    rows = shapes.iloc[found]
    if not hasattr(rows, "geometry"):
        centres = rows.to_numpy(dtype=float)
        return centres, spot_pitch_px(centres, "st") / 2, None
    centroids = rows.geometry.centroid
    centres = np.column_stack([centroids.x, centroids.y]).astype(float)
    if "radius" in rows:
        radius = float(np.median(rows["radius"]))
        if not radius > 0:
            msg = f"The median radius of shapes {name!r} is {radius}, which is not positive; mend sdata.shapes[{name!r}]['radius']."
            raise ValueError(msg)
        return centres, radius, radius * np.sqrt(np.pi) if is_mask else 2 * radius  # of a mask the circle has its area
    area = float(np.nanmedian(rows.geometry.area))
    return centres, float(np.sqrt(area / np.pi)), float(np.sqrt(area))
